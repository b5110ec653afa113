"""The three sequences of Schedule-Free learning, stored as two: the gradient point and the gap.

    z   the base iterate, which the base optimizer moves
    x   the average of z, which is evaluated, saved and shipped
    y   (1 - beta) z + beta x, the gradient point, which the parameters hold while training

Beside y, the **gap** f = z - x is stored in place of z. Then

    x = y - (1 - beta) f        z = y + beta f

need no division, so every beta in [0, 1] works and beta may change at every step.

The functions are plain arithmetic on objects that support ``+ - *``: floats, NumPy arrays, tensors. Scalars are
Python floats (float64). Every implementation is a lowering of this text. :func:`advance`, :func:`base_move`,
:func:`less` and the directions of the algorithms contain no numbers, since a number would widen the arithmetic of a
lowering for float32: values such as 1 - c are arguments. Directions may use the functions of
:mod:`unscheduled.formulas.primitives`, too.

Source: Defazio et al., "The Road Less Scheduled", arXiv 2405.15682, equations (2)-(4), with the gap in place of z.
"""

from typing import Any, NamedTuple, Protocol, TypeVar


class Elementwise(Protocol):
    """An object that supports elementwise arithmetic with objects of its type and with floats."""

    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...


Array = TypeVar("Array", bound=Elementwise)


class Coefficients(NamedTuple):
    """The factors of the terms of a step, see :func:`advance`."""

    gap_in_y: float
    move_in_y: float
    gap_in_gap: float
    move_in_gap: float


def coefficients(c: float, beta: float, next_beta: float) -> Coefficients:
    """The coefficients of a step.

    Args:
        c: averaging weight of the new z, in [0, 1]; 1 is no averaging: x' = y' = z'.
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
    """One step of all three sequences: z moves by ``-move``, x takes the new z in with weight c, y is formed anew.

        z' = z - m        x' = (1 - c) x + c z'        y' = (1 - beta') z' + beta' x'

    In terms of (y, f), with terms that are all small beside y, since the equal form ``x + (...)(f - m)`` cancels in low
    precision:

        f' = f - (c f + (1 - c) m)
        y' = y + (c beta' + beta - beta') f - (1 - beta' (1 - c)) m

    Args:
        y: the gradient point, formed with beta.
        gap: f = z - x, the shape of ``y``.
        move: m, which the base optimizer subtracts from z: step size times direction, with decay.
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
    """y less a share s of the gap, y - s f, which is the average x if s = 1 - beta.

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
    """The gap f = (z - y) / beta of a gradient point and a base iterate, for beta > 0.

    Example:
        >>> gap_between(1.0, 1.25, beta=0.5)
        0.5
    """
    return (z - y) / beta


def reinterpolated(y: Array, gap: Array, beta: float, next_beta: float) -> Array:
    """The gradient point for another beta, with the same x and z: y' = y + (beta - beta') f.

    Example:
        >>> reinterpolated(1.0, 0.5, beta=0.5, next_beta=1.0)  # beta = 1: y is x
        0.75
    """
    return y + (beta - next_beta) * gap


def base_move(
    direction: Array, y: Array, gap: Array, lr: float, weight_decay: float, weight_decay_of_gap: float
) -> Array:
    """The move of z: m = gamma (d + lambda w), with decoupled weight decay of w = y or of w = z = y + beta f.

    Decay is part of the move of z, so that x changes by averaging alone.

    Args:
        direction: d, which the rule computes from the gradient.
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
