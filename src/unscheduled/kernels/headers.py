"""What tensors say of their memory, asked of all at once: address, dtype, device, sizes and strides.

Asked from Python, one tensor answers after the other, and each answer has to be waited for: of many small tensors that
takes longer than their update. Here a compiled loop asks, through the C functions of torch's own library, to which a
tensor is the place where the address of its header stands.
"""
# What Numba compiles has no types:
# pyright: basic, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

import ctypes
from functools import cache
from operator import attrgetter

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic
from torch import Tensor

from unscheduled.kernels import jit, streams, threads

NUMBERS = ("layout", "device_type", "dtype", "dim")
PLACES = ("sizes", "strides", "data_ptr")
FUNCTIONS = 10  # where they begin among the arguments
HEADER = attrgetter("_cdata")


class Headers:
    """What the headers of tensors said, to be compared with what they say by now.

    Args:
        fresh: plain tensors on the CPU, for which others of the same kind and layout will stand in.
        params: such tensors, which in addition are to stay in their place.
        lasting: such tensors, which in addition stay the same objects, and keep their headers and layout: the buffers.

    Raises:
        ValueError: if this version of torch does not tell, or tells otherwise.
    """

    def __init__(self, fresh: list[Tensor], params: list[Tensor], lasting: list[Tensor]) -> None:
        asked, everything = [*fresh, *params], [*fresh, *params, *lasting]
        shapes = [[*tensor.shape, *tensor.stride()] for tensor in asked]
        expected = np.zeros((len(asked), len(NUMBERS) + 1), np.int64)
        expected[:, len(NUMBERS)] = np.cumsum([0, *map(len, shapes)])[:-1]
        shape = np.array([number for shape in shapes for number in shape], np.int64)
        headers = np.array(list(map(HEADER, lasting)), np.int64)
        self.addresses = np.zeros(len(everything), np.int64)
        arrays = (np.zeros(len(asked), np.int64), headers, self.addresses, np.zeros(1, np.int64), expected, shape)
        places = (each.ctypes.data for each in arrays)
        counts = (len(fresh), len(asked), len(everything))
        self._arguments = np.array([True, *counts, *places, *_functions()], np.int64)
        self._kept = (lasting, arrays)  # which the arguments point to
        self._asked, self._address = arrays[0], self._arguments.ctypes.data
        if not self.same(fresh, params) or self.addresses.tolist() != [tensor.data_ptr() for tensor in everything]:
            raise ValueError("this version of torch tells otherwise of its tensors")
        self._arguments[0] = False

    def same(self, fresh: list[Tensor], params: list[Tensor]) -> bool:
        """Whether all is as it was; then ``addresses`` begins with those of the fresh tensors."""
        self._asked[:] = [*map(HEADER, fresh), *map(HEADER, params)]
        return bool(_comparison()[0](self._address))


@cache
def _functions() -> list[int]:
    """Where the functions stand that answer."""
    try:
        found = [getattr(threads.torch_library(), f"aoti_torch_get_{name}") for name in NUMBERS + PLACES]
    except (OSError, AttributeError) as error:
        raise ValueError(f"this version of torch does not tell: {error}") from error
    return [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in found]


@intrinsic
def _ask(typing_context, function, tensor, answer):
    """Call a C function of two pointers by its address: 0, or that of an error."""

    def generate(context, builder, signature, arguments):
        number = ir.IntType(64)
        kind = ir.FunctionType(ir.IntType(32), [number, number])
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int32(types.int64, types.int64, types.int64), generate


def _compare(arguments):
    """Whether the headers say what is expected.

    The arguments are whether to note it instead, but for the shapes; how many tensors are fresh, how many these are
    with the parameters, and how many there are in all; the places of the headers of these and of the lasting ones, of
    the addresses, of an answer, and of what is expected of the first two kinds, and of their shapes; and the functions.
    """
    note, fresh, asked, count = arguments[0], arguments[1], arguments[2], arguments[3]
    asked_at, lasting_at, answer_at = arguments[4], arguments[5], arguments[7]
    addresses, answer, width = streams.int64s(arguments[6]), streams.int64s(answer_at), len(NUMBERS) + 1
    for i in range(asked):
        tensor, row = asked_at + 8 * i, streams.int64s(arguments[8] + 8 * width * i)
        for question in range(len(NUMBERS)):
            answer[0] = 0
            failed = _ask(arguments[FUNCTIONS + question], tensor, answer_at)
            if note:
                row[question] = answer[0]
            if failed or row[question] != answer[0]:
                return 0
        dim = row[len(NUMBERS) - 1]
        shapes = streams.int64s(arguments[9] + 8 * row[len(NUMBERS)])
        for part in range(2):
            if _ask(arguments[FUNCTIONS + len(NUMBERS) + part], tensor, answer_at):
                return 0
            found = streams.int64s(answer[0])
            for each in range(dim):
                if found[each] != shapes[part * dim + each]:
                    return 0
    for i in range(count):
        tensor = asked_at + 8 * i if i < asked else lasting_at + 8 * (i - asked)
        if _ask(arguments[FUNCTIONS + len(NUMBERS) + 2], tensor, answer_at):
            return 0
        if note or i < fresh:
            addresses[i] = answer[0]
        if addresses[i] != answer[0]:
            return 0
    return 1


@cache
def _comparison():
    """:func:`_compare`, compiled."""
    function = jit.renamed(_compare, {})
    function.__name__ = function.__qualname__ = f"compare_{jit.fingerprint_of('', _compare)}"
    compiled = jit.c_function(function, types.int64(types.CPointer(types.int64)))
    called = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(compiled.address)
    return called, compiled  # which keeps the code
