"""Rules whose direction is no matter of single elements: computed tensor by tensor, and then given to a kernel."""

import torch
from torch import Tensor

from unscheduled import precision
from unscheduled.kernels.rule import Rule, Work


def directed(rule: Rule, work: Work) -> Work:
    """The work that is left for the rule ``GIVEN``: the directions stand in place of the gradients."""
    batch, scalars = work
    directions: list[Tensor] = []
    for grad, gap, state in zip(batch.grads, batch.gaps, batch.states, strict=True):
        grad = grad.to(torch.float32 if precision.is_narrow(gap.dtype) else gap.dtype)
        buffers = [precision.wide(state, name) for name in rule.buffers]
        direction, *next_buffers = rule.direction(-grad if scalars.maximize else grad, *buffers, **scalars.direction)
        directions.append(direction)
        for position, (name, values) in enumerate(zip(rule.buffers, next_buffers, strict=True), start=1):
            rounding = precision.random_rounding(state[name], scalars.step, position)
            precision.store(state, name, values, rounding)
    contiguous = all(map(Tensor.is_contiguous, directions))
    return (
        batch._replace(grads=directions, buffers=[], contiguous=contiguous),
        scalars._replace(direction={}, maximize=False),
    )
