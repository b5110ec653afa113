"""The rule of an algorithm: how a gradient becomes a direction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from unscheduled.formulas.iterates import Array

Arrays: TypeAlias = Any
"""A list or tuple of arrays."""

Direction: TypeAlias = Callable[..., Any]
ForeachDirection: TypeAlias = Callable[..., Arrays]
Stored: TypeAlias = Literal["int16", "uint8"]


@dataclass(frozen=True)
class Rule:
    """A base optimizer's rule: how a gradient becomes the direction d in which z moves.

    Args:
        direction: the definition, plain arithmetic without numbers of its own: ``direction(grad, *buffers, *scalars)``
            returns (d, \\*next buffers), new arrays. It may call functions of the same kind, by their bare names.
        buffers: names of the buffers that it keeps for each parameter, each of the parameter's shape, first all zero.
        foreach: the same on lists of tensors, or None if there is none: ``foreach(grads, *buffer lists, **scalars)``
            returns the list of d, which is either ``grads`` itself or new tensors, and updates the buffers in place.
            It never writes to ``grads``.
        compact: how ``state_precision="compact"`` stores each of the buffers, see
            :mod:`unscheduled.state.quantization`: ``"int16"``, or ``"uint8"`` for one that is never negative; None if
            the rule cannot do with that.
        size: the size |g| of gradients, a sum over their elements, that the Polyak step divides by: an estimate of
            <g, d>; None if there is none.
        elementwise: whether an element of d depends on the same element of the gradient and the buffers alone. If not,
            the directions are computed tensor by tensor, and any implementation does the rest.
        degree: that of the size: the gradient a g has the size a^degree |g|.
    """

    direction: Direction
    buffers: tuple[str, ...] = ()
    foreach: ForeachDirection | None = None
    compact: tuple[Stored, ...] | None = None
    size: Callable[[list[Any]], Any] | None = None
    elementwise: bool = True
    degree: int = 1


def given_direction(grad: Array) -> tuple[Array]:
    """d = g."""
    return (grad,)


def foreach_given_direction(grads: Arrays) -> Arrays:
    """The same on lists of tensors."""
    return grads


GIVEN = Rule(given_direction, foreach=foreach_given_direction, compact=())
"""The rule whose direction is what it is given as the gradient: a gradient, or a direction that is known already."""
