"""Switches in one pass over the memory: the same bits as tensor by tensor, and nothing that was written is lost."""

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from forked import in_a_forked_child
from problems import copies, equal, make_params, train
from test_fused import in_a_process
from torch import Tensor
from torch.nn import Parameter

from unscheduled import AdamWScheduleFree, AnnealedInterpolation, SGDScheduleFree, iterates, modes
from unscheduled.kernels import swap
from unscheduled.kernels.jit import CHUNK

SPAN = swap.SPAN
SHAPES = ((4, 3), (1,), (), (0,), (129,), (SPAN - 1,), (SPAN + 1,), (CHUNK,), (CHUNK + 1,), (3 * CHUNK + SPAN + 17,))
SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-40, -1e-45, 3e38, 1.0])

Maker = Callable[..., Any]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parameters each switch has left to the way tensor by tensor, on to y and on to x alike."""
    counts: list[int] = []
    for name in ("put_averages", "put_gradient_points"):
        put = getattr(modes, name)

        def counted(started: list[Any], *arguments: Any, put: Any = put) -> None:
            counts.append(len(started))
            put(started, *arguments)

        monkeypatch.setattr(modes, name, counted)
    return counts


def bits(tensors: list[Parameter]) -> list[Tensor]:
    return [tensor.detach().clone().view(torch.int32) for tensor in tensors]


def trained(params: list[Parameter], steps: int = 5, cls: Any = AdamWScheduleFree, **arguments: Any) -> Any:
    optimizer = cls(params, lr=0.1, **arguments)
    train(optimizer, range(steps))
    return optimizer


def assert_same_switches(optimizer: Any, beta: float | None = None) -> None:
    """Of all parameters, x is what the definition says, NaN anywhere, and y comes back, NaN with its bits."""
    params = optimizer.param_groups[0]["params"]
    y, beta = bits(params), optimizer.param_groups[0]["beta"] if beta is None else beta
    x = [iterates.averaged(param.detach(), optimizer.state[param]["gap"], beta) for param in params]
    optimizer.eval()
    for param, average in zip(params, x, strict=True):
        is_nan = average.isnan()
        assert torch.equal(param.detach().isnan(), is_nan)
        assert torch.equal(param.detach().view(torch.int32)[~is_nan], average.view(torch.int32)[~is_nan])
        assert optimizer.state[param]["kept"].stride() == param.stride()
    optimizer.train()
    assert equal(bits(params), y)
    assert not any("kept" in optimizer.state[param] for param in params)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("interpolation", [None, AnnealedInterpolation(0.3, 7)])
def test_the_bits_of_x_and_y(interpolation: Any, threads: int, slow: list[int]) -> None:
    before = torch.get_num_threads()
    arguments = {} if interpolation is None else {"interpolation": interpolation}
    optimizer = trained(make_params(*SHAPES), **arguments)
    try:
        torch.set_num_threads(threads)
        for step in range(3):
            assert_same_switches(optimizer)
            train(optimizer, [step])
    finally:
        torch.set_num_threads(before)
    assert len(slow) == 2 * 2 * 3
    assert not any(slow)


def test_numbers_that_are_special(slow: list[int]) -> None:
    params = make_params((81,), (CHUNK + 9,))
    optimizer = trained(params)
    for param in params:
        gap = optimizer.state[param]["gap"]
        param.data.copy_(SPECIAL.repeat(len(param) // 9 + 1)[: len(param)])
        gap.copy_(SPECIAL.repeat_interleave(9).repeat(len(param) // 81 + 1)[: len(param)])
        param.data[-1] = torch.tensor([0x7FA00001], dtype=torch.int32).view(torch.float32)[0]  # a NaN with a message
    assert_same_switches(optimizer)
    assert not any(slow)


def test_dense_tensors_in_any_order(slow: list[int]) -> None:
    tensor = torch.randn(6, 50, 40, 3)
    params = [
        Parameter(tensor.clone(memory_format=torch.channels_last)),
        Parameter(torch.randn(300, 200).t()),
        Parameter(tensor.clone().permute(2, 0, 3, 1)),
        Parameter(torch.randn(100)[10:51]),  # begins within a line of memory
    ]
    for step in range(3):
        optimizer = trained(params, steps=step + 1)
        assert_same_switches(optimizer)
    assert not any(slow)


def test_what_a_kernel_cannot_take_goes_tensor_by_tensor(slow: list[int]) -> None:
    whole = torch.randn(12)
    params = [
        Parameter(torch.randn(4, 6)[:, ::2]),
        Parameter(torch.randn(3, dtype=torch.float64)),
        Parameter(torch.randn(8, dtype=torch.bfloat16)),
        Parameter(torch.randn(8)),
    ]
    optimizer = trained(params)
    y = copies(params)
    optimizer.eval().train()
    assert equal(params, y)
    assert slow == [3, 0, 0, 3]
    shared = [Parameter(torch.randn(8)), Parameter(torch.randn(8))]
    optimizer = trained(shared)
    shared[0].data, shared[1].data = whole[:8], whole[4:]  # which is refused only where an optimizer is made
    optimizer.eval()
    assert slow[4:] == [2, 0]


@pytest.mark.parametrize("implementation", ["loop", "foreach"])
def test_other_implementations_do_not_use_it(implementation: str, slow: list[int]) -> None:
    trained(make_params(*SHAPES), implementation=implementation).eval().train()
    assert slow == [len(SHAPES), 0, 0, len(SHAPES)]


def test_no_other_implementation_imports_numba() -> None:
    code = """
        import sys, torch, unscheduled
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        optimizer = unscheduled.SGDScheduleFree([weight], lr=0.5, implementation="foreach")
        optimizer.step()
        optimizer.eval().train()
        print("numba" in sys.modules)
    """
    assert in_a_process(code) == "False\n"


# Weights that are written in eval mode.


def flip(param: Tensor, index: int) -> None:
    """The last bit of a number."""
    param.data.view(torch.int32)[index] ^= 1


def exchange(param: Tensor, index: int) -> None:
    """With the number that is furthest from it in the same span, if they differ."""
    other = index + SPAN // 2 if index % SPAN < SPAN // 2 else index - SPAN // 2
    other = min(other, len(param) - 2)
    param.data[[index, other]] = param.data[[other, index]].clone()


def by_numpy(param: Tensor, index: int) -> None:
    param.detach().numpy()[index] += 1.0


SIZE = 2 * CHUNK + SPAN + 5


@pytest.mark.parametrize("write", [flip, exchange, by_numpy])
@pytest.mark.parametrize("index", [0, SPAN - 1, SPAN, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK + SPAN, SIZE - 1])
def test_a_number_that_was_written_is_noticed(write: Any, index: int, slow: list[int]) -> None:
    """The other parameters get their y, and this one the y of what was written."""
    params = make_params((7,), (SIZE,), (CHUNK + 1,))
    optimizer = trained(params)
    y = bits(params)
    optimizer.eval()
    write(params[1], index)
    x = params[1].detach().clone()
    gap = optimizer.state[params[1]]["gap"].clone()
    optimizer.train()
    assert slow == [0, 0, 0, 1]
    assert torch.equal(params[1], iterates.gradient_point(x, gap, optimizer.param_groups[0]["beta"]))
    assert torch.equal(optimizer.iterates(params[1]).x, x)
    assert equal(bits([params[0], params[2]]), [y[0], y[2]])


def test_any_single_bit_and_any_exchange_changes_the_checksum() -> None:
    factors = swap._multipliers()  # pyright: ignore[reportPrivateUsage]
    assert len(set(factors.tolist())) == SPAN
    assert factors.all()


def test_a_state_that_is_loaded_or_replaced_in_eval_mode(slow: list[int]) -> None:
    params = make_params((5,), (CHUNK + 3,))
    optimizer = trained(params)
    other = trained(make_params((5,), (CHUNK + 3,)), steps=9)
    optimizer.eval()
    weights = copies(other.eval().param_groups[0]["params"])
    optimizer.load_state_dict(other.state_dict())
    with torch.no_grad():
        for param, weight in zip(params, weights, strict=True):
            param.copy_(weight)
    del slow[:]
    optimizer.train()
    other.train()
    assert equal(params, other.param_groups[0]["params"])
    assert slow == [0, 2, 0, 0]


@pytest.mark.parametrize("change", ["gap", "gap in place", "gap moved", "kept", "beta", "transposed", "state"])
def test_what_is_no_longer_the_same_is_looked_at_tensor_by_tensor(change: str, slow: list[int]) -> None:
    """With the outcome that it has there."""
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = make_params((40, 40))
        optimizer = trained(params, implementation=implementation, cls=SGDScheduleFree)
        optimizer.eval()
        state, group = optimizer.state[params[0]], optimizer.param_groups[0]
        if change == "gap":
            state["gap"] = state["gap"] * 2.0
        elif change == "gap in place":
            state["gap"].detach().mul_(2.0)
        elif change == "gap moved":
            state["gap"].data = state["gap"].data * 2.0
        elif change == "kept":
            state["kept"] = state["kept"] + 1.0
        elif change == "beta":
            group["beta"] = 0.5
        elif change == "transposed":
            params[0].data = params[0].data.t()
        else:
            optimizer.state[params[0]] = {name: value for name, value in state.items() if name != "kept"}
        del slow[:]
        optimizer.train()
        assert slow == [0, 1]
        results.append(copies(params))
    assert equal(*results)
    assert not results[0][0].isnan().any()


# Interruptions.


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("failing", ["kernel", "others"])
@pytest.mark.parametrize("there", [True, False])
def test_an_interrupted_switch_leaves_all_as_it_was(
    there: bool, failing: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after what is interrupted is done, on the way to x or back; done again, all is well."""
    params = [*make_params((7,), (CHUNK + 5,)), Parameter(torch.randn(4, 6, dtype=torch.float64))]
    optimizer = trained(params)
    y = copies(params)
    x = copies(optimizer.eval().param_groups[0]["params"])
    if there:
        optimizer.train()
    name = ("put_averages" if there else "put_gradient_points") if failing == "others" else "run_shared"
    module: Any = modes if failing == "others" else swap
    original, calls = getattr(module, name), 0

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1 or not before:
            original(*arguments)
        if calls == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.train(not there)
    assert optimizer.training == there
    ours = slice(2) if failing == "others" and not before else slice(3)  # the other is half-way by intent
    assert equal(params[ours], (y if there else x)[ours])
    if there:
        assert not any("kept" in optimizer.state[param] for param in params[ours])
    elif failing == "kernel":
        optimizer.train()
        assert equal(params, y)


def test_weights_that_were_written_survive_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    params = make_params((CHUNK + 5,), (9,))
    optimizer = trained(params)
    y = copies(params)
    optimizer.eval()
    params[0].data[-1] += 1.0
    x = copies(params)
    with monkeypatch.context() as patch:
        patch.setattr(iterates, "gradient_point", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            optimizer.train()
    assert equal(params, x)
    optimizer.train()
    assert torch.equal(params[1], y[1])
    assert torch.equal(optimizer.iterates(params[0]).x, x[0])


# What is remembered.


def test_checksums_are_in_no_copy_and_no_file() -> None:
    params = make_params((5,), (CHUNK + 3,))
    optimizer = trained(params)
    optimizer.eval()
    assert len(optimizer._swaps._places) == 2
    for copied in (copy.copy(optimizer), copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert not copied._swaps._places
    saved = optimizer.state_dict()
    assert set(saved["state"][0]) == {"step", "gap", "exp_avg_sq", "y"}
    optimizer.train()
    assert not optimizer._swaps._places


def test_a_copy_made_in_eval_mode_goes_back_too() -> None:
    params = make_params((5,), (CHUNK + 3,))
    optimizer = trained(params)
    y = copies(params)
    optimizer.eval()
    copied, optimizer = copy.deepcopy((params, optimizer))
    optimizer.train()
    assert equal(copied, y)


def test_loading_forgets_what_was_kept() -> None:
    optimizer = trained(make_params((5,)))
    saved = optimizer.state_dict()
    optimizer.eval().load_state_dict(saved)
    assert not optimizer._swaps._places


def test_autograd_notices_a_switch() -> None:
    (param,) = make_params((3,))
    optimizer = trained([param])
    for mode in (False, True):
        loss = (param**3).sum()
        optimizer.train(mode)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


SEVERAL = ((20_000,), (20_001,), (20_002,))  # each too small for torch's own threads, which a child does not have


def switched() -> list[Any]:
    """x and y as numbers, from two threads."""
    torch.set_num_threads(2)
    optimizer = trained(make_params(*SEVERAL))
    params = optimizer.param_groups[0]["params"]
    return [[param.tolist() for param in params] for mode in (False, True) if optimizer.train(mode)]


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_switches_too() -> None:
    before = torch.get_num_threads()
    try:
        ours = switched()  # its threads are running
    finally:
        torch.set_num_threads(before)
    assert in_a_forked_child(switched) == ours
