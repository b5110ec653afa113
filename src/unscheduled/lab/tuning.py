"""Tunes the learning rates of a race on grids that widen, with other seeds than those of the race."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unscheduled.lab.execution import Job, Runner
from unscheduled.lab.plan import Plan
from unscheduled.lab.provenance import machine, versions
from unscheduled.lab.run import is_blown_up
from unscheduled.lab.statistics import estimate
from unscheduled.lab.task import LoadedTask, RaceError

TUNING_SEEDS = (1000, 1001)
TUNING_FILE = "tuning.json"
WIDEST = 12
"""The largest number of learning rates to which a grid widens."""

Cell = tuple[str, int]
"""The name of a contender and the length in steps of one of its runs."""


@dataclass(frozen=True)
class TunedRates:
    """The tuned learning rates of contenders.

    Args:
        choices: for each contender, the chosen rate for every horizon at which it was tuned, with the file it is from.
        scores: for each learning rate tried: contender, length, horizon, mean.
    """

    choices: Mapping[str, Sequence[Mapping[str, Any]]]
    scores: Sequence[Mapping[str, Any]]

    def choice(self, contender: str, horizon: int) -> Mapping[str, Any]:
        """The choice for a contender at the tuned horizon that is nearest to this horizon in the logarithm."""
        return min(self.choices[contender], key=lambda choice: abs(math.log(choice["horizon"] / horizon)))

    def without(self, contenders: Sequence[str]) -> list[str]:
        """The contenders among these that are not tuned."""
        return [name for name in contenders if name not in self.choices]

    def joined(self, other: "TunedRates") -> "TunedRates":
        """These rates, and the other rates of contenders that have none here."""
        more = [score for score in other.scores if score["contender"] not in self.choices]
        return TunedRates({**other.choices, **self.choices}, [*self.scores, *more])


def read_rates(plan: Plan, out: Path, shipped: bool = True) -> TunedRates:
    """Read the tuned learning rates of a race from its output folder and from the file shipped with the task.

    Rates in the output folder come first, and only count if they were tuned for the present version of the task.

    Args:
        plan: the race.
        out: the output folder.
        shipped: whether to read the shipped file, whose rates are tuned for the task's own number of steps.

    Raises:
        RaceError: if a file is no tuning file.
    """
    found = TunedRates({}, [])
    own = out / TUNING_FILE
    for file in (own, plan.loaded.tuning_file) if shipped else (own,):
        if file.is_file():
            try:
                record = json.loads(file.read_text())
                if file != own or record["task"]["source_sha256"] == plan.loaded.source_sha256:
                    found = found.joined(rates_in(record, file.name))
            except (ValueError, TypeError, KeyError) as error:
                raise RaceError(f"{file} is no tuning file ({error}): remove it, or tune with --tune") from error
    return found


def rates_in(record: Mapping[str, Any], file: str) -> TunedRates:
    """The rates in the contents of a tuning file; ``file`` is the file's name."""
    choices: dict[str, list[Mapping[str, Any]]] = {}
    for choice in record["chosen"]:
        needed = {name: choice[name] for name in ("contender", "horizon", "lr", "edge_of_grid", "best_at")}
        choices.setdefault(choice["contender"], []).append({**needed, "file": file})
    return TunedRates(choices, record["scores"])


def with_earlier(record: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The contents of a tuning file, joined with those of an earlier file of the same task for other contenders."""
    try:
        earlier = json.loads(file.read_text())
        if earlier["task"]["source_sha256"] != record["task"]["source_sha256"]:
            return dict(record)
        others = {name: each for name, each in earlier["contenders"].items() if name not in record["contenders"]}
        return {
            **record,
            "contenders": {**record["contenders"], **others},
            **{
                name: [*record[name], *(each for each in earlier[name] if each["contender"] in others)]
                for name in ("chosen", "scores")
            },
        }
    except (OSError, ValueError, TypeError, KeyError):
        return dict(record)


def tuning_jobs(plan: Plan, cells: Mapping[Cell, Sequence[float]]) -> list[Job]:
    """The jobs that try these learning rates, evaluated at the horizons only."""
    return [
        Job(
            plan.loaded,
            plan.settings(contender, length, lr, seed, [step for step in plan.horizons if step <= length]),
            plan.seconds_per_step,
        )
        for (contender, length), rates in cells.items()
        for lr in rates
        for seed in TUNING_SEEDS
    ]


def first_grids(plan: Plan, contenders: Sequence[str]) -> dict[Cell, list[float]]:
    """The grids of learning rates with which the tuning of these contenders begins."""
    return {(name, length): plan.grid(name) for name in contenders for length in plan.runs_of(name)}


def tune(plans: Mapping[Plan, Sequence[str]], runner: Runner) -> dict[Plan, dict[str, Any]]:
    """Tune the learning rates of these contenders of each plan, and return the contents of a tuning file for each plan.

    A grid whose best rate is at an end is continued at that end by its own ratio, until the best rate lies inside or
    the grid has ``WIDEST`` rates. A contender with a run for each horizon gets a rate for each; a contender with one
    run gets the rate with the best mean of the logarithm of the metric over the horizons.
    """
    grids = {plan: first_grids(plan, contenders) for plan, contenders in plans.items()}
    pending = {plan: dict(cells) for plan, cells in grids.items()}
    scores: dict[Plan, list[dict[str, Any]]] = {plan: [] for plan in plans}
    while any(pending.values()):
        jobs = {plan: tuning_jobs(plan, cells) for plan, cells in pending.items()}
        results = iter(runner.run([job for each in jobs.values() for job in each], "tuning"))
        for plan, own in jobs.items():
            scores[plan] += scores_of(plan, [next(results) for _ in own])
        pending = {plan: widened(plan, cells, scores[plan]) for plan, cells in grids.items()}
        for plan, cells in pending.items():
            for cell, rates in cells.items():
                grids[plan][cell] = sorted({*grids[plan][cell], *rates})
    return {
        plan: {
            **plan.record(),
            "purpose": "tuning of the learning rates",
            "seeds": list(TUNING_SEEDS),
            "chosen": [choose(plan, scores[plan], *cell) for cell in cells],
            "scores": scores[plan],
            "versions": versions(),
            "machine": machine(),
        }
        for plan, cells in grids.items()
    }


def scores_of(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each learning rate and each horizon of its run, the values of the tuning seeds and their mean."""
    scores: list[dict[str, Any]] = []
    for index in range(0, len(runs), len(TUNING_SEEDS)):
        same = runs[index : index + len(TUNING_SEEDS)]
        contender, length, lr = (same[0][name] for name in ("contender", "horizon", "lr"))
        for horizon in plan.horizons_of(contender, length):
            values = [value_at(plan.loaded, run, horizon) for run in same]
            score = {"contender": contender, "length": length, "horizon": horizon, "lr": lr}
            scores.append({**score, "values": values, "mean": estimate(values).mean})
    return scores


def widened(
    plan: Plan, cells: Mapping[Cell, Sequence[float]], scores: Sequence[Mapping[str, Any]]
) -> dict[Cell, list[float]]:
    """For each grid whose best rate is at an end, one more learning rate beyond that end."""
    more: dict[Cell, list[float]] = {}
    for cell, rates in cells.items():
        if not 1 < len(rates) < WIDEST:
            continue
        best = choose(plan, scores, *cell)
        if best["edge_of_grid"] == "lowest":
            more[cell] = [rounded(rates[0] ** 2 / rates[1])]
        elif best["edge_of_grid"] == "highest":
            more[cell] = [rounded(rates[-1] ** 2 / rates[-2])]
    return more


def rounded(rate: float) -> float:
    """The rate to six digits, so that a grid has the same numbers whether it widens up or down."""
    return float(f"{rate:.6g}")


def choose(plan: Plan, scores: Sequence[Mapping[str, Any]], contender: str, length: int) -> dict[str, Any]:
    """The best learning rate for a run, the end of the grid at which it lies (or None), and the best rate by horizon.

    If every learning rate diverged, it is the lowest rate.
    """
    own = [score for score in scores if (score["contender"], score["length"]) == (contender, length)]
    rates = sorted({score["lr"] for score in own})
    means = {lr: [score["mean"] for score in own if score["lr"] == lr] for lr in rates}
    sign = 1.0 if plan.loaded.task.lower_is_better else -1.0
    finite = {lr: values for lr, values in means.items() if None not in values}
    logarithm = math.log if all(value > 0.0 for values in finite.values() for value in values) else float
    costs = {lr: sign * math.fsum(map(logarithm, values)) for lr, values in finite.items()}
    best = min(costs, key=lambda lr: costs[lr]) if costs else rates[0]
    edge = {rates[0]: "lowest", rates[-1]: "highest"}.get(best) if len(rates) > 1 else None
    return {
        "contender": contender,
        "horizon": length,
        "lr": best,
        "edge_of_grid": edge,
        "best_at": {str(horizon): best_at(own, horizon, sign) for horizon in plan.horizons_of(contender, length)},
    }


def best_at(scores: Sequence[Mapping[str, Any]], horizon: int, sign: float) -> dict[str, Any] | None:
    """The learning rate that is best at this horizon alone, and its mean; None if all diverged."""
    finite = [score for score in scores if score["horizon"] == horizon and score["mean"] is not None]
    if not finite:
        return None
    best = min(finite, key=lambda score: sign * score["mean"])
    return {"lr": best["lr"], "mean": best["mean"]}


def value_at(loaded: LoadedTask, run: Mapping[str, Any], step: int) -> float | None:
    """The metric of a run at a step; None if it had diverged by then."""
    value = dict(run["curve"]).get(step)
    if value is None or (loaded.task.lower_is_better and is_blown_up(value, run["initial"])):
        return None
    return value
