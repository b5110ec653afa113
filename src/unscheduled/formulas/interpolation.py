"""The interpolation: the point between the base iterate z and the average x where the gradient is taken.

    y = (1 - beta_t) z + beta_t x

With beta = 0 it is z (Polyak-Ruppert averaging), with beta = 1 it is x (primal averaging); Schedule-Free learning lies
between. An interpolation maps the beta of a parameter group and the number of steps made to beta_t.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from unscheduled.formulas.scalar_math import expm1, maximum, minimum
from unscheduled.formulas.validation import require_count, require_within


class Interpolation(Protocol):
    """An interpolation: a frozen dataclass that maps (beta, step) to the beta that forms y after ``step`` steps.

    It returns a number in [0, 1]. With ``capturable=True`` the step is a number on a device, see
    :class:`unscheduled.Averaging`.

    Example:
        >>> @dataclass(frozen=True)
        ... class Delayed:
        ...     start: int
        ...
        ...     def __call__(self, beta, step):
        ...         return beta if step >= self.start else 0.0
        >>> Delayed(start=100)(0.9, 99), Delayed(start=100)(0.9, 100)
        (0.0, 0.9)
    """

    def __call__(self, beta: float, step: int) -> float: ...


@dataclass(frozen=True)
class ConstantInterpolation:
    """The same beta at every step: beta_t = beta (the paper's choice).

    Example:
        >>> ConstantInterpolation()(0.9, 1000)
        0.9
    """

    def __call__(self, beta: float, step: int) -> float:
        return beta


@dataclass(frozen=True)
class AnnealedInterpolation:
    """beta annealed to a maximum, linearly in log(1 - beta): the weight of z shrinks by the same factor every step.

        beta_t = 1 - (1 - beta)^(1 - p) (1 - beta_max)^p,    p = min(t / steps, 1)

    Args:
        beta_max: beta from step ``steps`` on, in [0, 1).
        steps: length of the annealing in optimizer steps, an integer >= 1.

    Raises:
        ValueError: if an argument is out of its range, or, when called, if ``beta`` is 1 (its logarithm is infinite).

    Example:
        >>> anneal = AnnealedInterpolation(beta_max=0.99, steps=100)
        >>> round(anneal(0.9, 0), 4), round(anneal(0.9, 50), 4), round(anneal(0.9, 500), 4)
        (0.9, 0.9684, 0.99)

    Source: Defazio, "ScheduleFree+", arXiv 2605.19095.
    """

    beta_max: float
    steps: int

    def __post_init__(self) -> None:
        require_within("[0, 1)", "beta_max", self.beta_max, "give the beta to end at, such as 0.965")
        require_count(1, "steps", self.steps, "give the length of the annealing in optimizer steps")

    def __call__(self, beta: float, step: int) -> float:
        require_within("[0, 1)", "beta", beta, "only a beta below 1 can be annealed")
        progress = minimum(step / self.steps, 1.0)
        log_weight_of_z = (1.0 - progress) * math.log1p(-beta) + progress * math.log1p(-self.beta_max)
        return -expm1(log_weight_of_z)


@dataclass(frozen=True)
class GrowingInterpolation:
    """beta that grows towards 1 without a final step: the weight of z falls as a power of the number of steps.

        beta_t = 1 - (start / t)^power (1 - beta)    for t > start, and beta until then

    Args:
        power: rho, in (0, 8]; AMUSE uses 0.6 to 0.8, from beta = 0.4 to 0.6.
        start: T0, the step from which beta grows, an integer >= 1.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> grow = GrowingInterpolation(power=0.5, start=100)
        >>> round(grow(0.5, 100), 4), round(grow(0.5, 400), 4), round(grow(0.5, 10_000), 4)
        (0.5, 0.75, 0.95)

    Source: "AMUSE", arXiv 2605.22432.
    """

    power: float
    start: int

    def __post_init__(self) -> None:
        require_within("(0, 8]", "power", self.power, "use 0.6 to 0.8")
        require_count(1, "start", self.start, "give the step from which beta grows, such as the end of the warmup")

    def __call__(self, beta: float, step: int) -> float:
        return 1.0 - minimum(1.0, self.start / maximum(step, 1)) ** self.power * (1.0 - beta)
