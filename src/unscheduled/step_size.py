"""The step size gamma: warmup, and RAdam's rectification, as factors on the learning rate."""

import math


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
    return min(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0


def largest_moving_average(beta2: float) -> float:
    """rho_inf = 2 / (1 - beta2) - 1, the length that the moving average of the squared gradient tends to.

    Example:
        >>> round(largest_moving_average(0.999))
        1999
    """
    return 2.0 / (1.0 - beta2) - 1.0


def rectification(step: int, beta2: float) -> float | None:
    """RAdam's rectification of the step size, or None while the variance of 1/sqrt(v) cannot be bounded.

        rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t)
        r_t = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t))    if rho_t > 4

    Args:
        step: t, the number of gradients seen, this one included, >= 1.
        beta2: decay rate of the squared gradient's average, in [0, 1).

    Example:
        >>> rectification(1, 0.999) is None
        True
        >>> round(rectification(6, 0.999), 4), round(rectification(10**6, 0.999), 4)
        (0.0258, 1.0)

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", arXiv 1908.03265, Algorithm 2.
    """
    longest = largest_moving_average(beta2)
    decayed = beta2**step
    length = longest - 2.0 * step * decayed / (1.0 - decayed)
    if length <= 4.0:
        return None
    return math.sqrt((length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length))
