"""Between y and x in one pass over the memory, for float32 on the CPU: y is kept aside while x takes its place.

Each span of x has a checksum, so that x alone tells whether it was written before y comes back.
"""
# What Numba compiles has no types, and names that it is given later:
# pyright: basic, reportUndefinedVariable=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# ruff: noqa: F821

import threading
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from unscheduled import iterates
from unscheduled.kernels import streams
from unscheduled.kernels.fused import is_plain, run_shared, tell_autograd
from unscheduled.kernels.jit import CHUNK, Kernel, c_function, fingerprint_of, renamed
from unscheduled.kernels.streams import inlined
from unscheduled.precision import hashed

PARAM, GAP, KEPT, CHECKSUMS, COUNT, SHARE, AVERAGED = range(7)
"""What the row of a chunk has: four addresses, its elements, 1 - beta (float32), and whether x is there."""
WIDTH = 7
SPAN = 1024  # elements that have a checksum, and stay in the nearest cache from one loop to the next
LINE = 64  # bytes that memory is written in

Table = NDArray[np.int64]


@dataclass(eq=False)
class Place:
    """Where a parameter, its gap and its y kept aside stand: what has to be the same when y comes back."""

    param: Tensor
    gap: Tensor
    kept: Tensor
    beta: float

    def __post_init__(self) -> None:
        self._memory = self._found_memory()
        self.chunks: Table = np.empty((0, WIDTH), np.int64)  # once the parameter holds x
        self.checksums: Table = np.empty((0, CHUNK // SPAN), np.int64)

    def is_same(self, gap: Tensor, kept: Tensor | None, beta: float) -> bool:
        """Whether these are the same tensors, and none of them was moved or written but the parameter."""
        return gap is self.gap and kept is self.kept and beta == self.beta and self._found_memory() == self._memory

    def _found_memory(self) -> tuple[Any, ...]:
        param, gap, kept = self.param, self.gap, self.kept
        addresses = param.data_ptr(), gap.data_ptr(), kept.data_ptr()
        return *addresses, gap._version, kept._version, param.shape, param.stride()


def place(param: Tensor, gap: Tensor, beta: float) -> Place | None:
    """A place with room for y; None if the tensors are none that a kernel takes."""
    if not (param.dtype == gap.dtype == torch.float32 and param.shape == gap.shape and is_plain([param, gap])):
        return None
    if param.is_inference() or gap.is_inference():  # they do not tell how often they were written
        return None
    kept = torch.empty_like(param, memory_format=torch.preserve_format)
    is_dense = kept.stride() == param.stride() == gap.stride()
    return Place(param, gap, kept, beta) if is_dense else None


class Swap:
    """Parameters that are to hold x, or y again. What was done can be undone at any time, also in the middle."""

    def __init__(self, places: list[Place], table: Table) -> None:
        self.places = places
        self._table = table
        self._counts = [-(-place.param.numel() // CHUNK) for place in places]
        self._stops = np.cumsum(self._counts)

    def put_averages(self) -> None:
        """Put x where y is, and keep y aside."""
        self._run(_to_average, self.places, self._table)

    def put_gradient_points(self) -> list[Place]:
        """Put y back where x is. Where it was written it is left, in all of the parameter: these are given."""
        self._run(_to_gradient_point, self.places, self._table)
        chunks = np.flatnonzero(self._table[:, AVERAGED])
        written = np.unique(np.searchsorted(self._stops, chunks, side="right")).tolist()
        for index in written:
            start = self._stops[index] - self._counts[index]
            self._run(_to_average, [self.places[index]], self._table[start : self._stops[index]])
        return [self.places[index] for index in written]

    def _run(self, swapped: FunctionType, places: list[Place], table: Table) -> None:
        """Run a kernel over rows, which does what is left to do."""
        tell_autograd([place.param for place in places])
        arguments = np.array([0, 0, len(table), table.ctypes.data, _multipliers().ctypes.data], np.int64)
        run_shared(_kernel(swapped), arguments, arguments.ctypes.data, int(table[:, COUNT].sum()))


def away(places: list[Place]) -> Swap:
    """For parameters that hold y: the places have the chunks and their checksums from then on."""
    sizes = np.array([place.param.numel() for place in places], np.int64)
    addresses = [(place.param.data_ptr(), place.gap.data_ptr(), place.kept.data_ptr()) for place in places]
    shares = np.array([1.0 - place.beta for place in places]).astype(np.float32)
    counts = -(-sizes // CHUNK)
    stops = np.cumsum(counts)
    of = np.repeat(np.arange(len(places)), counts)
    starts = CHUNK * (np.arange(len(of)) - (stops - counts)[of])
    checksums = np.zeros((len(of), CHUNK // SPAN), np.int64)
    table = np.zeros((len(of), WIDTH), np.int64)
    table[:, :CHECKSUMS] = np.array(addresses, np.int64)[of] + 4 * starts[:, None]
    table[:, CHECKSUMS] = checksums.ctypes.data + checksums.strides[0] * np.arange(len(of))
    table[:, COUNT] = np.minimum(CHUNK, sizes[of] - starts)
    table.view(np.float32)[:, 2 * SHARE] = shares[of]
    for place, start, stop in zip(places, (stops - counts).tolist(), stops.tolist(), strict=True):
        place.chunks, place.checksums = table[start:stop], checksums[start:stop]
    return Swap(places, table)


def back(places: list[Place]) -> Swap:
    """For parameters that hold x, by such a swap."""
    return Swap(places, np.concatenate([place.chunks for place in places]))


def overlap(params: list[Tensor]) -> bool:
    """Whether some memory belongs to two of these dense parameters."""
    starts = np.array([param.data_ptr() for param in params if param.numel()], np.int64)
    ends = starts + np.array([param.nbytes for param in params if param.numel()], np.int64)
    order = np.argsort(starts)
    return bool((ends[order][:-1] > starts[order][1:]).any())


# The kernels.


def _kernel(swapped: Any) -> Kernel:
    with _lock:
        return _compiled(swapped)


@cache
def _compiled(swapped: Any) -> Kernel:
    """The kernel that does this to each chunk."""
    average = inlined(renamed(_average, {"less": inlined(iterates.less)}))
    each = inlined(renamed(swapped, {"average": average}))
    function = renamed(_chunks, {"swapped": each})
    function.__name__ = function.__qualname__ = f"swap{swapped.__name__}_{fingerprint_of('', iterates.less)}"
    return c_function(function, types.void(types.CPointer(types.int64)))


_lock = threading.Lock()


@cache
def _multipliers() -> NDArray[np.uint32]:
    """A number for each position of a span, none 0 and no two the same: a hash that can be undone, of 1, 2, …"""
    return hashed(np.arange(1, SPAN + 1, dtype=np.int64), 0).astype(np.uint32)


def _chunks(arguments):
    """Take chunks from the common counter until there are no more.

    The arguments are the counter, how many chunks to take at a time, how many there are, and the addresses of the
    table and of the multipliers.
    """
    piece, chunks, multipliers = arguments[1], arguments[2], streams.uint32s(arguments[4])
    while True:
        first = streams.take(arguments, piece)
        if first >= chunks:
            break
        for chunk in range(first, min(first + piece, chunks)):
            swapped(streams.int64s(arguments[3] + 8 * WIDTH * chunk), multipliers)


def _to_average(row, multipliers):
    if row[AVERAGED]:
        return
    checksums = streams.int64s(row[CHECKSUMS])
    for start in range(0, row[COUNT], SPAN):
        checksums[start // SPAN] = average(row, start, multipliers)
    row[AVERAGED] = 1


def _to_gradient_point(row, multipliers):
    if not row[AVERAGED]:
        return
    checksums = streams.int64s(row[CHECKSUMS])
    for start in range(0, row[COUNT], SPAN):
        count = min(SPAN, row[COUNT] - start)
        if _checksum(row[PARAM], start, count, multipliers) != checksums[start // SPAN]:
            for done in range(0, start, SPAN):
                average(row, done, multipliers)
            return
        param, kept = streams.floats(row[PARAM] + 4 * start), streams.floats(row[KEPT] + 4 * start)
        for i in range(count):
            param[i] = kept[i]
    row[AVERAGED] = 0


def _average(row, start, multipliers):
    """Put x where y is in a span, and keep y aside: the checksum of x."""
    count = min(SPAN, row[COUNT] - start)
    share = streams.floats(streams.address_of(row) + 8 * SHARE)[0]
    y, gaps = streams.floats(row[PARAM] + 4 * start), streams.floats(row[GAP] + 4 * start)
    _copy_past_caches(row[PARAM] + 4 * start, row[KEPT] + 4 * start, count)
    for i in range(count):
        y[i] = less(y[i], gaps[i], share)
    return _checksum(row[PARAM], start, count, multipliers)


@inlined
def _checksum(address, start, count, multipliers):
    """The sum of the words times the multipliers, modulo 2^64.

    Since the products are below 2^64, it is certain to change with one word, and if two are exchanged.
    """
    words = streams.uint32s(address + 4 * start)
    checksum = np.uint64(0)
    for i in range(count):
        checksum += np.uint64(words[i]) * np.uint64(multipliers[i])
    return np.int64(checksum)


@intrinsic
def _copy_line(typing_context, source, target):
    """Copy a line of memory past the caches, where it is not needed soon and would be read first."""

    def generate(context, builder, signature, arguments):
        line = ir.VectorType(ir.IntType(32), LINE // 4).as_pointer()
        found = builder.load(builder.inttoptr(arguments[0], line), align=4)
        stored = builder.store(found, builder.inttoptr(arguments[1], line), align=LINE)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@inlined
def _copy_past_caches(source, target, count):
    """Copy numbers of 4 bytes; what is not a whole line, as it comes."""
    done = count - count % (LINE // 4) if target % LINE == 0 else 0
    for offset in range(0, 4 * done, LINE):
        _copy_line(source + offset, target + offset)
    words, copied = streams.uint32s(source), streams.uint32s(target)
    for i in range(done, count):
        copied[i] = words[i]
