"""The tensors of the fused kernel: how a stretch of one becomes an array of float32 numbers, and is stored again.

The same codes as in :mod:`unscheduled.precision`, bit for bit, for a block at a time.
"""
# What Numba compiles has no types: pyright leaves it alone.
# pyright: basic, reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core.extending import intrinsic

from unscheduled.precision import BLOCK
from unscheduled.precision import SMALLEST as SMALLEST_NUMBER

SMALLEST = np.float32(SMALLEST_NUMBER)

Function = Callable[..., Any]

inlined = partial(njit, forceinline=True)
"""Numba's names for functions are unique within a process only: kernels that were compiled in different ones, and come
from the disk, would call each other's."""


class Stream(NamedTuple):
    """``open(addresses, start, count, scratch)`` gives an array, ``close(addresses, start, array, key)`` stores it."""

    open: Function
    close: Function
    is_narrow: bool


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


def _array_of(number: Any, size: int) -> Function:
    """A function of an address, a start and a count, that gives the array of numbers there."""

    @intrinsic
    def pointer(typing_context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(number)(types.int64), generate

    return inlined(lambda address, start, count: carray(pointer(address + size * start), count))


floats = _array_of(types.float32, 4)
int64s = _array_of(types.int64, 8)
uint32s = _array_of(types.uint32, 4)
_int16s = _array_of(types.int16, 2)
_uint8s = _array_of(types.uint8, 1)


@intrinsic
def take(typing_context, counter, piece):
    """The value of a counter that threads share, to which the piece is added."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", *arguments, "monotonic")

    return types.int64(types.CPointer(types.int64), types.int64), generate


@inlined
def _nothing(addresses, start, array, key):
    pass


def _float32(row: int) -> Stream:
    """Numbers that are what they are."""
    return Stream(
        inlined(lambda addresses, start, count, scratch: floats(addresses[row], start, count)), _nothing, False
    )


def _bfloat16(row: int) -> Stream:
    """Numbers that are only read."""

    @inlined
    def opened(addresses, start, count, scratch):
        bits, values = _int16s(addresses[row], start, count), scratch[:count]
        target = values.view(np.int32)
        for i in range(count):
            target[i] = np.int32(bits[i]) << np.int32(16)
        return values

    return Stream(opened, _nothing, True)


def _split(row: int, low_row: int) -> Stream:
    """Parameters of bfloat16, with the rest of their bits beside them."""

    @inlined
    def opened(addresses, start, count, scratch):
        high, low = _int16s(addresses[row], start, count), _int16s(addresses[low_row], start, count)
        values = scratch[:count]
        target = values.view(np.int32)
        for i in range(count):
            bits = np.int32(high[i])
            magnitude = max(np.int32(((bits & np.int32(0x7FFF)) << np.int32(16)) + np.int32(low[i])), np.int32(0))
            target[i] = magnitude | np.int32((bits & np.int32(0x8000)) << np.int32(16))
        return values

    @inlined
    def closed(addresses, start, array, key):
        count = len(array)
        high, low = _int16s(addresses[row], start, count), _int16s(addresses[low_row], start, count)
        source = array.view(np.int32)
        for i in range(count):
            bits = source[i]
            magnitude = bits & np.int32(0x7FFFFFFF)
            if magnitude > np.int32(0x7F800000):
                bits = magnitude = np.int32(0x7FC00000)
            upper = np.int32(magnitude + np.int32(0x8000)) >> np.int32(16)
            high[i] = np.int16(upper | ((bits >> np.int32(16)) & np.int32(0x8000)))
            low[i] = np.int16(magnitude - (upper << np.int32(16)))

    return Stream(opened, closed, True)


@intrinsic
def _as_float(typing_context, bits):
    """The float32 number of these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@inlined
def _hash_offset(start, key):
    """What all positions of a block have in common in the hash."""
    return np.uint32(np.uint32(start) * np.uint32(0x9E3779B1) + key)


@inlined
def _uniform(offset, i):
    """A random number in [0, 1) for a position of a block."""
    number = np.uint32(np.uint32(i) * np.uint32(0x9E3779B1) + offset)
    number = np.uint32((number ^ (number >> np.uint32(16))) * np.uint32(0x7FEB352D))
    number = np.uint32((number ^ (number >> np.uint32(15))) * np.uint32(0x846CA68B))
    number = np.uint32(number ^ (number >> np.uint32(16)))
    return np.float32(np.int32(number >> np.uint32(8))) * np.float32(2.0**-24)


@inlined
def _rounded(steps, rounding):
    whole = np.floor(steps)
    return whole + np.floor(steps - whole + rounding)


def _int16(row: int, scale_row: int) -> Stream:
    """Multiples of 1/32767 of the largest of the block."""

    @inlined
    def opened(addresses, start, count, scratch):
        codes, values = _int16s(addresses[row], start, count), scratch[:count]
        scale = floats(addresses[scale_row], start // BLOCK, 1)[0]
        for i in range(count):
            values[i] = np.float32(codes[i]) * scale
        return values

    @inlined
    def closed(addresses, start, array, key):
        count = len(array)
        codes = _int16s(addresses[row], start, count)
        bits = array.view(np.int32)
        largest = np.int32(0)
        for i in range(count):
            largest = max(largest, bits[i] & np.int32(0x7FFFFFFF))
        scale = _as_float(largest) / np.float32(32767.0)
        floats(addresses[scale_row], start // BLOCK, 1)[0] = scale
        inverse = np.float32(0.0) if scale < SMALLEST else np.float32(1.0) / scale
        offset = _hash_offset(start, key)
        for i in range(count):
            step = _rounded(array[i] * inverse, _uniform(offset, i))
            step = min(max(step, np.float32(-32767.0)), np.float32(32767.0))
            codes[i] = np.int16(np.int32(step))

    return Stream(opened, closed, True)


def _uint8(row: int, scale_row: int) -> Stream:
    """256 values, even in the bits of the float, between the ends of the block."""

    @inlined
    def opened(addresses, start, count, scratch):
        codes, values = _uint8s(addresses[row], start, count), scratch[:count]
        ends = floats(addresses[scale_row], 2 * (start // BLOCK), 2).view(np.int32)
        step = np.float32(np.int32(ends[1] - ends[0])) / np.float32(255.0)
        target = values.view(np.int32)
        for i in range(count):
            target[i] = ends[0] + np.int32(np.float32(codes[i]) * step)
        return values

    @inlined
    def closed(addresses, start, array, key):
        count = len(array)
        codes = _uint8s(addresses[row], start, count)
        bits = array.view(np.int32)
        low, high = bits[0], bits[0]
        for i in range(count):
            low, high = min(low, bits[i]), max(high, bits[i])
        ends = floats(addresses[scale_row], 2 * (start // BLOCK), 2).view(np.int32)
        ends[0], ends[1] = low, high
        step = np.float32(np.int32(high - low)) / np.float32(255.0)
        inverse = np.float32(0.0) if step < SMALLEST else np.float32(1.0) / step
        offset = _hash_offset(start, key)
        for i in range(count):
            code = _rounded(np.float32(np.int32(bits[i] - low)) * inverse, _uniform(offset, i))
            codes[i] = np.uint8(np.int32(min(max(code, np.float32(0.0)), np.float32(255.0))))

    return Stream(opened, closed, True)
