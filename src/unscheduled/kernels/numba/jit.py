"""The kernels of the fused implementation: the definition, inlined into one loop and compiled by Numba."""
# Functions for Numba have no types, and global names that are set later:
# pyright: basic, reportUndefinedVariable=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# ruff: noqa: F821

import hashlib
import inspect
import logging
import math
import sys
import threading
import time
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numba import cfunc, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core.errors import NumbaError
from numba.core.extending import overload

from unscheduled.formulas import iterates, primitives
from unscheduled.formulas.rule import Rule
from unscheduled.kernels.definitions import Function, called, is_text, with_names
from unscheduled.kernels.fused import SHARED, Kind
from unscheduled.kernels.numba import streams
from unscheduled.kernels.numba.streams import inlined
from unscheduled.state.quantization import BLOCK, SMALLEST, seed

CHUNK = 16_384  # elements: a multiple of BLOCK

log = logging.getLogger("unscheduled")


class Kernel(NamedTuple):
    """A compiled kernel: the address of a C function with one pointer as its argument, see :func:`_kernel`."""

    address: int
    owner: Any  # the object that owns the code


def compiled_kernel(rule: Rule, kind: Kind) -> Kernel | None:
    """The kernel of a rule; None if Numba cannot compile the rule's direction.

    It is cached on disk, and compiled again if the definition has changed.
    """
    if not is_text(rule.direction):
        return None
    found = _of_direction.setdefault(rule.direction, {})
    if kind not in found:
        with _lock:
            fingerprint = fingerprint_of(kind, rule.direction, iterates.base_move, iterates.advance, seed)
            if fingerprint not in _kernels:
                _kernels[fingerprint] = _compile(rule, kind, fingerprint)
            found[kind] = _kernels[fingerprint]
    return found[kind]


_of_direction: WeakKeyDictionary[Any, dict[Kind, Kernel | None]] = WeakKeyDictionary()
_kernels: dict[str, Kernel | None] = {}
_lock = threading.Lock()


def _compile(rule: Rule, kind: Kind, fingerprint: str) -> Kernel | None:
    of_grads, of_params, *stored = streams.of(kind.param, kind.grad, kind.stored)
    has_codes = any(stream.has_codes for stream in stored)
    sizes = _item_sizes([of_grads, of_params, *stored])
    names = {
        "direction": _jitted(rule.direction),
        "base_move": _jitted(iterates.base_move),
        "advance": _jitted(iterates.advance),
        "open_grads": of_grads.open,
        "load_grad": of_grads.load,
        "open_params": of_params.open,
        "load_y": of_params.load,
        "store_y": of_params.store,
        "memory_for_addresses": streams.scratch(types.int64, 3 + 2 * len(stored)),
        "memory_for_values": streams.scratch(types.float32, BLOCK, len(stored)),
        "memory_for_short_blocks": streams.scratch(types.uint8, 4 * BLOCK * len(sizes)),
        "shared_scalars": streams.numbers(types.float32, SHARED),
        "own_scalars": streams.numbers(types.float32, len(rule.scalars)),
        "own_count": len(rule.scalars),
        "open_stored": _open(stored),
        "load_stored": _each([stream.load for stream in stored]),
        "store_stored": _each([stream.store for stream in stored]),
        "span": BLOCK if has_codes else CHUNK,
        "count_of": inlined(lambda left: BLOCK) if has_codes else inlined(lambda left: min(CHUNK, left)),
        "fill_up": _fill_up(sizes) if has_codes else nothing,
        "encode": _encode(stored) if has_codes else nothing,
        "take_back": _take_back(sizes) if has_codes else nothing,
    }
    function = with_names(_kernel, _kernel.__globals__ | names)
    function.__name__ = function.__qualname__ = f"kernel_{fingerprint}"  # the name of its file in Numba's cache
    try:
        return c_function(function, types.void(types.CPointer(types.int64)))
    except NumbaError as error:
        log.debug("Numba cannot compile %s: %s", rule.direction.__name__, error)
        return None


def c_function(function: Function, signature: Any) -> Kernel:
    """Compile a function to a C function, cached on disk if a folder is writable.

    Raises:
        NumbaError: if Numba cannot compile it.
    """
    compiler = partial(cfunc, signature, nopython=True, error_model="numpy")
    try:
        compiled = compiler(cache=True)(function)
    except (OSError, RuntimeError) as error:  # no folder is writable, or this module has no file
        log.debug("%s is not cached on disk: %s", function.__name__, error)
        compiled = compiler()(function)
    return Kernel(compiled.address, compiled)


def _kernel(arguments):
    """Take chunks from the common counter, and update them, until there are no more.

    :func:`_compile` sets the global names that this function uses. The arguments are the counter, the number of chunks
    to take at a time, the number of chunks, the number of tensors, the number of addresses of each tensor, and the
    addresses of these arrays: the table, with a column of addresses for each tensor (gradient, parameter, gap, buffers,
    and then the rest, see ``streams.of``); the numbers of elements; the number of chunks up to the end of each tensor;
    the row of each tensor in the scalars and the keys; the scalars; the keys.
    """
    piece, chunks, tensors, rows = arguments[1], arguments[2], arguments[3], arguments[4]
    table, sizes, ends = streams.int64s(arguments[5]), streams.int64s(arguments[6]), streams.int64s(arguments[7])
    row_of, tensor = streams.int64s(arguments[8]), 0
    (addresses,), values, (filled,) = memory_for_addresses(), memory_for_values(), memory_for_short_blocks()
    while True:
        first = streams.take(arguments, piece)
        if first >= chunks:
            break
        for chunk in range(first, min(first + piece, chunks)):
            while ends[tensor] <= chunk:
                tensor += 1
            begin, size = CHUNK * (chunk - ends[tensor] - (-sizes[tensor] // CHUNK)), sizes[tensor]
            for i in range(rows):
                addresses[i] = table[i * tensors + tensor]
            shared = shared_scalars(streams.floats(arguments[9] + 4 * (SHARED + own_count) * row_of[tensor]))
            own = own_scalars(streams.floats(arguments[9] + 4 * ((SHARED + own_count) * row_of[tensor] + SHARED)))
            sign, lr, decay, decay_of_gap, gap_in_y, move_in_y, gap_in_gap, move_in_gap = shared
            key = streams.uint32s(arguments[10])[row_of[tensor]]
            for start in range(begin, min(begin + CHUNK, size), span):
                fill_up(addresses, start, size - start, filled)
                grads, params = open_grads(addresses, start, None), open_params(addresses, start, None)
                stored = open_stored(addresses, start, values)
                for i in range(count_of(size - start)):
                    y, before = load_y(params, params, i), load_stored(stored, stored, i)
                    found = direction(sign * load_grad(grads, grads, i), *(before[1:] + own))
                    move = base_move(found[0], y, before[0], lr, decay, decay_of_gap)
                    y, gap = advance(y, before[0], move, gap_in_y, move_in_y, gap_in_gap, move_in_gap)
                    store_y(params, y, i)
                    stored = store_stored(stored, (gap, *found[1:]), i)
                encode(stored, key, start)
                take_back(addresses, table, tensors, tensor, start, size - start)


def _open(opened: list[streams.Stream]) -> Function:
    """A function that opens all streams, and returns their states as a tuple."""
    if not opened:
        return inlined(lambda addresses, start, values: ())
    one, others = opened[0].open, _open(opened[1:])
    return inlined(
        lambda addresses, start, values: (one(addresses, start, values[0]), *others(addresses, start, values[1:]))
    )


def _each(functions: list[Function]) -> Function:
    """A function that calls one function for each stream, with its state, its value and a common value."""
    if not functions:
        return inlined(lambda own, values, common: ())
    one, others = functions[0], _each(functions[1:])
    return inlined(lambda own, values, common: (one(own[0], values[0], common), *others(own[1:], values[1:], common)))


def _encode(stored: list[streams.Stream]) -> Function:
    """A function that encodes a block of all streams that have codes."""
    random = _random(len(stored))
    scale_each, encode_each = (_each([getattr(stream, name) for stream in stored]) for name in ("scale", "encode"))

    def encode(own, key, start):
        scaled, turn = scale_each(own, own, start), np.uint32(streams.hashed(start // BLOCK, np.uint32(0)) + key)
        for i in range(BLOCK):
            encode_each(scaled, random(turn, i), i)

    return inlined(encode)


def _random(count: int, pair: int = 0) -> Function:
    """A function of the random numbers of buffers, see :func:`unscheduled.state.quantization.random_rounding`."""
    if count <= 0:
        return inlined(lambda turn, place: ())
    others, seed_of_pair = _random(count - 2, pair + 1), np.uint32(seed(pair))

    def random(turn, place):
        number = np.uint32(streams.hashed(place, seed_of_pair) + turn)  # the compiler computes the hash in advance
        return (np.uint32(number >> np.uint32(16)), np.uint32(number & np.uint32(0xFFFF)), *others(turn, place))

    return inlined(random)


def _fill_up(sizes: tuple[int, ...]) -> Function:
    """A function that copies an incomplete block to other memory, filled up with its last number."""

    def fill_up(addresses, start, left, filled):
        if left < BLOCK:
            for row in range(len(sizes)):
                size, target = sizes[row], streams.address_of(filled) + 4 * BLOCK * row
                numbers, copies = streams.uint8s(addresses[row] + size * start), streams.uint8s(target)
                for i in range(size * BLOCK):
                    copies[i] = numbers[min(i, size * (left - 1) + i % size)]
                addresses[row] = target - size * start

    return inlined(fill_up)


def _take_back(sizes: tuple[int, ...]) -> Function:
    """A function that copies the new numbers of an incomplete block back from there."""

    def take_back(addresses, table, tensors, tensor, start, left):
        if left < BLOCK:
            for row in range(1, len(sizes)):  # all but the gradient
                size = sizes[row]
                numbers = streams.uint8s(table[row * tensors + tensor] + size * start)
                copies = streams.uint8s(addresses[row] + size * start)
                for i in range(size * left):
                    numbers[i] = copies[i]

    return inlined(take_back)


def _item_sizes(opened: list[streams.Stream]) -> tuple[int, ...]:
    """The bytes of an item of each row of addresses, except the rows of scales."""
    found: dict[int, int] = {}
    for stream in opened:
        found |= stream.item_sizes
    return tuple(found[row] for row in sorted(found))


@inlined
def nothing(*arguments):
    pass


meaning_of = partial(overload, jit_options={"forceinline": True})


@meaning_of(primitives.sqrt)
def _sqrt(value):
    """The root of a float32 number as float32."""
    return lambda value: math.sqrt(value)


@meaning_of(primitives.where)
def _where(condition, some, other):
    return lambda condition, some, other: some if condition else other


@meaning_of(primitives.sign)
def _sign(value):
    """The sign in the type of the value, where a Python number would widen it."""
    zero, one = (np.float32(number) for number in (0.0, 1.0))
    return lambda value: (one if value > zero else -one if value < zero else zero) + (value - value)


OVERLOADED = (primitives.sqrt, primitives.where, primitives.sign)


def _jitted(function: Function) -> Function:
    """A function of the definition, compiled with the functions that it calls."""
    names = {name: _jitted(value) for name, value in called(function).items() if value not in OVERLOADED}
    return inlined(with_names(function, function.__globals__ | names))


def fingerprint_of(kind: object, *functions: Any) -> str:
    """A hash of the kind, of the functions with all that they call, and of the source that compiles them."""
    text = repr([kind, BLOCK, CHUNK, SMALLEST, SOURCE, *map(_code, functions)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _code(function: Any) -> tuple[Any, ...]:
    """The code of a function with the values of all its global names; the primitives are lowered in this module."""
    code = function.__code__
    values = [function.__globals__.get(name) for name in code.co_names]
    functions = [value for value in values if isinstance(value, FunctionType) and value not in OVERLOADED]
    others = [repr(value) for value in values if not isinstance(value, FunctionType)]
    return code.co_code, repr(code.co_consts), code.co_names, list(map(_code, functions)), others


def _source() -> str:
    """The source of this module and of ``streams``; without source, a text that no other process has."""
    try:
        return "".join(map(inspect.getsource, (sys.modules[__name__], streams)))
    except OSError:
        return str(time.time_ns())


SOURCE = _source()
