"""The step size gamma: warmup, RAdam's rectification and the step-size rules, as factors on the learning rate.

    gamma_t = lr * warmup_t * rectification_t * s_t

An optimizer has one step-size rule for all its groups, a frozen dataclass: :class:`ConstantStep`, where s_t = 1,
:class:`PolyakStep`, which needs the loss, or :class:`~unscheduled.formulas.distance.DistanceStep`, which needs nothing.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

from unscheduled.formulas.distance import DistanceStep
from unscheduled.formulas.scalar_math import maximum, minimum, sqrt, where
from unscheduled.formulas.validation import require_within

TOO_SHORT = 4.0
"""The length of a moving average at which RAdam's step size cannot be rectified yet."""


def linear_warmup(step: int, warmup_steps: int) -> float:
    """Linear warmup: the factor min(1, t / warmup_steps) on the learning rate of step t.

    Args:
        step: t, counted from 1.
        warmup_steps: steps until the full learning rate, >= 0; 0 is no warmup.

    Example:
        >>> [linear_warmup(t, 4) for t in (1, 2, 4, 9)]
        [0.25, 0.5, 1.0, 1.0]

    Source: "The Road Less Scheduled", arXiv 2405.15682, Algorithm 1.
    """
    return minimum(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0


def largest_moving_average(beta2: float) -> float:
    """rho_inf = 2 / (1 - beta2) - 1, the length that the moving average of the squared gradient tends to.

    Example:
        >>> round(largest_moving_average(0.999))
        1999
    """
    return 2.0 / (1.0 - beta2) - 1.0


def moving_average_length(step: int, beta2: float) -> float:
    """rho_t, the length of the moving average of the squared gradient after t gradients.

        rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t)

    Example:
        >>> [round(moving_average_length(t, 0.999), 2) for t in (1, 5, 6)]
        [1.0, 5.0, 5.99]
    """
    decayed = beta2**step
    return largest_moving_average(beta2) - 2.0 * step * decayed / (1.0 - decayed)


def is_rectified(step: int, beta2: float) -> bool:
    """Whether the moving average is long enough, after t gradients, for the variance of 1/sqrt(v) to be bounded.

    Example:
        >>> [is_rectified(t, 0.999) for t in (1, 4, 5)]
        [False, False, True]
    """
    return moving_average_length(step, beta2) > TOO_SHORT


def rectification(step: int, beta2: float, unrectified: float | None = None) -> float | None:
    """RAdam's rectification of the step size, or ``unrectified`` until there is one, see :func:`is_rectified`.

        r_t = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))    if rho_t > 4

    Args:
        step: t, the number of gradients seen, this one included, >= 1.
        beta2: decay rate of the squared gradient's average, in [0, 1).
        unrectified: what to give until then; a number, if the step stands on a device.

    Example:
        >>> rectification(1, 0.999) is None
        True
        >>> round(rectification(6, 0.999), 4), round(rectification(10**6, 0.999), 4)
        (0.0258, 1.0)

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", arXiv 1908.03265, Algorithm 2.
    """
    longest = largest_moving_average(beta2)
    if longest <= TOO_SHORT:
        return unrectified
    length = moving_average_length(step, beta2)
    bounded = maximum(length, TOO_SHORT)
    factor = sqrt((bounded - 4.0) * (bounded - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * bounded))
    return where(length > TOO_SHORT, factor, unrectified)


@dataclass(frozen=True)
class ConstantStep:
    """The learning rate is the step size: s_t = 1.

    Example:
        >>> ConstantStep()
        ConstantStep()
    """

    buffers: ClassVar[tuple[str, ...]] = ()


class PolyakSums(NamedTuple):
    """Sums over the steps with a gradient, with weights: of the numerator, of the denominator, and of the weights."""

    excess: float = 0.0
    norm: float = 0.0
    weight: float = 0.0


@dataclass(frozen=True)
class PolyakStep:
    """The Polyak step: how far the bound of convexity says that z has to go, given the loss; no learning rate.

        s_t = min(max_step, max(0, a_t) / (n_t + eps))
        a_t = mean of f(y_i) - f* + <g_i, z_i - y_i>,    n_t = mean of |g_i|

    over the steps i up to t in which there was a gradient, the last with weight 1, the one before norm_beta, and so on.

    |g| estimates <g, d>, the slope along the direction: for Adam sqrt(pi / 2) times the 1-norm (exact if the gradients
    of a parameter are normal with mean 0), for SGD the square of the 2-norm (exact). <g, z - y> = beta <g, f> with
    the beta that made y, f the gap. The learning rate of a group is a factor on s, which s itself does not know of: 1,
    or a warmup to 1.

    Sums go over all parameters of the optimizer. If torch.distributed has several processes, the loss is averaged over
    them, and the sums of sharded parameters are reduced over their mesh: see :mod:`unscheduled.optimizer.collectives`.
    Processes that each hold different plain parameters, as those of ZeRO, are refused.

    Args:
        f_star: f*, a lower bound of the loss, finite: 0 for cross-entropy or squares; more if it is known to be.
        norm_beta: decay rate of both means, in [0, 1]: 1 counts all steps alike and forgets none, 0 the present one
            alone. With 0.99 a single very large gradient is forgotten after some hundreds of steps.
        max_step: the largest s, > 0. A gradient that was made smaller on its way (by clipping of which ``step()`` was
            not told) makes s larger, and one very large s takes the weight from all later steps of the average: this is
            the limit.
        eps: epsilon, > 0, beside the size of the gradient.
        all_processes: whether the processes of torch.distributed, if there are several, train one model; False if
            each trains its own.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> rule = PolyakStep()
        >>> step, sums = rule(loss=2.0, correlation=-0.5, norm=3.0, before=PolyakSums())
        >>> round(step, 9)
        0.5
        >>> round(rule(loss=1.0, correlation=0.0, norm=2.0, before=sums)[0], 9)  # (1.5 + 1) / (3 + 2)
        0.5

    Source: Defazio, "ScheduleFree+", arXiv 2605.19095; Polyak, "Introduction to Optimization", 1987.
    """

    f_star: float = 0.0
    norm_beta: float = 1.0
    max_step: float = math.inf
    eps: float = 1e-30
    all_processes: bool = True

    buffers: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        require_within("(-inf, inf)", "f_star", self.f_star, "give a lower bound of the loss; 0 for cross-entropy")
        require_within("[0, 1]", "norm_beta", self.norm_beta, "use 1, or 0 for the present step alone")
        require_within("(0, inf]", "max_step", self.max_step, "give the largest step; inf is none")
        require_within("(0, inf)", "eps", self.eps, "use 1e-30")
        if not isinstance(self.all_processes, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"all_processes = {self.all_processes!r} is neither True nor False")

    def begin(self) -> PolyakSums:
        """The sums before the first step."""
        return PolyakSums()

    def __call__(self, loss: float, correlation: float, norm: float, before: PolyakSums) -> tuple[float, PolyakSums]:
        """The step s_t and the new sums.

        Args:
            loss: f(y_t), at least f*.
            correlation: <g_t, z_t - y_t>.
            norm: |g_t|, >= 0; where it is 0, so is s, and the sums stay as they are.
            before: those after the step before.
        """
        if norm <= 0.0:
            return 0.0, before
        here = PolyakSums(loss - self.f_star + correlation, norm, 1.0)
        after = PolyakSums(*(self.norm_beta * old + new for old, new in zip(before, here, strict=True)))
        step = max(0.0, after.excess) / (after.norm + after.weight * self.eps)
        return min(step, self.max_step), after


def default_lr(step_size: "StepSize | None", lr: float) -> float:
    """The learning rate if none is given: 1 where the step size takes its place, ``lr`` otherwise.

    Example:
        >>> default_lr(PolyakStep(), 0.0025), default_lr(ConstantStep(), 0.0025), default_lr(None, 0.0025)
        (1.0, 0.0025, 0.0025)
    """
    return lr if step_size is None or isinstance(step_size, ConstantStep) else 1.0


StepSize: TypeAlias = ConstantStep | PolyakStep | DistanceStep
