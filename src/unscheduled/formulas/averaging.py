"""The averaging weight: how much of the new base iterate z enters the average x.

    x' = (1 - c_t) x + c_t z'

An averaging computes c_t. Its sums are Python floats (float64) for parameters of every dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from unscheduled.formulas.scalar_math import where
from unscheduled.formulas.validation import require_count, require_within


class Averaging(Protocol):
    """An averaging: a frozen dataclass of numbers that is called once a step and returns the averaging weight.

    Its arguments are t, the number of the step (from 1); the step size gamma of this step, with warmup, rectification
    and Polyak step; the largest gamma so far; and the sum of the weights so far. It returns c_t in [0, 1] and the new
    sum. It is not called at steps whose step size is 0: z does not move there, and c = 0.

    With ``capturable=True`` the arguments are numbers on a device, on which Python cannot branch: in place of ``if``,
    ``min`` and ``max`` an averaging must use ``where``, ``minimum`` and ``maximum`` of
    :mod:`unscheduled.formulas.scalar_math`, which accept plain numbers too.

    Example:
        >>> @dataclass(frozen=True)
        ... class Window:
        ...     length: int
        ...
        ...     def __call__(self, step, lr, lr_max, weight_sum):
        ...         return max(1 / step, 1 / self.length), weight_sum
        >>> [Window(length=4)(step, lr=1.0, lr_max=1.0, weight_sum=0.0)[0] for step in (1, 2, 100)]
        [1.0, 0.5, 0.25]
    """

    def __call__(self, step: int, lr: float, lr_max: float, weight_sum: float) -> tuple[float, float]: ...


@dataclass(frozen=True)
class PolynomialAveraging:
    """Weighted averaging, x_t = sum_i w_i z_i / sum_i w_i: the averaging of Schedule-Free learning.

        w_t = t^r (max_{i <= t} gamma_i)^p,    c_t = w_t / sum_{i <= t} w_i

    With a constant learning rate and r = 0 all weights are equal, c_t = 1/t. The first c is 1, so that the average
    does not contain the initial point.

    Args:
        r: power of the step, in (-1, 32] (t^32 is within float64 for 10^9 steps); 0 gives all steps equal weight, 1
            or more gives later steps more (long runs).
        weight_lr_power: p, power of the learning rate, in [0, 8]; with p > 0 the weights of a warmup are small. 0
            ignores the learning rate.
        warmup_steps: steps before the averaging starts, an integer >= 0: until then c = 1, and no weight is added
            to the sum.
        weight_lr: the learning rate in the weights: ``"maximum"``, the running maximum, with which steps of a decaying
            learning rate have full weight; or ``"current"``, w_t = t^r gamma_t^p, which allows any sequence of
            learning rates (p = 1 is schedulet).
        cooldown_start: the last step before a cool-down, an integer >= 1, or None. After it t and the sum of the
            weights start again from 0, so that x becomes the mean over the steps of the cool-down alone. This has the
            effect on the average that a linear decay over these steps has on the last iterate, and may end at any step.
            After a restart of the averaging, steps are counted from the restart. At least one of this step and the next
            must enter the average: do not freeze it or set the learning rate to 0 at both.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> average = PolynomialAveraging()
        >>> weight_sum, weights = 0.0, []
        >>> for step in (1, 2, 3, 4):
        ...     c, weight_sum = average(step, lr=1.0, lr_max=1.0, weight_sum=weight_sum)
        ...     weights.append(c)
        >>> weights == [1, 1 / 2, 1 / 3, 1 / 4]
        True

    Source: "The Road Less Scheduled", arXiv 2405.15682, Theorem 2 and section 4; ``warmup_steps`` from
    "ScheduleFree+", arXiv 2605.19095; ``weight_lr="current"`` from "schedulet", arXiv 2511.07767.
    """

    r: float = 0.0
    weight_lr_power: float = 2.0
    warmup_steps: int = 0
    weight_lr: Literal["maximum", "current"] = "maximum"
    cooldown_start: int | None = None

    @classmethod
    def river(cls, C: float, beta: float) -> PolynomialAveraging:  # noqa: N803 (as in the paper)
        """The averaging of "Through the River", c_t = min(1, C (1 - beta) gamma_t^2 / sum gamma_i^2), as a power r.

        For r + 1 = (1 - beta) C, the windows 1/c_t of both tend to the same share of the run, so C determines r.

        Args:
            C: the decoupling factor, > 0; 1 / (1 - beta) is plain Schedule-Free learning, r = 0.
            beta: the interpolation, in [0, 1).

        Raises:
            ValueError: if an argument is out of its range, or r is.

        Example:
            >>> round(PolynomialAveraging.river(C=100, beta=0.95).r, 9)
            4.0

        Source: "Through the River", arXiv 2507.09846.
        """
        require_within("(0, inf)", "C", C, "use 1 / (1 - beta) for plain averaging, more to favour late steps")
        require_within("[0, 1)", "beta", beta, "it is the interpolation beta: use 0.95")
        return cls(r=(1.0 - beta) * C - 1.0)

    def __post_init__(self) -> None:
        require_within("(-1, 32]", "r", self.r, "use 0 for equal weights, 1 or more to favour late steps")
        require_within("[0, 8]", "weight_lr_power", self.weight_lr_power, "use 2, or 0 to ignore the learning rate")
        require_count(0, "warmup_steps", self.warmup_steps, "give the number of steps without averaging")
        if self.weight_lr not in ("maximum", "current"):
            raise ValueError(f"weight_lr = {self.weight_lr!r} is neither 'maximum' nor 'current': use 'maximum'")
        if self.cooldown_start is not None:
            require_count(1, "cooldown_start", self.cooldown_start, "give the last step before the cool-down")
            if self.cooldown_start < self.warmup_steps:
                raise ValueError(
                    f"cooldown_start = {self.cooldown_start} lies before the end of warmup_steps = "
                    f"{self.warmup_steps}: give a later step"
                )

    def __call__(self, step: int, lr: float, lr_max: float, weight_sum: float) -> tuple[float, float]:
        start, counted, before = self.cooldown_start, step, weight_sum
        if start is not None:
            counted = where(step > start, step - start, step)
            before = where(step == start + 1, 0.0, weight_sum)
        weight = (1.0 * counted) ** self.r * (lr if self.weight_lr == "current" else lr_max) ** self.weight_lr_power
        after = before + weight
        c = weight / where(after > 0.0, after, 1.0)
        if start is not None:
            after = where(step == start, 0.0, after)  # the next step may have lr = 0
        if self.warmup_steps > 0:
            warms_up = step <= self.warmup_steps
            c, after = where(warms_up, 1.0, c), where(warms_up, weight_sum, after)
        return c, after


@dataclass(frozen=True)
class ExponentialAveraging:
    """The exponential moving average of z: c_t = c (Generalized Primal Averaging, where c = 1 - mu_x).

    Its window of 1/c steps is fixed, so the learning rate needs a schedule. Use weight decay at z (``decay_at="z"``, as
    in the paper): with decay at y, z can grow for some steps without gradients.

    Args:
        c: weight of the new z, in (0, 1]. GPA uses 1 - 0.9^(1/H) with H = 32, which is 0.0033.

    Raises:
        ValueError: if ``c`` is out of its range.

    Example:
        >>> ExponentialAveraging(c=0.01)(step=7, lr=1.0, lr_max=1.0, weight_sum=0.0)
        (0.01, 0.0)

    Source: "Generalized Primal Averaging", arXiv 2512.17131.
    """

    c: float

    def __post_init__(self) -> None:
        require_within("(0, 1]", "c", self.c, "use 1/window, such as 0.0033 for 300 steps")

    def __call__(self, step: int, lr: float, lr_max: float, weight_sum: float) -> tuple[float, float]:
        return self.c, weight_sum


@dataclass(frozen=True)
class NoAveraging:
    """No averaging, c_t = 1: x = y = z, which is the plain base optimizer.

    Example:
        >>> NoAveraging()(step=7, lr=1.0, lr_max=1.0, weight_sum=0.0)
        (1.0, 0.0)
    """

    def __call__(self, step: int, lr: float, lr_max: float, weight_sum: float) -> tuple[float, float]:
        return 1.0, weight_sum
