"""The definition compiled by Triton into one pass over the memory, for tensors on a GPU.

Each rule and kind has one kernel, which inlines the rule's direction and the algebra. It is launched once a step for
all tensors: a table on the device has their addresses, and is made once; a step copies the scalars to the device, with
the addresses of the gradients if these have moved. With ``capturable=True`` the scalars are on the device already.
"""
# Triton has no types, and torch publishes its foreach operations under names with an underscore:
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false, reportPrivateImportUsage=false

import logging
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import torch
import triton.language as tl
from torch import Tensor

from unscheduled.formulas.rule import Rule
from unscheduled.kernels import fused
from unscheduled.kernels.batch import Work, all_same
from unscheduled.kernels.definitions import is_text
from unscheduled.kernels.fused import SHARED, Kind, Taken, columns_of, numbers_of
from unscheduled.kernels.triton.jit import INTERPRETED, kernel_of
from unscheduled.kernels.triton.storages import BLOCKS
from unscheduled.state.device_math import is_capturing
from unscheduled.state.quantization import BLOCK, key

TILE = BLOCKS * BLOCK  # the elements that a program of the kernel updates
WARPS = 4 if torch.version.hip else 8  # of 64 or 32 threads, so that each updates four numbers at once
READABLE = {torch.float32, torch.bfloat16, torch.float16}  # parameters and gradients
DEVICE = "cpu" if INTERPRETED else "cuda"  # of HIP, too
DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int16: tl.int16,
    torch.uint8: tl.uint8,
}

log = logging.getLogger("unscheduled")


def update(rule: Rule, works: list[Work]) -> list[Work]:
    """Make one step of all parameters that the kernel supports, and return the work that it does not support."""
    return fused.update(rule, works, _is_here, READABLE, compiled_kernel, _run)


def _is_here(tensor: Tensor) -> bool:
    return tensor.device.type == DEVICE


@dataclass(eq=False)
class Call:
    """The tables of the kernel for some batches: made once, and used while these are the same."""

    tokens: list[object]  # the tokens of the batches
    stream: int  # that of the launches, since the memory of a tensor may be used again on its stream when it is gone
    table: Tensor  # see the kernel
    tensor_of: Tensor
    count: int  # of tensors
    addresses: list[int]  # of the gradients, as they stand in ``grads``
    grads: Tensor


def compiled_kernel(rule: Rule, kind: Kind) -> Any:
    """The kernel of a rule; None if Triton cannot compile it for tensors of this kind, or cannot launch it.

    Raises:
        RuntimeError: if it is not there yet, and a CUDA graph is captured.
        torch.OutOfMemoryError: if there is no memory on the device.
    """
    if not is_text(rule.direction):
        return None
    with _lock:
        found = _of_direction.setdefault(rule.direction, {})
        if kind not in found:
            if is_capturing(kind.device):
                raise RuntimeError(
                    f"step() is captured, but there is no kernel yet for gradients of {kind.grad} and parameters of "
                    f"{kind.param}: make a step with these gradients before the capture"
                )
            found[kind] = _tried(rule, kind)
        return found[kind]


_of_direction: WeakKeyDictionary[Any, dict[Kind, Any]] = WeakKeyDictionary()
_lock = threading.Lock()


def _tried(rule: Rule, kind: Kind) -> Any:
    """The kernel of a rule after a launch that updates nothing, or None if there was an error."""
    zeros = [0] * (3 + 2 * (1 + len(kind.stored)))  # a tensor without elements, with all addresses that there may be
    try:
        table, scalars = _sent(zeros, [1.0] * (SHARED + len(rule.scalars)), kind.device)
        kernel = kernel_of(rule)
        _launch(rule, kind, kernel, Call([], 0, table, table[:1], 1, [], table), table, scalars)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the compiler, of the driver, or since there is no C compiler
        log.debug("Triton does not run %s, so that it is not fused: %s", rule.direction.__name__, error)
        return None
    return kernel


def _run(rule: Rule, kind: Kind, kernel: Any, works: list[Taken]) -> None:
    """Launch the kernel."""
    call = _call(rule, kind, works)
    if call.tensor_of.numel():
        _launch(rule, kind, kernel, call, *_numbers(rule, kind, works, call))


def _launch(rule: Rule, kind: Kind, kernel: Any, call: Call, keys: Tensor, scalars: Tensor) -> None:
    with torch.cuda.device(kind.device) if DEVICE == "cuda" else nullcontext():
        kernel[(call.tensor_of.numel(),)](
            call.table,
            call.tensor_of,
            call.count,
            call.grads,
            keys,
            scalars,
            DTYPES[kind.param],
            DTYPES[kind.grad],
            tuple(DTYPES[dtype] for dtype in kind.stored),
            SHARED + len(rule.scalars),
            num_warps=WARPS,
            enable_fp_fusion=False,  # else the results are not those of the definition
        )


def _call(rule: Rule, kind: Kind, works: list[Taken]) -> Call:
    """The tables for these batches.

    What is made while a CUDA graph is captured is in the graph's own memory, and made anew by each replay.
    """
    tokens = [work.batch.kept.token for work in works]
    first = works[0].batch.kept
    stream = torch.cuda.current_stream(kind.device).cuda_stream if DEVICE == "cuda" else 0
    if is_capturing(kind.device):
        return _new_call(rule, kind, works, tokens, stream)
    call: Call | None = first.call
    if call is None or call.stream != stream or not all_same(call.tokens, tokens):
        call = first.call = _new_call(rule, kind, works, tokens, stream)
    return call


def _new_call(rule: Rule, kind: Kind, works: list[Taken], tokens: list[object], stream: int) -> Call:
    sizes = [param.numel() for work in works for param in work.batch.params]
    tiles = [-(-size // TILE) for size in sizes]
    first_tiles = [0, *accumulate(tiles)][:-1]
    columns = [columns_of(rule, kind, work.batch) for work in works]
    addresses = [tensor.data_ptr() for of_kind in zip(*columns, strict=True) for column in of_kind for tensor in column]
    numbers = _vector([*sizes, *first_tiles, *_rows(works), *addresses, *tiles], kind.device)
    count = len(sizes)
    tensor_of = torch.repeat_interleave(numbers[-count:], output_size=sum(tiles))
    return Call(tokens, stream, numbers, tensor_of, count, [], numbers[:0])


def _rows(works: list[Taken]) -> list[int]:
    """The row of each tensor in the scalars: of its batch or, where these are on the device, of its own."""
    counts = [len(work.batch.params) for work in works]
    if _are_on_device(works):
        return list(range(sum(counts)))
    return [row for row, count in enumerate(counts) for _ in range(count)]


def _are_on_device(works: list[Taken]) -> bool:
    return isinstance(works[0].scalars.step, Tensor)


def _numbers(rule: Rule, kind: Kind, works: list[Taken], call: Call) -> tuple[Tensor, Tensor]:
    """The keys and the scalars of a step on the device, where the addresses of the gradients are, too, after this."""
    addresses = [address for work in works for address in work.grads]
    moved = addresses if addresses != call.addresses else []
    if _are_on_device(works):
        if moved:
            call.grads, call.addresses = _vector(moved, kind.device), addresses
        scalars = torch.cat([_scalars_of_each(rule, work) for work in works])
        return call.grads, scalars  # no keys are read, since compact states are not captured
    keys = [key(work.scalars.step) for work in works]
    scalars = [number for work in works for number in numbers_of(rule, work.scalars)]
    whole, rows = _sent([*keys, *moved], scalars, kind.device)
    if moved:
        call.grads, call.addresses = whole[len(keys) :], addresses
    return whole, rows


def _scalars_of_each(rule: Rule, work: Taken) -> Tensor:
    """A row of scalars for each parameter of a batch, of numbers on the device."""
    count, device = len(work.batch.params), work.batch.params[0].device
    columns = [
        number.to(torch.float32).expand(count)
        if isinstance(number, Tensor)
        else torch.full((count,), number, dtype=torch.float32, device=device)
        for number in numbers_of(rule, work.scalars)
    ]
    return torch.stack(columns, 1)


def _vector(numbers: list[int], device: torch.device) -> Tensor:
    """Integers on the device. In a CUDA graph each is a constant, since no memory of the host outlives the capture."""
    if not is_capturing(device):
        return _sent(numbers, [], device)[0]
    vector = torch.zeros(len(numbers), dtype=torch.int64, device=device)
    torch._foreach_add_(list(vector.unbind()), numbers)
    return vector


def _sent(whole: list[int], others: list[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Integers (int64) and floats (float32), copied to the device together, which does not wait for it."""
    bits = torch.tensor([*others, *[0.0] * (len(others) % 2)], dtype=torch.float32, device="cpu").view(torch.int64)
    both = torch.cat([torch.tensor(whole, dtype=torch.int64, device="cpu"), bits])
    if DEVICE == "cuda":
        both = both.pin_memory().to(device, non_blocking=True)
    return both[: len(whole)], both[len(whole) :].view(torch.float32)
