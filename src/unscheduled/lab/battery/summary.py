"""The summary of all races of the battery; a cell is one task at one horizon."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unscheduled.lab.battery.entries import PAPER_CONVEX
from unscheduled.lab.battery.one_setting import one_setting
from unscheduled.lab.comparison import first_crossing, mean_curve
from unscheduled.lab.statistics import compare, geometric_mean

NEVER = 2.0
"""A run that does not reach its target within the budget counts as if it took this many budgets."""
LITTLE = 0.01
"""A loss within this share of another counts as equally good."""
ADAMW_SCHEDULES = ("cosine", "linear", "step", "wsd")
CHAMPIONS = {
    "schedule-free": ADAMW_SCHEDULES,
    "schedule-free-r1": ADAMW_SCHEDULES,
    "polyak-ruppert": ADAMW_SCHEDULES,
    "primal": ADAMW_SCHEDULES,
    "river": ADAMW_SCHEDULES,
    "plus": ADAMW_SCHEDULES,
    "distance": ADAMW_SCHEDULES,
    "constant": ADAMW_SCHEDULES,
    "muon-r1": (*ADAMW_SCHEDULES, "muon-linear"),
    "amuse-slow": (*ADAMW_SCHEDULES, "muon-linear"),
    "sgd": ("sgd-cosine", "sgd-step"),
    "sgd-r1": ("sgd-cosine", "sgd-step"),
}
"""The contenders with one run for all horizons, each with the schedules with which it is compared."""
GROUPS = ("deep", "convex", "long")

Record = Mapping[str, Any]


def summary(records: Mapping[str, Record]) -> dict[str, Any]:
    """The contents of ``battery.json``, from the race of each task by its name."""
    cells = [cell for name, record in records.items() for cell in cells_of(name, record)]
    return {
        "tasks": {name: {**record["entry"], "task": record["task"]["name"]} for name, record in records.items()},
        "never": NEVER,
        "totals": totals(cells),
        "cells": cells,
        "convex": convex(records),
        "one_setting": one_setting(records),
        "windows": [window for name, record in records.items() for window in windows_of(name, record)],
        "seconds_of_training": sum(record["seconds_of_training"] for record in records.values()),
        "versions": next(iter(records.values()))["versions"],
        "machine": next(iter(records.values()))["machine"],
    }


def cells_of(name: str, record: Record) -> list[dict[str, Any]]:
    """For each champion that raced and each horizon, its comparison with the best schedule tuned for the horizon."""
    cells: list[dict[str, Any]] = []
    results = {(result["contender"], result["horizon"]): result for result in record["results"]}
    for champion, schedules in CHAMPIONS.items():
        if champion not in record["contenders"]:
            continue
        curve = mean_curve(runs_of(record, champion, record["horizons"][-1]))
        for horizon in record["horizons"]:
            raced = [results[schedule, horizon] for schedule in schedules if schedule in record["contenders"]]
            finished = [result for result in raced if result["mean"] is not None]
            if not finished:
                continue
            best = min(finished, key=lambda result: result["mean"])
            own = results[champion, horizon]
            steps = first_crossing(curve, best["mean"], lower_is_better=True)
            comparison = compare(own["values"], best["values"])
            cells.append(
                {
                    "task": name,
                    "kind": record["entry"]["kind"],
                    "group": group_of(record),
                    "horizon": horizon,
                    "contender": champion,
                    "mean": own["mean"],
                    "schedule": best["contender"],
                    "schedule_mean": best["mean"],
                    "ratio": None if own["mean"] is None else own["mean"] / best["mean"],
                    "verdict": comparison.verdict,
                    "difference": comparison.difference.mean,
                    "difference_half_width": comparison.half_width,
                    "steps_ratio": None if steps is None else steps / horizon,
                    "budget_ratio": record["horizons"][-1] / horizon,
                    "early": early_stopping(record, champion, [result["contender"] for result in finished], horizon),
                }
            )
    return cells


def early_stopping(record: Record, champion: str, schedules: Sequence[str], horizon: int) -> dict[str, Any]:
    """The comparison of a champion with the best schedule by their best values up to a horizon."""
    values = {name: best_values(record, name, horizon) for name in (champion, *schedules)}
    best = min(schedules, key=lambda name: math.fsum(values[name]))
    own, other = math.fsum(values[champion]), math.fsum(values[best])
    ratio = own / other if math.isfinite(own) and math.isfinite(other) else None
    return {"schedule": best, "ratio": ratio, "verdict": compare(values[champion], values[best]).verdict}


def best_values(record: Record, contender: str, horizon: int) -> list[float]:
    """The lowest value of a contender up to a horizon for each seed; infinite if there is no value."""
    runs = runs_of(record, contender, horizon) or runs_of(record, contender, record["horizons"][-1])
    curves = [run["curve"] for run in sorted(runs, key=lambda run: run["seed"])]
    return [min((value for step, value in curve if step <= horizon), default=math.inf) for curve in curves]


def runs_of(record: Record, contender: str, length: int) -> list[Record]:
    """The runs of a contender that have this length in steps."""
    return [run for run in record["runs"] if (run["contender"], run["horizon"]) == (contender, length)]


def totals(cells: Sequence[Record]) -> list[dict[str, Any]]:
    """The totals of each champion over the deep tasks, the convex tasks and the long runs."""
    return [
        {"contender": champion, "group": group, **total_of(own)}
        for champion in CHAMPIONS
        for group in GROUPS
        if (own := [cell for cell in cells if (cell["contender"], cell["group"]) == (champion, group)])
    ]


def group_of(record: Record) -> str:
    """The group in which a task is counted: "convex", "long" or "deep"."""
    if record["entry"]["kind"] == "convex":
        return "convex"
    return "long" if record["entry"]["length"] > 1 else "deep"


def total_of(cells: Sequence[Record]) -> dict[str, Any]:
    """The counts of the verdicts in cells, and the geometric means of the loss ratio and of the steps ratio.

    The loss ratio leaves out cells in which the contender diverged; these count as worse.
    """
    count = {kind: sum(cell["verdict"] == kind for cell in cells) for kind in ("better", "tie", "worse")}
    ratios = [cell["ratio"] for cell in cells if cell["ratio"] is not None and cell["ratio"] > 0.0]
    steps = [cell["steps_ratio"] or NEVER * cell["budget_ratio"] for cell in cells]
    return {
        "cells": len(cells),
        **count,
        "not_worse": (count["better"] + count["tie"]) / len(cells),
        "early_not_worse": sum(cell["early"]["verdict"] in ("better", "tie") for cell in cells) / len(cells),
        "within": sum(is_within(cell) for cell in cells) / len(cells),
        "diverged": sum(cell["mean"] is None for cell in cells),
        "loss_ratio": geometric_mean(ratios) if ratios else None,
        "steps_ratio": geometric_mean(steps),
        "never_reached": sum(cell["steps_ratio"] is None for cell in cells),
    }


def is_within(cell: Record) -> bool:
    """Whether the upper end of the 95% interval of the loss is at most 1% above the loss of the schedule."""
    if cell["difference"] is None or cell["difference_half_width"] is None:
        return False
    return cell["difference"] + cell["difference_half_width"] <= LITTLE * cell["schedule_mean"]


def convex(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """The final training accuracy on each convex task, and the accuracy in the paper."""
    rows: list[dict[str, Any]] = []
    for name, record in records.items():
        if record["entry"]["kind"] == "convex":
            last = record["horizons"][-1]
            found = {
                result["contender"]: result["others"].get("accuracy")
                for result in record["results"]
                if result["horizon"] == last
            }
            data_set = name.removeprefix("logistic-")
            rows.append({"set": data_set, "accuracy": found, "paper": PAPER_CONVEX.get(data_set)})
    return rows


def windows_of(name: str, record: Record, tolerance: float = LITTLE) -> list[dict[str, Any]]:
    """For each contender, the factor by which its learning rate may vary within 1% of the best loss at the end."""
    windows: list[dict[str, Any]] = []
    last = record["horizons"][-1]
    for contender in record["contenders"]:
        scores = {
            score["lr"]: math.inf if score["mean"] is None else score["mean"]
            for score in record["tuning_scores"]
            if (score["contender"], score["horizon"], score.get("length", last)) == (contender, last, last)
        }
        if len(scores) > 1 and 0.0 < min(scores.values()) < math.inf:
            factor, is_open = window(scores, tolerance)
            windows.append({"task": name, "contender": contender, "factor": factor, "open": is_open})
    return windows


def window(scores: Mapping[float, float], tolerance: float) -> tuple[float, bool]:
    """The ratio of the highest to the lowest learning rate whose loss is within the tolerance of the best.

    Between the rates tried, the logarithm of the loss is interpolated linearly in the logarithm of the rate; the window
    ends next to a rate that diverged. The second value is whether an end of the window is an end of the grid.
    """
    rates = sorted(scores)
    limit = min(scores.values()) * (1.0 + tolerance)
    best = rates.index(min(rates, key=lambda rate: scores[rate]))
    ends: list[float] = []
    is_open = False
    for direction in (-1, 1):
        position = best
        while 0 <= position + direction < len(rates) and scores[rates[position + direction]] <= limit:
            position += direction
        end = math.log(rates[position])
        if not 0 <= position + direction < len(rates):
            is_open = True
        elif math.isfinite(beyond := scores[rates[position + direction]]):
            share = math.log(limit / scores[rates[position]]) / math.log(beyond / scores[rates[position]])
            end += share * math.log(rates[position + direction] / rates[position])
        ends.append(end)
    return math.exp(ends[1] - ends[0]), is_open
