"""The text of the kernel that Triton compiles: one launch makes the step of all tensors in a table.

Each program updates a tile of one tensor. ``direction``, ``base_move`` and ``advance`` are the definitions of a rule
and of the algebra: see :mod:`unscheduled.kernels.triton.jit`, which puts them in.
"""
# Triton gives the names their types, and has no starred elements of tuples; the definitions are put into copies:
# pyright: basic, reportUndefinedVariable=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportMissingTypeStubs=false
# ruff: noqa: F821, N803, RUF005, SIM300

import triton.language as tl

from unscheduled.kernels.triton.storages import (
    BLOCKS,
    decoded,
    encoded,
    joined,
    places_at,
    random_numbers,
    read,
    split,
    write,
)
from unscheduled.state.quantization import BLOCK

SHARED = 8  # scalars that every rule has


def step(
    table,
    tensor_of,
    tensors,
    grads,
    keys,
    scalars,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    STORED: tl.constexpr,
    SCALARS: tl.constexpr,
):
    """Make the step of a tile.

    Args:
        table: pointer to int64 numbers, with a column for each tensor: its size, its first tile, its row in the scalars
            and the keys, and the addresses of the parameter, the gap, the buffers, ``low`` of a parameter of 16 bits,
            and the scales of those that are stored as codes.
        tensor_of: pointer to the column of each tile.
        tensors: the number of columns.
        grads: pointer to the addresses of the gradients.
        keys: pointer to the keys of the random numbers.
        scalars: pointer to the scalars of the step, in rows.
        PARAM, GRAD, STORED: the dtypes of the parameters and the gradients, and of the gap and the buffers.
        SCALARS: the length of a row of scalars.
    """
    tile = tl.program_id(0)
    tensor = tl.load(tensor_of + tile)
    column = table + tensor
    begin = (tile - tl.load(column + tensors)) * (BLOCKS * BLOCK)
    left = tl.load(column) - begin
    row = tl.load(column + 2 * tensors)
    numbers, key = scalars + row * SCALARS, tl.load(keys + row).to(tl.uint32)
    grad = tl.load(grads + tensor)
    addresses = column + 3 * tensors
    together = grad
    for place in tl.static_range(1 + len(STORED) + (PARAM != tl.float32)):
        together = together | tl.load(addresses + place * tensors)
    if (together % 16 == 0) & (left >= BLOCKS * BLOCK):
        update(begin, left, addresses, tensors, grad, key, numbers, PARAM, GRAD, STORED, SCALARS, True)
    else:
        update(begin, left, addresses, tensors, grad, key, numbers, PARAM, GRAD, STORED, SCALARS, False)


def update(
    begin,
    left,
    addresses,
    tensors,
    grad_address,
    key,
    numbers,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    STORED: tl.constexpr,
    SCALARS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Make the step of the tile that begins at an element."""
    places = places_at(begin, left)
    grad = read(grad_address, places, GRAD, WHOLE).to(tl.float32)
    y = load_param(addresses, tensors, places, PARAM, len(STORED), WHOLE)
    before = load_stored(addresses, tensors, places, PARAM, STORED, WHOLE)
    gap = before[0]
    sign, lr, decay, decay_of_gap = scalars_from(numbers, 0, 4)
    found = direction(sign * grad, *before[1:], *scalars_from(numbers, SHARED, SCALARS))
    move = base_move(found[0], y, gap, lr, decay, decay_of_gap)
    after = advance(y, gap, move, *scalars_from(numbers, 4, SHARED))
    store_param(addresses, tensors, places, after[0], PARAM, len(STORED), WHOLE)
    store_stored(addresses, tensors, places, (after[1],) + found[1:], key, PARAM, STORED, WHOLE)


def scalars_from(numbers, BEGIN: tl.constexpr, END: tl.constexpr):
    """Some of the scalars of a row, as a tuple."""
    found = ()
    for place in tl.static_range(BEGIN, END):
        found = found + (tl.load(numbers + place),)
    return found


def load_param(addresses, tensors, places, PARAM: tl.constexpr, STORED: tl.constexpr, WHOLE: tl.constexpr):
    """y of the tile, where so many tensors are stored beside it."""
    address = tl.load(addresses)
    if PARAM == tl.float32:
        y = read(address, places, PARAM, WHOLE)
    else:
        low = tl.load(addresses + (1 + STORED) * tensors)
        y = joined(read(address, places, tl.int16, WHOLE), read(low, places, tl.int16, WHOLE), PARAM)
    return y


def store_param(addresses, tensors, places, y, PARAM: tl.constexpr, STORED: tl.constexpr, WHOLE: tl.constexpr):
    """Store y of the tile."""
    address = tl.load(addresses)
    if PARAM == tl.float32:
        write(address, places, y, PARAM, WHOLE)
    else:
        high, low = split(y, PARAM)
        write(address, places, high, tl.int16, WHOLE)
        write(tl.load(addresses + (1 + STORED) * tensors), places, low, tl.int16, WHOLE)


def load_stored(addresses, tensors, places, PARAM: tl.constexpr, STORED: tl.constexpr, WHOLE: tl.constexpr):
    """The gap and the buffers of the tile, as a tuple."""
    scales = addresses + (1 + len(STORED) + (PARAM != tl.float32)) * tensors
    found = ()
    for place in tl.static_range(len(STORED)):
        numbers = read(tl.load(addresses + (1 + place) * tensors), places, STORED[place], WHOLE)
        if STORED[place] != tl.float32:
            numbers = decoded(numbers, tl.load(scales), places, STORED[place])
            scales += tensors
        found = found + (numbers,)
    return found


def store_stored(
    addresses, tensors, places, values, key, PARAM: tl.constexpr, STORED: tl.constexpr, WHOLE: tl.constexpr
):
    """Store the gap and the buffers of the tile."""
    scales = addresses + (1 + len(STORED) + (PARAM != tl.float32)) * tensors
    for place in tl.static_range(len(STORED)):
        numbers = values[place]
        if STORED[place] != tl.float32:
            numbers = encoded(numbers, random_numbers(places, key, place), tl.load(scales), places, STORED[place])
            scales += tensors
        write(tl.load(addresses + (1 + place) * tensors), places, numbers, STORED[place], WHOLE)
