"""The contenders of a race. One entry in ``CONTENDERS`` is all that a new one needs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from unscheduled import AdamWScheduleFree


@dataclass(frozen=True)
class Training:
    """What moves the weights of one run.

    Args:
        optimizer: stepped once a batch.
        schedule: stepped after the optimizer, if there is one.
    """

    optimizer: Optimizer
    schedule: LambdaLR | None = None


@dataclass(frozen=True)
class Contender:
    """A way to train that a race compares.

    Args:
        theory: one line that says what it is.
        optimizer: the class whose ``OptimizerSettings`` of the task it takes.
        anytime: whether one run serves every horizon; otherwise each horizon has a run of its own.
        prepare: given the model, the learning rate, the other options, the steps of warmup and the horizon.
    """

    theory: str
    optimizer: str
    anytime: bool
    prepare: Callable[[nn.Module, float, Mapping[str, Any], int, int], Training]


def cosine(progress: float) -> float:
    """The share of the peak learning rate left: half a cosine, 1 at the end of the warmup, 0 at the horizon."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """The share of the peak learning rate left: a straight line, 1 at the end of the warmup, 0 at the horizon."""
    return 1.0 - progress


def warmup_then(decay: Callable[[float], float], warmup_steps: int, horizon: int) -> Callable[[int], float]:
    """The learning-rate factor of step k, from 0: (k + 1) / warmup_steps at first; exactly 0 at k = horizon."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return decay(min(1.0, (step - warmup_steps) / (horizon - warmup_steps)))

    return factor


def scheduled_adamw(name: str, decay: Callable[[float], float]) -> Contender:
    def prepare(model: nn.Module, lr: float, options: Mapping[str, Any], warmup_steps: int, horizon: int) -> Training:
        optimizer = AdamW(model.parameters(), lr=lr, **options)
        return Training(optimizer, LambdaLR(optimizer, warmup_then(decay, warmup_steps, horizon)))

    return Contender(
        theory=f"AdamW, linear warmup, then {name} decay to 0 at the horizon: one run for each horizon",
        optimizer="AdamW",
        anytime=False,
        prepare=prepare,
    )


def schedule_free_adamw() -> Contender:
    def prepare(model: nn.Module, lr: float, options: Mapping[str, Any], warmup_steps: int, horizon: int) -> Training:
        optimizer = AdamWScheduleFree(model.parameters(), lr=lr, warmup_steps=warmup_steps, **options)
        return Training(optimizer.attach(model))

    return Contender(
        theory="Schedule-Free AdamW, linear warmup, no decay, judged at the averaged weights: one run for all horizons",
        optimizer="AdamWScheduleFree",
        anytime=True,
        prepare=prepare,
    )


CONTENDERS: dict[str, Contender] = {
    "schedule-free": schedule_free_adamw(),
    "cosine": scheduled_adamw("cosine", cosine),
    "linear": scheduled_adamw("linear", linear),
}
