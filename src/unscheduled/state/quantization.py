"""Numbers stored in 16 or 8 bits, with scales for each block.

Rounding to the nearest would leave a buffer unchanged if its changes were smaller than the distance of its codes. So
the numbers are rounded at random, up with the probability of the remainder, which is right in the mean. A random number
is the sum of a hash of the place in the block, a hash of the block, and an irrational multiple of the step, modulo 1.
It is the same on every rank and after a resume, and the numbers of successive steps are spread so evenly that much of
the error cancels.

Second moments differ by orders of magnitude within a block. Codes that are evenly spaced in v or in its root would
round small moments to 0, which makes the steps far too large. These codes are evenly spaced in the logarithm (in the
bits of the float, which are linear between powers of two) from the smallest moment of the block to the largest.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 128  # the numbers of a block, in the order of memory
SMALLEST = 2.0**-112  # the smallest scale by which 2^15 can be divided
MASK = 0xFFFFFFFF
NEAREST = 0x8000
CODES = {"int16": torch.int16, "uint8": torch.uint8}
"""The dtypes of codes by the names that rules use."""


def is_narrow(dtype: torch.dtype) -> bool:
    """Whether buffers of this dtype are codes."""
    return dtype in DECODE


# Random numbers.


def key(step: int) -> int:
    """The number that is added to the hashes at a step: an irrational multiple of the step in each half of 32 bits.

    The multiple is the golden ratio in the upper half and the root of 2 in the lower half, so that the halves are
    unrelated.
    """
    return 0x9E376A09 * step & MASK


def seed(pair: int) -> int:
    """The seed of the hashes of a pair of buffers, which take the two halves of each hash."""
    return 0x5F3759DF + 0x85EBCA6B * pair & MASK


def hashed(place: Any, seed: int) -> Any:
    """The 32-bit hashes of block numbers, or of places in a block, as int64."""
    number = (place * 0x9E3779B1 + seed) & MASK
    number = ((number ^ (number >> 16)) * 0x7FEB352D) & MASK
    return number ^ (number >> 15)


def random_rounding(buffer: Tensor, step: int, position: int) -> Tensor | int:
    """The random numbers of 16 bits with which a buffer is rounded after a step; the gap has position 0.

    The sum of a hash of the block, a hash of the place in it and the key of the step has the numbers of two buffers.
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
    """The numbers of a dense tensor with a row for each block; the last block is filled up with its last number."""
    flat = _flat(values)
    missing = -flat.numel() % BLOCK
    if missing:
        flat = torch.cat([flat, flat[-1:].expand(missing)])
    return flat.view(-1, BLOCK)


def _rows(codes: Tensor) -> Tensor:
    """The codes of a dense tensor with a row for each block; the last block is filled up with 0."""
    return pad(_flat(codes), (0, -codes.numel() % BLOCK)).view(-1, BLOCK)


def _put(rows: Tensor, target: Tensor) -> None:
    _flat(target).copy_(rows.view(-1)[: target.numel()])


def decode_int16(codes: Tensor, scales: Tensor) -> Tensor:
    """The float32 numbers of int16 codes of any shape; ``scales`` has the scale of each block."""
    values = torch.empty_like(codes, dtype=torch.float32)
    _put(_rows(codes).to(torch.float32) * scales[:, None], values)
    return values


def encode_int16(values: Tensor, codes: Tensor, scales: Tensor, rounding: Tensor | int) -> None:
    """Put the codes of float32 numbers into ``codes``; ``rounding`` / 2^16 is added before the fraction is cut off."""
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
    """Put the codes of float32 numbers >= 0 into ``codes``, like :func:`encode_int16`."""
    blocks = _blocks(values)
    ends.copy_(torch.stack([blocks.amin(1), blocks.amax(1)], 1))
    low, high = ends.view(torch.int32).unbind(1)
    inverse = _inverse((high - low).to(torch.float32) / 255.0, 16)
    steps = _fixed_point((blocks.view(torch.int32) - low[:, None]).to(torch.float32) * inverse[:, None])
    _put(((steps + rounding) >> 16).clamp(0, 255).to(torch.uint8), codes)


def _fixed_point(steps: Tensor) -> Tensor:
    """The nearest integers, since a sum of floats would be rounded, and biased upwards."""
    return steps.nan_to_num(0.0).round().to(torch.int32)


def _inverse(scales: Tensor, fraction: int) -> Tensor:
    """2^fraction / scale, for steps with ``fraction`` bits of fraction; 0 if the scale is too small for that."""
    return torch.where(scales < SMALLEST, 0.0, 2.0**fraction / scales)


DECODE: dict[torch.dtype, Callable[[Tensor, Tensor], Tensor]] = {torch.int16: decode_int16, torch.uint8: decode_uint8}
ENCODE: dict[torch.dtype, Callable[[Tensor, Tensor, Tensor, Tensor | int], None]] = {
    torch.int16: encode_int16,
    torch.uint8: encode_uint8,
}


def problem_of_scales(codes: Tensor, scales: Any) -> str | None:
    """A description of what is wrong with the scales of loaded codes; None if nothing is wrong."""
    blocks = -(-codes.numel() // BLOCK)
    shape = (blocks,) if codes.dtype == torch.int16 else (blocks, 2)
    if not isinstance(scales, Tensor) or scales.dtype != torch.float32 or tuple(scales.shape) != shape:
        is_there = f"a {scales.dtype} of shape {tuple(scales.shape)}" if isinstance(scales, Tensor) else "no tensor"
        return f"there is {is_there} instead of float32 of shape {shape}"
    if bool((scales < 0.0).any()) or (scales.dim() == 2 and bool((scales[:, 0] > scales[:, 1]).any())):
        return "there are negative numbers, or ends in the wrong order"
    return None
