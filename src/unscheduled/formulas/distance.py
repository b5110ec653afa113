"""The distance step: a step size without a learning rate, from how far the average x has come from its start.

The norm is that of the direction d = g / h: |w|^2 = sum h w^2, with h the denominator of Adam. The regret of averaged
gradient descent is least at gamma = D / sqrt(sum |g|^2), where D is the distance of the start from the optimum and |g|
the dual norm, sum g^2 / h. D is not known: the distance that x has come stands for it (DoG), with a bound on how fast
gamma may grow.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from unscheduled.formulas.iterates import Array
from unscheduled.formulas.scalar_math import maximum, minimum, sqrt, where
from unscheduled.formulas.validation import require_within


class Sums(NamedTuple):
    """What a step size is computed from, before step t: sums over the elements of all parameters."""

    square: float
    """sum h_{t-1} (x_{t-1} - z_0)^2."""

    previous_scale: float
    """sum h_{t-1}."""

    decay: float
    """sum h_t lr lambda, with the learning rate and the weight decay of the group of each element."""

    noise: float
    """sum m_t^2 / h_t, in units of what it is for uncorrelated gradients: see :func:`inverse_of_squared_weights`."""

    energy: float
    """sum g_t^2 / h_t, for which Adam's h stands itself: sum h_t."""

    scale: float
    """sum h_t."""


class Estimates(NamedTuple):
    """The estimates after a step, which all groups share."""

    steps: float
    """t, the steps made."""

    gamma: float
    """gamma_t, in the units of the parameters."""

    reached: float
    """R, the largest root mean square distance of x from its start, in the norm of h."""

    remembered: float
    """(1 - gamma lambda) S, the number of steps that weight decay has not forgotten."""

    noise: float
    """The average of the sums of that name."""

    energy: float
    """Likewise."""

    size: float
    """The mean of energy / scale over all steps: 1 for Adam, the mean square of a gradient where h = 1."""


def from_start(y: Array, start: Array, gap: Array, share: Any) -> Array:
    """How far y + s f is from the start z_0: x with s = beta - 1, z with s = beta.

    Example:
        >>> from_start(2.0, 1.0, 0.5, share=0.5)
        1.25
    """
    return (y - start) + share * gap


def inverse_of_squared_weights(beta: float, count: Any) -> Any:
    """1 over the sum of the squared weights in a moving average of ``count`` gradients: (1 + b) / ((1 - b) (1 - b^2t)).

    The square of an average of uncorrelated gradients, times this, has the mean of a gradient's own square.

    Example:
        >>> inverse_of_squared_weights(0.5, 1)  # 0.5 g
        4.0
    """
    return (1.0 + beta) / ((1.0 - beta) * (1.0 - beta ** (2.0 * count)))


@dataclass(frozen=True)
class DistanceStep:
    """The distance step: no learning rate, no warmup and no loss.

        R_t = max(R_{t-1}, sqrt(sum h (x_t - z_0)^2 / sum h)),    R_0 = start
        S_t = 1 + (1 - gamma_{t-1} lambda) S_{t-1},    S_0 = 0
        m_t = b m_{t-1} + (1 - b) g_t,    V_t = EMA_b(sum m_t^2 / (h phi_t)) / EMA_b(sum g_t^2 / h),    b = noise_beta
        D_t = factor (1 + early / sqrt(t)) R_{t-1} / (t S_t)^(1/4),    gamma_0 = factor start
        gamma_t = min(growth gamma_{t-1}, D_t / sqrt(clip(V_t, least_noise, 1)))

    over all parameters of the optimizer, with z_0 the weights at the start, h the denominator of Adam at step t, phi_t
    the mean of m^2 / g^2 for uncorrelated gradients, and lambda the weight decay, the mean over the elements with the
    weights h. For Adam sum g^2 / h is about sum h, which is taken in its place. Without decay S_t = t, and D_t falls
    with sqrt(t). V, the share of the gradients' variance that is left in the long run, raises the step where they
    alternate. The learning rate of a group is a factor on gamma: 1.

    For SGD h is 1, and gamma is divided by the root mean square of all gradients so far, as in DoG. The sums are of the
    gradients as ``step()`` finds them: clipping, accumulation and the scale of the loss need nothing (but for SGD with
    weight decay, which is relative to the step). A gradient that is not finite refuses the step; with
    ``capturable=True`` it leaves the estimates as they are, and the weights get it. Steps on a device wait for it, but
    with ``capturable=True``.

    Memory: z_0 in the precision of the parameter, and m in that of the buffers: 4 + 4 bytes a parameter of float32, 4
    without m (``noise_beta=None``).

    Args:
        factor: on the distance, > 0.
        start: R_0, > 0, the least root mean square distance.
        growth: the largest ratio of a step to the one before, > 1; it takes the place of a warmup.
        early: >= 0; the factor is 1 + early / sqrt(t) times as large, since x lags behind z at first.
        noise_beta: b, in (0, 1); None leaves V out, and keeps no m.
        least_noise: the least V, in (0, 1].
        partitioned: whether each process of torch.distributed has other plain parameters of one model, as with
            ``ZeroRedundancyOptimizer``; the sums are added up over all of them. DTensors need nothing.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> rule = DistanceStep(noise_beta=None)
        >>> before = rule.begin()._replace(steps=3.0, gamma=1.0, reached=0.25, remembered=3.0, size=1.0)
        >>> step, _ = rule(Sums(2.0, 8.0, 0.0, 0.0, 8.0, 8.0), before)
        >>> round(step, 9)  # 1.6 (1 + 2 / sqrt(4)) sqrt(2 / 8) / sqrt(4)
        0.8

    Source: Ivgi et al., "DoG is SGD's Best Friend", arXiv 2302.12022. The rest is this project's.
    """

    factor: float = 1.6
    start: float = 1e-3
    growth: float = 1.2
    early: float = 2.0
    noise_beta: float | None = 0.95
    least_noise: float = 0.1
    partitioned: bool = False

    def __post_init__(self) -> None:
        require_within("(0, inf)", "factor", self.factor, "use 1.6")
        require_within("(0, inf)", "start", self.start, "use 1e-3")
        require_within("(1, inf)", "growth", self.growth, "use 1.2")
        require_within("[0, inf)", "early", self.early, "use 2.0, or 0 to leave it out")
        if self.noise_beta is not None:
            require_within("(0, 1)", "noise_beta", self.noise_beta, "use 0.95, or None to leave it out")
        require_within("(0, 1]", "least_noise", self.least_noise, "use 0.1")
        if not isinstance(self.partitioned, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"partitioned = {self.partitioned!r} is neither True nor False")

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of the tensors in the state of each parameter: z_0, and m."""
        return ("z0",) if self.noise_beta is None else ("z0", "grad_avg")

    def begin(self) -> Estimates:
        """The estimates before the first step."""
        first = self.factor * self.start
        return Estimates(0.0, first, self.start, remembered=0.0, noise=0.0, energy=0.0, size=0.0)

    def __call__(self, sums: Sums, before: Estimates) -> tuple[float, Estimates]:
        """The step gamma_t, and the estimates after it.

        Args:
            sums: over all parameters; none may be infinite or NaN. If all are 0, there is no gradient, and no step.
            before: the estimates after the step before.
        """
        steps = before.steps + 1.0
        reached = maximum(before.reached, sqrt(_ratio(sums.square, sums.previous_scale)))
        size = before.size + (_ratio(sums.energy, sums.scale) - before.size) / steps
        counted = 1.0 + before.remembered
        factor = self.factor * (1.0 + self.early / sqrt(steps))
        bound = factor * reached / sqrt(sqrt(steps * counted))
        noise, energy = before.noise, before.energy
        if self.noise_beta is not None:
            noise = self.noise_beta * before.noise + (1.0 - self.noise_beta) * sums.noise
            energy = self.noise_beta * before.energy + (1.0 - self.noise_beta) * sums.energy
            bound = bound / sqrt(minimum(maximum(_ratio(noise, energy), self.least_noise), 1.0))
        gamma = minimum(self.growth * before.gamma, bound)
        step = _ratio(gamma, sqrt(size))
        remembered = (1.0 - minimum(step * _ratio(sums.decay, sums.scale), 1.0)) * counted
        after = Estimates(steps, gamma, reached, remembered, noise, energy, size)
        moves = sums.scale > 0.0
        after = Estimates(*(where(moves, new, old) for new, old in zip(after, before, strict=True)))
        return where(moves, step, 0.0), after


def _ratio(some: float, other: float) -> float:
    """The ratio of a number and one that is not negative; 0 where that is 0."""
    return where(other > 0.0, some / where(other > 0.0, other, 1.0), 0.0)
