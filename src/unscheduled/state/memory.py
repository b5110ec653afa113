"""Finds parameters that share memory, which cannot be trained: each would be moved by its own gap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unscheduled.state.split_weights import shard


def overlapping(params: Sequence[Tensor]) -> tuple[int, int] | None:
    """The positions of two different parameters that share an element in memory; None if there are none.

    Views that lie side by side or interleave in one memory share no element.
    """
    spans = sorted(span for position, param in enumerate(params) if (span := _span(param, position)))
    active: list[tuple[str, int, int, int]] = []
    for span in spans:
        device, begin, _, position = span
        active = [other for other in active if other[0] == device and other[2] > begin]
        for *_, other in active:
            if params[other] is not params[position] and _meet(shard(params[other]), shard(params[position])):
                return min(other, position), max(other, position)
        active.append(span)
    return None


def _span(param: Tensor, position: int) -> tuple[str, int, int, int] | None:
    """The device of a parameter, the begin and the end of its memory, and its position; None if it has no memory."""
    local = shard(param)
    if local.layout != torch.strided or local.is_meta or not local.numel():
        return None
    try:
        begin = local.data_ptr()
    except RuntimeError:  # a tensor that only pretends to have memory
        return None
    last = sum((size - 1) * stride for size, stride in zip(local.shape, local.stride(), strict=True))
    return str(local.device), begin, begin + (last + 1) * local.element_size(), position


def _meet(some: Tensor, other: Tensor) -> bool:
    """Whether tensors whose spans overlap share an element in memory."""
    if some.is_contiguous() and other.is_contiguous():
        return True
    if some.element_size() != other.element_size():
        return True
    return bool(torch.isin(_places(some), _places(other)).any())


def _places(tensor: Tensor) -> Tensor:
    """The address of each element."""
    found = torch.tensor([tensor.data_ptr()], device="cpu")
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        steps = torch.arange(size, device="cpu") * (stride * tensor.element_size())
        found = (found[:, None] + steps).flatten()
    return found
