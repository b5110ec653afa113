"""What tensors say of their memory, asked of all at once: address, dtype, device, sizes and strides.

Asked from Python, one tensor answers after the other, and each answer has to be waited for: of many small tensors that
takes longer than their update. Here a compiled loop asks, through the C functions of torch's own library, to which a
tensor is the place where the address of its header stands.

Of a gradient that Python has not seen yet there is no object of Python, and none is made: that would take as long as
the update. The loop follows the parameter's header to that of the gradient, through functions of C++ that torch exports
under the names that C++ gives them. Where there are none of these, or Python has seen a gradient, it is asked for it.
"""
# What Numba compiles has no types:
# pyright: basic, reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

import ctypes
from functools import cache
from operator import attrgetter

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic
from torch import Tensor

from unscheduled.kernels import jit, streams, threads
from unscheduled.kernels.rule import PLAIN

NUMBERS = ("get_layout", "get_device_type", "get_dtype", "get_dim")
FUNCTIONS = (*NUMBERS, "get_sizes", "get_strides", "get_data_ptr", "is_defined")
SIZES, DATA_PTR, IS_DEFINED = (FUNCTIONS.index(name) for name in ("get_sizes", "get_data_ptr", "is_defined"))
METHODS = ("grad", "try_incref_pyobject", "decref_pyobject")  # of a header, which change nothing in it
RESULTS = (ctypes.c_void_p, ctypes.c_bool, None)
AT_FUNCTIONS = 9  # where they begin among the arguments
AT_METHODS = AT_FUNCTIONS + len(FUNCTIONS)
NOTE, GIVEN, FIND = range(3)  # the headers of gradients are there, to be noted or compared, or are to be found
OTHER, SAME, SEEN = range(3)
HEADER, GRAD = attrgetter("_cdata"), attrgetter("grad")


class Headers:
    """What the headers of tensors said, to be compared with what they say by now.

    Args:
        params: plain tensors on the CPU, which are to keep their headers and stay in their place, with gradients, for
            which others of the same kind and layout will stand in.
        lasting: such tensors, which are to keep their headers and stay in their place: the buffers.

    Raises:
        ValueError: if this version of torch does not tell, or tells otherwise.
    """

    def __init__(self, params: list[Tensor], lasting: list[Tensor]) -> None:
        asked = [*map(GRAD, params), *params]
        shapes = [[*tensor.shape, *tensor.stride()] for tensor in asked]
        expected = np.zeros((len(asked), len(NUMBERS) + 1), np.int64)
        expected[:, len(NUMBERS)] = np.cumsum([0, *map(len, shapes)])[:-1]
        shape = np.array([number for shape in shapes for number in shape], np.int64)
        headers = np.array(list(map(HEADER, asked + lasting)), np.int64)
        self.addresses = np.zeros(len(headers), np.int64)
        """Those of the gradients come first."""
        owners = np.array([id(tensor) + _offset() for tensor in params + lasting], np.int64)
        arrays = (headers, self.addresses, np.zeros(1, np.int64), expected, shape, owners)
        places = [each.ctypes.data for each in arrays]
        self._arguments = np.array([NOTE, len(params), len(headers), *places, *_functions(), *_methods()], np.int64)
        self._kept = (params, lasting, arrays)  # which the arguments point to
        self._params, self._of_grads = params, headers[: len(params)]
        self._address, self._comparison = self._arguments.ctypes.data, _comparison()
        addresses = [tensor.data_ptr() for tensor in asked + lasting]
        if self._compared(NOTE) != SAME or self.addresses.tolist() != addresses:
            raise ValueError("this version of torch tells otherwise of its tensors")

    def same(self) -> bool:
        """Whether all is as it was; then ``addresses`` begins with those of the present gradients."""
        answer = self._compared(FIND)
        if answer == SEEN:
            grads = list(map(GRAD, self._params))
            if not set(map(type, grads)) <= PLAIN:
                return False
            self._of_grads[:] = list(map(HEADER, grads))
            answer = self._compared(GIVEN)
        return answer == SAME

    def _compared(self, grads: int) -> int:
        self._arguments[0] = grads
        return self._comparison(self._address)


@cache
def _functions() -> list[int]:
    """Where the functions stand that answer."""
    try:
        return _addresses("torch_cpu", [f"aoti_torch_{name}" for name in FUNCTIONS])
    except (OSError, AttributeError) as error:
        raise ValueError(f"this version of torch does not tell: {error}") from error


@cache
def _methods() -> list[int]:
    """Where the methods stand that lead to a gradient; 0 if they are not there, or say otherwise than Python."""
    try:
        found = _addresses("c10", [f"_ZNK3c1010TensorImpl{len(name)}{name}Ev" for name in METHODS])
    except (OSError, AttributeError):
        return [0]
    calls = [ctypes.PYFUNCTYPE(result, ctypes.c_void_p)(place) for result, place in zip(RESULTS, found, strict=True)]
    (grad_of, hold, release), param = calls, torch.ones(1, dtype=torch.float32, device="cpu", requires_grad=True)
    without = ctypes.c_void_p.from_address(grad_of(HEADER(param))).value  # the tensor that stands for none
    param.grad = torch.ones(1, dtype=torch.float32, device="cpu")
    header = ctypes.c_void_p.from_address(grad_of(HEADER(param))).value
    seen = hold(header)
    if seen:
        release(header)
    return found if seen and header == HEADER(param.grad) and not hold(without) else [0]


@cache
def _offset() -> int:
    """How far in an object of Python the address of its header stands."""
    tensors = [torch.ones(count, dtype=torch.float32, device="cpu") for count in (1, 2)]
    for offset in range(object.__basicsize__, Tensor.__basicsize__, 8):
        if all(ctypes.c_int64.from_address(id(tensor) + offset).value == HEADER(tensor) for tensor in tensors):
            return offset
    raise ValueError("this version of torch does not tell where the headers of its tensors are")


def _addresses(library: str, names: list[str]) -> list[int]:
    functions = (getattr(threads.torch_library(library), name) for name in names)
    return [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]


def _called(count):
    """A function that calls one of C, by its address, with so many numbers of 64 bits, for another such."""

    def generate(context, builder, signature, arguments):
        number = ir.IntType(64)
        kind = ir.FunctionType(number, [number] * count)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return generate


@intrinsic
def _ask(typing_context, function, tensor, answer):
    """Have a function put its answer in its place: 0, or that of an error, in the lower half."""
    return types.int64(types.int64, types.int64, types.int64), _called(2)


@intrinsic
def _call(typing_context, method, header):
    """Call a method."""
    return types.int64(types.int64, types.int64), _called(1)


def _compare(arguments):
    """Whether the headers say what is expected: SAME, OTHER, or SEEN if the gradients are to be given.

    The arguments are where these come from; the number of parameters, and of all headers; the places of the headers (of
    the gradients, of the parameters and of the lasting tensors), of the addresses, of an answer, of what is expected of
    the first two kinds, of their shapes, and of the places where Python has the headers of all but the gradients; the
    functions, and the methods. A gradient without memory, which stands for zeros, is OTHER.
    """
    note, fresh, count = arguments[0] == NOTE, arguments[1], arguments[2]
    headers, addresses, answer = arguments[3], streams.int64s(arguments[4]), streams.int64s(arguments[5])
    found, owners = streams.int64s(headers), streams.int64s(arguments[8])
    for i in range(count - fresh):
        if streams.int64s(owners[i])[0] != found[fresh + i]:
            return OTHER
    if arguments[0] == FIND:
        if not arguments[AT_METHODS]:
            return SEEN
        for i in range(fresh):
            tensor = _call(arguments[AT_METHODS], found[fresh + i])
            answer[0] = 0
            _ask(arguments[AT_FUNCTIONS + IS_DEFINED], tensor, arguments[5])
            if not answer[0]:
                return OTHER
            header = found[i] = streams.int64s(tensor)[0]
            if _call(arguments[AT_METHODS + 1], header) & 1:
                _call(arguments[AT_METHODS + 2], header)
                return SEEN
    for i in range(2 * fresh):
        tensor, row = headers + 8 * i, streams.int64s(arguments[6] + 8 * (len(NUMBERS) + 1) * i)
        for question in range(len(NUMBERS)):
            answer[0] = 0
            failed = _ask(arguments[AT_FUNCTIONS + question], tensor, arguments[5]) & 0xFFFFFFFF
            if note:
                row[question] = answer[0]
            if failed or row[question] != answer[0]:
                return OTHER
        dim = row[len(NUMBERS) - 1]
        shapes = streams.int64s(arguments[7] + 8 * row[len(NUMBERS)])
        for part in range(2):
            if _ask(arguments[AT_FUNCTIONS + SIZES + part], tensor, arguments[5]) & 0xFFFFFFFF:
                return OTHER
            shape = streams.int64s(answer[0])
            for each in range(dim):
                if shape[each] != shapes[part * dim + each]:
                    return OTHER
    for i in range(count):
        if _ask(arguments[AT_FUNCTIONS + DATA_PTR], headers + 8 * i, arguments[5]) & 0xFFFFFFFF:
            return OTHER
        if addresses[i] and not answer[0]:
            return OTHER
        if note or i < fresh:
            addresses[i] = answer[0]
        if addresses[i] != answer[0]:
            return OTHER
    return SAME


@cache
def _comparison():
    """:func:`_compare`, compiled. It is called with Python's lock, which the methods need."""
    function = jit.renamed(_compare, {})
    function.__name__ = function.__qualname__ = f"compare_{jit.fingerprint_of('', _compare)}"
    _kept.append(jit.c_function(function, types.int64(types.CPointer(types.int64))))
    return ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(_kept[-1].address)


_kept: list[jit.Kernel] = []  # the code
