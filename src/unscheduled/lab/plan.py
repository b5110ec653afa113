"""What a race consists of: its budget, horizons, contenders and seeds, and the runs that follow from them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unscheduled.lab.contenders import CONTENDERS, DEFAULT_CONTENDERS
from unscheduled.lab.run import RunSettings
from unscheduled.lab.task import LoadedTask, RaceError, describe_error

EARLIEST_EVALUATION = 1 / 50
"""Of the longest run, as a share of its steps."""


@dataclass(frozen=True)
class Plan:
    """A race before it is run.

    Args:
        loaded: the task.
        steps: the budget.
        horizons: the steps at which the contenders are compared, ascending, none beyond the budget.
        contenders: their names; the first is compared with each of the others.
        seeds: how many.
        jobs: how many runs side by side.
        out: the folder for everything the race writes.
    """

    loaded: LoadedTask
    steps: int
    horizons: tuple[int, ...]
    contenders: tuple[str, ...]
    seeds: int
    jobs: int
    out: Path

    def warmup_steps(self, horizon: int) -> int:
        """The task's warmup, scaled to the budget; at most half of a run."""
        warmup = round(self.loaded.task.warmup_steps * self.steps / self.loaded.task.steps)
        return min(warmup, horizon // 2)

    def runs_of(self, contender: str) -> tuple[int, ...]:
        """The lengths of the runs a contender needs: one for all horizons, or one for each."""
        return self.horizons[-1:] if CONTENDERS[contender].anytime else self.horizons

    def evaluation_steps(self, horizon: int) -> tuple[int, ...]:
        """When a run is evaluated: at steps in geometric progression, at the horizons on its way and at its end."""
        last, count = self.horizons[-1], self.loaded.task.evaluations
        steps = {round(last * EARLIEST_EVALUATION ** (index / count)) for index in range(count)} | {*self.horizons}
        return tuple(sorted(step for step in steps if 1 <= step <= horizon))

    def grid(self, contender: str) -> list[float]:
        """The learning rates that tuning tries, ascending."""
        if (lr := CONTENDERS[contender].lr) is not None:
            return [lr]
        return sorted(self.loaded.task.optimizers[CONTENDERS[contender].optimizer].learning_rates)

    def options(self, contender: str) -> dict[str, Any]:
        """The task's options for the contender's optimizer."""
        return dict(self.loaded.task.optimizers[CONTENDERS[contender].optimizer].options)

    def record(self) -> dict[str, Any]:
        """The plan as the JSON files state it.

        Raises:
            RaceError: if the task's facts or options cannot be stated in JSON.
        """
        task = self.loaded.task
        try:
            facts = dict(task.facts())
            json.dumps([facts, [self.options(name) for name in self.contenders]])
        except Exception as error:
            raise RaceError(f"{self.loaded.name}: facts, options: {describe_error(error, self.loaded.path)}") from error
        return {
            "task": {
                "name": self.loaded.name,
                "summary": task.summary,
                "metric": task.metric_name,
                "source_sha256": self.loaded.source_sha256,
                "facts": facts,
            },
            "steps": self.steps,
            "horizons": list(self.horizons),
            "warmup_steps": {str(horizon): self.warmup_steps(horizon) for horizon in self.horizons},
            "contenders": {
                name: {
                    "theory": CONTENDERS[name].theory,
                    "optimizer": CONTENDERS[name].optimizer,
                    "options": self.options(name),
                }
                for name in self.contenders
            },
        }

    def settings(
        self, contender: str, horizon: int, lr: float, seed: int, evaluate_at: Sequence[int] | None = None
    ) -> RunSettings:
        """One run, with the task's options for the contender's optimizer."""
        return RunSettings(
            contender=contender,
            lr=lr,
            options=self.options(contender),
            warmup_steps=self.warmup_steps(horizon),
            horizon=horizon,
            evaluate_at=self.evaluation_steps(horizon) if evaluate_at is None else tuple(evaluate_at),
            seed=seed,
        )


def make_plan(
    loaded: LoadedTask,
    steps: int | None,
    horizons: Sequence[int] | None,
    contenders: Sequence[str] | None,
    seeds: int | None,
    jobs: int,
    out: Path,
) -> Plan:
    """The plan with the defaults filled in: an eighth, a quarter, a half and all of the task's steps.

    Raises:
        RaceError: if something is out of its range, unknown, or not provided for by the task.
    """
    task = loaded.task
    steps = task.steps if steps is None else steps
    seeds = task.seeds if seeds is None else seeds
    for name, value in {"--steps": steps, "--seeds": seeds, "--jobs": jobs}.items():
        if value < 1:
            raise RaceError(f"{name} {value}: want an integer >= 1")
    horizons = sorted({*(horizons or [max(1, steps // divisor) for divisor in (8, 4, 2, 1)])})
    if horizons[0] < 1 or horizons[-1] > steps:
        wrong = horizons[0] if horizons[0] < 1 else horizons[-1]
        raise RaceError(f"horizon {wrong} is not within the budget: want 1 <= horizon <= {steps} steps (see --steps)")
    contenders = tuple(dict.fromkeys(contenders or DEFAULT_CONTENDERS))
    for contender in contenders:
        if contender not in CONTENDERS:
            raise RaceError(f"unknown contender {contender!r}: the contenders are {', '.join(CONTENDERS)}")
        optimizer = CONTENDERS[contender].optimizer
        if optimizer not in task.optimizers:
            raise RaceError(f"{loaded.name} has no settings for {optimizer} (contender {contender}) in `optimizers`")
    return Plan(loaded, steps, tuple(horizons), contenders, seeds, jobs, out)
