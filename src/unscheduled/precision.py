"""How a buffer is stored: as float32, or narrow.

| stored as | what | bytes a number |
|---|---|---|
| ``float32`` | any buffer | 4 |
| ``int16``, a scale for each block | the gap, a first moment: multiples of 1/32767 of the largest of its block | 2.03 |
| ``uint8``, two ends for each block | a second moment: 256 values, evenly in its logarithm, between the ends | 1.06 |
| ``int16`` beside a parameter of 16 bits | y: what float32 has beyond the parameter (split weights) | 2 |

A buffer that changes by less than what its code can tell from step to step would stand still if it were rounded to
the nearest, so it is rounded at random, up with the probability of the remainder: the mean is right. The random numbers
are a hash of the place in the block, turned by another of the block, and by an irrational part of the circle at each
step: they are the same on every rank and after a resume, and those of successive steps are spread so evenly that much
of the error cancels.

Second moments differ by orders of magnitude within a block. A code that is even in v or in its root makes zeros of the
small ones, and steps that are too large by as much; this one is even in the logarithm (in the bits of the float, which
are linear between powers of two), from the smallest to the largest, so that like moments are told apart finely.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

State: TypeAlias = dict[str, Any]

BLOCK = 128  # numbers, in the order of memory
SMALLEST = 2.0**-112  # scale, of which 2^15 can be divided
MASK = 0xFFFFFFFF
NEAREST = 0x8000

StatePrecision: TypeAlias = Literal["float32", "compact"]


def check(state_precision: str, params: Iterable[Tensor], rule_is_compact: bool) -> None:
    """Raise ValueError unless the buffers of a rule and of these parameters can be stored so."""
    has = "'float32' or 'compact'" if rule_is_compact else "'float32'"
    if state_precision not in ("float32", "compact"):
        raise ValueError(f"state_precision = {state_precision!r} is unknown: use {has}")
    if state_precision == "compact":
        if not rule_is_compact:
            raise ValueError("state_precision = 'compact' is not there for this rule: use 'float32'")
        for param in params:
            if hasattr(param, "to_local") or param.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                kind = "sharded" if hasattr(param, "to_local") else param.dtype
                raise ValueError(
                    "state_precision = 'compact' is for whole parameters of float32, bfloat16 and float16, but one is "
                    f"{kind}: use 'float32'"
                )


# Random numbers.


def key(step: int) -> int:
    """What is added to the random numbers at a step: in each half of the 32 bits, so many turns by an irrational angle.

    By the golden ratio in the upper half, and by the root of 2 in the lower, so that they have nothing to do with each
    other.
    """
    return 0x9E376A09 * step & MASK


def seed(pair: int) -> int:
    """What tells the hashes of two buffers of a state from those of the next two."""
    return 0x5F3759DF + 0x85EBCA6B * pair & MASK


def hashed(place: Any, seed: int) -> Any:
    """A hash of 32 bits of numbers of blocks, or of places in one, as an array of int64."""
    number = (place * 0x9E3779B1 + seed) & MASK
    number = ((number ^ (number >> 16)) * 0x7FEB352D) & MASK
    return number ^ (number >> 15)


def random_rounding(buffer: Tensor, step: int, position: int) -> Tensor | int:
    """The random numbers with which a buffer, the gap being at position 0, is rounded after a step: 16 bits.

    The sum of a hash of the block, of one of the place in it, and of the key of the step has those of two buffers.
    """
    if not is_narrow(buffer.dtype):
        return NEAREST
    blocks = torch.arange(-(-buffer.numel() // BLOCK), device=buffer.device)[:, None]
    places = torch.arange(BLOCK, device=buffer.device)
    number = (hashed(places, seed(position // 2)) + hashed(blocks, 0) + key(step)) & MASK
    return (number >> 16 if position % 2 == 0 else number & 0xFFFF).to(torch.int32)


# Blocks.


def _flat(tensor: Tensor) -> Tensor:
    """The numbers of a dense tensor in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _blocks(values: Tensor) -> Tensor:
    """The numbers of a dense tensor as rows of blocks; the last is filled up with its last number."""
    flat = _flat(values)
    missing = -flat.numel() % BLOCK
    if missing:
        flat = torch.cat([flat, flat[-1:].expand(missing)])
    return flat.view(-1, BLOCK)


def _rows(codes: Tensor) -> Tensor:
    """The codes of a dense tensor as rows of blocks; the last is filled up."""
    return pad(_flat(codes), (0, -codes.numel() % BLOCK)).view(-1, BLOCK)


def _put(rows: Tensor, target: Tensor) -> None:
    _flat(target).copy_(rows.view(-1)[: target.numel()])


def decode_int16(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 numbers of int16 codes of any shape; ``scales`` has one of each block."""
    values = torch.empty_like(codes, dtype=torch.float32)
    _put(_rows(codes).to(torch.float32) * scales[:, None], values)
    return values


def encode_int16(values: Tensor, codes: Tensor, scales: Tensor, rounding: Tensor | int) -> None:
    """Put the codes of float32 numbers in their place; ``rounding`` / 2^16 is added before the fraction is cut off."""
    blocks = _blocks(values)
    scales.copy_(blocks.abs().amax(1) / 32767.0)
    steps = _fixed_point(blocks * _inverse(scales, 15)[:, None])
    _put(((steps + (rounding >> 1)) >> 15).clamp(-32768, 32767).to(torch.int16), codes)


def decode_uint8(codes: Tensor, ends: Tensor) -> Tensor:
    """The float32 numbers >= 0 of uint8 codes of any shape; ``ends`` has the smallest and the largest of each block."""
    values = torch.empty_like(codes, dtype=torch.float32)
    low, high = ends.view(torch.int32).unbind(1)
    step = (high - low).to(torch.float32) / 255.0
    offset = _rows(codes).to(torch.float32) * step[:, None]
    _put((low[:, None] + offset.to(torch.int32)).view(torch.float32), values)
    return values


def encode_uint8(values: Tensor, codes: Tensor, ends: Tensor, rounding: Tensor | int) -> None:
    """Put the codes of float32 numbers >= 0 in their place, like :func:`encode_int16`."""
    blocks = _blocks(values)
    ends.copy_(torch.stack([blocks.amin(1), blocks.amax(1)], 1))
    low, high = ends.view(torch.int32).unbind(1)
    inverse = _inverse((high - low).to(torch.float32) / 255.0, 16)
    steps = _fixed_point((blocks.view(torch.int32) - low[:, None]).to(torch.float32) * inverse[:, None])
    _put(((steps + rounding) >> 16).clamp(0, 255).to(torch.uint8), codes)


def _fixed_point(steps: Tensor) -> Tensor:
    """The nearest integers: a sum of floats would be rounded, and up in the mean."""
    return steps.nan_to_num(0.0).round().to(torch.int32)


def _inverse(scales: Tensor, fraction: int) -> Tensor:
    """2^fraction / scale, for steps with so many bits of fraction, or 0 for a scale that is too small for that."""
    return torch.where(scales < SMALLEST, 0.0, 2.0**fraction / scales)


DECODE: dict[torch.dtype, Callable[[Tensor, Tensor], Tensor]] = {torch.int16: decode_int16, torch.uint8: decode_uint8}
ENCODE: dict[torch.dtype, Callable[[Tensor, Tensor, Tensor, Tensor | int], None]] = {
    torch.int16: encode_int16,
    torch.uint8: encode_uint8,
}


# Buffers of a state.


def fresh(param: Tensor, name: str, dtype: torch.dtype) -> State:
    """A buffer of zeros."""
    buffer = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    if dtype not in DECODE:
        return {name: buffer}
    blocks = -(-param.numel() // BLOCK)
    shape = (blocks,) if dtype == torch.int16 else (blocks, 2)
    return {name: buffer, f"{name}_scale": torch.zeros(shape, dtype=torch.float32, device=param.device)}


def wide(state: State, name: str) -> Tensor:
    """A buffer in the precision of the arithmetic: the very tensor if it is stored so."""
    buffer: Tensor = state[name]
    decode = DECODE.get(buffer.dtype)
    return decode(buffer, state[f"{name}_scale"]) if decode else buffer


def is_narrow(dtype: torch.dtype) -> bool:
    """Whether buffers of this dtype are codes."""
    return dtype in DECODE


def store(state: State, name: str, values: Tensor, rounding: Tensor | int = NEAREST) -> None:
    """Put float32 numbers into a buffer, rounded to the nearest unless ``rounding`` says otherwise."""
    buffer: Tensor = state[name]
    encode = ENCODE.get(buffer.dtype)
    if encode:
        if values.stride() != buffer.stride():  # codes are in the order of memory
            values = torch.empty_like(buffer, dtype=torch.float32).copy_(values)
        encode(values, buffer, state[f"{name}_scale"], rounding)
    elif buffer is not values:
        buffer.copy_(values)


def wide_state(state: State) -> State:
    """A saved state whose buffers and whose y are all in the precision of the arithmetic."""
    state = with_whole_y(state)
    names = buffers(state)
    return {name: wide(state, name) if has_codes(state, name) else state[name] for name in state if name in names}


def with_whole_y(state: State) -> State:
    """A saved state whose y is one tensor: of 16 bits it is saved as two."""
    if "low" not in state or "y" not in state:
        return state
    whole = {name: value for name, value in state.items() if name != "low"}
    return whole | {"y": joined(state["y"], state["low"])}


def buffers(state: State) -> set[str]:
    """The names in a state, without those of scales."""
    return set(state) - {f"{name}_scale" for name in state if has_codes(state, name)}


def scale_names(states: Iterable[State]) -> list[str]:
    """The names of what is kept in these states beside parameters and buffers that are stored narrow."""
    found = [(state, name) for state in states for name in state]
    names = {f"{name}_scale" for state, name in found if name != "low" and has_codes(state, name)}
    return sorted(names | {name for _, name in found if name == "low"})


def has_codes(state: State, name: str) -> bool:
    """Whether a buffer is stored as codes."""
    return isinstance(state.get(name), Tensor) and is_narrow(state[name].dtype)


def restored(state: State, name: str, dtype: torch.dtype, like: Tensor) -> State:
    """A copy of a buffer of a loaded state, stored as a dtype, on the device and in the layout of a parameter.

    Codes of the same kind and layout are copied as they are; others are rounded to the nearest.
    """
    buffer: Tensor = state[name]
    if dtype == buffer.dtype and is_narrow(dtype) and buffer.stride() == torch.empty_like(like, device="meta").stride():
        scales: Tensor = state[f"{name}_scale"]
        return {name: buffer.to(like.device, copy=True), f"{name}_scale": scales.to(like.device).clone().contiguous()}
    target = fresh(like, name, dtype)
    store(target, name, wide(state, name).to(like.device))
    return target


def problem_of_scales(codes: Tensor, scales: Any) -> str | None:
    """What is wrong with the scales of codes that were loaded; None if nothing is."""
    blocks = -(-codes.numel() // BLOCK)
    shape = (blocks,) if codes.dtype == torch.int16 else (blocks, 2)
    if not isinstance(scales, Tensor) or scales.dtype != torch.float32 or tuple(scales.shape) != shape:
        is_there = f"a {scales.dtype} of shape {tuple(scales.shape)}" if isinstance(scales, Tensor) else "no tensor"
        return f"there is {is_there} instead of float32 of shape {shape}"
    if bool((scales < 0.0).any()) or (scales.dim() == 2 and bool((scales[:, 0] > scales[:, 1]).any())):
        return "there are negative numbers, or ends in the wrong order"
    return None


# Split weights.


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
