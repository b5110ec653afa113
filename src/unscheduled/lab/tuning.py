"""The learning rates of a race: searched on a grid, with other seeds than the race's own."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from unscheduled.lab.execution import run_all, write_json
from unscheduled.lab.plan import Plan
from unscheduled.lab.provenance import machine, versions
from unscheduled.lab.statistics import estimate
from unscheduled.lab.task import RaceError

TUNING_SEEDS = (1000, 1001)
TUNING_FILE = "tuning.json"


@dataclass(frozen=True)
class TunedRates:
    """The result of a tuning run, as its JSON file has it.

    Args:
        source: the file, for the report.
        record: the contents.
    """

    source: str
    record: dict[str, Any]

    def covers(self, plan: Plan) -> bool:
        """Whether every contender of the plan was tuned."""
        return set(plan.contenders) <= {choice["contender"] for choice in self.record["chosen"]}

    def choice(self, contender: str, horizon: int) -> dict[str, Any]:
        """What was chosen for the contender at the tuned horizon nearest to this one, in the logarithm."""
        choices = [choice for choice in self.record["chosen"] if choice["contender"] == contender]
        return min(choices, key=lambda choice: abs(math.log(choice["horizon"] / horizon)))


def find_tuned_rates(plan: Plan) -> TunedRates | None:
    """From the output folder if they were tuned there for the task as it is now, else those shipped with the task.

    Raises:
        RaceError: if a file cannot be understood.
    """
    own = plan.out / TUNING_FILE
    for file in (own, *plan.loaded.tuning_files()):
        if file.is_file():
            try:
                tuned = TunedRates(file.name, json.loads(file.read_text()))
                outdated = file == own and tuned.record["task"]["source_sha256"] != plan.loaded.source_sha256
                covers = tuned.covers(plan)
            except (ValueError, TypeError, KeyError) as error:
                raise RaceError(f"{file} is no tuning file ({error}): remove it, or tune with --tune") from error
            if covers and not outdated:
                return tuned
    return None


def tune(plan: Plan, console: Console) -> TunedRates:
    """Run the grid of every contender, choose the best learning rates and keep them in the output folder.

    A contender with one run for all horizons gets one learning rate, the best at the last horizon; the others get one
    for each horizon.
    """
    cells = [
        (contender, horizon, lr)
        for contender in plan.contenders
        for horizon in plan.runs_of(contender)
        for lr in plan.grid(contender)
    ]
    settings = [
        plan.settings(*cell, seed, evaluate_at=[step for step in plan.horizons if step <= cell[1]])
        for cell in cells
        for seed in TUNING_SEEDS
    ]
    results = run_all(plan.loaded, settings, plan.out, plan.jobs, console, f"tuning {plan.loaded.name}")
    scores: list[dict[str, Any]] = []
    for index, (contender, horizon, lr) in enumerate(cells):
        runs = results[index * len(TUNING_SEEDS) : (index + 1) * len(TUNING_SEEDS)]
        values = [value_at(run, horizon) for run in runs]
        mean = estimate(values).mean
        scores.append({"contender": contender, "horizon": horizon, "lr": lr, "values": values, "mean": mean})
    record = {
        **plan.record(),
        "purpose": "tuning of the learning rates",
        "seeds": TUNING_SEEDS,
        "grids": {contender: plan.grid(contender) for contender in plan.contenders},
        "chosen": [
            choose(scores, contender, horizon) for contender in plan.contenders for horizon in plan.runs_of(contender)
        ],
        "scores": scores,
        "versions": versions(),
        "machine": machine(),
    }
    file = plan.out / TUNING_FILE
    write_json(file, record)
    return TunedRates(file.name, json.loads(file.read_text()))


def choose(scores: Sequence[Mapping[str, Any]], contender: str, horizon: int) -> dict[str, Any]:
    """The learning rate with the lowest mean, and at which end of the grid it lies, if it does.

    Raises:
        RaceError: if every learning rate diverged.
    """
    candidates = [score for score in scores if (score["contender"], score["horizon"]) == (contender, horizon)]
    finite = [score for score in candidates if score["mean"] is not None]
    if not finite:
        rates = ", ".join(f"{score['lr']:g}" for score in candidates)
        raise RaceError(f"{contender} diverged at every learning rate of its grid ({rates}): give the task a lower one")
    best = min(finite, key=lambda score: score["mean"])
    rates = sorted(score["lr"] for score in candidates)
    edge = {rates[0]: "lowest", rates[-1]: "highest"}.get(best["lr"]) if len(rates) > 1 else None
    return {"contender": contender, "horizon": horizon, "lr": best["lr"], "mean": best["mean"], "edge_of_grid": edge}


def value_at(run: Mapping[str, Any], step: int) -> float | None:
    """The metric of a run at a step; None if it had diverged by then."""
    return dict(run["curve"]).get(step)
