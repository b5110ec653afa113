"""The definition compiled by Numba into one pass over the memory, for tensors on the CPU.

Each rule and precision has one kernel, which inlines the rule's direction and the algebra into a loop. It is called
once a step for all tensors: a table has their addresses, and as many threads as torch uses share the chunks. Tensors
that the kernel does not support (other dtypes, devices or layouts) are updated by ``foreach`` or ``loop``.
"""

import logging
from functools import cache
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unscheduled.formulas.rule import Rule
from unscheduled.kernels.batch import PLAIN, Batch, Kept, Scalars, Work, all_same
from unscheduled.kernels.numba import threads
from unscheduled.kernels.numba.jit import CHUNK, SHARED, Kernel, Kind, compiled_kernel
from unscheduled.state.quantization import is_narrow, key

PIECE = 16  # the most chunks that a thread takes at a time
ALONE = 32_768  # the most elements that one thread updates alone

log = logging.getLogger("unscheduled")
IS_CPU = attrgetter("is_cpu")
IS_ZERO = Tensor._is_zerotensor  # pyright: ignore  (a tensor of zeros without memory)


class Taken(NamedTuple):
    """A batch that the kernel updates, and the addresses of its gradients."""

    batch: Batch
    scalars: Scalars
    grads: list[int]


def update(rule: Rule, works: list[Work]) -> list[Work]:
    """Make one step of all parameters that the kernel supports, and return the work that it does not support."""
    taken: dict[Kind, tuple[Kernel, list[Taken]]] = {}
    left: list[Work] = []
    for batch, scalars in works:
        kind = _kind(batch)
        kernel = compiled_kernel(rule, kind, SHARED + len(rule.scalars)) if kind else None
        if kind is None or kernel is None:
            left.append((batch, scalars))
            continue
        addresses = list(map(Tensor.data_ptr, batch.grads))
        if not _fit(batch, addresses):
            batch, others = _parted(batch)
            addresses = list(map(Tensor.data_ptr, batch.grads))
            if others.params:
                left.append((others, scalars))
        if batch.params:
            taken.setdefault(kind, (kernel, []))[1].append(Taken(batch, scalars, addresses))
    if left:
        _say_once(rule.direction.__name__)
    for kind, (kernel, works_taken) in taken.items():
        _run(rule, kind, kernel, works_taken)
    return left


def _kind(batch: Batch) -> Kind | None:
    """The dtypes of the tensors of a batch; None if there is no kernel for them."""
    if not batch.params[0].is_cpu:
        return None
    param, grad = batch.params[0].dtype, batch.grads[0].dtype
    kind = Kind(param, grad, tuple(column[0].dtype for column in (batch.gaps, *batch.buffers)))
    readable = {param, grad} <= {torch.float32, torch.bfloat16}
    stored = set(kind.stored) <= {torch.float32, torch.int16, torch.uint8}
    whole = param == torch.float32 or all("low" in state for state in batch.states)
    return kind if readable and stored and whole else None


def _columns(rule: Rule, kind: Kind, batch: Batch) -> list[list[Tensor]]:
    """The tensors of a batch in the order of the kernel's table of addresses."""
    columns = [batch.grads, batch.params, batch.gaps, *batch.buffers]
    if kind.param == torch.bfloat16:
        columns.append([state["low"] for state in batch.states])
    for name, dtype in zip(("gap", *rule.buffers), kind.stored, strict=True):
        if is_narrow(dtype):
            columns.append([state[f"{name}_scale"] for state in batch.states])
    return columns


class Call(NamedTuple):
    """The arguments of the kernel for some batches: made once, and updated at each step."""

    tokens: list[object]  # the tokens of the batches
    addresses: NDArray[np.int64]  # the table, with a column for each tensor of parameters
    columns: list[slice]  # the columns of each batch
    scalars: NDArray[np.float32]
    keys: NDArray[np.uint32]
    arguments: NDArray[np.int64]
    address: int  # the address of ``arguments``
    others: tuple[NDArray[np.int64], ...]  # the arrays to which ``arguments`` points
    elements: int


def _call(rule: Rule, kind: Kind, works: list[Taken]) -> Call:
    """The call for these batches, with the present gradients and scalars."""
    tokens = [work.batch.kept.token for work in works]
    first = works[0].batch.kept
    call: Call | None = first.call
    if call is None or not all_same(call.tokens, tokens):
        call = first.call = _new_call(rule, kind, works)
    for row, (work, columns) in enumerate(zip(works, call.columns, strict=True)):
        call.addresses[0, columns] = work.grads
        call.scalars[row] = _numbers(rule, work.scalars)
        if is_narrow(kind.stored[0]):
            call.keys[row] = key(work.scalars.step)  # for the random numbers
    return call


def _new_call(rule: Rule, kind: Kind, works: list[Taken]) -> Call:
    addresses = np.hstack(
        [
            np.array([list(map(Tensor.data_ptr, column)) for column in _columns(rule, kind, work.batch)], np.int64)
            for work in works
        ]
    )
    sizes = np.array([param.numel() for work in works for param in work.batch.params], np.int64)
    counts = [len(work.batch.params) for work in works]
    stops = np.cumsum(counts).tolist()
    ends = np.cumsum(-(-sizes // CHUNK))
    rows = np.repeat(np.arange(len(works)), counts)
    scalars = np.zeros((len(works), len(_numbers(rule, works[0].scalars))), np.float32)
    keys = np.zeros(len(works), np.uint32)
    arrays = (addresses, sizes, ends, rows, scalars, keys)
    numbers = (0, 0, int(ends[-1]), len(sizes), len(addresses))
    arguments = np.array([*numbers, *(array.ctypes.data for array in arrays)], np.int64)
    return Call(
        tokens=[work.batch.kept.token for work in works],
        addresses=addresses,
        columns=[slice(stop - count, stop) for stop, count in zip(stops, counts, strict=True)],
        scalars=scalars,
        keys=keys,
        arguments=arguments,
        address=arguments.ctypes.data,
        others=(sizes, ends, rows),
        elements=int(sizes.sum()),
    )


def _run(rule: Rule, kind: Kind, kernel: Kernel, works: list[Taken]) -> None:
    """Run the kernel, in one thread if there are few elements, else in as many as torch uses."""
    call = _call(rule, kind, works)
    chunks = int(call.arguments[2])
    thread_count = torch.get_num_threads() if call.elements > ALONE else 1
    call.arguments[:2] = 0, max(1, min(PIECE, chunks // (4 * thread_count))) if thread_count > 1 else chunks
    threads.run(kernel.address, call.address, thread_count)
    for work in works:
        _tell_autograd(work.batch.params)


def _tell_autograd(params: list[Tensor]) -> None:
    """Increment autograd's version of the parameters, as every writing operation of torch does."""
    try:
        torch.autograd.graph.increment_version(params)
    except TypeError:  # older versions of torch take one at a time
        for param in params:
            torch.autograd.graph.increment_version(param)


def _numbers(rule: Rule, scalars: Scalars) -> list[float]:
    """The scalars in the order of the kernel's arguments."""
    sign = -1.0 if scalars.maximize else 1.0
    return [
        sign,
        scalars.lr,
        scalars.weight_decay,
        scalars.weight_decay_of_gap,
        *scalars.coefficients,
        *rule.ordered(scalars.direction),
    ]


def _fit(batch: Batch, addresses: list[int]) -> bool:
    """Whether the kernel can update the whole batch: all tensors are plain, contiguous and of their parameter's shape.

    A tensor of zeros without memory has the address 0, and so has a tensor without elements.
    """
    kept, params, grads = batch.kept, batch.params, batch.grads
    if kept.singles is None:
        columns = [params, batch.gaps, *batch.buffers]
        kept.singles = [index for index, param in enumerate(params) if param.numel() == 1]
        kept.fit = all(_is_plain(column) and all(map(Tensor.is_contiguous, column)) for column in columns) and all(
            len({tensor.shape for tensor in tensors}) == 1 for tensors in zip(*columns, grads, strict=True)
        )
    return (
        kept.fit
        and batch.contiguous
        and set(map(type, grads)) <= PLAIN
        and not (0 in addresses and any(map(IS_ZERO, grads)))
        and not any(grads[index].is_neg() for index in kept.singles)  # other negated tensors are not contiguous
    )


def _is_plain(tensors: list[Tensor]) -> bool:
    """Whether tensors are in the memory of the CPU, and their values are the numbers there."""
    plain = set(map(type, tensors)) <= PLAIN and all(map(IS_CPU, tensors))
    return plain and not any(map(Tensor.is_neg, tensors)) and not any(map(IS_ZERO, tensors))


def _parted(batch: Batch) -> tuple[Batch, Batch]:
    """The part of a batch that the kernel supports, with gradients in their parameters' layouts, and the rest."""
    ours, others = (Batch([], [], [], [[] for _ in batch.buffers], [], False, Kept()) for _ in range(2))
    for param, grad, gap, state, *buffers in zip(
        batch.params, batch.grads, batch.gaps, batch.states, *batch.buffers, strict=True
    ):
        fit = _is_plain([param, grad, gap, *buffers]) and _is_dense(param) and grad.shape == param.shape
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
def _say_once(rule: str) -> None:
    log.debug(
        "implementation = 'fused': some parameters of %s are updated by another implementation, since they or their "
        "gradients are not dense tensors of float32 or bfloat16 in the memory of the CPU",
        rule,
    )
