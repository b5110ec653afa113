"""The plan of a race: its budget, horizons, contenders and seeds, and the runs that follow from them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from typing import Any

from unscheduled.lab.contender import Contender
from unscheduled.lab.contenders import DEFAULT_CONTENDERS
from unscheduled.lab.run import RunSettings, known_contenders
from unscheduled.lab.task import LoadedTask, RaceError, describe_error

EARLIEST_EVALUATION = 1 / 50
"""The first evaluation of the longest run, as a share of its steps."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A race before it is run.

    Args:
        loaded: the task.
        steps: the budget.
        horizons: the steps at which the contenders are compared, ascending, none beyond the budget.
        contenders: their names; the first is compared with each of the others.
        seeds: the number of seeds.
        rates: the learning rates with which the tuning of a contender begins, by its name, in place of the task's.
        seconds_per_step: the approximate time of a step, for the estimate of the time left.
    """

    loaded: LoadedTask
    steps: int
    horizons: tuple[int, ...]
    contenders: tuple[str, ...]
    seeds: int
    rates: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    seconds_per_step: float = 1.0

    def contender(self, name: str) -> Contender:
        """The contender with this name: one of the task, or one that every race knows."""
        return known_contenders(self.loaded.task)[name]

    def warmup_steps(self, horizon: int) -> int:
        """The steps of warmup of a run of ``horizon`` steps: the task's share of its steps, and at most horizon - 1."""
        return min(round(self.loaded.task.warmup_steps * horizon / self.loaded.task.steps), horizon - 1)

    def runs_of(self, contender: str) -> tuple[int, ...]:
        """The lengths in steps of the runs that a contender needs: one for all horizons, or one for each."""
        return self.horizons[-1:] if self.contender(contender).anytime else self.horizons

    def horizons_of(self, contender: str, length: int) -> tuple[int, ...]:
        """The horizons at which a run of this length is compared: all of them, or its own end."""
        return self.horizons if self.contender(contender).anytime else (length,)

    def evaluation_steps(self, horizon: int) -> tuple[int, ...]:
        """The steps at which a run is evaluated: a geometric progression, and the horizons up to its end."""
        last, count = self.horizons[-1], self.loaded.task.evaluations
        steps = {round(last * EARLIEST_EVALUATION ** (index / count)) for index in range(count)} | {*self.horizons}
        return tuple(sorted(step for step in steps if 1 <= step <= horizon))

    def grid(self, contender: str) -> list[float]:
        """The learning rates that tuning tries first, ascending."""
        if (lr := self.contender(contender).lr) is not None:
            return [lr]
        if contender in self.rates:
            return sorted(self.rates[contender])
        return sorted(self.loaded.task.optimizers[self.contender(contender).settings_of].learning_rates)

    def options(self, contender: str) -> dict[str, Any]:
        """The task's options for the contender's optimizer."""
        return dict(self.loaded.task.optimizers[self.contender(contender).settings_of].options)

    def record(self) -> dict[str, Any]:
        """The plan as a dictionary for the JSON files.

        Raises:
            RaceError: if the task's facts or options cannot be stated in JSON.
        """
        task = self.loaded.task
        try:
            facts = dict(task.facts())
            json.dumps([facts, [self.options(name) for name in self.contenders]])
        except RaceError:
            raise
        except Exception as error:
            raise RaceError(f"{self.loaded.name}: facts, options: {describe_error(error, self.loaded.path)}") from error
        return {
            "task": {
                "name": self.loaded.name,
                "summary": task.summary,
                "metric": task.metric_name,
                "lower_is_better": task.lower_is_better,
                "source_sha256": self.loaded.source_sha256,
                "facts": facts,
            },
            "steps": self.steps,
            "horizons": list(self.horizons),
            "contenders": {
                name: {
                    "theory": self.contender(name).theory,
                    "anytime": self.contender(name).anytime,
                    "settings_of": self.contender(name).settings_of,
                    "options": self.options(name),
                }
                for name in self.contenders
            },
        }

    def settings(
        self, contender: str, horizon: int, lr: float, seed: int, evaluate_at: Sequence[int] | None = None
    ) -> RunSettings:
        """The settings of one run, with the task's options for the contender's optimizer."""
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
    steps: int | None = None,
    horizons: Sequence[int] | None = None,
    contenders: Sequence[str] | None = None,
    seeds: int | None = None,
    rates: Mapping[str, Sequence[float]] | None = None,
) -> Plan:
    """The plan of a race; None takes the default (for horizons an eighth, a quarter, a half and all of the steps).

    Raises:
        RaceError: if a value is out of its range, or the task or the list of contenders has no such name.
    """
    task = loaded.task
    steps = task.steps if steps is None else steps
    seeds = task.seeds if seeds is None else seeds
    for name, value in {"--steps": steps, "--seeds": seeds}.items():
        if value < 1:
            raise RaceError(f"{name} {value}: want an integer >= 1")
    horizons = sorted({*(horizons or [max(1, steps // divisor) for divisor in (8, 4, 2, 1)])})
    if horizons[0] < 1 or horizons[-1] > steps:
        wrong = horizons[0] if horizons[0] < 1 else horizons[-1]
        raise RaceError(f"horizon {wrong} is outside [1, {steps}] steps: give another horizon, or more --steps")
    contenders = tuple(dict.fromkeys(contenders or DEFAULT_CONTENDERS))
    known = known_contenders(task)
    for contender in contenders:
        if contender not in known:
            raise RaceError(f"unknown contender {contender!r}: the contenders are {', '.join(known)}")
        settings_of = known[contender].settings_of
        if settings_of not in task.optimizers:
            raise RaceError(f"{loaded.name} has no settings for {settings_of} (contender {contender}) in `optimizers`")
        try:
            _ = known[contender].library_version
        except PackageNotFoundError as error:
            raise RaceError(f"contender {contender} needs an extra: pip install 'unscheduled[peers]'") from error
    return Plan(loaded, steps, tuple(horizons), contenders, seeds, checked_rates(rates or {}, contenders, known))


def checked_rates(
    rates: Mapping[str, Sequence[float]], contenders: Sequence[str], known: Mapping[str, Contender]
) -> dict[str, Sequence[float]]:
    """The learning rates by contender; those under the name "" are for the tuned contenders that are not named.

    Raises:
        RaceError: if a rate is not finite and above 0, or a contender is not raced or not tuned.
    """
    for name, values in rates.items():
        if name and name not in contenders:
            raise RaceError(f"--rates {name}=…: {name} is not raced; the contenders are {', '.join(contenders)}")
        if name and known[name].lr is not None:
            raise RaceError(f"--rates {name}=…: {name} has no learning rate to tune")
        if not values or len({*values}) < len(values) or not all(0.0 < value < math.inf for value in values):
            shown = f"{name}=" * bool(name) + ",".join(f"{value:g}" for value in values)
            raise RaceError(f"--rates {shown}: want different numbers above 0")
    tuned = [name for name in contenders if known[name].lr is None]
    return {name: rates.get(name, rates.get("", ())) for name in tuned if name in rates or "" in rates}
