"""Learning-rate schedules that need the horizon: linear warmup, then a decay."""

import math
from collections.abc import Callable

STEP_DECAY = 0.1
STEPS_OF_DECAY = (0.5, 0.75)
STABLE_SHARE = 0.8

Decay = Callable[[float], float]
"""The share of the peak learning rate at a progress from 0 (end of the warmup) to 1 (horizon)."""


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """A straight line from 1 to 0."""
    return 1.0 - progress


def step_decay(progress: float) -> float:
    """A tenth of the rate from one half of the way on, a hundredth from three quarters on."""
    return STEP_DECAY ** sum(progress >= each for each in STEPS_OF_DECAY)


def wsd(progress: float) -> float:
    """Warmup-stable-decay: the peak rate for four fifths of the way, then a straight line to 0."""
    return min(1.0, (1.0 - progress) / (1.0 - STABLE_SHARE))


def constant(progress: float) -> float:
    """The peak rate at every step."""
    return 1.0


def warmup_then(decay: Decay, warmup_steps: int, horizon: int) -> Callable[[int], float]:
    """The factor of the learning rate as a function of the step k >= 0: (k + 1) / warmup_steps, and then the decay."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return decay(min(1.0, (step - warmup_steps) / (horizon - warmup_steps)))

    return factor
