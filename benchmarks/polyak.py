"""Compares the Polyak step with a tuned learning rate: ``python -m benchmarks.polyak``.

The tasks are those of the race, with batches of their size, a quarter of it and four times of it. Schedule-Free AdamW
runs at every learning rate of the task's grid, and the rate with the best mean counts. ScheduleFree+, which has no
learning rate, runs with its defaults, with other factors on its step, with inner momentum, and without warmup. All runs
of a seed have the same weights and batches; finished runs are kept in the cache folder.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from unscheduled.lab.backends import Backend
from unscheduled.lab.execution import Job, Runner
from unscheduled.lab.plan import make_plan
from unscheduled.lab.provenance import code_sha256, machine, versions
from unscheduled.lab.run import RunSettings
from unscheduled.lab.statistics import compare, estimate
from unscheduled.lab.task import LoadedTask, load_task
from unscheduled.lab.tuning import value_at

TUNED, POLYAK = "schedule-free", "plus"
STEPS = {"char-lm": 500, "digits": 1000}
BATCHES = Path(__file__).parent / "batches"


@dataclass(frozen=True)
class Variant:
    """ScheduleFree+ with some options changed."""

    name: str
    factor: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    warmup: bool = True


DEFAULTS = Variant("defaults")
FRAGILE = (
    *(Variant(f"factor {factor:g}", factor) for factor in (0.25, 0.5, 2.0, 4.0)),
    Variant("inner momentum 0.9", options={"inner_momentum": 0.9}),
    Variant("no warmup", warmup=False),
)


def compared(
    task: str,
    batch: str,
    loaded: LoadedTask,
    variants: tuple[Variant, ...],
    seeds: int,
    jobs: int,
    console: Console,
) -> dict[str, Any]:
    """The final losses at every learning rate and of every variant, and the variants compared with the best rate."""
    steps = STEPS[task]
    plan = make_plan(loaded, steps=steps, horizons=[steps], contenders=[TUNED, POLYAK], seeds=seeds)
    grid = plan.grid(TUNED)

    def settings(contender: str, lr: float, options: Mapping[str, Any], warmup: bool) -> list[RunSettings]:
        warmup_steps = plan.warmup_steps(steps) if warmup else 0
        own = plan.options(contender) | dict(options)
        return [RunSettings(contender, lr, own, warmup_steps, steps, (steps,), seed) for seed in range(seeds)]

    wanted = {f"lr {lr:g}": settings(TUNED, lr, {}, True) for lr in grid}
    wanted |= {each.name: settings(POLYAK, each.factor, each.options, each.warmup) for each in variants}
    flat = [each for one in wanted.values() for each in one]
    with Runner(Backend(jobs=jobs), console, task) as runner:
        runs = runner.run([Job(loaded, each) for each in flat], f"{batch} batches")
    values = {
        name: [value_at(loaded, run, steps) for run in runs[index * seeds : (index + 1) * seeds]]
        for index, name in enumerate(wanted)
    }
    means = {name: estimate(found) for name, found in values.items()}
    rates = [f"lr {lr:g}" for lr in grid]
    best = min(rates, key=lambda name: float("inf") if means[name].mean is None else means[name].mean)
    differences: dict[str, Any] = {}
    for each in variants:
        difference = compare(values[each.name], values[best])
        differences[each.name] = {
            "mean": difference.difference.mean,
            "standard_error": difference.difference.standard_error,
            "verdict": difference.verdict,
        }
        console.print(f"  {each.name}: {means[each.name]}, {difference.verdict} against {best} ({means[best]})")
    return {
        "task": task,
        "batch": batch,
        "metric": loaded.task.metric_name,
        "steps": steps,
        "values": values,
        "mean": {name: mean.mean for name, mean in means.items()},
        "standard_error": {name: mean.standard_error for name, mean in means.items()},
        "best_rate": best,
        "best_is_at_an_end": best in (rates[0], rates[-1]),
        "minus_best_rate": differences,
    }


def main() -> None:
    """Run all comparisons and write polyak.json."""
    parser = argparse.ArgumentParser(description="Compare the Polyak step with tuned learning rates.")
    parser.add_argument("--tasks", nargs="+", default=["char-lm", "digits"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    console = Console()
    found: list[dict[str, Any]] = []
    for name in arguments.tasks:
        for batch in ("usual", "quarter", "fourfold"):
            reference = name if batch == "usual" else str(BATCHES / f"{name.replace('-', '_')}_{batch}.py")
            variants = (DEFAULTS, *FRAGILE) if batch == "usual" else (DEFAULTS, FRAGILE[4])
            found.append(
                compared(
                    name,
                    batch,
                    load_task(reference),
                    variants,
                    arguments.seeds,
                    arguments.jobs,
                    console,
                )
            )
    record = {"machine": machine(), "versions": versions(), "code_sha256": code_sha256(), "comparisons": found}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "polyak.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
