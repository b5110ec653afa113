"""Optimizers whose steps are interrupted, and signals that arrive at any line."""

import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
from bases import BASES
from problems import set_gradients
from torch.nn import Parameter

from unscheduled import (
    AdamWScheduleFree,
    AnnealedInterpolation,
    AutoScheduleFree,
    LionScheduleFree,
    MuonScheduleFree,
    PolyakStep,
    ScheduleFreeOptimizer,
    ScheduleFreeWrapper,
    SGDScheduleFree,
)

UNTRACED = ("__enter__", "__exit__", "gc_callback")
"""Functions in which no signal is raised: those at the ends of a ``with`` block, where a tracer would raise before the
block is left, which a signal never does; and those that the garbage collector calls, which ignore exceptions."""

SHAPES = ((4, 3), (7,), (2, 5), ())


def wrapped(name: str) -> Callable[[Any], ScheduleFreeOptimizer]:
    return lambda params: ScheduleFreeWrapper(BASES[name].make(params), weight_decay_at_y=0.1, warmup_steps=5)


OPTIMIZERS: dict[str, Callable[[Any], ScheduleFreeOptimizer]] = {
    "fused": lambda params: AdamWScheduleFree(params, lr=0.01, implementation="fused", warmup_steps=5),
    "foreach": lambda params: AdamWScheduleFree(params, lr=0.01, implementation="foreach", weight_decay=0.1),
    "loop": lambda params: LionScheduleFree(params, lr=0.01, implementation="loop"),
    "compact": lambda params: AdamWScheduleFree(params, lr=0.01, implementation="fused", state_precision="compact"),
    "compact loop": lambda params: SGDScheduleFree(params, lr=0.1, implementation="loop", state_precision="compact"),
    "annealed": lambda params: SGDScheduleFree(params, lr=0.1, interpolation=AnnealedInterpolation(0.97, 300)),
    "Polyak": lambda params: SGDScheduleFree(params, lr=1.0, step_size=PolyakStep()),
    "distance": AutoScheduleFree,
    "Muon": lambda params: MuonScheduleFree(params, lr=0.01),
    "capturable": lambda params: AdamWScheduleFree(params, lr=0.01, capturable=True, implementation="loop"),
    "over SGD": wrapped("SGD"),
    "over AdamW": wrapped("AdamW"),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


@contextmanager
def interrupted(at: int, number: int = signal.SIGINT) -> Generator[list[int], None, None]:
    """Raise a signal at line number ``at`` that runs in the ``with`` block, in any file; yield the lines left."""
    left = [at]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if event == "line" and code.co_name not in UNTRACED and "grad_mode" not in code.co_filename:
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(number)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield left
    finally:
        sys.settrace(before)
        torch.set_grad_enabled(True)


def go(optimizer: ScheduleFreeOptimizer, params: list[Parameter], step: int) -> None:
    set_gradients(params[: len(params) - step % 7 // 6], step)  # at some steps the last parameter has no gradient
    if step % 7 == 6:
        params[-1].grad = None
    optimizer.step(loss=torch.tensor(2.0))
