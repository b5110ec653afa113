"""The kernels of the fused implementation: the definition, compiled by Numba and inlined into one loop."""
# What Numba compiles has no types, and names that it is given later:
# pyright: basic, reportUndefinedVariable=false, reportIndexIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false
# ruff: noqa: F821

import hashlib
import logging
import math
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
from numba import carray, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core.errors import NumbaError
from numba.core.extending import intrinsic, overload
from numba.np.unsafe.ndarray import to_fixed_tuple

from unscheduled import iterates
from unscheduled.kernels.rule import Rule

CHUNK = 16_384  # elements
SHARED = 8  # scalars of every rule: see fused.numbers

Function = Callable[..., Any]

log = logging.getLogger("unscheduled")


def compiled_kernel(rule: Rule, scalar_count: int) -> Function | None:
    """The kernel of a rule: ``kernel(table, sizes, ends, rows, scalars, first, last)`` updates some of the chunks.

    ``table`` has a column of addresses for each tensor: of the parameter, the gradient, the gap and the buffers.
    ``sizes`` are their numbers of elements, ``ends`` how many chunks they and all before them have; ``rows`` says which
    row of ``scalars`` is theirs.

    It is kept on the disk, and made anew when the definition has changed. There is none if Numba cannot compile the
    rule's direction.
    """
    key = (rule.direction.__code__, len(rule.buffers), scalar_count)
    if key not in _kernels:
        with _lock:
            if key not in _kernels:
                _kernels[key] = _compile(rule, scalar_count)
    return _kernels[key]


_kernels: dict[Any, Function | None] = {}
_lock = threading.Lock()


def _compile(rule: Rule, scalar_count: int) -> Function | None:
    if rule.direction.__closure__:
        return None
    fingerprint = _fingerprint(rule.direction, iterates.base_move, iterates.advance)
    names = {
        "direction": _jitted(rule.direction),
        "base_move": _jitted(iterates.base_move),
        "advance": _jitted(iterates.advance),
        "buffers_at": _buffers_at(len(rule.buffers), 3),
        "elements": _elements(len(rule.buffers)),
        "put": _put(len(rule.buffers)),
        "own_scalars": scalar_count - SHARED,
    }
    kernel = njit(_renamed(_kernel(fingerprint), names), nogil=True, error_model="numpy", cache=True)
    try:
        kernel.compile("int64[:,::1], int64[::1], int64[::1], int64[::1], float32[:,::1], int64, int64")
    except NumbaError as error:
        log.debug("Numba cannot compile %s: %s", rule.direction.__name__, error)
        return None
    kernel.disable_compile()
    return kernel


def _kernel(fingerprint: int) -> Function:
    """The kernel, but for the names that stand for the functions of a rule. Numba looks at what a closure holds."""

    def kernel(table, sizes, ends, rows, scalars, first, last):
        assert fingerprint
        tensor = np.searchsorted(ends, first, side="right")
        for chunk in range(first, last):
            while ends[tensor] <= chunk:
                tensor += 1
            start = CHUNK * (chunk - ends[tensor]) + -(-sizes[tensor] // CHUNK) * CHUNK
            count = min(CHUNK, sizes[tensor] - start)
            y = _array(table[0, tensor], start, count)
            grads = _array(table[1, tensor], start, count)
            gaps = _array(table[2, tensor], start, count)
            buffers = buffers_at(table, tensor, start, count)
            sign, lr, decay, decay_of_gap, gap_in_y, move_in_y, gap_in_gap, move_in_gap = to_fixed_tuple(
                scalars[rows[tensor]], SHARED
            )
            own = to_fixed_tuple(scalars[rows[tensor], SHARED:], own_scalars)
            for i in range(count):
                found = direction(sign * grads[i], *(elements(buffers, i) + own))
                move = base_move(found[0], y[i], gaps[i], lr, decay, decay_of_gap)
                y[i], gaps[i] = advance(y[i], gaps[i], move, gap_in_y, move_in_y, gap_in_gap, move_in_gap)
                put(buffers, i, found[1:])

    return kernel


@intrinsic
def _pointer(typing_context, address):
    """The pointer to the float32 numbers at an address."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.int64), generate


@njit
def _array(address, start, count):
    return carray(_pointer(address + 4 * start), count)


def _buffers_at(count: int, row: int) -> Function:
    """The arrays of so many buffers, whose addresses begin in that row of the table."""
    if count == 0:
        return njit(lambda table, tensor, start, size: ())
    others = _buffers_at(count - 1, row + 1)
    return njit(
        lambda table, tensor, start, size: (
            _array(table[row, tensor], start, size),
            *others(table, tensor, start, size),
        )
    )


def _elements(count: int) -> Function:
    """One element of each of so many arrays."""
    if count == 0:
        return njit(lambda arrays, i: ())
    others = _elements(count - 1)
    return njit(lambda arrays, i: (arrays[0][i], *others(arrays[1:], i)))


def _put(count: int) -> Function:
    """Put one element into each of so many arrays."""
    if count == 0:
        return njit(lambda arrays, i, values: None)
    others = _put(count - 1)

    def put(arrays, i, values):
        arrays[0][i] = values[0]
        others(arrays[1:], i, values[1:])

    return njit(put)


@overload(iterates.root)
def _root(value):
    """float32 has a root of its own, where a power would widen it."""
    return lambda value: math.sqrt(value)


def _jitted(function: Function) -> Function:
    """A definition, compiled with the definitions that it calls."""
    called = {name: _jitted(value) for name, value in _called(function).items() if value is not iterates.root}
    return njit(_renamed(function, called))


def _called(function: Any) -> dict[str, Any]:
    """The functions that a definition names."""
    found = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return {name: value for name, value in found.items() if isinstance(value, FunctionType)}


def _renamed(function: Any, names: dict[str, Any]) -> Any:
    """The function with other values for some global names."""
    return FunctionType(
        function.__code__, function.__globals__ | names, function.__name__, function.__defaults__, function.__closure__
    )


def _fingerprint(*functions: Any) -> int:
    """A number that changes if the definitions, or what they call, do."""
    text = repr([(_code(function)) for function in functions])
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) + 1


def _code(function: Any) -> tuple[Any, ...]:
    code = function.__code__
    return code.co_code, code.co_consts, code.co_names, [_code(value) for value in _called(function).values()]
