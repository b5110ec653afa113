"""The time that a race takes, estimated from a short trial run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from unscheduled.lab.plan import Plan
from unscheduled.lab.progress import duration
from unscheduled.lab.race import learning_rates, race_jobs, steps_of_race
from unscheduled.lab.run import RunSettings, train
from unscheduled.lab.task import RaceError, describe_error
from unscheduled.lab.tuning import TunedRates, first_grids, tuning_jobs

TRIAL_STEPS = 16


@dataclass(frozen=True)
class Forecast:
    """The runs that are still to be made, and the approximate time that they take.

    Args:
        runs: how many runs are not on disk yet.
        steps: the sum of their steps.
        seconds: their time on one core.
        tuned: whether all learning rates are known; otherwise a grid may widen, which takes longer.
    """

    runs: int
    steps: int
    seconds: float
    tuned: bool

    def shown(self, jobs: int) -> str:
        """The forecast as one line of text, for this many runs side by side."""
        least = "" if self.tuned else "at least "
        cores = "one core" if jobs == 1 else f"{jobs} cores"
        return f"{self.runs:,} runs, {self.steps:,} steps: {least}{duration(self.seconds / jobs)} on {cores}"


def with_trial(plan: Plan) -> Plan:
    """The plan with the time of a step, evaluations included, measured in a short run of its first contender."""
    length = min(TRIAL_STEPS, plan.horizons[-1])
    contender = plan.contenders[0]
    settings = plan.settings(contender, length, plan.grid(contender)[0], seed=0, evaluate_at=(length,))
    torch.set_num_threads(1)
    seconds_per_step, seconds_per_evaluation = min(timed(plan, settings) for _ in range(2))  # the first one compiles
    evaluations = len(plan.evaluation_steps(plan.horizons[-1])) + 1
    return replace(plan, seconds_per_step=seconds_per_step + evaluations * seconds_per_evaluation / plan.horizons[-1])


def timed(plan: Plan, settings: RunSettings) -> tuple[float, float]:
    """The seconds of a step and of an evaluation; a trial run makes two evaluations."""
    try:
        result = train(plan.loaded.task, settings, lambda step: None)
    except Exception as error:
        reason = describe_error(error, plan.loaded.path, plan.loaded.task)
        raise RaceError(f"{plan.loaded.name}: the trial failed: {reason}") from error
    steps = result["diverged_at"] or settings.horizon
    return result["seconds_of_steps"] / steps, (result["seconds"] - result["seconds_of_steps"]) / 2


def forecast(plan: Plan, tuned: TunedRates) -> Forecast:
    """The forecast of a race, given the learning rates that are tuned already."""
    untuned = tuned.without(plan.contenders)
    known = replace(plan, contenders=tuple(name for name in plan.contenders if name not in untuned))
    unknown = replace(plan, contenders=tuple(untuned))
    jobs = [*tuning_jobs(plan, first_grids(plan, untuned)), *race_jobs(known, learning_rates(known, tuned))]
    missing = [job for job in jobs if not job.file.exists()]
    steps = sum(job.settings.horizon for job in missing) + steps_of_race(unknown)
    runs = len(missing) + plan.seeds * sum(len(plan.runs_of(name)) for name in untuned)
    return Forecast(runs, steps, steps * plan.seconds_per_step, not untuned)


def total(forecasts: Sequence[Forecast]) -> Forecast:
    """The forecast of several races together."""
    return Forecast(
        sum(each.runs for each in forecasts),
        sum(each.steps for each in forecasts),
        sum(each.seconds for each in forecasts),
        all(each.tuned for each in forecasts),
    )
