"""One learning rate for all tasks, compared with rates tuned for each task and horizon."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unscheduled.lab.execution import Job
from unscheduled.lab.plan import Plan
from unscheduled.lab.statistics import geometric_mean
from unscheduled.lab.tuning import tuning_jobs

RATES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
CONTENDERS = ("schedule-free", "schedule-free-r1", "cosine")
SCHEDULES = ("cosine", "linear", "step", "wsd")

Record = Mapping[str, Any]
Scores = Mapping[tuple[str, int], Mapping[float, float | None]]


def one_setting_jobs(plan: Plan) -> list[Job]:
    """The jobs that try each of ``RATES`` with each of ``CONTENDERS`` that races."""
    raced = [name for name in CONTENDERS if name in plan.contenders]
    return tuning_jobs(plan, {(name, length): RATES for name in raced for length in plan.runs_of(name)})


def one_setting(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """For each contender and learning rate, the ratio of its loss to that of the best schedule, on the tuning seeds.

    The ratio is the geometric mean over the horizons of all tasks that are neither convex nor long; the best schedule
    is the one with the lowest loss at its best rate for each horizon. The ratio is None if the contender diverges
    anywhere. Tasks on which not all of the rates were tried are left out.
    """
    every = {name: scores_of(record) for name, record in records.items() if record["entry"]["length"] == 1}
    scores = {
        name: own
        for name, own in every.items()
        if all(
            {*RATES} <= own.get((contender, horizon), {}).keys()
            for contender in CONTENDERS
            for horizon in records[name]["horizons"]
        )
    }
    rows: list[dict[str, Any]] = []
    for contender in CONTENDERS:
        for rate in (None, *RATES):
            ratios = {
                name: [ratio_at(own, contender, horizon, rate) for horizon in records[name]["horizons"]]
                for name, own in scores.items()
            }
            tasks = {name: geometric_mean(finite) for name, each in ratios.items() if (finite := all_finite(each))}
            complete = bool(tasks) and len(tasks) == len(ratios)
            mean = geometric_mean(list(tasks.values())) if complete else None
            rows.append({"contender": contender, "lr": rate, "ratio": mean, "tasks": tasks})
    return rows


def scores_of(record: Record) -> Scores:
    """The mean by learning rate, for each contender and horizon of a race."""
    scores: dict[tuple[str, int], dict[float, float | None]] = {}
    for score in record["tuning_scores"]:
        scores.setdefault((score["contender"], score["horizon"]), {})[score["lr"]] = score["mean"]
    return scores


def ratio_at(scores: Scores, contender: str, horizon: int, rate: float | None) -> float | None:
    """The loss at this rate (None: at the best rate) over the lowest loss of all schedules; None if either diverged."""
    best = min(
        (
            value
            for name in SCHEDULES
            for value in scores.get((name, horizon), {}).values()
            if value is not None and value > 0.0
        ),
        default=None,
    )
    if best is None:
        return None
    own = scores.get((contender, horizon), {})
    if rate is not None:
        value = own.get(rate)
        return None if value is None else value / best
    finite = [value for value in own.values() if value is not None]
    return min(finite) / best if finite else None


def all_finite(values: Sequence[float | None]) -> list[float]:
    """The values if all are finite and above 0, else an empty list."""
    finite = [value for value in values if value is not None and 0.0 < value < math.inf]
    return finite if len(finite) == len(values) else []
