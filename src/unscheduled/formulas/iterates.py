"""The three sequences of Schedule-Free learning, held as two: the gradient point and the gap.

    z   the base iterate, which the base optimizer moves
    x   the running average of z: what is evaluated, saved and shipped
    y   (1 - beta) z + beta x, where the gradient is taken: what the parameters hold while training

Instead of z beside y, one buffer is kept: the **gap** f = z - x. Then

    x = y - (1 - beta) f        z = y + beta f

need no division, so every beta in [0, 1] works and beta may change at every step.

The functions are plain arithmetic on whatever supports ``+ - *``: floats, NumPy arrays, tensors. Scalars are
Python floats (float64). Everything that runs is a lowering of this text. :func:`advance`, :func:`base_move`,
:func:`less` and the directions of the algorithms have no numbers of their own, since one would widen the arithmetic of
a lowering that is compiled for float32: what they need, such as 1 - c, they are given. Directions may use the
functions of :mod:`unscheduled.formulas.primitives`, too.

Source: Defazio et al., "The Road Less Scheduled", arXiv 2405.15682, equations (2)-(4), with the gap in place of z.
"""

from typing import Any, NamedTuple, Protocol, TypeVar


class Elementwise(Protocol):
    """Whatever supports elementwise arithmetic with its own kind and with floats."""

    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...


Array = TypeVar("Array", bound=Elementwise)


class Coefficients(NamedTuple):
    """What the terms of a step are multiplied with, see :func:`advance`."""

    gap_in_y: float
    move_in_y: float
    gap_in_gap: float
    move_in_gap: float


def coefficients(c: float, beta: float, next_beta: float) -> Coefficients:
    """The coefficients of a step.

    Args:
        c: weight of the new z in the average, in [0, 1]; 1 is no averaging: x' = y' = z'.
        beta: interpolation that formed the present y, in [0, 1].
        next_beta: interpolation that forms the next y, in [0, 1].

    Example:
        >>> coefficients(c=1.0, beta=0.5, next_beta=0.5)
        Coefficients(gap_in_y=0.5, move_in_y=1.0, gap_in_gap=1.0, move_in_gap=0.0)
    """
    return Coefficients(c * next_beta + beta - next_beta, 1.0 - next_beta * (1.0 - c), c, 1.0 - c)


def advance(
    y: Array, gap: Array, move: Array, gap_in_y: float, move_in_y: float, gap_in_gap: float, move_in_gap: float
) -> tuple[Array, Array]:
    """One step of all three sequences: z moves by ``-move``, x averages it in with weight c, y follows.

        z' = z - m        x' = (1 - c) x + c z'        y' = (1 - beta') z' + beta' x'

    written for (y, f) in the form whose terms are all small beside y, since the equal form
    ``x + (...)(f - m)`` cancels in low precision:

        f' = f - (c f + (1 - c) m)
        y' = y + (c beta' + beta - beta') f - (1 - beta' (1 - c)) m

    Args:
        y: the gradient point, formed with beta.
        gap: f = z - x, the shape of ``y``.
        move: m, what the base optimizer subtracts from z: step size times direction, decay included.
        gap_in_y, move_in_y, gap_in_gap, move_in_gap: the :func:`coefficients`.

    Returns:
        The next (y, gap), new arrays.

    Example:
        >>> advance(1.0, 0.0, 0.5, *coefficients(c=1.0, beta=0.9, next_beta=0.9))
        (0.5, 0.0)
        >>> advance(1.0, 0.0, 0.5, *coefficients(c=0.5, beta=1.0, next_beta=1.0))  # primal averaging: y is x
        (0.75, -0.25)
    """
    next_y = y + gap_in_y * gap - move_in_y * move
    next_gap = gap - (gap_in_gap * gap + move_in_gap * move)
    return next_y, next_gap


def averaged(y: Array, gap: Array, beta: float) -> Array:
    """The average x = y - (1 - beta) f.

    Example:
        >>> averaged(1.0, 0.5, beta=0.5)
        0.75
    """
    return less(y, gap, 1.0 - beta)


def less(y: Array, gap: Array, share: float) -> Array:
    """y less a share of the gap, y - s f: the average, if the share is 1 - beta.

    Example:
        >>> less(1.0, 0.5, share=0.5)
        0.75
    """
    return y - share * gap


def base(y: Array, gap: Array, beta: float) -> Array:
    """The base iterate z = y + beta f.

    Example:
        >>> base(1.0, 0.5, beta=0.5)
        1.25
    """
    return y + beta * gap


def gradient_point(x: Array, gap: Array, beta: float) -> Array:
    """The gradient point y = x + (1 - beta) f that belongs to the average ``x``.

    Example:
        >>> gradient_point(0.75, 0.5, beta=0.5)
        1.0
    """
    return x + (1.0 - beta) * gap


def gap_between(y: Array, z: Array, beta: float) -> Array:
    """The gap f = (z - y) / beta of a gradient point and a base iterate; beta = 0 does not tell it.

    Example:
        >>> gap_between(1.0, 1.25, beta=0.5)
        0.5
    """
    return (z - y) / beta


def reinterpolated(y: Array, gap: Array, beta: float, next_beta: float) -> Array:
    """The gradient point formed anew with another beta: x and z stay, y' = y + (beta - beta') f.

    Example:
        >>> reinterpolated(1.0, 0.5, beta=0.5, next_beta=1.0)  # beta = 1: y is x
        0.75
    """
    return y + (beta - next_beta) * gap


def base_move(
    direction: Array, y: Array, gap: Array, lr: float, weight_decay: float, weight_decay_of_gap: float
) -> Array:
    """The move of z: m = gamma (d + lambda w), where decoupled weight decay looks at w = y or at w = z = y + beta f.

    Decay is part of the move of z, so x changes by averaging alone.

    Args:
        direction: d, what the rule makes of the gradient.
        y: the gradient point.
        gap: f = z - x.
        lr: gamma, >= 0.
        weight_decay: lambda, >= 0.
        weight_decay_of_gap: 0 for decay at y, lambda beta for decay at z.

    Example:
        >>> base_move(1.0, 2.0, 0.5, lr=0.5, weight_decay=2.0, weight_decay_of_gap=0.0)
        2.5
        >>> base_move(1.0, 2.0, 0.5, lr=0.5, weight_decay=2.0, weight_decay_of_gap=2.0 * 0.5)
        2.75
    """
    return lr * (direction + weight_decay * y + weight_decay_of_gap * gap)
