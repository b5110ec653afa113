"""The results of a race: each contender at each horizon, and the first contender compared with the others."""

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
    """For each horizon and contender: its values, its best values so far, and the first contender compared with it."""
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
    """The comparison of two contenders as a dictionary for ``race.json``."""
    comparison = compare(first, second, lower_is_better)
    return {
        "difference": comparison.difference.mean,
        "difference_standard_error": comparison.difference.standard_error,
        "difference_half_width": comparison.half_width,
        "verdict": comparison.verdict,
    }


def runs_for(plan: Plan, runs: Sequence[Run], contender: str, horizon: int) -> list[Run]:
    """The runs of a contender that are evaluated at a horizon, one for each seed, in the order of the seeds."""
    length = horizon if horizon in plan.runs_of(contender) else plan.horizons[-1]
    serving = [run for run in runs if (run["contender"], run["horizon"]) == (contender, length)]
    return sorted(serving, key=lambda run: run["seed"])


def best_up_to(plan: Plan, run: Run, horizon: int) -> float | None:
    """The best value of a run up to a horizon, which early stopping would keep; None if there is none or it blew up."""
    best = min if plan.loaded.task.lower_is_better else max
    found = [value for step, value in run["curve"] if step <= horizon]
    if not found or (plan.loaded.task.lower_is_better and is_blown_up(best(found), run["initial"])):
        return None
    return best(found)


def others_at(runs: Sequence[Run], horizon: int) -> dict[str, float | None]:
    """The means over the runs of the other numbers that the metric returns, by name."""
    means: dict[str, float | None] = {}
    for name in dict.fromkeys(name for run in runs for name in run["others"]):
        found = [dict(zip(dict(run["curve"]), run["others"].get(name, ()), strict=False)).get(horizon) for run in runs]
        means[name] = estimate(found).mean
    return means


def scheduled_contenders(plan: Plan) -> list[str]:
    """The contenders with a run for each horizon, without the first contender."""
    return [name for name in plan.contenders[1:] if not plan.contender(name).anytime]


def best_schedules(plan: Plan, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The result of the scheduled contender with the best mean at each horizon."""
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
    """For each horizon and anytime contender, the steps to the value that the best schedule reaches at that horizon.

    ``steps`` is interpolated between evaluations, linearly in the logarithm of the step; None if the mean curve never
    reaches the value. ``seconds_ratio`` compares the time of the steps, without evaluations.
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
    """The seconds of a step, without evaluations, in the fastest run, which other programs disturb least."""
    return min(run["seconds_of_steps"] / steps_made(run) for run in runs if run["contender"] == contender)


def steps_made(run: Run) -> int:
    """How many steps a run made: all, unless a number was not finite (a run that only blew up goes on to its end)."""
    last = run["curve"][-1][0] if run["curve"] else 0
    return max(last, run["diverged_at"] or run["horizon"])


def mean_curve(runs: Sequence[Run]) -> list[tuple[int, float]]:
    """The mean over the seeds, as pairs (step, mean), at the steps at which all runs were evaluated."""
    curves = [dict(run["curve"]) for run in runs]
    steps = sorted(set[int].intersection(*({*curve} for curve in curves)))
    return [(step, fmean(curve[step] for curve in curves)) for step in steps]


def first_crossing(curve: Sequence[tuple[int, float]], target: float, lower_is_better: bool) -> float | None:
    """The step at which a curve first reaches a target, interpolated; None if it never does."""
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
    """The mean over the tuning seeds for each anytime contender, each learning rate tried and each horizon."""
    return [
        {name: score[name] for name in ("contender", "lr", "horizon", "mean")}
        for score in tuned.scores
        if score["contender"] in plan.contenders and plan.contender(score["contender"]).anytime
    ]
