"""Switches between y and x: their bits, weights that are written meanwhile, and interruptions."""

import copy
import sys
from typing import Any

import pytest
import torch
from forked import in_a_forked_child
from problems import copies, equal, make_params, train
from torch import Tensor, nn
from torch.nn import Parameter

from unscheduled import AdamWScheduleFree, AnnealedInterpolation, averaged_state_dict
from unscheduled.formulas import iterates
from unscheduled.optimizer import weights
from unscheduled.state import parameter
from unscheduled.state.parameter import PIECE

SHAPES = ((4, 3), (1,), (), (0,), (129,), (PIECE,), (PIECE + 1,))
SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-40, -1e-45, 3e38, 1.0])


@pytest.fixture(autouse=True, params=["one by one", "together"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are switched one by one, as on the CPU, or many together, as on a GPU."""
    if request.param == "together":
        monkeypatch.setattr(parameter, "ONE_BY_ONE", set[str]())


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


@pytest.mark.parametrize("implementation", ["fused", "foreach", "loop"])
@pytest.mark.parametrize("interpolation", [None, AnnealedInterpolation(0.3, 7)])
def test_the_bits_of_x_and_y(interpolation: Any, implementation: str) -> None:
    arguments = {} if interpolation is None else {"interpolation": interpolation}
    optimizer = trained(make_params(*SHAPES), implementation=implementation, **arguments)
    for step in range(3):
        assert_same_switches(optimizer)
        train(optimizer, [step])


def test_numbers_that_are_special() -> None:
    params = make_params((81,), (PIECE + 9,))
    optimizer = trained(params)
    for param in params:
        gap = optimizer.state[param]["gap"]
        param.data.copy_(SPECIAL.repeat(len(param) // 9 + 1)[: len(param)])
        gap.copy_(SPECIAL.repeat_interleave(9).repeat(len(param) // 81 + 1)[: len(param)])
        param.data[-1] = torch.tensor([0x7FA00001], dtype=torch.int32).view(torch.float32)[0]  # a NaN with a message
    assert_same_switches(optimizer)


def test_dense_tensors_in_any_order() -> None:
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


def test_tensors_of_every_kind() -> None:
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


# Weights that are written in eval mode.


def flip(param: Tensor, index: int) -> None:
    """The last bit of a number."""
    param.data.view(torch.int32)[index] ^= 1


def exchange(param: Tensor, index: int) -> None:
    """With another number."""
    other = len(param) // 3
    param.data[[index, other]] = param.data[[other, index]].clone()


def by_numpy(param: Tensor, index: int) -> None:
    param.detach().numpy()[index] += 1.0


SIZE = PIECE + 5


@pytest.mark.parametrize("write", [flip, exchange, by_numpy])
@pytest.mark.parametrize("index", [0, PIECE - 1, PIECE, SIZE - 1])
def test_a_number_that_was_written_is_noticed(write: Any, index: int) -> None:
    """The other parameters get their y, and this one the y of what was written."""
    params = make_params((7,), (SIZE,), (130,))
    optimizer = trained(params)
    y = bits(params)
    optimizer.eval()
    write(params[1], index)
    x = params[1].detach().clone()
    gap = optimizer.state[params[1]]["gap"].clone()
    optimizer.train()
    assert torch.equal(params[1], iterates.gradient_point(x, gap, optimizer.param_groups[0]["beta"]))
    assert torch.equal(optimizer.iterates(params[1]).x, x)
    assert equal(bits([params[0], params[2]]), [y[0], y[2]])


def test_a_state_that_is_loaded_or_replaced_in_eval_mode() -> None:
    params = make_params((5,), (PIECE + 3,))
    optimizer = trained(params)
    other = trained(make_params((5,), (PIECE + 3,)), steps=9)
    optimizer.eval()
    weights = copies(other.eval().param_groups[0]["params"])
    optimizer.load_state_dict(other.state_dict())
    with torch.no_grad():
        for param, weight in zip(params, weights, strict=True):
            param.copy_(weight)
    optimizer.train()
    other.train()
    assert equal(params, other.param_groups[0]["params"])


# Interruptions.


@pytest.mark.parametrize("there", [True, False])
def test_an_interrupted_switch_leaves_all_as_it_was(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way to x or back; done again, all is well."""
    params = [*make_params((7,), (PIECE + 5,)), Parameter(torch.randn(4, 6, dtype=torch.float64))]
    optimizer = trained(params)
    y = copies(params)
    x = copies(optimizer.eval().param_groups[0]["params"])
    if there:
        optimizer.train()
    name = "put_averages" if there else "put_gradient_points"

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weights, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.train(not there)
    assert optimizer.training == there
    assert equal(params, y if there else x)
    optimizer.train(not there)
    assert equal(params, x if there else y)


def test_an_interrupted_switch_of_two_models_leaves_both_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """One goes to x and the other back to y: should the second fail, the first is undone."""
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(2, 3)
    params = [*first.parameters(), *second.parameters()]
    optimizer = trained(params)
    optimizer.attach(first).attach(second)
    y = copies(params)
    second.eval()
    held = copies(params)
    with monkeypatch.context() as patch:
        put = weights.put_gradient_points

        def interrupted(started: Any, *rest: Any) -> None:
            if any(param is second.weight for param, _, _ in started):
                raise KeyboardInterrupt
            put(started, *rest)

        patch.setattr(weights, "put_gradient_points", interrupted)
        with torch.no_grad(), pytest.raises(KeyboardInterrupt):
            optimizer._weights.switch(set(first.parameters()), optimizer._entries())
    assert equal(params, held)
    second.train()
    assert equal(params, y)


def test_weights_that_were_written_survive_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    params = make_params((PIECE + 5,), (9,))
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


def test_a_copy_made_in_eval_mode_goes_back_too() -> None:
    params = make_params((5,), (PIECE + 3,))
    optimizer = trained(params)
    y = copies(params)
    optimizer.eval()
    copied, optimizer = copy.deepcopy((params, optimizer))
    optimizer.train()
    assert equal(copied, y)


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


def test_averages_that_are_asked_for_in_either_mode() -> None:
    """Of parameters with and without a state, tied ones, and where weights were written as x."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    optimizer = trained([param for param in model.parameters() if param.requires_grad])
    expected = {name: optimizer.iterates(param).x for name, param in model[:2].named_parameters()}
    found = averaged_state_dict(model, optimizer)
    assert found["1.weight"] is found["0.weight"]
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    assert torch.equal(found["2.weight"], model[2].weight)
    optimizer.eval()
    assert all(torch.equal(each, found[name]) for name, each in averaged_state_dict(model, optimizer).items())
    with torch.no_grad():
        model[0].bias.fill_(5.0)
    optimizer.train()
    found = averaged_state_dict(model, optimizer)
    assert torch.equal(found["0.bias"], torch.full((3,), 5.0))
    assert all(torch.equal(found[name], x) for name, x in expected.items() if name != "0.bias")
