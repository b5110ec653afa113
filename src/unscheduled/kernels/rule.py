"""What a kernel is given: the rule of the algorithm, a batch of tensors, and the scalars of the step."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from operator import is_
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from unscheduled.iterates import Array, Coefficients

Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]
Direction: TypeAlias = Callable[..., Any]
ForeachDirection: TypeAlias = Callable[..., Tensors]

PLAIN = {Tensor, Parameter}
"""The types of tensors that mean what stands in their memory."""


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
        compact: how ``state_precision="compact"`` stores each of the buffers, see :mod:`unscheduled.precision`:
            ``torch.int16``, or ``torch.uint8`` for one that is never negative; None if the rule cannot do with that.
        size: the size |g| of gradients, a sum over their elements, that the Polyak step divides by: an estimate of
            <g, d>; None if there is none.
        elementwise: whether an element of d depends on the same element of the gradient and the buffers alone. If not,
            the directions are computed tensor by tensor, and any implementation does the rest.
        degree: that of the size: the gradient a g has the size a^degree |g|.
    """

    direction: Direction
    buffers: tuple[str, ...] = ()
    foreach: ForeachDirection | None = None
    compact: tuple[torch.dtype, ...] | None = None
    size: Callable[[list[Tensor]], Tensor] | None = None
    elementwise: bool = True
    degree: int = 1


def all_same(some: Collection[object], others: Collection[object]) -> bool:
    """Whether both have the very same elements, in the same order."""
    return len(some) == len(others) and all(map(is_, some, others))


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, which it is to every rule, as in ``torch.optim``."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def given_direction(grad: Array) -> tuple[Array]:
    """d = g."""
    return (grad,)


def foreach_given_direction(grads: Tensors) -> Tensors:
    """The same on lists of tensors."""
    return grads


GIVEN = Rule(given_direction, foreach=foreach_given_direction, compact=())
"""The rule whose direction is what it is given as the gradient: a gradient, or a direction that is known already."""


@dataclass(eq=False)
class Kept:
    """What the fused kernel makes of a batch when it first meets it, and needs again."""

    fit: bool = False  # all but the gradients can be taken as they are
    singles: list[int] | None = None  # where single numbers are, once it was looked at
    call: Any = None
    token: object = field(default_factory=object)  # which stands for it where it may not be referred to


class Batch(NamedTuple):
    """Tensors that are updated together: one count of gradients seen, one device, and one dtype in each list."""

    params: list[Tensor]
    grads: list[Tensor]
    gaps: list[Tensor]
    buffers: list[list[Tensor]]  # one list for each of the rule's buffers
    states: list[dict[str, Any]]  # where they are from
    contiguous: bool  # all gradients are known to be
    kept: Kept


class Scalars(NamedTuple):
    """The numbers of one step, float64."""

    step: int  # the gradients seen, this one included
    lr: float  # gamma: warmup and rectification included
    weight_decay: float
    weight_decay_of_gap: float
    coefficients: Coefficients
    maximize: bool
    direction: Mapping[str, float]  # the rule's own, in the order of its definition's arguments


Work: TypeAlias = tuple[Batch, Scalars]
