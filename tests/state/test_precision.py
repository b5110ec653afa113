"""How narrow states are stored: the codes, their random rounding, and split weights."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit, types  # pyright: ignore[reportPrivateImportUsage]
from numpy.typing import NDArray
from problems import equal, make_params, train
from registry import OptimizerInfo, compactable, implementations
from torch import Tensor

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer
from unscheduled.kernels.numba import streams
from unscheduled.state import quantization
from unscheduled.state.buffers import State, fresh_buffer, store, wide
from unscheduled.state.quantization import NEAREST, random_rounding
from unscheduled.state.split_weights import joined, split

SIZES = (0, 1, 127, 128, 129, 1000)
CODES = (torch.int16, torch.uint8)
HALF = 0.5 + 0.01  # a step, and what the float32 arithmetic adds: 32767 steps are known to 0.004

codes = pytest.mark.parametrize("dtype", CODES, ids=str)


def dense() -> list[Tensor]:
    """Tensors of all sizes, and some that fill a stretch of memory in another order than their indices."""
    return [
        *(torch.randn(size) for size in SIZES),
        torch.randn(()),
        torch.randn(40, 9).t(),
        torch.randn(6, 5, 4, 3).contiguous(memory_format=torch.channels_last),
        torch.randn(6, 5, 4, 3).permute(2, 0, 3, 1),
        torch.randn(500)[100:400],
    ]


def in_memory(tensor: Tensor) -> NDArray[Any]:
    """The numbers in the order of memory, one row for each block; the last is filled up with its last number."""
    dims = sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim))
    flat = tensor.permute(dims).contiguous().view(-1).numpy()
    return np.pad(flat, (0, -flat.size % 128), mode="edge" if flat.size else "constant").reshape(-1, 128)


def coded(values: Tensor, dtype: torch.dtype, rounding: Any = NEAREST) -> State:
    state = fresh_buffer(values, "buffer", dtype)
    store(state, "buffer", values, rounding)
    return state


def read(state: State) -> Tensor:
    return wide(state, "buffer")


def orders(like: Tensor) -> Tensor:
    """Positive numbers from one end of the normal float32 numbers to the other, in the layout of a tensor."""
    return torch.empty_like(like).copy_(2.0 ** (torch.rand(like.shape, dtype=torch.float64) * 253.0 - 126.0))


# Codes.


@pytest.mark.parametrize("scale", [1e-27, 1.0, 1e30])
def test_int16_is_off_by_half_a_step_of_the_block_at_most(scale: float) -> None:
    for tensor in dense():
        values = tensor * scale
        back = read(coded(values, torch.int16))
        assert (back.shape, back.stride()) == (values.shape, values.stride())
        rows = in_memory(values).astype(np.float64)
        steps = np.abs(rows).max(1, keepdims=True) / 32767
        assert np.all(np.abs(in_memory(back) - rows) <= HALF * steps)


def test_uint8_is_off_by_half_a_step_of_the_logarithm_at_most() -> None:
    """The step is 1/255 of what is between the ends of the block, where an octave is linear."""
    for tensor in dense():
        for values in (tensor.square() + 1e-6, orders(tensor)):
            back = read(coded(values, torch.uint8))
            assert (back.shape, back.stride()) == (values.shape, values.stride())
            exact, found = in_memory(values), in_memory(back)
            bits = exact.view(np.int32).astype(np.float64)
            octaves = (bits.max(1, keepdims=True) - bits.min(1, keepdims=True)) / 2**23 / 255
            bound = (0.5 * octaves + 3e-5 * (octaves > 0)) * np.maximum(exact, found)
            assert np.all(np.abs(found.astype(np.float64) - exact) <= bound)


@codes
def test_zeros_and_equal_numbers_are_exact(dtype: torch.dtype) -> None:
    for value in (0.0, 3e-7):
        for size in SIZES:
            values = torch.full((size,), value)
            torch.testing.assert_close(read(coded(values, dtype)), values, rtol=2e-7, atol=0.0)
    assert not read(fresh_buffer(torch.ones(300), "buffer", dtype)).any()
    mixed = torch.zeros(256)
    mixed[3::5] = torch.rand(51) + 0.1
    assert torch.equal(read(coded(mixed, dtype)) == 0.0, mixed == 0.0)


@pytest.mark.parametrize("rounding", [0, NEAREST, 2**16 - 1])
def test_a_second_moment_is_never_lost(rounding: int) -> None:
    """Whichever way it is rounded, and if others of its block are 0 or as large as they can be."""
    for tensor in dense():
        values = orders(tensor)
        values[torch.rand(values.shape) < 0.1] = 0.0
        back = read(coded(values, torch.uint8, rounding))
        assert torch.equal(back > 0.0, values > 0.0)
        assert bool(back.isfinite().all())


@codes
def test_random_rounding_is_right_in_the_mean(dtype: torch.dtype) -> None:
    """Of each number, and, since errors add up from step to step, of all together; in steps of the code."""
    rows = 2.0 ** torch.randint(-20, 20, (512, 1)) * (1.0 + 0.99 * torch.rand(512, 128))  # one octave: linear there
    spread = rows.amax(1, keepdim=True) - (rows.amin(1, keepdim=True) if dtype == torch.uint8 else 0.0)
    step_of_code = spread / (255 if dtype == torch.uint8 else 32767)
    state = fresh_buffer(rows.view(-1), "buffer", dtype)
    total, variance, steps = torch.zeros(512, 128, dtype=torch.float64), 0.0, 250
    for step in range(steps):
        store(state, "buffer", rows.view(-1), random_rounding(state["buffer"], step, 1))
        errors = (read(state).view(512, 128).double() - rows.double()) / step_of_code
        assert float(errors.abs().max()) < 1.02
        total += errors
        variance += float(errors.square().mean()) / steps
    standard_error = (variance / steps) ** 0.5
    assert 0.1 < variance < 0.25
    assert float((total / steps).abs().max()) < 7 * standard_error  # 0.25 is the largest variance of a number
    assert float((total / steps).mean().abs()) < 5 * standard_error / total.numel() ** 0.5


# Random numbers.


def hashed(number: int, seed: int) -> int:
    """The beginning of C. Wellons' "lowbias32" (2018), of numbers that are apart."""
    number = (number * 0x9E3779B1 + seed) % 2**32
    number = (number ^ number >> 16) * 0x7FEB352D % 2**32
    return number ^ number >> 15


def uniform(size: int, step: int, position: int) -> Tensor:
    """The random numbers of a buffer in [0, 1)."""
    numbers = random_rounding(torch.empty(size, dtype=torch.int16), step, position)
    assert isinstance(numbers, Tensor)
    assert numbers.dtype == torch.int32
    assert numbers.shape[1] == 128
    return numbers.view(-1)[:size].double() / 2**16


def test_random_numbers_are_the_halves_of_a_sum_of_hashes() -> None:
    """Of the block, of the place in it and of the step; for buffers 0 and 1, and for 2 and 3."""
    for pair in range(2):
        key, seed = quantization.key(12_345), quantization.seed(pair)
        sums = [(hashed(i % 128, seed) + hashed(i // 128, 0) + key) % 2**32 for i in range(1000)]
        assert uniform(1000, 12_345, 2 * pair).tolist() == [(number >> 16) / 2**16 for number in sums]
        assert uniform(1000, 12_345, 2 * pair + 1).tolist() == [number % 2**16 / 2**16 for number in sums]
        assert uniform(10, 12_345, 2 * pair).tolist() == [(number >> 16) / 2**16 for number in sums[:10]]


def test_random_numbers_of_places_and_buffers_have_nothing_to_do_with_each_other() -> None:
    """Within a step, of numbers near each other, in all blocks together, and of the buffers."""
    rows = torch.stack([uniform(128 * 1024, 7, position) for position in range(4)])
    assert float(rows.min()) >= 0.0
    assert float(rows.max()) < 1.0
    normal = (rows - 0.5 + 2.0**-17) * 12.0**0.5
    assert float(normal.mean(1).abs().max()) < 5 / 362
    chance = 5.0 * (0.2 / 128) ** 0.5  # two places, or two buffers, are as far apart in all blocks
    assert float((normal @ normal.t() / normal.shape[1] - torch.eye(4)).abs().max()) < chance
    for distance in range(1, 300):
        shifted = (normal[:, distance:] * normal[:, :-distance]).mean(1)
        assert float(shifted.abs().max()) < chance, distance


def test_random_numbers_of_successive_steps_are_spread_evenly() -> None:
    """Of each number, from any step on, and of every 2nd, 3rd, ... step: the mean is right sooner than by chance."""
    for position in range(4):
        rows = torch.stack([uniform(4, step, position) for step in range(100_000, 112_000)])
        for period in range(1, 12):
            errors = (rows[::period][:1000] + 2.0**-17 - 0.5).mean(0)
            assert float(errors.abs().max()) < 12.0**-0.5 / 1000**0.5, (position, period)
        sums = (rows + 2.0**-17 - 0.5).cumsum(0)
        assert float(sums.abs().max()) < 6.0  # by chance 32 and more


@pytest.mark.covering(1)
@compactable
@implementations
def test_no_generator_is_touched_and_replicas_agree(info: OptimizerInfo, implementation: str) -> None:
    runs: list[list[Tensor]] = []
    for seed in range(2):
        params = make_params((300,), (7, 5))
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        optimizer = info.make(params, implementation=implementation, state_precision="compact")
        train(optimizer, range(8))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
        runs.append([*params, *(value for param in params for value in tensors(optimizer, param))])
    assert equal(*runs)


def tensors(optimizer: ScheduleFreeOptimizer, param: Tensor) -> list[Tensor]:
    return [value for value in optimizer.state[param].values() if isinstance(value, Tensor)]


# Split weights.


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int32)


def halves(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    high, low = torch.empty_like(values, dtype=dtype), torch.empty_like(values, dtype=torch.int16)
    split(values, high, low)
    return high, low


def test_bfloat16_and_its_rest_are_float32_bit_for_bit() -> None:
    """All patterns of bits that are numbers: of every magnitude, in the middle of two, infinite, and 0 with a sign."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32)[:, None] * 2**16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    patterns = torch.cat([(upper + lower).view(-1), torch.randint(-(2**31), 2**31, (2**18,)).to(torch.int32)])
    values = patterns.view(torch.float32)
    values = values[~values.isnan()]
    high, low = halves(values, torch.bfloat16)
    assert torch.equal(bits(joined(high, low)), bits(values))
    assert torch.equal(bits(high.float())[~high.isinf()] >= 0, bits(values)[~high.isinf()] >= 0)
    normal = (values.abs() >= 2.0**-126) & ~high.isinf()
    exact = values[normal].double().numpy()
    unit = 2.0 ** (np.frexp(exact)[1] - 8)
    assert np.all(np.abs(high[normal].double().numpy() - exact) <= unit / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nan_stays_nan(dtype: torch.dtype) -> None:
    """Also 0x7fffffff, which is what GPUs make of 0 / 0."""
    patterns = torch.tensor([0x7FC00000, 0x7FFFFFFF, 0x7FFF8000, 0x7F800001, -1, -(2**22)], dtype=torch.int32)
    high, low = halves(patterns.view(torch.float32), dtype)
    assert bool(joined(high, low).isnan().all())
    assert bool(high.isnan().all())


def test_float16_and_its_rest_are_float32_as_far_as_float16_goes() -> None:
    values = (torch.rand(2**18) + 1.0) * 2.0 ** torch.randint(-14, 16, (2**18,))
    values = torch.cat(
        [values, values.half().float() + values.half().float() * 2.0**-11, torch.tensor([0.0, 2.0**-14])]
    )
    values = torch.cat([values[values < 65504.0], -values[values < 65504.0]])
    high, low = halves(values, torch.float16)
    assert torch.equal(joined(high, low), values)
    assert torch.equal(high, values.half())
    small = (torch.rand(2**16) - 0.5) * 2.0 ** -torch.randint(14, 60, (2**16,))
    assert bool(((joined(*halves(small, torch.float16)).double() - small.double()).abs() <= 2.0**-40).all())


def test_float16_is_what_is_nearest_to_it_and_its_rest() -> None:
    """Also where the rest is rounded to the middle of two: else the parameter would look as if it were written to."""
    middles = (torch.arange(200)[:, None] + 0.5 + torch.tensor([-(2.0**-18), 0.0, 2.0**-18])) * 2.0**-24
    high, low = halves(middles.view(-1), torch.float16)
    assert torch.equal(joined(high, low).half(), high)


@implementations
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_the_user_sets_to_0_are_almost_0(implementation: str, dtype: torch.dtype) -> None:
    (param,) = make_params((1000,), dtype=dtype)
    optimizer = AdamWScheduleFree([param], lr=0.01, implementation=implementation)
    train(optimizer, range(5))
    param.data.zero_()
    assert float(optimizer.iterates(param).y.abs().max()) < 1e-7
    optimizer.eval()
    optimizer.train()
    train(optimizer, range(5, 8))
    assert bool(param.isfinite().all())
    assert 0.0 < float(param.detach().abs().max()) < 0.1


# The fused kernel.


ROW = pytest.mark.parametrize("row", [1, 2, 3], ids=["split", "int16", "uint8"])


def through(row: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What a stream reads and writes, a block at a time; the sizes are multiples of the block."""
    stream = streams.of(torch.bfloat16, torch.float32, CODES)[row]
    open_one, load_one, store_one, scale_one, encode_one = stream[:5]
    memory = streams.scratch(types.float32, 128)

    @njit
    def load(addresses, target):
        (block,) = memory()
        for start in range(0, len(target), 128):
            own = open_one(addresses, start, block)
            for i in range(128):
                target[start + i] = load_one(own, own, i)

    @njit
    def save(addresses, values, random):
        (block,) = memory()
        for start in range(0, len(values), 128):
            own = open_one(addresses, start, block)
            for i in range(128):
                own = store_one(own, values[start + i], i)
            scaled = scale_one(own, own, start)
            for i in range(128):
                encode_one(scaled, random[start + i], i)

    return load, save


@ROW
def test_the_streams_of_the_fused_kernel_are_the_same_codes(row: int) -> None:
    load, save = through(row)
    for size in (128, 1280):
        many = orders(torch.empty(size))
        for values in (torch.randn(size), many, torch.randn(size).round(), torch.zeros(size), torch.full((size,), 0.3)):
            values = values.abs() if row == 3 else values
            states = [fresh_buffer(values, "buffer", CODES[row - 2]) if row > 1 else {} for _ in range(2)]
            random = torch.randint(0, 2**16, (size,), dtype=torch.int32)
            random[::7], random[1::7] = 0, 2**16 - 1
            if row == 1:
                for state in states:
                    state["high"], state["low"] = torch.empty(size).bfloat16(), torch.empty(size).short()
                split(values, *states[0].values())
                read_back = joined(*states[0].values())
            else:
                store(states[0], "buffer", values, random.view(-1, 128))
                read_back = read(states[0])
            addresses = np.zeros(7, np.int64)
            addresses[[row, 4 if row == 1 else row + 3]] = [tensor.data_ptr() for tensor in states[1].values()]
            save(addresses, values.numpy().copy(), random.numpy().astype(np.uint32))
            assert equal(states[1].values(), states[0].values())
            found = np.empty(size, np.float32)
            load(addresses, found)
            assert torch.equal(torch.from_numpy(found), read_back)
