"""The definition compiled by Numba into one pass over the memory: for tensors on the CPU.

One kernel is made for each rule and each precision, by inlining the rule's direction and the algebra into a loop. It is
called once a step for all tensors: a table has their addresses, and chunks of them are shared out to as many threads as
torch uses. What it cannot take is left to another implementation.
"""

import logging
from functools import cache
from operator import attrgetter
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from unscheduled.kernels import threads
from unscheduled.kernels.jit import CHUNK, SHARED, Kernel, Kind, compiled_kernel
from unscheduled.kernels.rule import Batch, Rule, Scalars, Work
from unscheduled.precision import is_narrow, key

PIECE = 16  # chunks that a thread takes at a time, at most
ALONE = 32_768  # elements that are not worth a second thread

log = logging.getLogger("unscheduled")
is_cpu = attrgetter("is_cpu")


def update(rule: Rule, works: list[Work]) -> list[Work]:
    """One step of all parameters that it can take; what is left for another implementation is returned."""
    taken: dict[Kind, list[Work]] = {}
    left: list[Work] = []
    for batch, scalars in works:
        kind = _kind(batch)
        if kind is None or compiled_kernel(rule, kind, SHARED + len(scalars.direction)) is None:
            left.append((batch, scalars))
        elif _fit(batch):
            taken.setdefault(kind, []).append((batch, scalars))
        else:
            ours, others = _parted(batch)
            if ours.params:
                taken.setdefault(kind, []).append((ours, scalars))
            if others.params:
                left.append((others, scalars))
    if left:
        _say_once(rule.direction.__name__)
    for kind, work in taken.items():
        _run(rule, kind, work)
    return left


def _kind(batch: Batch) -> Kind | None:
    """What the tensors of a batch are stored as; None if there is no kernel for that."""
    param, grad = batch.params[0].dtype, batch.grads[0].dtype
    kind = Kind(param, grad, tuple(column[0].dtype for column in (batch.gaps, *batch.buffers)))
    readable = {param, grad} <= {torch.float32, torch.bfloat16}
    stored = set(kind.stored) <= {torch.float32, torch.int16, torch.uint8}
    whole = param == torch.float32 or all("low" in state for state in batch.states)
    return kind if readable and stored and whole else None


def _columns(rule: Rule, kind: Kind, batch: Batch) -> list[list[Tensor]]:
    """The tensors of a batch in the order in which the kernel has their addresses."""
    columns = [batch.grads, batch.params, batch.gaps, *batch.buffers]
    if kind.param == torch.bfloat16:
        columns.append([state["low"] for state in batch.states])
    for name, dtype in zip(("gap", *rule.buffers), kind.stored, strict=True):
        if is_narrow(dtype):
            columns.append([state[f"{name}_scale"] for state in batch.states])
    return columns


class Table(NamedTuple):
    """Where the tensors of a batch are: a column of addresses for each, and its number of elements."""

    addresses: NDArray[np.int64]
    sizes: NDArray[np.int64]


def _table(rule: Rule, kind: Kind, batch: Batch) -> Table:
    """The table of a batch, made once and filled with the present gradients."""
    table: Table | None = batch.kept.get("table")
    if table is None:
        addresses = [list(map(Tensor.data_ptr, column)) for column in _columns(rule, kind, batch)]
        table = Table(np.array(addresses, np.int64), np.array(list(map(Tensor.numel, batch.params)), np.int64))
        batch.kept["table"] = table
    else:
        table.addresses[0] = list(map(Tensor.data_ptr, batch.grads))
    return table


def _run(rule: Rule, kind: Kind, works: list[Work]) -> None:
    tables = [_table(rule, kind, batch) for batch, _ in works]
    addresses, sizes = tables[0] if len(works) == 1 else map(np.hstack, zip(*tables, strict=True))
    ends = np.cumsum(-(-sizes // CHUNK))
    rows = np.repeat(np.arange(len(works)), [len(table.sizes) for table in tables])
    scalars = np.array([_numbers(of) for _, of in works], np.float32)
    keys = np.array([[key(of.step, at) for at in range(len(kind.stored))] for _, of in works], np.uint32)
    chunks, elements = int(ends[-1]), int(sizes.sum())
    thread_count = torch.get_num_threads() if elements > ALONE else 1
    piece = max(1, min(PIECE, chunks // (4 * thread_count))) if thread_count > 1 else chunks
    arrays = (addresses, sizes, ends, rows, scalars, keys)
    shape = (len(sizes), len(addresses), len(works))
    arguments = np.array([0, piece, chunks, *shape, *(array.ctypes.data for array in arrays)], np.int64)
    kernel = cast(Kernel, compiled_kernel(rule, kind, scalars.shape[1]))
    threads.run(kernel.address, arguments.ctypes.data, thread_count)


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
        and set(map(type, grads)) <= {Tensor, Parameter}
        and not any(grads[index].is_neg() for index in batch.kept["singles"])  # others are not contiguous then
    )


def _plain(tensors: list[Tensor]) -> bool:
    """Whether they are in the memory of the CPU, and mean what stands there."""
    return (
        set(map(type, tensors)) <= {Tensor, Parameter}
        and all(map(is_cpu, tensors))
        and not any(map(Tensor.is_neg, tensors))
    )


def _parted(batch: Batch) -> tuple[Batch, Batch]:
    """What can be taken of a batch, with gradients laid out as their parameters are, and what cannot."""
    ours, others = (Batch([], [], [], [[] for _ in batch.buffers], [], False, {}) for _ in range(2))
    for param, grad, gap, state, *buffers in zip(
        batch.params, batch.grads, batch.gaps, batch.states, *batch.buffers, strict=True
    ):
        fit = _plain([param, grad, gap, *buffers]) and _is_dense(param)
        fit = fit and all(_layout(tensor) == _layout(param) for tensor in (gap, *buffers))
        if fit and _layout(grad) != _layout(param):
            grad = torch.empty_like(param).copy_(grad)
        part = ours if fit else others
        for tensors, tensor in zip(
            [part.params, part.grads, part.gaps, *part.buffers], [param, grad, gap, *buffers], strict=True
        ):
            tensors.append(tensor)
        part.states.append(state)
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
        "gradients are not dense tensors of float32 or bfloat16 in the memory of the CPU",
        rule,
    )
