"""The race: compares tuned contenders over several seeds at every horizon."""

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from unscheduled.lab.comparison import best_schedules, compare_all, sensitivity, steps_to_target
from unscheduled.lab.execution import Job, Runner, write_json
from unscheduled.lab.plan import Plan
from unscheduled.lab.provenance import code_sha256, machine, versions
from unscheduled.lab.task import RaceError
from unscheduled.lab.tuning import (
    TUNING_FILE,
    TunedRates,
    first_grids,
    rates_in,
    read_rates,
    tune,
    tuning_jobs,
    with_earlier,
)
from unscheduled.lab.verdict import verdict

RACE_FILE = "race.json"
EARLIER = "earlier"
FAR = 1.5
"""A learning rate that was tuned at a horizon further away than this factor is doubtful."""


def race(plan: Plan, tune_first: bool, out: Path, runner: Runner, console: Console) -> dict[str, Any]:
    """Make the runs that are not on disk yet; write ``race.json`` and return its contents."""
    plan.record()  # raises an error now if JSON cannot express the task
    tuned = TunedRates({}, []) if tune_first else read_rates(plan, out)
    untuned = tuned.without(plan.contenders)
    runner.expect(tuning_jobs(plan, first_grids(plan, untuned)))
    runner.expect_later(steps_of_race(plan) * plan.seconds_per_step)
    tuning: dict[str, Any] | None = None
    if untuned:
        if not tune_first:
            console.print(f"{plan.loaded.name}: no tuned learning rates yet for {', '.join(untuned)}: tuning them")
        tuning = tune({plan: untuned}, runner)[plan]
        tuned = tuned.joined(rates_in(tuning, TUNING_FILE))
        check_tuned(plan, tuned)
    rates = learning_rates(plan, tuned)
    for line in doubts(plan, rates):
        console.print(line)
    runner.expect_later(0.0)
    record = race_record(plan, tuned, runner.run(race_jobs(plan, rates), "racing"))
    keep_earlier(out, record)
    if tuning is not None:
        write_json(out / TUNING_FILE, with_earlier(tuning, out / TUNING_FILE))
    write_json(out / RACE_FILE, record)
    return record


def check_tuned(plan: Plan, tuned: TunedRates) -> None:
    """Raise RaceError if a contender diverged at every learning rate that was tried."""
    for contender, choices in tuned.choices.items():
        for choice in choices:
            if plan.contender(contender).lr is None and not any(choice["best_at"].values()):
                rates = {score["lr"] for score in tuned.scores if score["contender"] == contender}
                tried = ", ".join(f"{lr:g}" for lr in sorted(rates))
                raise RaceError(
                    f"{plan.loaded.name}: {contender} diverged at every learning rate ({tried}): give lower --rates"
                )


def learning_rates(plan: Plan, tuned: TunedRates) -> list[dict[str, Any]]:
    """For each run of each contender, its learning rate and warmup, and the horizon at which the rate was tuned."""
    rates: list[dict[str, Any]] = []
    for contender in plan.contenders:
        for length in plan.runs_of(contender):
            choice = tuned.choice(contender, length)
            rates.append(
                {
                    "contender": contender,
                    "horizon": length,
                    "lr": choice["lr"],
                    "warmup_steps": plan.warmup_steps(length),
                    "tuned_at_horizon": choice["horizon"],
                    "edge_of_grid": choice["edge_of_grid"],
                    "best_at": choice["best_at"],
                    "file": choice["file"],
                }
            )
    return rates


def race_jobs(plan: Plan, rates: Sequence[Mapping[str, Any]]) -> list[Job]:
    """The jobs of a race: a run for each of these learning rates and each seed."""
    return [
        Job(plan.loaded, plan.settings(rate["contender"], rate["horizon"], rate["lr"], seed), plan.seconds_per_step)
        for rate in rates
        for seed in range(plan.seeds)
    ]


def steps_of_race(plan: Plan) -> int:
    """The sum of the steps of all runs of a race, without tuning."""
    return plan.seeds * sum(length for contender in plan.contenders for length in plan.runs_of(contender))


def race_record(plan: Plan, tuned: TunedRates, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The contents of ``race.json``.

    Raises:
        RaceError: if the runs of a seed differ in their initial weights or their first batch.
    """
    check_fairness(plan, runs)
    rates = learning_rates(plan, tuned)
    results = compare_all(plan, runs)
    best = best_schedules(plan, results)
    record = plan.record()
    for name, contender in record["contenders"].items():
        contender["ran"] = next(run["optimizer"] for run in runs if run["contender"] == name)
    return {
        **record,
        "seeds": plan.seeds,
        "learning_rates": rates,
        "doubts": doubts(plan, rates),
        "results": results,
        "best_schedules": best,
        "steps_to_target": steps_to_target(plan, runs, best),
        "sensitivity": sensitivity(plan, tuned),
        "verdict": verdict(plan, results, best),
        "seconds_of_training": sum(run["seconds"] for run in runs),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "code_sha256": code_sha256(),
        "machine": machine(),
        "runs": runs,
    }


def doubts(plan: Plan, rates: Sequence[Mapping[str, Any]]) -> list[str]:
    """The reasons, a line each, why the learning rates of a race may not be the best ones."""
    rates = [rate for rate in rates if plan.contender(rate["contender"]).lr is None]  # the others are not tuned
    at_edge = [rate for rate in rates if rate["edge_of_grid"]]
    elsewhere = [rate for rate in rates if not 1 / FAR <= rate["horizon"] / rate["tuned_at_horizon"] <= FAR]
    edges = ", ".join(f"{rate['contender']} at {rate['horizon']:,} ({rate['edge_of_grid']})" for rate in at_edge)
    others = ", ".join(
        f"{rate['contender']} at {rate['horizon']:,} (tuned at {rate['tuned_at_horizon']:,})" for rate in elsewhere
    )
    lines: list[str] = []
    if at_edge:
        lines.append(f"doubtful: the best learning rate lies at an end of its grid, so give --tune: {edges}")
    if elsewhere:
        lines.append(f"doubtful: learning rates tuned for another number of steps, so give --tune: {others}")
    return lines


def check_fairness(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> None:
    """Raise RaceError unless the runs of a seed started from the same weights with the same batch."""
    for seed in range(plan.seeds):
        for name in ("initial_weights", "first_batch"):
            if len({run[f"{name}_sha256"] for run in runs if run["seed"] == seed}) > 1:
                raise RaceError(
                    f"{plan.loaded.name}: the runs of a seed differ in {name.replace('_', ' ')}: `model` may draw from "
                    "torch's global generator only, `batches` from the generator it is given only"
                )


def keep_earlier(out: Path, record: Mapping[str, Any]) -> None:
    """Move the files of an earlier race to a folder named after the time at which it finished.

    Nothing is moved if its runs are those of the new race. The tuned learning rates are copied, since the new race uses
    them too.
    """
    try:
        earlier = json.loads((out / RACE_FILE).read_text())
        same, finished = earlier["runs"] == record["runs"], str(earlier["finished"])
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        same, finished = False, "unknown"
    if not same:
        folder = new_folder(out / EARLIER / "".join(character for character in finished if character.isalnum()))
        for file in out.glob("race.*"):
            file.replace(folder / file.name)
        for file in out.glob(TUNING_FILE):
            shutil.copy2(file, folder / file.name)


def new_folder(wanted: Path) -> Path:
    """Make and return a folder of this name, with a number appended if the name is taken."""
    folder, count = wanted, 1
    while folder.exists():
        count += 1
        folder = wanted.with_name(f"{wanted.name}-{count}")
    folder.mkdir(parents=True)
    return folder
