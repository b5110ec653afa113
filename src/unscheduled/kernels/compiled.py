"""The definition compiled by ``torch.compile``, with the numbers of the step as tensors: one graph for all steps.

That graph is made here, or, where the step of any implementation is within a function that is being compiled, with it.

For accelerators: on the CPU compilation takes minutes for hundreds of tensors. Nothing is read back from the device, so
that the host does not wait for it, as long as the learning rate is a number or a tensor on the CPU, or
``capturable=True``, with which a learning rate on the device is not read either.
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
"""For functions that ``torch.compile`` is not to look into. (The public name imports the compiler at once.)"""

Traceable: TypeAlias = tuple[Rule, Batch, Any]
"""What the loop is called with in a graph."""

Layout = tuple[tuple[torch.dtype, torch.device, torch.Size, tuple[int, ...]], ...]


def update(rule: Rule, batch: Batch, scalars: Scalars) -> None:
    """One step of every parameter of the batch."""
    columns = [batch.params, batch.grads, batch.gaps, *batch.buffers]
    layout = tuple((each.dtype, each.device, each.shape, each.stride()) for column in columns for each in column)
    _graph(rule, layout)(traceable(rule, batch, scalars))


def traceable(rule: Rule, batch: Batch, scalars: Scalars) -> list[Traceable]:
    """What the loop is called with, for its graph to serve all steps: tensors for all numbers that change.

    It is called once, or, where the numbers are on a device, for each parameter, which has its own count of gradients.
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
    """The compiled loop for tensors of this layout: a function of its own, since torch compiles one a few times only.

    It is kept for the life of the process.
    """
    function = FunctionType(loop.update_all.__code__.replace(), loop.update_all.__globals__, loop.update_all.__name__)
    return cast(Any, torch.compile)(function, fullgraph=True, dynamic=False)


def _as_tensors(scalars: Scalars, like: Tensor) -> Any:
    """The scalars with a tensor for each float, which come to the device together; what else there is is constant."""
    numbers = torch.tensor(_numbers(scalars), dtype=like.dtype, device="cpu").to(like.device, non_blocking=True)
    return _with_numbers(scalars, numbers.unbind())


def _each_as_tensors(scalars: Scalars, steps: Tensor, dtype: torch.dtype) -> list[Any]:
    """The same for each parameter, of scalars that the host does not know: it copies none."""
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
