"""What the fused kernels share: which tensors they support, and in which order they are given tensors and scalars.

A kernel makes the step of all tensors of a kind in one call, over a table of their addresses. It reads a tensor as
numbers that stand one after the other in memory, so a tensor is plain, dense, and laid out as its parameter is.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from unscheduled.formulas.rule import Rule
from unscheduled.kernels.batch import PLAIN, Batch, Kept, Scalars, Work
from unscheduled.state.quantization import is_narrow
from unscheduled.state.split_weights import is_split

SHARED = 8  # the number of scalars that all rules have, the first ones of ``numbers_of``

Kernel = TypeVar("Kernel")

log = logging.getLogger("unscheduled")
IS_ZERO = Tensor._is_zerotensor  # pyright: ignore  (a tensor of zeros without memory)


class Kind(NamedTuple):
    """The device and the dtypes of the tensors of a batch; parameters of 16 bits are split weights."""

    device: torch.device
    param: torch.dtype
    grad: torch.dtype
    stored: tuple[torch.dtype, ...]  # of the gap and the buffers


class Taken(NamedTuple):
    """A batch that the kernel updates, and the addresses of its gradients."""

    batch: Batch
    scalars: Scalars
    grads: list[int]


def update(
    rule: Rule,
    works: list[Work],
    is_here: Callable[[Tensor], bool],
    readable: set[torch.dtype],
    compiled: Callable[[Rule, Kind], Kernel | None],
    run: Callable[[Rule, Kind, Kernel, list[Taken]], None],
) -> list[Work]:
    """Make one step of all parameters that a kernel supports, and return the work that it does not support.

    Args:
        rule: the rule of the parameters.
        works: the batches with the scalars of the step.
        is_here: whether a tensor is in memory that the kernel can address.
        readable: the dtypes of parameters and gradients that it reads.
        compiled: returns the kernel of a rule and a kind; None if the rule cannot be compiled.
        run: calls the kernel.
    """
    taken: dict[Kind, tuple[Kernel, list[Taken]]] = {}
    left: list[Work] = []
    for batch, scalars in works:
        kind = _kind(batch) if is_here(batch.params[0]) else None
        kernel = compiled(rule, kind) if kind and {kind.param, kind.grad} <= readable else None
        if kind is None or kernel is None:
            left.append((batch, scalars))
            continue
        addresses = list(map(Tensor.data_ptr, batch.grads))
        if not _fit(batch, addresses, is_here):
            batch, others = _parted(batch, is_here)
            addresses = list(map(Tensor.data_ptr, batch.grads))
            if others.params:
                left.append((others, scalars))
        if batch.params:
            taken.setdefault(kind, (kernel, []))[1].append(Taken(batch, scalars, addresses))
    if left:
        say_once(rule.direction.__name__)
    for kind, (kernel, works_taken) in taken.items():
        run(rule, kind, kernel, works_taken)
        for work in works_taken:
            _tell_autograd(work.batch.params)
    return left


def _kind(batch: Batch) -> Kind | None:
    """The kind of a batch; None if a kernel could not read its states."""
    param = batch.params[0]
    kind = Kind(
        param.device,
        param.dtype,
        batch.grads[0].dtype,
        tuple(column[0].dtype for column in (batch.gaps, *batch.buffers)),
    )
    stored = set(kind.stored) <= {torch.float32, torch.int16, torch.uint8}
    whole = not is_split(param.dtype) or all("low" in state for state in batch.states)
    return kind if stored and whole else None


def columns_of(rule: Rule, kind: Kind, batch: Batch) -> list[list[Tensor]]:
    """The tensors of a batch, without the gradients, in the order of the table of addresses."""
    columns = [batch.params, batch.gaps, *batch.buffers]
    if is_split(kind.param):
        columns.append([state["low"] for state in batch.states])
    for name, dtype in zip(("gap", *rule.buffers), kind.stored, strict=True):
        if is_narrow(dtype):
            columns.append([state[f"{name}_scale"] for state in batch.states])
    return columns


def numbers_of(rule: Rule, scalars: Scalars) -> list[Any]:
    """The scalars in the order of the kernel's arguments."""
    return [
        -1.0 if scalars.maximize else 1.0,
        scalars.lr,
        scalars.weight_decay,
        scalars.weight_decay_of_gap,
        *scalars.coefficients,
        *rule.ordered(scalars.direction),
    ]


def _tell_autograd(params: list[Tensor]) -> None:
    """Increment autograd's version of the parameters, as every writing operation of torch does."""
    try:
        torch.autograd.graph.increment_version(params)
    except TypeError:  # older versions of torch take one at a time
        for param in params:
            torch.autograd.graph.increment_version(param)


def _fit(batch: Batch, addresses: list[int], is_here: Callable[[Tensor], bool]) -> bool:
    """Whether the kernel can update the whole batch: all tensors are plain, contiguous and of their parameter's shape.

    A tensor of zeros without memory has the address 0, and so has a tensor without elements.
    """
    kept, params, grads = batch.kept, batch.params, batch.grads
    if kept.singles is None:
        columns = [params, batch.gaps, *batch.buffers]
        kept.singles = [index for index, param in enumerate(params) if param.numel() == 1]
        kept.fit = all(
            _is_plain(column, is_here) and all(map(Tensor.is_contiguous, column)) for column in columns
        ) and all(len({tensor.shape for tensor in tensors}) == 1 for tensors in zip(*columns, grads, strict=True))
    return (
        kept.fit
        and batch.contiguous
        and set(map(type, grads)) <= PLAIN
        and not (0 in addresses and any(map(IS_ZERO, grads)))
        and not any(grads[index].is_neg() for index in kept.singles)  # other negated tensors are not contiguous
    )


def _is_plain(tensors: list[Tensor], is_here: Callable[[Tensor], bool]) -> bool:
    """Whether tensors are in memory that the kernel can address, and their values are the numbers there."""
    plain = set(map(type, tensors)) <= PLAIN and all(map(is_here, tensors))
    return plain and not any(map(Tensor.is_neg, tensors)) and not any(map(IS_ZERO, tensors))


def _parted(batch: Batch, is_here: Callable[[Tensor], bool]) -> tuple[Batch, Batch]:
    """The part of a batch that the kernel supports, with gradients in their parameters' layouts, and the rest."""
    ours, others = (Batch([], [], [], [[] for _ in batch.buffers], [], False, Kept()) for _ in range(2))
    for param, grad, gap, state, *buffers in zip(
        batch.params, batch.grads, batch.gaps, batch.states, *batch.buffers, strict=True
    ):
        fit = _is_plain([param, grad, gap, *buffers], is_here) and _is_dense(param) and grad.shape == param.shape
        fit = fit and all(_layout(tensor) == _layout(param) for tensor in (gap, *buffers))
        if fit and _layout(grad) != _layout(param):
            grad = torch.empty_like(param, dtype=grad.dtype).copy_(grad)
        part = ours if fit else others
        for tensors, tensor in zip(
            [part.params, part.grads, part.gaps, *part.buffers], [param, grad, gap, *buffers], strict=True
        ):
            tensors.append(tensor)
        part.states.append(state)
    return ours, others


def _layout(tensor: Tensor) -> list[tuple[int, int, int]]:
    """The number, stride and size of each dimension, except those of size 1, whose stride has no meaning."""
    entries = zip(range(tensor.dim()), tensor.stride(), tensor.shape, strict=True)
    return [entry for entry in entries if entry[2] != 1]


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a contiguous range of memory in some order of the dimensions."""
    expected = 1
    for _, stride, size in sorted(_layout(tensor), key=lambda entry: entry[1]):
        if stride != expected:
            return False
        expected *= size
    return True


@cache
def say_once(rule: str) -> None:
    """Note for whom debugs that a rule is not fused everywhere."""
    log.debug(
        "implementation = 'fused': some parameters of %s are updated by another implementation, since the rule is not "
        "compiled, or they or their gradients are not dense tensors of a supported dtype in the kernel's memory",
        rule,
    )
