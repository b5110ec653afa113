"""Measures ``eval()`` and ``train()`` of this library beside a plain copy of all parameters and back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import Contender
from benchmarks.timing import Timing, ratios, timed, times
from benchmarks.workloads import Gradients, equal_tensors, fresh_parameters

SHAPES = equal_tensors(10, 50_000_000)
WARM_ROUNDS = 2
MOST_ATTEMPTS = 3
CONTENDER = "unscheduled AdamW fused"


@torch.no_grad()
def copies_of(params: list[Tensor]) -> list[Tensor]:
    """Plain copies of the parameters, which any optimizer needs that stores the weights elsewhere."""
    return [param.clone() for param in params]


def switching(contenders: list[Contender], rounds: int, shown: Callable[[int, int], None]) -> dict[str, Any] | None:
    """The times of both switches after a step in every round, in turns with a plain copy and copying it back.

    The times include allocating and freeing the memory of the copies. Each pair frees its memory before the other pair
    begins, so that both have the same conditions.
    """
    found = [contender for contender in contenders if contender.name == CONTENDER]
    if not found:
        return None
    gradients, params, plain = Gradients(SHAPES), fresh_parameters(SHAPES), fresh_parameters(SHAPES)
    optimizer: Any = found[0].make(params)
    kept: list[Tensor] = []
    calls: dict[str, Callable[[], object]] = {
        "eval": optimizer.eval,
        "copy": lambda: kept.extend(copies_of(plain)),
        "train": optimizer.train,
        "copy back": lambda: _copy_back(plain, kept),
    }
    timings: dict[str, list[Timing]] = {name: [] for name in calls}
    for attempt in range(-WARM_ROUNDS, MOST_ATTEMPTS * rounds):
        shown(attempt, MOST_ATTEMPTS * rounds)
        gradients.compute(optimizer, params, attempt + WARM_ROUNDS)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pairs = (("eval", "train"), ("copy", "copy back"))
        for name in (name for pair in (pairs if attempt % 2 else reversed(pairs)) for name in pair):
            timing = timed(calls[name])
            if attempt >= 0:
                timings[name].append(timing)
        if all(sum(timing.calm for timing in of) >= rounds for of in timings.values()):
            break
    return {
        "contender": CONTENDER,
        "parameters": sum(map(Tensor.numel, params)),
        "seconds": {name: times(of).record() for name, of in timings.items()},
        "eval_to_copy": ratios(timings["eval"], timings["copy"]).record(),
        "train_to_copy_back": ratios(timings["train"], timings["copy back"]).record(),
    }


@torch.no_grad()
def _copy_back(params: list[Tensor], kept: list[Tensor]) -> None:
    torch._foreach_copy_(params, kept)
    kept.clear()
