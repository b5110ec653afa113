"""The definition compiled by ``torch.compile``, with the scalars of the step as tensors: one graph for all steps.

This module compiles the graph; a step within a function that is being compiled becomes a part of that function's graph.

It is for accelerators: on the CPU compilation takes minutes for hundreds of tensors. The host reads nothing from the
device and so does not wait for it, if the learning rate is a number or a tensor on the CPU. With ``capturable=True`` it
does not read a learning rate on the device either.
"""

from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from unscheduled.formulas.iterates import Coefficients
from unscheduled.formulas.rule import Rule
from unscheduled.kernels import loop
from unscheduled.kernels.batch import Batch, Kept, Scalars, of_one

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
    _graph(rule, layout)(traceable(rule, batch, scalars))


def traceable(rule: Rule, batch: Batch, scalars: Scalars) -> list[Traceable]:
    """The arguments of the loop with tensors for all scalars that change, so that one graph is valid for all steps.

    There is one entry, or, where the scalars are on a device, one for each parameter, each with its own
    count of gradients.
    """
    batch = batch._replace(states=[], kept=NOTHING_KEPT)
    if not isinstance(scalars.step, Tensor):
        return [(rule, batch, _as_tensors(scalars, batch.gaps[0]))]
    columns = zip(batch.params, batch.grads, batch.gaps, *batch.buffers, strict=True)
    each = zip(columns, _each_as_tensors(scalars, scalars.step, batch.gaps[0].dtype), strict=True)
    return [
        (rule, batch._replace(params=[param], grads=[grad], gaps=[gap], buffers=[[own] for own in buffers]), numbers)
        for (param, grad, gap, *buffers), numbers in each
    ]


@cache
def _graph(rule: Rule, layout: Layout) -> Callable[..., None]:
    """The compiled loop for tensors of this layout.

    Each layout has its own copy of the function, since torch recompiles one function only a few times. The cache lives
    as long as the process.
    """
    function = FunctionType(loop.update_all.__code__.replace(), loop.update_all.__globals__, loop.update_all.__name__)
    return cast(Any, torch.compile)(function, fullgraph=True, dynamic=False)


def _as_tensors(scalars: Scalars, like: Tensor) -> Any:
    """The scalars with a tensor for each float, copied to the device together; all other entries are constants."""
    numbers = torch.tensor(_numbers(scalars), dtype=like.dtype, device="cpu").to(like.device, non_blocking=True)
    return _with_numbers(scalars, numbers.unbind())


def _each_as_tensors(scalars: Scalars, steps: Tensor, dtype: torch.dtype) -> list[Any]:
    """The same for each parameter, of scalars that the host does not know, so that it copies none."""
    numbers = [
        number.to(dtype) if isinstance(number, Tensor) else torch.full((), number, dtype=dtype, device=steps.device)
        for number in _numbers(scalars)
    ]
    return [_with_numbers(scalars, [of_one(number, place) for number in numbers]) for place in range(len(steps))]


def _numbers(scalars: Scalars) -> list[Any]:
    """The scalars that are no constants of a graph."""
    own = (number for number in scalars.direction.values() if not isinstance(number, bool))
    return [scalars.lr, scalars.weight_decay, scalars.weight_decay_of_gap, *scalars.coefficients, *own]


def _with_numbers(scalars: Scalars, numbers: Sequence[Tensor]) -> Any:
    """The scalars with these in place of their :func:`_numbers`."""
    own = [name for name, number in scalars.direction.items() if not isinstance(number, bool)]
    lr, decay, decay_of_gap, *others = numbers
    tensors: list[Any] = others
    count = len(scalars.coefficients)
    return scalars._replace(
        step=0,
        lr=cast(Any, lr),
        weight_decay=cast(Any, decay),
        weight_decay_of_gap=cast(Any, decay_of_gap),
        coefficients=Coefficients(*tensors[:count]),
        direction={**scalars.direction, **dict(zip(own, tensors[count:], strict=True))},
    )
