"""The streams of the fused kernel: how it reads the numbers of a tensor as float32, and stores them again.

The codes equal those of :mod:`unscheduled.state.quantization` bit for bit. They are made a block at a time: the scale
of a block is known when all its numbers are, so the numbers are in scratch memory until then.
"""
# Functions for Numba have no types:
# pyright: basic, reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false
# The state of a stream is a tuple, and each function unpacks all of it:
# ruff: noqa: RUF059

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import cgutils
from numba.core.extending import intrinsic

from unscheduled.state.quantization import BLOCK
from unscheduled.state.quantization import SMALLEST as SMALLEST_NUMBER

SMALLEST = np.float32(SMALLEST_NUMBER)

Function = Callable[..., Any]

inlined = partial(njit, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Compiles a function that is inlined into its callers. Otherwise kernels from Numba's cache, compiled in different
processes, could call each other's functions, whose names are unique within one process only. There are no wrappers for
Python, since they double the time of compilation."""


class Stream(NamedTuple):
    """The functions with which the kernel reads and writes a tensor.

    ``open(addresses, start, values)`` returns the state of the stream, ``own``, for a range of elements from ``start``
    on; ``values`` holds the numbers of a block until they are encoded. ``load(own, _, i)`` returns number i of the
    range, and ``store(own, number, i)`` stores it and returns the next state. A stream with codes encodes a whole block
    after that: ``scale(own, _, start)`` computes its scale and returns the next state, and ``encode(own, random, i)``
    encodes each number.
    """

    open: Function
    load: Function
    store: Function
    scale: Function
    encode: Function
    item_sizes: dict[int, int]  # bytes of an item, by row of addresses, without the row of scales

    @property
    def has_codes(self) -> bool:
        """Whether the numbers are stored as codes, a block at a time."""
        return self.encode is not _nothing


def of(param: torch.dtype, grad: torch.dtype, stored: tuple[torch.dtype, ...]) -> list[Stream]:
    """The streams of the gradient, the parameter, the gap and the buffers.

    The rows of addresses have this order; then come the row of ``low`` of split weights, and the rows of the scales of
    the tensors that are stored as codes.
    """
    rest = 2 + len(stored)
    found = [_bfloat16(0) if grad == torch.bfloat16 else _float32(0)]
    found.append(_split(1, rest) if param == torch.bfloat16 else _float32(1))
    scale = rest + (param == torch.bfloat16)
    for row, dtype in enumerate(stored, start=2):
        if dtype == torch.float32:
            found.append(_float32(row))
        else:
            found.append((_int16 if dtype == torch.int16 else _uint8)(row, scale))
            scale += 1
    return found


def _pointer_to(number: Any) -> Function:
    """A function that converts an address to a pointer."""

    @intrinsic
    def pointer(typing_context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(number)(types.int64), generate

    return pointer


floats = _pointer_to(types.float32)
int64s = _pointer_to(types.int64)
uint32s = _pointer_to(types.uint32)
int32s = _pointer_to(types.int32)
int16s = _pointer_to(types.int16)
uint8s = _pointer_to(types.uint8)


def scratch(number: Any, count: int, pieces: int = 1) -> Function:
    """A function that returns pieces of memory for ``count`` numbers each: on the stack, where nothing else points to.

    They belong to the function that calls it, and end with it, also where that one is inlined.
    """

    @intrinsic
    def memory(typing_context):
        def generate(context, builder, signature, arguments):
            with builder.goto_entry_block():
                pointers = [builder.alloca(context.get_value_type(number), count) for _ in range(pieces)]
            for pointer in pointers:
                pointer.align = 64
            return context.make_tuple(builder, signature.return_type, pointers)

        return types.UniTuple(types.CPointer(number), pieces)(), generate

    return memory


def numbers(number: Any, count: int) -> Function:
    """A function that returns the ``count`` numbers at a pointer as a tuple."""

    @intrinsic
    def numbers_at(typing_context, pointer):
        def generate(context, builder, signature, arguments):
            places = [cgutils.gep_inbounds(builder, arguments[0], i) for i in range(count)]
            return context.make_tuple(builder, signature.return_type, list(map(builder.load, places)))

        return types.UniTuple(number, count)(types.CPointer(number)), generate

    return numbers_at


@intrinsic
def address_of(typing_context, pointer):
    """The address of a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.ptrtoint(arguments[0], context.get_value_type(types.int64))

    return types.int64(pointer), generate


@intrinsic
def take(typing_context, counter, piece):
    """Add the piece to a counter that threads share, atomically, and return its value before."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", *arguments, "monotonic")

    return types.int64(types.CPointer(types.int64), types.int64), generate


def _bits_as(number: Any, of: Any) -> Function:
    """A function that returns the number of another type with the same bits."""

    @intrinsic
    def bits_as(typing_context, value):
        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(number))

        return number(of), generate

    return bits_as


_as_float = _bits_as(types.float32, types.int32)
_as_int = _bits_as(types.int32, types.float32)


@intrinsic
def _nearest(typing_context, value):
    """The nearest int32 number, the even one of two."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), [ir.FloatType()])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.lrint.i32.f32"), arguments)

    return types.int32(types.float32), generate


@inlined
def _nothing(own, value, i):
    return own


def _float32(row: int) -> Stream:
    """A stream of float32 numbers."""

    @inlined
    def store(own, value, i):
        own[i] = value
        return own

    return Stream(
        open=inlined(lambda addresses, start, values: floats(addresses[row] + 4 * start)),
        load=inlined(lambda own, _, i: own[i]),
        store=store,
        scale=_nothing,
        encode=_nothing,
        item_sizes={row: 4},
    )


def _bfloat16(row: int) -> Stream:
    """A stream of bfloat16 numbers that are only read."""
    return Stream(
        open=inlined(lambda addresses, start, values: int16s(addresses[row] + 2 * start)),
        load=inlined(lambda own, _, i: _as_float(np.int32(np.int32(own[i]) << np.int32(16)))),
        store=_nothing,
        scale=_nothing,
        encode=_nothing,
        item_sizes={row: 2},
    )


def _split(row: int, low_row: int) -> Stream:
    """A stream of split weights: bfloat16 parameters, and the rest of their float32 bits in ``low``."""

    @inlined
    def opened(addresses, start, values):
        return int16s(addresses[row] + 2 * start), int16s(addresses[low_row] + 2 * start)

    @inlined
    def load(own, _, i):
        high, low = own
        bits = np.int32(high[i])
        magnitude = max(np.int32(((bits & np.int32(0x7FFF)) << np.int32(16)) + np.int32(low[i])), np.int32(0))
        return _as_float(np.int32(magnitude | np.int32((bits & np.int32(0x8000)) << np.int32(16))))

    @inlined
    def store(own, value, i):
        high, low = own
        bits = _as_int(value)
        magnitude = bits & np.int32(0x7FFFFFFF)
        if magnitude > np.int32(0x7F800000):
            bits = magnitude = np.int32(0x7FC00000)
        upper = np.int32(magnitude + np.int32(0x8000)) >> np.int32(16)
        high[i] = np.int16(upper | ((bits >> np.int32(16)) & np.int32(0x8000)))
        low[i] = np.int16(magnitude - (upper << np.int32(16)))
        return own

    return Stream(opened, load, store, _nothing, _nothing, {row: 2, low_row: 2})


@inlined
def hashed(place, seed):
    """The hash of :func:`unscheduled.state.quantization.hashed`."""
    number = np.uint32(np.uint32(place) * np.uint32(0x9E3779B1) + seed)
    number = np.uint32((number ^ (number >> np.uint32(16))) * np.uint32(0x7FEB352D))
    return np.uint32(number ^ (number >> np.uint32(15)))


def _int16(row: int, scale_row: int) -> Stream:
    """A stream of int16 codes: multiples of 1/32767 of the largest number of the block."""

    @inlined
    def opened(addresses, start, values):
        scale = floats(addresses[scale_row])[start // BLOCK]
        return int16s(addresses[row] + 2 * start), floats(addresses[scale_row]), values, scale, np.int32(0)

    @inlined
    def load(own, _, i):
        codes, scales, values, scale, largest = own
        return np.float32(codes[i]) * scale

    @inlined
    def store(own, value, i):
        codes, scales, values, scale, largest = own
        values[i] = value
        return codes, scales, values, scale, max(largest, np.int32(_as_int(value) & np.int32(0x7FFFFFFF)))

    @inlined
    def scale(own, _, start):
        codes, scales, values, scale, largest = own
        scale = scales[start // BLOCK] = np.float32(_as_float(largest) / np.float32(32767.0))
        inverse = np.float32(0.0) if scale < SMALLEST else np.float32(32768.0) / scale
        return codes, scales, values, inverse, largest

    @inlined
    def encode(own, random, i):
        codes, scales, values, inverse, largest = own
        steps = _nearest(values[i] * inverse)
        code = np.int32(steps + np.int32(random >> np.uint32(1))) >> np.int32(15)
        codes[i] = np.int16(min(max(code, np.int32(-32768)), np.int32(32767)))
        return own

    return Stream(opened, load, store, scale, encode, {row: 2})


def _uint8(row: int, scale_row: int) -> Stream:
    """A stream of uint8 codes: 256 values, evenly spaced in the bits of the float, between the ends of the block."""

    @inlined
    def opened(addresses, start, values):
        ends = int32s(addresses[scale_row] + 8 * (start // BLOCK))
        low, high = ends[0], ends[1]
        step = np.float32(np.int32(high - low)) / np.float32(255.0)
        smallest, largest = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
        return uint8s(addresses[row] + start), ends, values, low, step, smallest, largest

    @inlined
    def load(own, _, i):
        codes, ends, values, low, step, smallest, largest = own
        return _as_float(np.int32(low + np.int32(np.float32(codes[i]) * step)))

    @inlined
    def store(own, value, i):
        codes, ends, values, low, step, smallest, largest = own
        values[i], bits = value, _as_int(value)
        return codes, ends, values, low, step, min(smallest, bits), max(largest, bits)

    @inlined
    def scale(own, _, start):
        codes, ends, values, low, step, smallest, largest = own
        ends[0], ends[1] = smallest, largest
        step = np.float32(np.int32(largest - smallest)) / np.float32(255.0)
        inverse = np.float32(0.0) if step < SMALLEST else np.float32(65536.0) / step
        return codes, ends, values, smallest, inverse, smallest, largest

    @inlined
    def encode(own, random, i):
        codes, ends, values, low, inverse, smallest, largest = own
        steps = _nearest(np.float32(np.int32(_as_int(values[i]) - low)) * inverse)
        code = np.uint32(np.uint32(np.uint32(steps) + random) >> np.uint32(16))
        codes[i] = np.uint8(min(code, np.uint32(255)))
        return own

    return Stream(opened, load, store, scale, encode, {row: 1})
