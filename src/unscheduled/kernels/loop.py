"""The definition itself, on one tensor after the other, for any device, dtype and rule."""

import torch

from unscheduled.formulas import iterates
from unscheduled.formulas.rule import Rule
from unscheduled.kernels.batch import Batch, Scalars


def update_all(works: list[tuple[Rule, Batch, Scalars]]) -> None:
    """One step of every parameter of several batches."""
    for work in works:
        update(*work)


def update(rule: Rule, batch: Batch, scalars: Scalars) -> None:
    """Make one step of every parameter of the batch, in the higher precision of gaps and parameters."""
    for param, grad, gap, *buffers in zip(batch.params, batch.grads, batch.gaps, *batch.buffers, strict=True):
        dtype = torch.promote_types(param.dtype, gap.dtype)
        y, grad = param.to(dtype), grad.to(dtype)
        direction, *next_buffers = rule.direction(-grad if scalars.maximize else grad, *buffers, **scalars.direction)
        move = iterates.base_move(direction, y, gap, scalars.lr, scalars.weight_decay, scalars.weight_decay_of_gap)
        next_y, next_gap = iterates.advance(y, gap, move, *scalars.coefficients)
        param.copy_(next_y)
        gap.copy_(next_gap)
        # a buffer may move on into another, which must not see its next value
        next_buffers = [each.clone() if any(each is one for one in buffers) else each for each in next_buffers]
        for buffer, next_buffer in zip(buffers, next_buffers, strict=True):
            buffer.copy_(next_buffer)
