"""The definition compiled by Numba into one pass over the memory, for tensors on the CPU.

Each rule and precision has one kernel, which inlines the rule's direction and the algebra into a loop. It is called
once a step for all tensors: a table has their addresses, and as many threads as torch uses share the chunks. Tensors
that the kernel does not support (other dtypes, devices or layouts) are updated by ``foreach`` or ``loop``.
"""

from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unscheduled.formulas.rule import Rule
from unscheduled.kernels import fused
from unscheduled.kernels.batch import Work, all_same
from unscheduled.kernels.fused import Kind, Taken, columns_of, numbers_of
from unscheduled.kernels.numba import threads
from unscheduled.kernels.numba.jit import CHUNK, Kernel, compiled_kernel
from unscheduled.state.quantization import is_narrow, key

PIECE = 16  # the most chunks that a thread takes at a time
ALONE = 32_768  # the most elements that one thread updates alone
READABLE = {torch.float32, torch.bfloat16}  # parameters and gradients
IS_CPU = attrgetter("is_cpu")


def update(rule: Rule, works: list[Work]) -> list[Work]:
    """Make one step of all parameters that the kernel supports, and return the work that it does not support."""
    return fused.update(rule, works, IS_CPU, READABLE, compiled_kernel, _run)


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
        call.scalars[row] = numbers_of(rule, work.scalars)
        if is_narrow(kind.stored[0]):
            call.keys[row] = key(work.scalars.step)  # for the random numbers
    return call


def _new_call(rule: Rule, kind: Kind, works: list[Taken]) -> Call:
    addresses = np.hstack(
        [
            np.array(
                [work.grads] + [list(map(Tensor.data_ptr, column)) for column in columns_of(rule, kind, work.batch)],
                np.int64,
            )
            for work in works
        ]
    )
    sizes = np.array([param.numel() for work in works for param in work.batch.params], np.int64)
    counts = [len(work.batch.params) for work in works]
    stops = np.cumsum(counts).tolist()
    ends = np.cumsum(-(-sizes // CHUNK))
    rows = np.repeat(np.arange(len(works)), counts)
    scalars = np.zeros((len(works), len(numbers_of(rule, works[0].scalars))), np.float32)
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
