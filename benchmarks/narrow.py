"""Compares the losses with compact and float32 states on tasks of the race: ``python -m benchmarks.narrow``.

Both have the same learning rate, weights and batches; finished runs are kept in the cache folder.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from unscheduled.lab.backends import Backend
from unscheduled.lab.execution import Job, Runner
from unscheduled.lab.plan import make_plan
from unscheduled.lab.provenance import code_sha256, machine, versions
from unscheduled.lab.run import RunSettings
from unscheduled.lab.statistics import compare, estimate
from unscheduled.lab.task import load_task
from unscheduled.lab.tuning import read_rates, value_at

CONTENDER = "schedule-free"
PRECISIONS = ("float32", "compact")


def compared(name: str, seeds: int, jobs: int, console: Console) -> dict[str, Any]:
    """The final losses of a task by the precision of the state, and their comparison."""
    loaded = load_task(name)
    steps = loaded.task.steps
    plan = make_plan(loaded, horizons=[steps], contenders=[CONTENDER], seeds=seeds)
    tuned = read_rates(plan, Path("race") / name)
    if tuned.without([CONTENDER]):
        raise SystemExit(f"{name} has no tuned learning rates: unscheduled race {name} --tune")
    lr = tuned.choice(CONTENDER, steps)["lr"]
    settings = [
        RunSettings(
            contender=CONTENDER,
            lr=lr,
            options=plan.options(CONTENDER) | {"state_precision": precision},
            warmup_steps=plan.warmup_steps(steps),
            horizon=steps,
            evaluate_at=(steps,),
            seed=seed,
        )
        for precision in PRECISIONS
        for seed in range(seeds)
    ]
    with Runner(Backend(jobs=jobs), console, name) as runner:
        runs = runner.run([Job(loaded, each) for each in settings], "compact and float32 states")
    values = {
        precision: [value_at(loaded, run, steps) for run in runs if run["options"]["state_precision"] == precision]
        for precision in PRECISIONS
    }
    comparison = compare(values["compact"], values["float32"])
    means = {precision: estimate(found) for precision, found in values.items()}
    console.print(f"{name}: {', '.join(f'{precision} {mean}' for precision, mean in means.items())}")
    console.print(f"{name}: compact - float32, seed by seed: {comparison.difference.shown('+')}")
    return {
        "task": name,
        "metric": loaded.task.metric_name,
        "steps": steps,
        "lr": lr,
        "values": values,
        "mean": {precision: mean.mean for precision, mean in means.items()},
        "standard_error": {precision: mean.standard_error for precision, mean in means.items()},
        "difference": comparison.difference.mean,
        "difference_standard_error": comparison.difference.standard_error,
    }


def main() -> None:
    """Run all tasks and write narrow.json."""
    parser = argparse.ArgumentParser(description="Compare compact with float32 states on the tasks of the race.")
    parser.add_argument("--tasks", nargs="+", default=["char-lm", "digits"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    console = Console()
    found = [compared(name, arguments.seeds, arguments.jobs, console) for name in arguments.tasks]
    record = {"machine": machine(), "versions": versions(), "code_sha256": code_sha256(), "tasks": found}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "narrow.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
