"""The rule of an algorithm: how a gradient becomes a direction."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from unscheduled.formulas.iterates import Array

Arrays: TypeAlias = Any
"""A list or tuple of arrays."""

Direction: TypeAlias = Callable[..., Any]
ForeachDirection: TypeAlias = Callable[..., Arrays]
Stored: TypeAlias = Literal["int16", "uint8"]


class Norm(NamedTuple):
    """The norm of a rule whose direction is d = g / h: |w|^2 = sum h w^2.

    The functions are definitions, as directions are. The names of their arguments are those of the buffer and of the
    rule's scalars.
    """

    buffer: str
    """That of the rule of which h is made."""

    average: Callable[..., Any]
    """The next buffer, from the gradient, the buffer and scalars."""

    denominator: Callable[..., Any]
    """h, from the buffer and scalars."""


@dataclass(frozen=True)
class Rule:
    """A base optimizer's rule: how a gradient becomes the direction d in which z moves.

    Args:
        direction: the definition, plain arithmetic without numbers of its own and the functions of
            :mod:`unscheduled.formulas.primitives`: ``direction(grad, *buffers, *scalars)`` returns
            (d, \\*next buffers), new arrays. It may call functions of the same kind, by their bare names. Its arguments
            have the names of the buffers, and of the scalars that the algorithm gives at each step.
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
        norm: the norm in which the distance step measures how far x has come, ``"euclidean"`` if d = g; None if there
            is none.

    Raises:
        TypeError: if an argument of the direction is none that is given in its place and by its name.
        ValueError: if the buffers, ``foreach`` or ``compact`` do not fit the arguments of the direction.

    Example:
        >>> def decayed(grad, average, beta):
        ...     return grad, beta * average
        >>> Rule(decayed, buffers=("average",)).scalars
        ('beta',)
        >>> Rule(decayed, buffers=("averages",))
        Traceback (most recent call last):
        ...
        ValueError: buffers = ('averages',) are not what decayed(grad, average, beta) has after the gradient: ...
    """

    direction: Direction
    buffers: tuple[str, ...] = ()
    foreach: ForeachDirection | None = None
    compact: tuple[Stored, ...] | None = None
    size: Callable[[list[Any]], Any] | None = None
    elementwise: bool = True
    degree: int = 1
    norm: Norm | Literal["euclidean"] | None = None
    scalars: tuple[str, ...] = field(init=False, compare=False)
    """Names of the scalars: the arguments of the direction after the buffers."""

    def __post_init__(self) -> None:
        count, written = 1 + len(self.buffers), _written(self.direction)
        names = _arguments(self.direction)
        if not names or names[1:count] != self.buffers:
            raise ValueError(
                f"buffers = {self.buffers} are not what {written} has after the gradient: {names[1:count]}: give the "
                "arguments of the direction and the buffers the same names, in the same order"
            )
        object.__setattr__(self, "scalars", names[count:])
        if self.foreach is not None and set(_arguments(self.foreach)[count:]) != set(self.scalars):
            raise ValueError(
                f"foreach = {_written(self.foreach)} has other scalars than {written}: use {', '.join(self.scalars)}"
            )
        if self.compact is not None and len(self.compact) != len(self.buffers):
            raise ValueError(f"compact = {self.compact} is not one entry for each of the buffers {self.buffers}")

    def ordered(self, scalars: Mapping[str, float]) -> list[float]:
        """The values of the scalars in the order of the direction's arguments.

        Raises:
            TypeError: if one of them is missing, or is no argument of the direction.

        Example:
            >>> Rule(lambda grad, rate, eps: (rate * grad + eps,)).ordered({"eps": 0.5, "rate": 2.0})
            [2.0, 0.5]
        """
        if set(scalars) != set(self.scalars):
            missing = [name for name in self.scalars if name not in scalars]
            unknown = [name for name in scalars if name not in self.scalars]
            found = [f"{name!r} is missing" for name in missing] + [f"{name!r} is unknown" for name in unknown]
            raise TypeError(
                f"the scalars of {_written(self.direction)} are {self.scalars}, but {', '.join(found)}: give the "
                "arguments of the direction and the scalars the same names"
            )
        return [scalars[name] for name in self.scalars]


def _arguments(direction: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments, all of which can be given in their place and by their names."""
    parameters = inspect.signature(direction).parameters
    for name, parameter in parameters.items():
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD or parameter.default is not parameter.empty:
            raise TypeError(
                f"the argument {str(parameter)!r} of {_written(direction)} may be left out, or cannot be given both in "
                f"its place and by its name: write {name.strip('*')!r}, and give it always"
            )
    return tuple(parameters)


def _written(direction: Callable[..., Any]) -> str:
    """A function as its definition begins, without types."""
    parameters = (str(each.replace(annotation=each.empty)) for each in inspect.signature(direction).parameters.values())
    return f"{getattr(direction, '__name__', direction)}({', '.join(parameters)})"


def given_direction(grad: Array) -> tuple[Array]:
    """d = g."""
    return (grad,)


def foreach_given_direction(grads: Arrays) -> Arrays:
    """The same on lists of tensors."""
    return grads


GIVEN = Rule(given_direction, foreach=foreach_given_direction, compact=())
"""The rule whose direction is what it is given as the gradient: a gradient, or a direction that is known already."""
