"""Split weights: y of a parameter of 16 bits is the parameter and a second tensor with the rest of the float32 bits."""

from typing import Any, cast

import torch
from torch import Tensor


def is_split(dtype: torch.dtype) -> bool:
    """Whether parameters of this dtype are too narrow for y, so that a second tensor has the rest."""
    return dtype in (torch.bfloat16, torch.float16)


def joined(high: Tensor, low: Tensor) -> Tensor:
    """The float32 numbers of which ``high`` has the nearest 16-bit numbers and ``low`` (int16) the rest.

    For bfloat16, ``low`` is the difference of the float32 bits. For float16, ``low`` counts units of 2^-15 of the
    distance to the next float16 number, which are 2^-39 for numbers below 6e-5.
    """
    local, rest = shard(high), shard(low)
    if high.dtype == torch.float16:
        return _like(local.to(torch.float32) + rest.to(torch.float32) * _unit(local), high)
    bits = local.view(torch.int16).to(torch.int32)
    magnitude = (((bits & 0x7FFF) << 16) + rest.to(torch.int32)).clamp_(min=0)
    return _like((magnitude | ((bits & 0x8000) << 16)).view(torch.float32), high)


def split(values: Tensor, high: Tensor, low: Tensor) -> None:
    """Put the 16-bit numbers nearest to float32 numbers into ``high`` and the rest into ``low``: see :func:`joined`."""
    values = shard(values).to(torch.float32)  # a float64 number may have made 0-d values float64
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
    """The nearest numbers of a dtype; for bfloat16, those from which :func:`joined` restores the values.

    A value in the middle of two bfloat16 numbers is rounded away from 0, since int16 has no number for +0x8000.
    """
    if values.dtype != torch.float32 or dtype != torch.bfloat16:
        return values.to(dtype)
    bits = _one_nan(shard(values)).view(torch.int32)
    upper = (((bits & 0x7FFFFFFF) + 0x8000) >> 16) | ((bits >> 16) & 0x8000)
    return _like(upper.to(torch.int16).view(torch.bfloat16), values)


def _one_nan(values: Tensor) -> Tensor:
    """The values with every NaN replaced by the standard one, since rounding would turn other NaNs into numbers."""
    return torch.where(values.isnan(), float("nan"), values)


def _unit(high: Tensor) -> Tensor:
    """2^-15 of the distance from float16 numbers to the next."""
    exponent = ((high.view(torch.int16).to(torch.int32) >> 10) & 31).clamp_(min=1)
    return ((exponent - 40 + 127) << 23).view(torch.float32)


def shard(tensor: Tensor) -> Tensor:
    """The local part of a sharded tensor, since DTensors do not support operations on bits."""
    return cast(Any, tensor).to_local() if hasattr(tensor, "to_local") else tensor


def _like(local: Tensor, tensor: Tensor) -> Tensor:
    """A local part as a tensor that is sharded like ``tensor``."""
    if not hasattr(tensor, "to_local"):
        return local
    sharded = cast(Any, tensor)
    mesh, placements = sharded.device_mesh, sharded.placements
    shape, stride = sharded.shape, sharded.stride()
    return cast(Any, type(tensor)).from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)
