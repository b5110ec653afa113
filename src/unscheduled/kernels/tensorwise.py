"""Computes directions that are not elementwise tensor by tensor; an implementation makes the rest of the step."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from unscheduled.formulas.rule import Rule
from unscheduled.kernels.batch import Work, of_one
from unscheduled.state.buffers import store, wide
from unscheduled.state.quantization import is_narrow, random_rounding


def directed(rule: Rule, work: Work) -> Work:
    """The rest of the work, for the rule ``GIVEN``: the directions are in the place of the gradients."""
    batch, scalars = work
    directions: list[Tensor] = []
    for position, (grad, gap, state) in enumerate(zip(batch.grads, batch.gaps, batch.states, strict=True)):
        own = {name: of_one(number, position) for name, number in scalars.direction.items()}
        grad = grad.to(torch.float32 if is_narrow(gap.dtype) else gap.dtype)
        buffers = [wide(state, name) for name in rule.buffers]
        with _without_autocast(grad.device.type):
            signed = -grad if scalars.maximize else grad
            direction, *next_buffers = rule.direction(signed, *buffers, **own)
        directions.append(direction)
        for place, (name, values) in enumerate(zip(rule.buffers, next_buffers, strict=True), start=1):
            rounding = random_rounding(state[name], scalars.step, place)
            store(state, name, values, rounding)
    contiguous = all(map(Tensor.is_contiguous, directions))
    return (
        batch._replace(grads=directions, buffers=[], contiguous=contiguous),
        scalars._replace(direction={}, maximize=False),
    )


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A context in which matrix products have the precision of their operands, also if the step is under autocast."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
