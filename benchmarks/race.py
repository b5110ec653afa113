"""Times contenders side by side: they take turns in every round, each with its own parameters and new gradients."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from benchmarks.contenders import DEFINITION, FUSED, SCHEDULEFREE, Contender, Family
from benchmarks.timing import Timing, ratios, timed, times
from benchmarks.workloads import Gradients, Shape, Workload, fresh_parameters, initial

CHECKED_STEPS = 3
MOST_ATTEMPTS = 3
"""At most this many times the wanted rounds are made, until enough of them are calm."""
FEW_PARAMETERS = 5_000_000
MORE_ROUNDS = 5
"""The factor on the number of rounds for workloads with few parameters."""


class Entrant:
    """A contender in a race, with its parameters, optimizer and times."""

    def __init__(self, contender: Contender, shapes: tuple[Shape, ...]) -> None:
        self.contender = contender
        self.params = fresh_parameters(shapes)
        self.optimizer = contender.make(self.params)
        self.timings: list[Timing] = []
        self.deviation: float | None = None

    def compare(self, expected: list[Tensor]) -> None:
        """Note the relative distance of its averages from those of the definition."""
        self.deviation = max(
            float((x - other).norm() / (other - initial(index, tuple(x.shape))).norm())
            for index, (x, other) in enumerate(zip(averages(self.optimizer, self.params), expected, strict=True))
        )

    def moved(self) -> int:
        """The number of elements that differ from their initial values."""
        pairs = ((param, initial(index, tuple(param.shape))) for index, param in enumerate(self.params))
        return sum(int((param != first).sum()) for param, first in pairs)

    def record(self) -> dict[str, Any]:
        """The results of the contender alone, for the record of the race."""
        tolerance, moved = self.contender.tolerance, self.moved()
        everything = moved == sum(map(Tensor.numel, self.params))
        return {
            "role": self.contender.role,
            "seconds": times(self.timings).record(),
            "moved": moved,
            "deviation": None if self.deviation is None else float(f"{self.deviation:.3g}"),
            "tolerance": tolerance,
            "same_work": everything and (tolerance is None or (self.deviation or 0.0) <= tolerance),
        }


def averages(optimizer: Optimizer, params: list[Tensor]) -> Iterator[Tensor]:
    """Yield the average x of each parameter."""
    if hasattr(optimizer, "iterates"):
        yield from (optimizer.iterates(param).x for param in params)  # pyright: ignore
    else:
        optimizer.eval()  # pyright: ignore
        yield from (param.detach() for param in params)
        optimizer.train()  # pyright: ignore


def definition(family: Family, shapes: tuple[Shape, ...], gradients: Gradients) -> list[Tensor]:
    """The averages after ``CHECKED_STEPS`` steps of the definition."""
    params = fresh_parameters(shapes)
    optimizer = DEFINITION[family](params)
    for step in range(CHECKED_STEPS):
        gradients.compute(optimizer, params, step)
        optimizer.step()
    return list(averages(optimizer, params))


def race(
    workload: Workload, family: Family, contenders: list[Contender], rounds: int, shown: Callable[[int, int], None]
) -> dict[str, Any] | None:
    """Time the contenders of a family that the workload names.

    Args:
        workload: the shapes, and the names of the contenders.
        family: the family of the contenders.
        contenders: the available contenders.
        rounds: the number of calm rounds; ``MORE_ROUNDS`` times as many with few parameters.
        shown: called with the number of rounds made, and the largest number of rounds.

    Returns:
        The record of the race, or None if no contender is available.
    """
    chosen = [each for each in contenders if each.family == family and each.name in workload.contenders]
    if not chosen:
        return None
    rounds *= MORE_ROUNDS if workload.parameters <= FEW_PARAMETERS else 1
    gradients = Gradients(workload.shapes)
    expected = definition(family, workload.shapes, gradients)
    entrants = [Entrant(contender, workload.shapes) for contender in chosen]
    for entrant in entrants:
        for step in range(CHECKED_STEPS):
            gradients.compute(entrant.optimizer, entrant.params, step)
            entrant.optimizer.step()
        entrant.optimizer.zero_grad(set_to_none=True)
        if entrant.contender.tolerance is not None:
            entrant.compare(expected)
    del expected
    gc.collect()
    for attempt in range(-1, MOST_ATTEMPTS * rounds):  # the first round does not count
        shown(attempt, MOST_ATTEMPTS * rounds)
        turn = attempt % len(entrants)
        order = (entrants[turn:] + entrants[:turn])[:: -1 if attempt // len(entrants) % 2 else 1]
        for entrant in order:
            gradients.compute(entrant.optimizer, entrant.params, CHECKED_STEPS + attempt + 1)
            timing = timed(entrant.optimizer.step)
            entrant.optimizer.zero_grad(set_to_none=True)
            if attempt >= 0:
                entrant.timings.append(timing)
        if all(sum(timing.calm for timing in entrant.timings) >= rounds for entrant in entrants):
            break
    return {
        "workload": workload.name,
        "family": family,
        "parameters": workload.parameters,
        "tensors": len(workload.shapes),
        "rounds": len(entrants[0].timings),
        "contenders": {entrant.contender.name: entrant.record() for entrant in entrants},
        "ratios": compared(entrants, family),
    }


def compared(entrants: list[Entrant], family: Family) -> list[dict[str, Any]]:
    """The ratios of all to PyTorch's fused optimizer, of ours to ``schedulefree``, and of the limit to ours."""
    pairs = [
        (one, other)
        for one in entrants
        for other in entrants
        if (other.contender.name == FUSED[family] and one is not other)
        or (other.contender.name == SCHEDULEFREE[family] and one.contender.role == "ours")
        or (other.contender.role == "ours" and one.contender.role == "limit")
    ]
    return [
        {"of": one.contender.name, "to": other.contender.name, **ratios(one.timings, other.timings).record()}
        for one, other in pairs
    ]
