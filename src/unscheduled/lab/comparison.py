"""What the runs of a race say: each contender at each horizon, and the first one beside the others."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from unscheduled.lab.plan import Plan
from unscheduled.lab.run import is_blown_up
from unscheduled.lab.statistics import compare, estimate
from unscheduled.lab.tuning import TunedRates, value_at

Run = Mapping[str, Any]


def compare_all(plan: Plan, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each horizon and contender: its values, the best on the way, and how the first contender compares with it."""
    results: list[dict[str, Any]] = []
    lower = plan.loaded.task.lower_is_better
    for horizon in plan.horizons:
        serving = {name: runs_for(plan, runs, name, horizon) for name in plan.contenders}
        values = {name: [value_at(plan.loaded, run, horizon) for run in each] for name, each in serving.items()}
        best = {name: [best_up_to(plan, run, horizon) for run in each] for name, each in serving.items()}
        first = plan.contenders[0]
        for name in plan.contenders:
            result: dict[str, Any] = {
                "horizon": horizon,
                "contender": name,
                "values": values[name],
                **named(estimate(values[name]).mean, estimate(values[name]).standard_error),
                "others": others_at(serving[name], horizon),
                "best_so_far": named(estimate(best[name]).mean, estimate(best[name]).standard_error),
            }
            if name != first:
                result |= compared(values[first], values[name], lower)
                result["best_so_far"] |= compared(best[first], best[name], lower)
            results.append(result)
    return results


def named(mean: float | None, standard_error: float | None) -> dict[str, Any]:
    return {"mean": mean, "standard_error": standard_error}


def compared(first: Sequence[float | None], second: Sequence[float | None], lower_is_better: bool) -> dict[str, Any]:
    """The comparison of two contenders, as a race states it."""
    comparison = compare(first, second, lower_is_better)
    return {
        "difference": comparison.difference.mean,
        "difference_standard_error": comparison.difference.standard_error,
        "difference_half_width": comparison.half_width,
        "verdict": comparison.verdict,
    }


def runs_for(plan: Plan, runs: Sequence[Run], contender: str, horizon: int) -> list[Run]:
    """The runs that serve a horizon, a run for each seed."""
    length = horizon if horizon in plan.runs_of(contender) else plan.horizons[-1]
    serving = [run for run in runs if (run["contender"], run["horizon"]) == (contender, length)]
    return sorted(serving, key=lambda run: run["seed"])


def best_up_to(plan: Plan, run: Run, horizon: int) -> float | None:
    """The best value on the way to a horizon: what early stopping would have kept."""
    best = min if plan.loaded.task.lower_is_better else max
    found = [value for step, value in run["curve"] if step <= horizon]
    if not found or (plan.loaded.task.lower_is_better and is_blown_up(best(found), run["initial"])):
        return None
    return best(found)


def others_at(runs: Sequence[Run], horizon: int) -> dict[str, float | None]:
    """The means of the other numbers of the metric."""
    means: dict[str, float | None] = {}
    for name in dict.fromkeys(name for run in runs for name in run["others"]):
        found = [dict(zip(dict(run["curve"]), run["others"].get(name, ()), strict=False)).get(horizon) for run in runs]
        means[name] = estimate(found).mean
    return means


def scheduled_contenders(plan: Plan) -> list[str]:
    """Those with a run for each horizon, beside the first contender."""
    return [name for name in plan.contenders[1:] if not plan.contender(name).anytime]


def best_schedules(plan: Plan, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """At each horizon the scheduled contender with the best mean, and how the first contender compares with it."""
    best: list[dict[str, Any]] = []
    sign = 1.0 if plan.loaded.task.lower_is_better else -1.0
    for horizon in plan.horizons:
        found = [
            result
            for result in results
            if result["horizon"] == horizon
            and result["contender"] in scheduled_contenders(plan)
            and result["mean"] is not None
        ]
        if found:
            best.append(dict(min(found, key=lambda result: sign * result["mean"])))
    return best


def steps_to_target(plan: Plan, runs: Sequence[Run], best: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each anytime contender, when its mean curve reaches what the best schedule has at the end of each horizon.

    ``steps`` is interpolated between evaluations, evenly in the logarithm of the step; None if the run never gets
    there. ``seconds`` counts the steps only, no evaluations.
    """
    targets: list[dict[str, Any]] = []
    for schedule in best:
        horizon = schedule["horizon"]
        seconds = horizon * seconds_per_step(runs, schedule["contender"])
        for name in plan.contenders:
            if not plan.contender(name).anytime:
                continue
            own = runs_for(plan, runs, name, plan.horizons[-1])
            steps = first_crossing(mean_curve(own), schedule["mean"], plan.loaded.task.lower_is_better)
            targets.append(
                {
                    "horizon": horizon,
                    "contender": name,
                    "schedule": schedule["contender"],
                    "target": schedule["mean"],
                    "steps": steps,
                    "steps_ratio": None if steps is None else steps / horizon,
                    "seconds_ratio": None if steps is None else steps * seconds_per_step(runs, name) / seconds,
                }
            )
    return targets


def seconds_per_step(runs: Sequence[Run], contender: str) -> float:
    """The time of a step, without evaluations: in the fastest run, since other programs slow the others down."""
    return min(run["seconds_of_steps"] / steps_made(run) for run in runs if run["contender"] == contender)


def steps_made(run: Run) -> int:
    """By a run: to its end, unless a number was not finite; one that only blew up has values to its end."""
    last = run["curve"][-1][0] if run["curve"] else 0
    return max(last, run["diverged_at"] or run["horizon"])


def mean_curve(runs: Sequence[Run]) -> list[tuple[int, float]]:
    """The mean over the seeds at every step at which all were evaluated."""
    curves = [dict(run["curve"]) for run in runs]
    steps = sorted(set[int].intersection(*({*curve} for curve in curves)))
    return [(step, fmean(curve[step] for curve in curves)) for step in steps]


def first_crossing(curve: Sequence[tuple[int, float]], target: float, lower_is_better: bool) -> float | None:
    """The step at which a curve first reaches a target."""
    sign = 1.0 if lower_is_better else -1.0
    before: tuple[int, float] | None = None
    for step, value in curve:
        if sign * (value - target) <= 0.0:
            if before is None:
                return float(step)
            share = (before[1] - target) / (before[1] - value) if before[1] != value else 1.0
            return math.exp(math.log(before[0]) + share * math.log(step / before[0]))
        before = (step, value)
    return None


def sensitivity(plan: Plan, tuned: TunedRates) -> list[dict[str, Any]]:
    """For each anytime contender, each learning rate that was tried and each horizon: the mean of the tuning seeds."""
    return [
        {name: score[name] for name in ("contender", "lr", "horizon", "mean")}
        for score in tuned.scores
        if score["contender"] in plan.contenders and plan.contender(score["contender"]).anytime
    ]
