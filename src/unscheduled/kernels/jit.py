"""The kernels of the fused implementation: the definition, compiled by Numba and inlined into one loop."""
# What Numba compiles has no types, and names that it is given later:
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
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numba import carray, cfunc, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core.errors import NumbaError
from numba.core.extending import overload
from numba.np.unsafe.ndarray import to_fixed_tuple

from unscheduled import iterates
from unscheduled.kernels import streams
from unscheduled.kernels.rule import Rule
from unscheduled.kernels.streams import inlined
from unscheduled.precision import BLOCK, SMALLEST

CHUNK = 16_384  # elements: a multiple of BLOCK
SHARED = 8  # scalars of every rule, which fused._numbers puts first

Function = Callable[..., Any]

log = logging.getLogger("unscheduled")


class Kind(NamedTuple):
    """What the tensors of a batch are stored as. The parameters are split if they are bfloat16."""

    param: torch.dtype
    grad: torch.dtype
    stored: tuple[torch.dtype, ...]  # the gap and the buffers


class Kernel(NamedTuple):
    """What Numba has compiled: the address of a C function of one pointer, see :func:`_kernel`."""

    address: int
    owner: Any  # which keeps the code


def compiled_kernel(rule: Rule, kind: Kind, scalar_count: int) -> Kernel | None:
    """The kernel of a rule; None if Numba cannot compile the rule's direction.

    It is kept on the disk, and made anew when the definition has changed.
    """
    direction = rule.direction
    if not isinstance(direction, FunctionType) or direction.__closure__:
        return None
    found = _of_direction.setdefault(direction, {})
    if (kind, scalar_count) not in found:
        with _lock:
            fingerprint = fingerprint_of((kind, scalar_count), direction, iterates.base_move, iterates.advance)
            if fingerprint not in _kernels:
                _kernels[fingerprint] = _compile(rule, kind, scalar_count, fingerprint)
            found[kind, scalar_count] = _kernels[fingerprint]
    return found[kind, scalar_count]


_of_direction: WeakKeyDictionary[Any, dict[tuple[Kind, int], Kernel | None]] = WeakKeyDictionary()
_kernels: dict[str, Kernel | None] = {}
_lock = threading.Lock()


def _compile(rule: Rule, kind: Kind, scalar_count: int, fingerprint: str) -> Kernel | None:
    of_grads, of_params, of_gaps, *of_buffers = streams.of(kind.param, kind.grad, kind.stored)
    is_narrow = any(stream.is_narrow for stream in (of_grads, of_params, of_gaps, *of_buffers))
    names = {
        "direction": _jitted(rule.direction),
        "base_move": _jitted(iterates.base_move),
        "advance": _jitted(iterates.advance),
        "open_grads": of_grads.open,
        "open_y": of_params.open,
        "close_y": of_params.close,
        "open_gaps": of_gaps.open,
        "close_gaps": of_gaps.close,
        "open_buffers": _open(of_buffers),
        "close_buffers": _close(of_buffers),
        "elements": _elements(len(of_buffers)),
        "put": _put(len(of_buffers)),
        "own_scalars": scalar_count - SHARED,
        "key_count": len(kind.stored),
        "span": BLOCK if is_narrow else CHUNK,
        "scratch_shape": (3 + len(of_buffers), BLOCK if is_narrow else 1),
    }
    function = renamed(_kernel, names)
    function.__name__ = function.__qualname__ = f"kernel_{fingerprint}"  # a file of its own in Numba's cache
    try:
        return c_function(function, types.void(types.CPointer(types.int64)))
    except NumbaError as error:
        log.debug("Numba cannot compile %s: %s", rule.direction.__name__, error)
        return None


def c_function(function: Function, signature: Any) -> Kernel:
    """A function compiled to one of C, and kept on the disk if there is a place.

    Raises:
        NumbaError: if Numba cannot compile it.
    """
    compiler = partial(cfunc, signature, nopython=True, error_model="numpy")
    try:
        compiled = compiler(cache=True)(function)
    except (OSError, RuntimeError) as error:  # there is no place to write, or no file of this module
        log.debug("%s is not kept on the disk: %s", function.__name__, error)
        compiled = compiler()(function)
    return Kernel(compiled.address, compiled)


def _kernel(arguments):
    """Take chunks from the common counter until there are no more. It lacks the names that :func:`_compile` gives.

    The arguments are the counter, how many chunks to take at a time, how many there are, the number of tensors, of
    streams and of rows, and the addresses of: a table with a column of addresses for each tensor (of the gradient,
    the parameter, the gap and the buffers, and then of what else belongs to them, see ``streams.of``), the numbers
    of elements, how many chunks a tensor and all before it have, which row of scalars and keys is its own, the
    scalars, and the keys.
    """
    given = carray(arguments, 12)
    piece, chunks, tensors, table_rows, rows = given[1], given[2], given[3], given[4], given[5]
    table = streams.int64s(given[6], 0, table_rows * tensors).reshape((table_rows, tensors))
    sizes = streams.int64s(given[7], 0, tensors)
    ends = streams.int64s(given[8], 0, tensors)
    row_of = streams.int64s(given[9], 0, tensors)
    scalars = streams.floats(given[10], 0, rows * (SHARED + own_scalars)).reshape((rows, SHARED + own_scalars))
    keys = streams.uint32s(given[11], 0, rows * key_count).reshape((rows, key_count))
    scratch = np.empty(scratch_shape, np.float32)
    while True:
        first = streams.take(arguments, piece)
        if first >= chunks:
            break
        tensor = np.searchsorted(ends, first, side="right")
        for chunk in range(first, min(first + piece, chunks)):
            while ends[tensor] <= chunk:
                tensor += 1
            begin = CHUNK * (chunk - ends[tensor]) + -(-sizes[tensor] // CHUNK) * CHUNK
            addresses, row = table[:, tensor], row_of[tensor]
            sign, lr, decay, decay_of_gap, gap_in_y, move_in_y, gap_in_gap, move_in_gap = to_fixed_tuple(
                scalars[row], SHARED
            )
            own = to_fixed_tuple(scalars[row, SHARED:], own_scalars)
            for start in range(begin, min(begin + CHUNK, sizes[tensor]), span):
                count = min(span, sizes[tensor] - start)
                grads = open_grads(addresses, start, count, scratch[0])
                y = open_y(addresses, start, count, scratch[1])
                gaps = open_gaps(addresses, start, count, scratch[2])
                buffers = open_buffers(addresses, start, count, scratch[3:])
                for i in range(count):
                    found = direction(sign * grads[i], *(elements(buffers, i) + own))
                    move = base_move(found[0], y[i], gaps[i], lr, decay, decay_of_gap)
                    y[i], gaps[i] = advance(y[i], gaps[i], move, gap_in_y, move_in_y, gap_in_gap, move_in_gap)
                    put(buffers, i, found[1:])
                close_y(addresses, start, y, keys[row, 0])
                close_gaps(addresses, start, gaps, keys[row, 0])
                close_buffers(addresses, start, buffers, keys[row, 1:])


def _open(opened: list[streams.Stream]) -> Function:
    """The arrays of several streams."""
    if not opened:
        return inlined(lambda addresses, start, count, scratch: ())
    one, others = opened[0].open, _open(opened[1:])
    return inlined(
        lambda addresses, start, count, scratch: (
            one(addresses, start, count, scratch[0]),
            *others(addresses, start, count, scratch[1:]),
        )
    )


def _close(closed: list[streams.Stream]) -> Function:
    """Store the arrays of several streams."""
    if not closed:
        return inlined(lambda addresses, start, arrays, keys: None)
    one, others = closed[0].close, _close(closed[1:])

    def close(addresses, start, arrays, keys):
        one(addresses, start, arrays[0], keys[0])
        others(addresses, start, arrays[1:], keys[1:])

    return inlined(close)


def _elements(count: int) -> Function:
    """One element of each of so many arrays."""
    if count == 0:
        return inlined(lambda arrays, i: ())
    others = _elements(count - 1)
    return inlined(lambda arrays, i: (arrays[0][i], *others(arrays[1:], i)))


def _put(count: int) -> Function:
    """Put one element into each of so many arrays."""
    if count == 0:
        return inlined(lambda arrays, i, values: None)
    others = _put(count - 1)

    def put(arrays, i, values):
        arrays[0][i] = values[0]
        others(arrays[1:], i, values[1:])

    return inlined(put)


@overload(iterates.root)
def _root(value):
    """float32 has a root of its own, where a power would widen it."""
    return lambda value: math.sqrt(value)


@overload(iterates.sign)
def _sign(value):
    """Of the type of the value, where a number of Python's would widen it."""
    zero, one = (np.float32(number) for number in (0.0, 1.0))
    return lambda value: (one if value > zero else -one if value < zero else zero) + (value - value)


OVERLOADED = (iterates.root, iterates.sign)


def _jitted(function: Function) -> Function:
    """A definition, compiled with the definitions that it calls."""
    called = {name: _jitted(value) for name, value in _called(function).items() if value not in OVERLOADED}
    return inlined(renamed(function, called))


def _called(function: Any) -> dict[str, Any]:
    """The functions that a definition names."""
    found = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return {name: value for name, value in found.items() if isinstance(value, FunctionType)}


def renamed(function: Any, names: dict[str, Any]) -> Any:
    """The function with other values for some global names."""
    return FunctionType(
        function.__code__, function.__globals__ | names, function.__name__, function.__defaults__, function.__closure__
    )


def fingerprint_of(kind: object, *functions: Any) -> str:
    """What changes if the kind, the definitions, what they call or what makes kernels of them does."""
    text = repr([kind, BLOCK, CHUNK, SMALLEST, SOURCE, *map(_code, functions)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _code(function: Any) -> tuple[Any, ...]:
    """A definition with all that it names."""
    code = function.__code__
    values = [function.__globals__.get(name) for name in code.co_names]
    named = [_code(value) if isinstance(value, FunctionType) else repr(value) for value in values]
    return code.co_code, repr(code.co_consts), code.co_names, named


def _source() -> str:
    """The text of this module and of what it is made with; without it, nothing on the disk is used by others."""
    try:
        return "".join(map(inspect.getsource, (sys.modules[__name__], streams)))
    except OSError:
        return str(time.time_ns())


SOURCE = _source()
