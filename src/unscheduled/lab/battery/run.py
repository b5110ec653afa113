"""Running the battery, task by task: first the learning rates, then the race."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from unscheduled.lab.battery.entries import Entry
from unscheduled.lab.battery.one_setting import one_setting_jobs
from unscheduled.lab.data import DataMissing
from unscheduled.lab.execution import Runner, write_json
from unscheduled.lab.forecast import Forecast, forecast, with_trial
from unscheduled.lab.plan import Plan, make_plan
from unscheduled.lab.race import learning_rates, race_jobs, race_record, steps_of_race
from unscheduled.lab.task import load_task
from unscheduled.lab.tuning import (
    TUNING_FILE,
    TunedRates,
    first_grids,
    rates_in,
    read_rates,
    scores_of,
    tune,
    tuning_jobs,
)


@dataclass(frozen=True)
class Planned:
    """A task of the battery that can be run here.

    Args:
        entry: the task and its contenders.
        plan: its race.
        tuned: the learning rates that are known already.
        forecast: what is still to be run.
    """

    entry: Entry
    plan: Plan
    tuned: TunedRates
    forecast: Forecast

    @property
    def untuned(self) -> list[str]:
        """The contenders whose learning rates have to be searched."""
        return self.tuned.without(self.plan.contenders)

    @property
    def seconds_of_race(self) -> float:
        """What its race takes on one core, tuning aside."""
        return steps_of_race(self.plan) * self.plan.seconds_per_step


def prepare(
    entries: Sequence[Entry], tune_first: bool, seeds: int | None, out: Path, console: Console
) -> list[Planned]:
    """A plan for each task whose data are here; a task whose data are not is left out with one line."""
    planned: list[Planned] = []
    for entry in entries:
        loaded = load_task(entry.task)
        try:
            plan = make_plan(
                loaded, steps=entry.length * loaded.task.steps, contenders=entry.contenders, seeds=seeds or entry.seeds
            )
            plan.record()
            plan = with_trial(plan)
        except DataMissing as error:
            console.print(f"{entry.name}: left out, {error}")
            continue
        tuned = TunedRates({}, []) if tune_first else read_rates(plan, tuning_folder(out, entry))
        planned.append(Planned(entry, plan, tuned, forecast(plan, tuned)))
    return planned


def tuning_folder(out: Path, entry: Entry) -> Path:
    """Where the learning rates of a task are kept."""
    return out / "tuning" / entry.name


def fitting(planned: Sequence[Planned], seconds: float) -> list[Planned]:
    """The tasks, in order, that fit into so many seconds of all workers together."""
    chosen: list[Planned] = []
    for each in planned:
        if each.forecast.seconds <= seconds:
            chosen.append(each)
            seconds -= each.forecast.seconds
    return chosen


def run_battery(planned: Sequence[Planned], out: Path, runner: Runner) -> dict[str, dict[str, Any]]:
    """Run what is not on disk yet; the race of each task by its name, also kept in a file each."""
    for each in planned:
        runner.expect(tuning_jobs(each.plan, first_grids(each.plan, each.untuned)))
    records: dict[str, dict[str, Any]] = {}
    for index, each in enumerate(planned):
        runner.expect_later(sum(other.seconds_of_race for other in planned[index:]))
        tuned = tuned_rates(each, out, runner)
        runner.expect_later(sum(other.seconds_of_race for other in planned[index + 1 :]))
        jobs = race_jobs(each.plan, learning_rates(each.plan, tuned))
        record = race_record(each.plan, tuned, runner.run(jobs, f"racing {each.entry.name}"))
        scores = [*tuned.scores, *one_setting_scores(each, runner)]
        record |= {"entry": each.entry.stated(), "tuning_scores": scores}
        write_json(out / f"{each.entry.name}.json", record, lines=False)
        records[each.entry.name] = record
    return records


def one_setting_scores(planned: Planned, runner: Runner) -> list[dict[str, Any]]:
    """What the rates that all tasks share reach on this one; convex tasks and long runs are not asked."""
    if not planned.entry.shares_rates:
        return []
    runs = runner.run(one_setting_jobs(planned.plan), f"one rate for all, {planned.entry.name}")
    return scores_of(planned.plan, runs)


def tuned_rates(planned: Planned, out: Path, runner: Runner) -> TunedRates:
    """The learning rates of a plan; those that are not known yet are searched and kept in a file."""
    if not planned.untuned:
        return planned.tuned
    found = tune({planned.plan: planned.untuned}, runner)[planned.plan]
    folder = tuning_folder(out, planned.entry)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TUNING_FILE, found, lines=False)
    return planned.tuned.joined(rates_in(found, TUNING_FILE))
