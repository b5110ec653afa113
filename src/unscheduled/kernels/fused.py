"""The definition compiled by Numba into one pass over the memory: for tensors on the CPU.

One kernel is made for each rule and each precision, by inlining the rule's direction and the algebra into a loop. It is
called once a step for all tensors: a table has their addresses, and chunks of them are shared out to as many threads as
torch uses. What it cannot take is left to another implementation.
"""

import logging
from collections.abc import Callable
from functools import cache
from itertools import count
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from unscheduled.kernels import threads
from unscheduled.kernels.jit import CHUNK, compiled_kernel
from unscheduled.kernels.rule import Batch, Rule, Scalars, Work

PIECE = 16  # chunks that a thread takes at a time, at most
ALONE = 150_000  # elements that are not worth a second thread

log = logging.getLogger("unscheduled")
dtype, is_cpu = attrgetter("dtype"), attrgetter("is_cpu")


def update(rule: Rule, works: list[Work]) -> list[Work]:
    """One step of all parameters that it can take; what is left for another implementation is returned."""
    kernel = compiled_kernel(rule, len(_numbers(works[0][1]))) if works else None
    if kernel is None:
        return works
    taken: list[Work] = []
    left: list[Work] = []
    for batch, scalars in works:
        if _fit(batch):
            taken.append((batch, scalars))
        else:
            ours, others = _parted(batch)
            taken += [(ours, scalars)] if ours.params else []
            left += [(others, scalars)] if others.params else []
    if left:
        _say_once(rule.direction.__name__)
    if taken:
        _run(kernel, taken)
    return left


class Table(NamedTuple):
    """Where the tensors of a batch are, but for its gradients: a column of addresses for each, and its size."""

    addresses: NDArray[np.int64]
    sizes: NDArray[np.int64]


def _table(batch: Batch) -> Table:
    """The table of a batch, made once and filled with the present gradients."""
    table: Table | None = batch.kept.get("fused")
    if table is None:
        columns = [batch.params, batch.params, batch.gaps, *batch.buffers]
        addresses = np.array([list(map(Tensor.data_ptr, column)) for column in columns], dtype=np.int64)
        table = Table(addresses, np.array(list(map(Tensor.numel, batch.params)), dtype=np.int64))
        batch.kept["fused"] = table
    table.addresses[1] = list(map(Tensor.data_ptr, batch.grads))
    return table


def _run(kernel: Callable[..., None], works: list[Work]) -> None:
    tables = [_table(batch) for batch, _ in works]
    addresses, sizes = tables[0] if len(works) == 1 else map(np.hstack, zip(*tables, strict=True))
    ends = np.cumsum(-(-sizes // CHUNK))
    rows = np.repeat(np.arange(len(works)), [len(table.sizes) for table in tables])
    scalars = np.array([_numbers(of) for _, of in works], dtype=np.float32)
    chunks = int(ends[-1])
    thread_count = torch.get_num_threads() if sizes.sum() > ALONE else 1
    piece = max(1, min(PIECE, chunks // (4 * thread_count))) if thread_count > 1 else chunks
    starts = count(step=piece)

    def work() -> None:
        while (first := next(starts)) < chunks:
            kernel(addresses, sizes, ends, rows, scalars, first, min(first + piece, chunks))

    threads.run(work, thread_count)


def _numbers(scalars: Scalars) -> list[float]:
    """The scalars in the order in which the kernel has them."""
    sign = -1.0 if scalars.maximize else 1.0
    return [
        sign,
        scalars.lr,
        scalars.weight_decay,
        scalars.weight_decay_of_gap,
        *scalars.coefficients,
        *scalars.direction.values(),
    ]


def _fit(batch: Batch) -> bool:
    """Whether the whole batch can be taken as it is: its gradients are of one dtype, and where their parameters are."""
    if "fit" not in batch.kept:
        columns = [batch.params, batch.gaps, *batch.buffers]
        batch.kept["fit"] = all(_plain(column) and all(map(Tensor.is_contiguous, column)) for column in columns)
        batch.kept["singles"] = [index for index, param in enumerate(batch.params) if param.numel() == 1]
    grads = batch.grads
    return (
        batch.kept["fit"]
        and batch.contiguous
        and grads[0].dtype == torch.float32
        and set(map(type, grads)) <= {Tensor, Parameter}
        and not any(grads[index].is_neg() for index in batch.kept["singles"])  # others are not contiguous then
    )


def _plain(tensors: list[Tensor]) -> bool:
    """Whether they are float32 numbers in the memory of the CPU, as they stand there."""
    return (
        set(map(type, tensors)) <= {Tensor, Parameter}
        and set(map(dtype, tensors)) == {torch.float32}
        and all(map(is_cpu, tensors))
        and not any(map(Tensor.is_neg, tensors))
    )


def _parted(batch: Batch) -> tuple[Batch, Batch]:
    """What can be taken of a batch, with gradients laid out as their parameters are, and what cannot."""
    ours, others = (Batch([], [], [], [[] for _ in batch.buffers], False, {}) for _ in range(2))
    for param, grad, gap, *buffers in zip(batch.params, batch.grads, batch.gaps, *batch.buffers, strict=True):
        fit = _plain([param, grad, gap, *buffers]) and _is_dense(param)
        fit = fit and all(_layout(tensor) == _layout(param) for tensor in (gap, *buffers))
        if fit and _layout(grad) != _layout(param):
            grad = torch.empty_like(param).copy_(grad)
        part = ours if fit else others
        for tensors, tensor in zip(
            [part.params, part.grads, part.gaps, *part.buffers], [param, grad, gap, *buffers], strict=True
        ):
            tensors.append(tensor)
    return ours, others


def _layout(tensor: Tensor) -> list[tuple[int, int, int]]:
    """Dimension, stride and size, but for dimensions of size 1, whose stride means nothing."""
    entries = zip(range(tensor.dim()), tensor.stride(), tensor.shape, strict=True)
    return [entry for entry in entries if entry[2] != 1]


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements, in some order of the dimensions, fill a stretch of memory."""
    expected = 1
    for _, stride, size in sorted(_layout(tensor), key=lambda entry: entry[1]):
        if stride != expected:
            return False
        expected *= size
    return True


@cache
def _say_once(rule: str) -> None:
    log.debug(
        "implementation = 'fused': some parameters of %s are left to another implementation, since they or their "
        "gradients are not dense float32 tensors in the memory of the CPU",
        rule,
    )
