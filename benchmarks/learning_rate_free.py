"""Compares optimizers without a learning rate with tuned rates: ``python -m benchmarks.learning_rate_free``.

The tasks are those of the battery, and some of them with batches of a quarter and of four times the size. The reference
at a horizon is one run of Schedule-Free AdamW, with the learning rate that was best at that very horizon on the tuning
seeds, and with the warmup of the longest run. Prodigy and D-Adaptation, which have a schedule, run once for each
horizon; the others run once for all. Each has its authors' defaults, and the task's weight decay where that is
decoupled. All runs of a seed have the same weights and batches; finished runs are kept in the cache folder, and an
interrupted comparison goes on where it was.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.learning_rate_free_figure import draw
from unscheduled.lab.backends import Backend
from unscheduled.lab.battery.entries import ENTRIES, Entry
from unscheduled.lab.data import DataMissing
from unscheduled.lab.execution import Job, Runner, write_json
from unscheduled.lab.forecast import with_trial
from unscheduled.lab.plan import Plan, make_plan
from unscheduled.lab.provenance import code_sha256, machine, versions
from unscheduled.lab.statistics import compare, estimate, geometric_mean
from unscheduled.lab.task import RaceError, load_task
from unscheduled.lab.tuning import WIDEST, TunedRates, choose, read_rates, rounded, scores_of, tuning_jobs, value_at

TUNED = "schedule-free"
CONTENDERS = ("distance", "plus", "prodigy-plus", "prodigy", "d-adaptation", "dog")
BATCHES = Path(__file__).parent / "batches"
SEEDS = 5
NEAR = (2, 5, 15)
"""The limits of the excess in per cent whose cells are counted."""

Cell = Mapping[str, Any]


def references() -> dict[str, tuple[str, str]]:
    """For each name the group and the task, or the file that defines it."""
    found = {entry.name: (group_of(entry), entry.task) for entry in ENTRIES if entry.length == 1}
    return found | {file.stem.replace("_", "-"): ("batches", str(file)) for file in sorted(BATCHES.glob("*_*.py"))}


def group_of(entry: Entry) -> str:
    return "convex" if entry.kind == "convex" else "networks"


def best_rates(plan: Plan, out: Path, runner: Runner) -> tuple[dict[int, float], set[float]]:
    """The best learning rate of the reference at each horizon, and those of them that are an end of the grid.

    The grid goes on at an end at which a best rate lies, until it has ``WIDEST`` rates.
    """
    cell = (TUNED, plan.horizons[-1])
    tuned: TunedRates = read_rates(plan, out)
    scores = [score for score in tuned.scores if score["contender"] == TUNED]
    more = [] if scores else plan.grid(TUNED)
    while True:
        scores += scores_of(plan, runner.run(tuning_jobs(plan, {cell: more}), f"tuning {plan.loaded.name}"))
        best = choose(plan, scores, *cell)["best_at"]
        if None in best.values():
            raise RaceError(f"{plan.loaded.name}: {TUNED} diverged at every learning rate")
        rates, found = sorted({score["lr"] for score in scores}), {each["lr"] for each in best.values()}
        ends = {rates[0], rates[-1]} & found
        beyond = {rates[0]: rates[0] ** 2 / rates[1], rates[-1]: rates[-1] ** 2 / rates[-2]}
        more = [rounded(beyond[end]) for end in ends] if len(rates) < WIDEST else []
        if not more:
            return {horizon: best[str(horizon)]["lr"] for horizon in plan.horizons}, ends


def jobs_of(plan: Plan, contender: str, length: int, lr: float) -> list[Job]:
    """A run for each seed, evaluated at the horizons."""
    horizons = plan.horizons_of(contender, length)
    settings = [plan.settings(contender, length, lr, seed, horizons) for seed in range(plan.seeds)]
    return [Job(plan.loaded, each, plan.seconds_per_step) for each in settings]


def cells_of(plan: Plan, out: Path, runner: Runner) -> list[dict[str, Any]]:
    """For each horizon and contender: the values, their mean, the excess over the reference, and the verdict."""
    best, ends = best_rates(plan, out, runner)
    wanted = [(TUNED, plan.horizons[-1], lr) for lr in sorted({*best.values()})]
    wanted += [(name, length, 1.0) for name in CONTENDERS for length in plan.runs_of(name)]
    jobs = {key: jobs_of(plan, *key) for key in wanted}
    results = iter(runner.run([job for each in jobs.values() for job in each], plan.loaded.name))
    runs = {key: [next(results) for _ in each] for key, each in jobs.items()}

    cells: list[dict[str, Any]] = []
    for horizon in plan.horizons:
        reference = [value_at(plan.loaded, run, horizon) for run in runs[TUNED, plan.horizons[-1], best[horizon]]]
        for name in (TUNED, *CONTENDERS):
            length, lr = (horizon if horizon in plan.runs_of(name) else plan.horizons[-1]), 1.0
            own = reference
            if name != TUNED:
                own = [value_at(plan.loaded, run, horizon) for run in runs[name, length, lr]]
            mean, aim = estimate(own).mean, estimate(reference).mean
            cells.append(
                {
                    "horizon": horizon,
                    "contender": name,
                    "lr": best[horizon] if name == TUNED else None,
                    "lr_is_an_end": best[horizon] in ends if name == TUNED else None,
                    "values": own,
                    "mean": mean,
                    "standard_error": estimate(own).standard_error,
                    "excess": None if mean is None or not aim else mean / aim - 1.0,
                    "verdict": None if name == TUNED else compare(own, reference).verdict,
                }
            )
    return cells


def totals_of(tasks: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each contender and group of tasks: how many cells are near the reference, and the mean excess."""
    totals: list[dict[str, Any]] = []
    for group in dict.fromkeys(task["group"] for task in tasks.values()):
        for name in CONTENDERS:
            cells: list[Cell] = [
                cell
                for task in tasks.values()
                for cell in task["cells"]
                if task["group"] == group and cell["contender"] == name
            ]
            excess = [cell["excess"] for cell in cells if cell["excess"] is not None and cell["excess"] > -1.0]
            totals.append(
                {
                    "contender": name,
                    "group": group,
                    "cells": len(cells),
                    "within": {f"{near}%": sum(each <= near / 100 for each in excess) for near in NEAR},
                    "not_worse": sum(cell["verdict"] in ("better", "tie") for cell in cells),
                    "mean_excess": geometric_mean([1.0 + each for each in excess]) - 1.0 if excess else None,
                    "worst": max(excess, default=None),
                    "diverged": sum(cell["mean"] is None for cell in cells),
                }
            )
    return totals


def print_totals(totals: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the counts as a table."""
    table = Table(title="against the best learning rate for each horizon")
    for column in ("contender", "tasks", "cells", *(f"≤ {near}%" for near in NEAR), "not worse", "mean", "worst", "∞"):
        table.add_column(column)
    for each in totals:
        shown = ["" if each[name] is None else f"{each[name]:+.1%}" for name in ("mean_excess", "worst")]
        counts = [each["cells"], *each["within"].values(), each["not_worse"]]
        table.add_row(each["contender"], each["group"], *map(str, counts), *shown, str(each["diverged"]))
    console.print(table)


def main() -> None:
    """Make all comparisons; write learning-rate-free.json and learning-rate-free.png."""
    known = references()
    parser = argparse.ArgumentParser(description="Compare optimizers without a learning rate with tuned rates.")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(known)}; all if none is given")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/results/learning-rate-free"))
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.tasks if name not in known]:
        parser.error(f"no task {unknown[0]!r}: the tasks are {', '.join(known)}")
    console, file = Console(), arguments.out / "learning-rate-free.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(file.read_text("utf-8")) if file.exists() else {"tasks": {}}
    tasks = {name: task for name, task in earlier["tasks"].items() if task["code_sha256"] == code_sha256()}
    with Runner(Backend(jobs=arguments.jobs), console, "learning-rate-free") as runner:
        for name in arguments.tasks or known:
            group, reference = known[name]
            try:
                plan = with_trial(make_plan(load_task(reference), contenders=(TUNED, *CONTENDERS), seeds=SEEDS))
                plan.record()
            except DataMissing as error:
                console.print(f"{name}: left out, {error}")
                continue
            tasks[name] = {
                "group": group,
                "metric": plan.loaded.task.metric_name,
                "source_sha256": plan.loaded.source_sha256,
                "code_sha256": code_sha256(),
                "cells": cells_of(plan, arguments.out, runner),
            }
            tasks = {name: tasks[name] for name in known if name in tasks}
            record = {
                "seeds": SEEDS,
                "machine": machine(),
                "versions": versions() | {name: plan.contender(name).library_version for name in CONTENDERS},
                "contenders": {name: plan.contender(name).theory for name in (TUNED, *CONTENDERS)},
                "totals": totals_of(tasks),
                "tasks": tasks,
            }
            write_json(file, record)
            draw(record, file.with_suffix(".png"))
    print_totals(totals_of(tasks), console)


if __name__ == "__main__":
    main()
