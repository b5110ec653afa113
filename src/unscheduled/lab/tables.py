"""The tables of a race, for the terminal and for the page: lists of rows, the header first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unscheduled.lab.statistics import Estimate

LONG = 4
"""With more contenders than this each contender has a row of the table, else a column."""


@dataclass(frozen=True)
class Cell:
    """One contender at one horizon: its mean, and the verdict and difference of the first contender ("" for itself)."""

    mean: str
    verdict: str = ""
    difference: str = ""


Row = list[str | Cell]
Record = Mapping[str, Any]


def number(value: float | None, missing: str = "diverged") -> str:
    """A number as text with four significant digits, or ``missing`` if it is None."""
    return missing if value is None else f"{value:.4g}"


def per_cent(ratio: float) -> str:
    """A ratio as text, in whole per cent."""
    return f"{100.0 * ratio:.0f}%"


def cell(result: Mapping[str, Any]) -> Cell:
    """The cell of a result; its difference has no more decimals than its mean."""
    mean = Estimate(result["mean"], result["standard_error"])
    if "verdict" not in result:
        return Cell(str(mean))
    difference = Estimate(result["difference"], result["difference_standard_error"])
    shown = "" if difference.mean is None else difference.shown("+", most_decimals=mean.decimals())
    return Cell(str(mean), result["verdict"], shown)


def is_long(record: Record) -> bool:
    """Whether each contender has a row of the table, since there are more than ``LONG``."""
    return len(record["contenders"]) > LONG


def by_horizon(record: Record, cells: list[list[str | Cell]]) -> list[Row]:
    """A table of cells given by horizon and contender: a row for each horizon, or for each of many contenders."""
    rows: list[Row] = [["steps", *record["contenders"]]]
    rows += [[f"{horizon:,}", *row] for horizon, row in zip(record["horizons"], cells, strict=True)]
    return [list(column) for column in zip(*rows, strict=True)] if is_long(record) else rows


def results_at(record: Record, horizon: int) -> list[Mapping[str, Any]]:
    """The results at a horizon, in the order of the contenders."""
    return [result for result in record["results"] if result["horizon"] == horizon]


def results_table(record: Record) -> list[Row]:
    """The table of the means and comparisons of each contender at each horizon."""
    return by_horizon(record, [[cell(result) for result in results_at(record, h)] for h in record["horizons"]])


def early_stopping_table(record: Record) -> list[Row]:
    """The table of ``results_table`` with the best value up to each horizon in place of the value at it."""
    return by_horizon(
        record, [[cell(result["best_so_far"]) for result in results_at(record, h)] for h in record["horizons"]]
    )


def other_metrics(record: Record) -> dict[str, list[Row]]:
    """The table of the means of each other number of the metric, by its name."""
    names = dict.fromkeys(name for result in record["results"] for name in result["others"])
    return {
        name: by_horizon(
            record,
            [[number(result["others"].get(name)) for result in results_at(record, h)] for h in record["horizons"]],
        )
        for name in names
    }


def rates_table(record: Record) -> list[Row]:
    """The table of the learning rate and warmup of each run, and of the file with the tuned rate."""
    rows: list[Row] = [["contender", "run of steps", "steps of warmup", "learning rate", "tuned at", "file"]]
    for rate in record["learning_rates"]:
        edge = f" ({rate['edge_of_grid']} of the grid)" if rate["edge_of_grid"] else ""
        rows.append(
            [
                rate["contender"],
                f"{rate['horizon']:,}",
                f"{rate['warmup_steps']:,}",
                f"{rate['lr']:g}{edge}",
                f"{rate['tuned_at_horizon']:,}",
                rate["file"],
            ]
        )
    return rows


def sensitivity_tables(record: Record) -> dict[str, list[Row]]:
    """For each anytime contender, the table of its means by learning rate tried and horizon."""
    tables: dict[str, list[Row]] = {}
    for name in dict.fromkeys(score["contender"] for score in record["sensitivity"]):
        own = {
            (score["lr"], score["horizon"]): score["mean"]
            for score in record["sensitivity"]
            if score["contender"] == name
        }
        horizons = sorted({horizon for _, horizon in own})
        rows: list[Row] = [["learning rate", *(f"{horizon:,}" for horizon in horizons)]]
        rows.extend(
            [f"{lr:g}", *(number(own.get((lr, horizon))) for horizon in horizons)]
            for lr in sorted({lr for lr, _ in own})
        )
        if len(rows) > 2:  # a contender that is not tuned has only one rate
            tables[name] = rows
    return tables


def one_rate_table(record: Record) -> list[Row]:
    """The table of the cost of an anytime contender's one learning rate, against the best rate at each horizon."""
    rows: list[Row] = [["contender", "steps", "best rate there", "with it", "with the one rate", "one rate", "cost"]]
    means = {(s["contender"], s["lr"], s["horizon"]): s["mean"] for s in record["sensitivity"]}
    sign = 1.0 if record["task"]["lower_is_better"] else -1.0
    for rate in record["learning_rates"]:
        name = rate["contender"]
        if name not in sensitivity_tables(record):
            continue
        for horizon, best in rate["best_at"].items():
            mean = means[name, rate["lr"], int(horizon)]
            if best is None or mean is None:
                continue
            cost = f"{100.0 * sign * (mean - best['mean']) / abs(best['mean']):.1f}%" if best["mean"] else ""
            shown = [f"{best['lr']:g}", number(best["mean"]), number(mean), f"{rate['lr']:g}", cost]
            rows.append([name, f"{int(horizon):,}", *shown])
    return rows


def targets_table(record: Record) -> list[Row]:
    """The table of the steps after which each anytime contender reaches the best schedule's value at each horizon."""
    rows: list[Row] = [["contender", "schedule", "its value", "its steps", "steps", "share of steps", "share of time"]]
    for target in record["steps_to_target"]:
        reached: list[str] = ["never", "", ""]
        if target["steps"] is not None:
            ratios = (target["steps_ratio"], target["seconds_ratio"])
            reached = [f"{target['steps']:,.0f}", *map(per_cent, ratios)]
        start = [target["contender"], target["schedule"], number(target["target"]), f"{target['horizon']:,}"]
        rows.append([*start, *reached])
    return rows
