"""How the Triton kernel reads the numbers of a tile of a tensor as float32, and stores them again.

A tile is a matrix with a row for each block of :mod:`unscheduled.state.quantization`, whose codes these equal bit for
bit. The functions are text: :mod:`unscheduled.kernels.triton.jit` compiles copies of them. Arguments in capitals are
known when they are compiled. ``WHOLE`` says that all numbers of the tile are there, and that all addresses are
multiples of 16 bytes: only without a mask Triton loads and stores four numbers at once.
"""
# Triton gives the names their types, and compiles only the branch of an ``if`` that a name in capitals decides for:
# pyright: basic, reportMissingTypeStubs=false, reportArgumentType=false
# ruff: noqa: N803, SIM108, SIM300

import triton.language as tl

from unscheduled.state.quantization import BLOCK, SMALLEST, hashed, seed

BLOCKS = 8  # of a tile


def places_at(begin, left):
    """The places of the tile that begins at an element of a tensor, of which so many elements are left.

    Returns:
        that element, the offsets of the numbers from it, which of them are there, the numbers of the blocks in the
        tensor, and which of these are there.
    """
    blocks = tl.arange(0, BLOCKS)[:, None]
    offsets = blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
    return begin, offsets, offsets < left, begin // BLOCK + blocks, blocks * BLOCK < left


def pointers(address, places, KIND: tl.constexpr, WHOLE: tl.constexpr):
    """The pointers to the numbers of a tensor."""
    start = address.to(tl.pointer_type(KIND))
    if WHOLE:
        start = tl.multiple_of(start, 16)
    return start + places[0] + places[1]


def read(address, places, KIND: tl.constexpr, WHOLE: tl.constexpr):
    """The numbers of a tensor as they stand in memory; 0 where there are none."""
    if WHOLE:
        found = tl.load(pointers(address, places, KIND, WHOLE))
    else:
        found = tl.load(pointers(address, places, KIND, WHOLE), mask=places[2], other=0)
    return found


def write(address, places, numbers, KIND: tl.constexpr, WHOLE: tl.constexpr):
    """Put numbers into a tensor."""
    if WHOLE:
        tl.store(pointers(address, places, KIND, WHOLE), numbers)
    else:
        tl.store(pointers(address, places, KIND, WHOLE), numbers, mask=places[2])


# Parameters of 16 bits, with the rest of the bits of y in ``low``: see unscheduled.state.split_weights.


def joined(high, low, KIND: tl.constexpr):
    """The float32 numbers of which ``high`` has the bits of the nearest 16-bit numbers and ``low`` the rest."""
    bits, rest = high.to(tl.int32), low.to(tl.int32)
    if KIND == tl.float16:
        found = high.to(tl.float16, bitcast=True).to(tl.float32) + low.to(tl.float32) * unit(bits)
    else:
        magnitude = ((bits & 0x7FFF) << 16) + rest
        magnitude = tl.where(magnitude < 0, 0, magnitude)
        found = (magnitude | ((bits & 0x8000) << 16)).to(tl.float32, bitcast=True)
    return found


def split(values, KIND: tl.constexpr):
    """The bits of the 16-bit numbers nearest to float32 numbers, and the rest, both int16."""
    if KIND == tl.float16:
        fine = nearest_even(values * 549755813888.0) * 1.8189894035458565e-12  # units of 2^-39
        values = tl.where(tl.abs(values) < 6.103515625e-05, fine, values)
        near = values.to(tl.float16)
        high = near.to(tl.int16, bitcast=True)
        rest = tl.div_rn(values - near.to(tl.float32), unit(high.to(tl.int32)))
        rest = tl.where(rest == rest, rest, 0.0)
        rest = tl.where(rest > 16384.0, 16384.0, tl.where(rest < -16384.0, -16384.0, rest))
        low = nearest_even(rest).to(tl.int16)
    else:
        bits = values.to(tl.int32, bitcast=True)
        bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC00000, bits)
        magnitude = bits & 0x7FFFFFFF
        upper = (magnitude + 0x8000) >> 16
        high = (upper | ((bits >> 16) & 0x8000)).to(tl.int16)
        low = (magnitude - (upper << 16)).to(tl.int16)
    return high, low


def unit(bits):
    """2^-15 of the distance from a float16 number, of which these are the bits, to the next."""
    exponent = (bits >> 10) & 31
    return ((tl.where(exponent < 1, 1, exponent) + 87) << 23).to(tl.float32, bitcast=True)


def nearest_even(values):
    """The nearest integers as float32, the even one of two."""
    below = tl.floor(values)
    rest = values - below
    up = (rest > 0.5) | ((rest == 0.5) & (tl.floor(below * 0.5) * 2.0 != below))
    return tl.where(up, below + 1.0, below)


# Codes: see unscheduled.state.quantization.


def decoded(codes, scales, places, KIND: tl.constexpr):
    """The float32 numbers of codes; ``scales`` is the address of the scales of the tensor."""
    blocks, there = places[3], places[4]
    if KIND == tl.int16:
        scale = tl.load(scales.to(tl.pointer_type(tl.float32)) + blocks, mask=there, other=0.0)
        found = codes.to(tl.float32) * scale
    else:
        ends = scales.to(tl.pointer_type(tl.int32)) + 2 * blocks
        low, high = tl.load(ends, mask=there, other=0), tl.load(ends + 1, mask=there, other=0)
        step = tl.div_rn((high - low).to(tl.float32), 255.0)
        found = (low + (codes.to(tl.float32) * step).to(tl.int32)).to(tl.float32, bitcast=True)
    return found


def encoded(values, random, scales, places, KIND: tl.constexpr):
    """The codes of float32 numbers, rounded with random numbers of 16 bits; their scales are stored."""
    bits, there, blocks = values.to(tl.int32, bitcast=True), places[2], places[3]
    if KIND == tl.int16:
        largest = tl.max(tl.where(there, bits & 0x7FFFFFFF, 0), axis=1, keep_dims=True).to(tl.float32, bitcast=True)
        scale = tl.div_rn(largest, 32767.0)
        tl.store(scales.to(tl.pointer_type(tl.float32)) + blocks, scale, mask=places[4])
        steps = fixed_point(values * inverse(scale, 32768.0), there)
        codes = (steps + (random >> 1)) >> 15
        codes = tl.where(codes > 32767, 32767, tl.where(codes < -32768, -32768, codes)).to(tl.int16)
    else:
        low = tl.min(tl.where(there, bits, 0x7FFFFFFF), axis=1, keep_dims=True)
        high = tl.max(tl.where(there, bits, -0x80000000), axis=1, keep_dims=True)
        ends = scales.to(tl.pointer_type(tl.int32)) + 2 * blocks
        tl.store(ends, low, mask=places[4])
        tl.store(ends + 1, high, mask=places[4])
        step = tl.div_rn((high - low).to(tl.float32), 255.0)
        steps = fixed_point((bits - low).to(tl.float32) * inverse(step, 65536.0), there)
        codes = (steps + random) >> 16
        codes = tl.where(codes > 255, 255, tl.where(codes < 0, 0, codes)).to(tl.uint8)
    return codes


def inverse(scale, one):
    """``one`` / scale; 0 if the scale is too small for that."""
    return tl.where(scale < SMALLEST, 0.0, tl.div_rn(one, scale))


def fixed_point(steps, there):
    """The nearest integers; 0 for NaN, and where there is no number."""
    return nearest_even(tl.where(there & (steps == steps), steps, 0.0)).to(tl.int32)


def random_numbers(places, key, POSITION: tl.constexpr):
    """The random numbers of 16 bits with which a buffer is rounded; the gap has position 0."""
    in_block = hashed(tl.arange(0, BLOCK)[None, :].to(tl.uint32), seed(POSITION // 2))
    number = in_block + hashed(places[3].to(tl.uint32), 0) + key
    if POSITION % 2 == 0:
        found = number >> 16
    else:
        found = number & 0xFFFF
    return found.to(tl.int32)
