"""The tensors of the fused kernel: how numbers of one are read as float32, and stored again.

The same codes as in :mod:`unscheduled.state.quantization`, bit for bit, for a block at a time: the scale of one is
known when all its numbers are, so they wait in scratch memory.
"""
# What Numba compiles has no types: pyright leaves it alone.
# pyright: basic, reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false
# Its own of a stream is a tuple, of which each function names all:
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
"""Numba's names for functions are unique within a process only: kernels that were compiled in different ones, and come
from the disk, would call each other's. Wrappers that let Python call them take as long to compile as all else."""


class Stream(NamedTuple):
    """How the kernel reads and writes a tensor.

    Each function is first given what is its own, and gives what that is next.

    ``open(addresses, start, values)`` begins a stretch, ``load(own, _, i)`` gives a number of it, and
    ``store(own, number, i)`` takes the next one. What has codes has these made of a whole block, whose numbers wait in
    ``values``: ``scale(own, _, start)``, and then ``encode(own, random, i)`` for each number.
    """

    open: Function
    load: Function
    store: Function
    scale: Function
    encode: Function
    item_sizes: dict[int, int]  # of the rows of addresses with as many items as the tensor

    @property
    def has_codes(self) -> bool:
        """Whether it is stored a block at a time."""
        return self.encode is not _nothing


def of(param: torch.dtype, grad: torch.dtype, stored: tuple[torch.dtype, ...]) -> list[Stream]:
    """The streams of the gradient, the parameter, the gap and the buffers.

    Their addresses are in this order; after them come that of the rest of a split parameter, and those of the scales of
    what is stored as codes.
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
    """A function that makes a pointer of an address."""

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
    """A function that gives pieces of memory for so many numbers each: on the stack, which nothing else points to.

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
    """A function that gives so many numbers of a pointer as a tuple."""

    @intrinsic
    def numbers_at(typing_context, pointer):
        def generate(context, builder, signature, arguments):
            places = [cgutils.gep_inbounds(builder, arguments[0], i) for i in range(count)]
            return context.make_tuple(builder, signature.return_type, list(map(builder.load, places)))

        return types.UniTuple(number, count)(types.CPointer(number)), generate

    return numbers_at


@intrinsic
def address_of(typing_context, pointer):
    """The address that a pointer stands for."""

    def generate(context, builder, signature, arguments):
        return builder.ptrtoint(arguments[0], context.get_value_type(types.int64))

    return types.int64(pointer), generate


@intrinsic
def take(typing_context, counter, piece):
    """The value of a counter that threads share, to which the piece is added."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", *arguments, "monotonic")

    return types.int64(types.CPointer(types.int64), types.int64), generate


def _bits_as(number: Any, of: Any) -> Function:
    """A function that gives the number with the same bits."""

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
    """The nearest int32 number, of two the even one."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), [ir.FloatType()])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.lrint.i32.f32"), arguments)

    return types.int32(types.float32), generate


@inlined
def _nothing(own, value, i):
    return own


def _float32(row: int) -> Stream:
    """Numbers that are what they are."""

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
    """Numbers that are only read."""
    return Stream(
        open=inlined(lambda addresses, start, values: int16s(addresses[row] + 2 * start)),
        load=inlined(lambda own, _, i: _as_float(np.int32(np.int32(own[i]) << np.int32(16)))),
        store=_nothing,
        scale=_nothing,
        encode=_nothing,
        item_sizes={row: 2},
    )


def _split(row: int, low_row: int) -> Stream:
    """Parameters of bfloat16, with the rest of their bits beside them."""

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
    """Multiples of 1/32767 of the largest of the block."""

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
    """256 values, even in the bits of the float, between the ends of the block."""

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
