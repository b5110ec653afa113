"""The definition compiled by ``torch.compile``, with the scalars of the step as tensors: one graph for all steps.

This module compiles the graph; a step within a function that is being compiled becomes a part of that function's graph.

It is for accelerators: on the CPU compilation takes minutes for hundreds of tensors. The host reads nothing from the
device and so does not wait for it, if the learning rate is a number or a tensor on the CPU. With ``capturable=True`` it
does not read a learning rate on the device either.
"""

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from unscheduled.formulas.iterates import Coefficients
from unscheduled.formulas.rule import Rule
from unscheduled.kernels import loop
from unscheduled.kernels.batch import Batch, Kept, Scalars
from unscheduled.state.device_number import DeviceNumber, as_tensor

NOTHING_KEPT = Kept()

untraced = torch._disable_dynamo  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
"""Excludes a function from ``torch.compile``. (The public function for it imports the compiler at once.)"""

Traceable: TypeAlias = tuple[Rule, Batch, Any]
"""The arguments of the loop in a graph."""

Layout = tuple[tuple[torch.dtype, torch.device, torch.Size, tuple[int, ...]], ...]


def update(rule: Rule, batch: Batch, scalars: Scalars) -> None:
    """Make one step of every parameter of the batch."""
    columns = [batch.params, batch.grads, batch.gaps, *batch.buffers]
    layout = tuple((each.dtype, each.device, each.shape, each.stride()) for column in columns for each in column)
    _graph(rule, layout)(*traceable(rule, batch, scalars))


def traceable(rule: Rule, batch: Batch, scalars: Scalars) -> Traceable:
    """The arguments of the loop with tensors for all scalars that change, so that one graph is valid for all steps."""
    return rule, batch._replace(states=[], kept=NOTHING_KEPT), _as_tensors(scalars, batch.gaps[0])


@cache
def _graph(rule: Rule, layout: Layout) -> Callable[..., None]:
    """The compiled loop for tensors of this layout.

    Each layout has its own copy of the function, since torch recompiles one function only a few times. The cache lives
    as long as the process.
    """
    function = FunctionType(loop.update.__code__.replace(), loop.update.__globals__, loop.update.__name__)
    return cast(Any, torch.compile)(function, fullgraph=True, dynamic=False)


def _as_tensors(scalars: Scalars, like: Tensor) -> Any:
    """The scalars with a tensor for each float, copied to the device together; all other entries are constants."""
    own = {name: value for name, value in scalars.direction.items() if not isinstance(value, bool)}
    numbers = [scalars.lr, scalars.weight_decay, scalars.weight_decay_of_gap, *scalars.coefficients, *own.values()]
    if isinstance(scalars.step, DeviceNumber):  # the host does not know all scalars, and copies none
        together = torch.stack([as_tensor(number, like.device) for number in numbers]).to(like.dtype)
    else:
        together = torch.tensor(numbers, dtype=like.dtype, device="cpu").to(like.device, non_blocking=True)
    tensors: list[Any] = list(together.unbind())
    lr, decay, decay_of_gap, *others = tensors
    count = len(scalars.coefficients)
    return scalars._replace(
        step=0,
        lr=lr,
        weight_decay=decay,
        weight_decay_of_gap=decay_of_gap,
        coefficients=Coefficients(*others[:count]),
        direction={**scalars.direction, **dict(zip(own, others[count:], strict=True))},
    )
