"""Split weights: y of a parameter of 16 bits is the parameter, and beside it what float32 has beyond."""

from typing import Any, cast

import torch
from torch import Tensor


def is_split(dtype: torch.dtype) -> bool:
    """Whether parameters of this dtype are too narrow for y: the rest is kept beside them."""
    return dtype in (torch.bfloat16, torch.float16)


def joined(high: Tensor, low: Tensor) -> Tensor:
    """The float32 numbers of which ``high`` are the nearest of 16 bits, and ``low`` (int16) the rest.

    Of bfloat16 ``low`` continues the bits, counted from the nearest; of float16 it counts 2^-15 of the distance to the
    next, which makes 2^-39 below 6e-5.
    """
    local, rest = shard(high), shard(low)
    if high.dtype == torch.float16:
        return _like(local.to(torch.float32) + rest.to(torch.float32) * _unit(local), high)
    bits = local.view(torch.int16).to(torch.int32)
    magnitude = (((bits & 0x7FFF) << 16) + rest.to(torch.int32)).clamp_(min=0)
    return _like((magnitude | ((bits & 0x8000) << 16)).view(torch.float32), high)


def split(values: Tensor, high: Tensor, low: Tensor) -> None:
    """Put numbers of float32 into a tensor of 16 bits, to the nearest, the rest into ``low``: see :func:`joined`."""
    values = shard(values).to(torch.float32)  # torch makes float64 of a tensor of no dimension and another of float64
    high, low = shard(high), shard(low)
    if high.dtype == torch.float16:
        fine = (values * 2.0**39).round() * 2.0**-39
        values = torch.where(values.abs() < 2.0**-14, fine, values)
    else:
        values = _one_nan(values)
    high.copy_(narrowed(values, high.dtype))
    if high.dtype == torch.float16:
        rest = (values - high.to(torch.float32)) / _unit(high)
        low.copy_(rest.round().clamp(-16384.0, 16384.0).nan_to_num(0.0))
    else:
        upper = high.view(torch.int16).to(torch.int32) & 0x7FFF
        low.copy_((values.view(torch.int32) & 0x7FFFFFFF) - (upper << 16))


def narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest numbers of a dtype; of bfloat16 those of which :func:`joined` finds the way back.

    From the middle between two it goes away from 0, since 16 bits have no number for the half above.
    """
    if values.dtype != torch.float32 or dtype != torch.bfloat16:
        return values.to(dtype)
    bits = _one_nan(shard(values)).view(torch.int32)
    upper = (((bits & 0x7FFFFFFF) + 0x8000) >> 16) | ((bits >> 16) & 0x8000)
    return _like(upper.to(torch.int16).view(torch.bfloat16), values)


def _one_nan(values: Tensor) -> Tensor:
    """NaN with a fraction that 16 bits have: of others the sum with the half would be another number."""
    return torch.where(values.isnan(), float("nan"), values)


def _unit(high: Tensor) -> Tensor:
    """2^-15 of the distance of float16 numbers to the next."""
    exponent = ((high.view(torch.int16).to(torch.int32) >> 10) & 31).clamp_(min=1)
    return ((exponent - 40 + 127) << 23).view(torch.float32)


def shard(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that is here: DTensors have no bits."""
    return cast(Any, tensor).to_local() if hasattr(tensor, "to_local") else tensor


def _like(local: Tensor, tensor: Tensor) -> Tensor:
    """A part that is here, as a tensor that is sharded like another."""
    if not hasattr(tensor, "to_local"):
        return local
    sharded = cast(Any, tensor)
    mesh, placements = sharded.device_mesh, sharded.placements
    shape, stride = sharded.shape, sharded.stride()
    return cast(Any, type(tensor)).from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)
