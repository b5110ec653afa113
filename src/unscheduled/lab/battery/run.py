"""Runs the battery: tunes the learning rates of each task, and then races on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from unscheduled.lab.battery.ablations import CONTENDER, ablation_jobs, ablation_rows
from unscheduled.lab.battery.entries import Entry
from unscheduled.lab.battery.one_setting import one_setting_jobs
from unscheduled.lab.data import DataMissing
from unscheduled.lab.execution import Job, Runner, write_json
from unscheduled.lab.forecast import Forecast, forecast, total, with_trial
from unscheduled.lab.plan import Plan, make_plan
from unscheduled.lab.race import learning_rates, race_jobs, race_record, steps_of_race
from unscheduled.lab.task import RaceError, load_task
from unscheduled.lab.tuning import (
    TUNING_FILE,
    TunedRates,
    first_grids,
    rates_in,
    read_rates,
    scores_of,
    tune,
    tuning_jobs,
    with_earlier,
)


@dataclass(frozen=True)
class Planned:
    """A task of the battery whose data are in the cache, with its plan.

    Args:
        entry: the task and its contenders.
        plan: the plan of its race.
        tuned: the learning rates that are known already.
        forecast: the runs that are still to be made.
        extra: those of them that belong neither to the tuning nor to the race.
    """

    entry: Entry
    plan: Plan
    tuned: TunedRates
    forecast: Forecast
    extra: Forecast

    @property
    def untuned(self) -> list[str]:
        """The contenders whose learning rates are not tuned yet."""
        return self.tuned.without(self.plan.contenders)

    @property
    def seconds_after_tuning(self) -> float:
        """The seconds of its race, its ablations and its runs at the rates for all tasks, on one core."""
        return steps_of_race(self.plan) * self.plan.seconds_per_step + self.extra.seconds


def prepare(
    entries: Sequence[Entry],
    console: Console,
    out: Path,
    tune_first: bool = False,
    races_only: bool = False,
    seeds: int | None = None,
) -> list[Planned]:
    """A plan for each task whose data are in the cache; prints a line for each task that is left out."""
    planned: list[Planned] = []
    for entry in entries:
        loaded = load_task(entry.task)
        if not loaded.task.lower_is_better:
            raise RaceError(
                f"{entry.name}: the battery compares losses; give the task a metric of which lower is better"
            )
        try:
            plan = make_plan(
                loaded,
                steps=entry.length * loaded.task.steps,
                contenders=entry.contenders,
                seeds=entry.seeds if seeds is None else seeds,
            )
            plan.record()
            plan = with_trial(plan)
        except DataMissing as error:
            console.print(f"{entry.name}: left out, {error}")
            continue
        folder = tuning_folder(out, entry)
        tuned = TunedRates({}, []) if tune_first else read_rates(plan, folder, shipped=entry.length == 1)
        jobs = [] if races_only else extra_jobs(entry, plan, tuned)
        extra = of_jobs([*{job.file: job for job in jobs if not job.file.exists()}.values()])
        planned.append(Planned(entry, plan, tuned, total([forecast(plan, tuned), extra]), extra))
    return planned


def extra_jobs(entry: Entry, plan: Plan, tuned: TunedRates) -> list[Job]:
    """The jobs beside tuning and race; before the tuning, the ablations are around the middle of the grid."""
    jobs = one_setting_jobs(plan) if entry.shares_rates else []
    if entry.ablated:
        known = CONTENDER in tuned.choices
        middle = tuned.choice(CONTENDER, plan.horizons[-1])["lr"] if known else plan.grid(CONTENDER)[1]
        jobs += ablation_jobs(plan, entry.variants, middle)
    return jobs


def of_jobs(jobs: Sequence[Job]) -> Forecast:
    """The forecast of these jobs."""
    steps = sum(job.settings.horizon for job in jobs)
    seconds = sum(job.settings.horizon * job.seconds_per_step for job in jobs)
    return Forecast(len(jobs), steps, seconds, tuned=True)


def tuning_folder(out: Path, entry: Entry) -> Path:
    """The folder of the tuned learning rates of a task."""
    return out / "tuning" / entry.name


def fitting(planned: Sequence[Planned], seconds: float) -> list[Planned]:
    """The tasks that fit, in order, into this many seconds of all workers together."""
    chosen: list[Planned] = []
    for each in planned:
        if each.forecast.seconds <= seconds:
            chosen.append(each)
            seconds -= each.forecast.seconds
    return chosen


def run_battery(planned: Sequence[Planned], races_only: bool, out: Path, runner: Runner) -> None:
    """Make the runs that are not on disk yet, and write the race of each task to its own file."""
    for each in planned:
        runner.expect(tuning_jobs(each.plan, first_grids(each.plan, each.untuned)))
    for index, each in enumerate(planned):
        later = sum(other.seconds_after_tuning for other in planned[index + 1 :])
        runner.expect_later(later + each.seconds_after_tuning)
        tuned = tuned_rates(each, out, runner)
        runner.expect_later(later)
        if not races_only:
            runner.expect(extra_jobs(each.entry, each.plan, tuned))
        jobs = race_jobs(each.plan, learning_rates(each.plan, tuned))
        record = race_record(each.plan, tuned, runner.run(jobs, f"racing {each.entry.name}"))
        more = [] if races_only else one_setting_scores(each, runner)
        record |= {
            "entry": each.entry.stated(),
            "tuning_scores": [*tuned.scores, *more],
            "ablations": [] if races_only else ablations(each, tuned, runner),
        }
        write_json(out / f"{each.entry.name}.json", record, lines=False)


def one_setting_scores(planned: Planned, runner: Runner) -> list[dict[str, Any]]:
    """The scores of the rates for all tasks on this task; none for convex tasks and long runs."""
    if not planned.entry.shares_rates:
        return []
    runs = runner.run(one_setting_jobs(planned.plan), f"one rate for all, {planned.entry.name}")
    return scores_of(planned.plan, runs)


def ablations(planned: Planned, tuned: TunedRates, runner: Runner) -> list[dict[str, Any]]:
    """The rows of the ablations of a task; none if the task is not ablated."""
    if not planned.entry.ablated:
        return []
    variants = planned.entry.variants
    lr = tuned.choice(CONTENDER, planned.plan.horizons[-1])["lr"]
    runs = runner.run(ablation_jobs(planned.plan, variants, lr), f"ablations of {planned.entry.name}")
    return ablation_rows(planned.plan, variants, runs)


def tuned_rates(planned: Planned, out: Path, runner: Runner) -> TunedRates:
    """The learning rates of a plan; those that are not known yet are tuned and written to a file."""
    if not planned.untuned:
        return planned.tuned
    found = tune({planned.plan: planned.untuned}, runner)[planned.plan]
    folder = tuning_folder(out, planned.entry)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TUNING_FILE, with_earlier(found, folder / TUNING_FILE), lines=False)
    return planned.tuned.joined(rates_in(found, TUNING_FILE))
