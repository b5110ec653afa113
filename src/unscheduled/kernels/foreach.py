"""The definition in ``torch._foreach_*``: a few launches for all tensors of a batch.

The step is by hand, in place. So can be the direction of a rule, or it is made of the definition by :func:`on_lists`.
"""
# torch publishes its foreach operations under names with an underscore:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import functools

import torch
from torch import Tensor

from unscheduled.formulas.rule import Direction, ForeachDirection, Rule
from unscheduled.kernels.batch import Batch, Scalars
from unscheduled.state.lists import Lists


def update(rule: Rule, batch: Batch, scalars: Scalars) -> None:
    """Make one step of every parameter of the batch, in the higher precision of gaps and parameters.

    Besides its direction, the step needs one temporary of the batch's size to maximize, and two if parameters are
    narrower than their gaps.
    """
    assert rule.foreach is not None
    lr, gaps, coefficients = scalars.lr, batch.gaps, scalars.coefficients
    y, grads = _widened(batch.params, gaps), _widened(batch.grads, gaps)
    if scalars.maximize:
        grads = torch._foreach_neg(grads)
    direction = rule.foreach(grads, *batch.buffers, **scalars.direction)

    if scalars.weight_decay != 0.0:
        if direction is batch.grads:  # gradients are never overwritten
            direction = torch._foreach_add(direction, y, alpha=scalars.weight_decay)
        else:
            torch._foreach_add_(direction, y, alpha=scalars.weight_decay)
        if scalars.weight_decay_of_gap != 0.0:
            torch._foreach_add_(direction, gaps, alpha=scalars.weight_decay_of_gap)

    torch._foreach_add_(y, gaps, alpha=coefficients.gap_in_y)
    torch._foreach_add_(y, direction, alpha=-coefficients.move_in_y * lr)
    torch._foreach_add_(gaps, gaps, alpha=-coefficients.gap_in_gap)
    torch._foreach_add_(gaps, direction, alpha=-coefficients.move_in_gap * lr)
    if y is not batch.params:
        torch._foreach_copy_(batch.params, y)


def _widened(tensors: list[Tensor], gaps: list[Tensor]) -> list[Tensor]:
    """The tensors in the precision of the arithmetic; the same list if they have it."""
    dtype = torch.promote_types(tensors[0].dtype, gaps[0].dtype)
    return tensors if tensors[0].dtype == dtype else [tensor.to(dtype) for tensor in tensors]


def on_lists(direction: Direction) -> ForeachDirection:
    """A definition as the ``foreach`` of its rule. Each operation in it is a launch, and makes a temporary."""

    @functools.wraps(direction)
    def foreach_direction(grads: list[Tensor], *buffers: list[Tensor], **scalars: float) -> list[Tensor]:
        given = [Lists(tensors) for tensors in buffers]
        found, *next_buffers = direction(Lists(grads), *given, **scalars)
        if any(found is each for each in (*given, *next_buffers)):  # the caller writes to it
            found = found * 1.0
        # a buffer may move on into another, which must not see its next value
        next_buffers = [each * 1.0 if any(each is one for one in given) else each for each in next_buffers]
        for tensors, values in zip(buffers, next_buffers, strict=True):
            for tensor, value in zip(tensors, values.tensors, strict=True):  # torch._foreach_copy_ refuses DTensors
                tensor.copy_(value)
        return found.tensors

    return foreach_direction
