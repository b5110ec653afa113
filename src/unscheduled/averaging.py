"""The averaging weight: how much of the new base iterate z enters the average x.

    x' = (1 - c_t) x + c_t z'

An averaging gives c_t. Its sums are Python floats (float64), whatever the dtype of the parameters.
"""

from dataclasses import dataclass
from typing import Protocol

from unscheduled.interval import require_count, require_within


class Averaging(Protocol):
    """An averaging: a frozen dataclass of numbers, called once a step for the weight of that step.

    Called with t, the number of the step (from 1); the largest learning rate so far, warmup and rectification
    included; and the sum of the weights so far. Returns c_t in [0, 1] and the new sum. It is not called at steps
    whose learning rate is 0: z does not move there, and c = 0.
    """

    def __call__(self, step: int, lr_max: float, weight_sum: float) -> tuple[float, float]: ...


@dataclass(frozen=True)
class PolynomialAveraging:
    """Weighted averaging, x_t = sum_i w_i z_i / sum_i w_i: the averaging of Schedule-Free learning.

        w_t = t^r (max_{i <= t} gamma_i)^p,    c_t = w_t / sum_{i <= t} w_i

    With a constant learning rate and r = 0 it is the equal-weighted average c_t = 1/t. The first c is 1, so the
    initial point is dropped.

    Args:
        r: power of the step, in (-1, 32] (t^32 is within float64 for 10^9 steps); 0 weighs all steps alike, 1 or more
            the later ones more (long runs).
        weight_lr_power: p, power of the running maximum of the learning rate, in [0, 8]; the weights of a warmup are
            small. 0 ignores the learning rate.
        warmup_steps: steps before the averaging starts, an integer >= 0: until then c = 1 and no weight is counted.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> average = PolynomialAveraging()
        >>> weight_sum, weights = 0.0, []
        >>> for step in (1, 2, 3, 4):
        ...     c, weight_sum = average(step, lr_max=1.0, weight_sum=weight_sum)
        ...     weights.append(c)
        >>> weights == [1, 1 / 2, 1 / 3, 1 / 4]
        True

    Source: "The Road Less Scheduled", arXiv 2405.15682, Theorem 2 and section 4; ``warmup_steps`` from
    "ScheduleFree+", arXiv 2605.19095.
    """

    r: float = 0.0
    weight_lr_power: float = 2.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        require_within("(-1, 32]", "r", self.r, "use 0 for equal weights, 1 or more to favour late steps")
        require_within("[0, 8]", "weight_lr_power", self.weight_lr_power, "use 2, or 0 to ignore the learning rate")
        require_count(0, "warmup_steps", self.warmup_steps, "give the number of steps without averaging")

    def __call__(self, step: int, lr_max: float, weight_sum: float) -> tuple[float, float]:
        if step <= self.warmup_steps:
            return 1.0, weight_sum
        weight = float(step) ** self.r * lr_max**self.weight_lr_power
        weight_sum += weight
        return (weight / weight_sum if weight_sum > 0.0 else 0.0), weight_sum


@dataclass(frozen=True)
class ExponentialAveraging:
    """The exponential moving average of z: c_t = c (Generalized Primal Averaging, where c = 1 - mu_x).

    It has a fixed window of 1/c steps, so the learning rate has to be scheduled.

    Args:
        c: weight of the new z, in (0, 1]. GPA's choice is 1 - 0.9^(1/H), H = 32: 0.0033.

    Raises:
        ValueError: if ``c`` is out of its range.

    Example:
        >>> ExponentialAveraging(c=0.01)(step=7, lr_max=1.0, weight_sum=0.0)
        (0.01, 0.0)

    Source: "Generalized Primal Averaging", arXiv 2512.17131.
    """

    c: float

    def __post_init__(self) -> None:
        require_within("(0, 1]", "c", self.c, "use 1/window, such as 0.0033 for 300 steps")

    def __call__(self, step: int, lr_max: float, weight_sum: float) -> tuple[float, float]:
        return self.c, weight_sum


@dataclass(frozen=True)
class NoAveraging:
    """No averaging, c_t = 1: x = y = z, and what is left is the plain base optimizer.

    Example:
        >>> NoAveraging()(step=7, lr_max=1.0, weight_sum=0.0)
        (1.0, 0.0)
    """

    def __call__(self, step: int, lr_max: float, weight_sum: float) -> tuple[float, float]:
        return 1.0, weight_sum
