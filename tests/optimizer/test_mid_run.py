"""Runs that go on: after they were finished, and with options that are changed in mid-run."""

import copy
from typing import Any

import pytest
import torch
from problems import copies, equal, make_params, set_gradients, train
from registry import OptimizerInfo, built_in, optimizers
from torch import Tensor, nn

from unscheduled import (
    AdamWScheduleFree,
    AnnealedInterpolation,
    ConstantInterpolation,
    ExponentialAveraging,
    GrowingInterpolation,
    MuonScheduleFree,
    NoAveraging,
    PolyakStep,
    PolynomialAveraging,
    ScheduleFreeOptimizer,
)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@optimizers
@pytest.mark.parametrize("attached", [False, True])
def test_a_finished_run_goes_on_as_one_long_run(info: OptimizerInfo, attached: bool) -> None:
    long, first, second = (nn.ParameterList(make_params()) for _ in range(3))
    whole = info.make(long.parameters(), warmup_steps=4)
    train(whole, range(30))
    finished = info.make(first.parameters(), warmup_steps=4)
    resumed = info.make(second.parameters(), warmup_steps=4)
    if attached:
        finished.attach(first)
        resumed.attach(second)
    train(finished, range(17))
    first.eval() if attached else finished.eval()
    assert equal(first.parameters(), x_after(info, 17))
    files = copy.deepcopy((first.state_dict(), finished.state_dict()))
    second.load_state_dict(files[0])
    resumed.load_state_dict(files[1])
    second.train() if attached else resumed.train()
    train(resumed, range(17, 30))
    assert equal(long.parameters(), second.parameters())
    assert equal(x_of_all(whole), x_of_all(resumed))
    assert whole.metrics() == resumed.metrics()


def x_after(info: OptimizerInfo, steps: int) -> list[Tensor]:
    optimizer = info.make(make_params(), warmup_steps=4)
    train(optimizer, range(steps))
    return copies(optimizer.eval().param_groups[0]["params"])


def x_of_all(optimizer: ScheduleFreeOptimizer) -> list[Tensor]:
    return [optimizer.iterates(param).x for param in optimizer.param_groups[0]["params"]]


# Options that are changed in mid-run.

CHANGES: list[dict[str, Any]] = [
    {"lr": 0.02},
    {"beta": 0.3},
    {"beta": 1.0},
    {"averaging": PolynomialAveraging(r=3)},
    {"averaging": NoAveraging()},
    {"averaging": ExponentialAveraging(0.3)},
    {"interpolation": AnnealedInterpolation(0.99, 40)},
    {"interpolation": GrowingInterpolation(0.7, 5)},
    {"beta": 0.5, "interpolation": ConstantInterpolation(), "lr": 0.0},
]


@built_in
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_change_in_mid_run_leaves_x_and_z_where_they_are(info: OptimizerInfo, change: dict[str, Any]) -> None:
    """z goes on from the z before, x is a mean of the x before and the new z, and y lies where the new beta says."""
    (param,) = make_params((4, 3), dtype=torch.float64)
    optimizer = info.make([param])
    train(optimizer, range(12))
    before, group = optimizer.iterates(param), optimizer.param_groups[0]
    group.update({name: value for name, value in change.items() if name != "beta"})
    if "beta" in change:
        group.update(info.beta_arguments(change["beta"]))
    assert all(torch.equal(a, b) for a, b in zip(optimizer.iterates(param), before, strict=True))
    close(optimizer.eval().param_groups[0]["params"][0], before.x)
    optimizer.train()
    assert torch.equal(param, before.y)
    train(optimizer, [12])
    now, c, beta = optimizer.iterates(param), group["c"], group["beta"]
    close(now.x, (1 - c) * before.x + c * now.z)
    close(now.y, (1 - beta) * now.z + beta * now.x)
    if info.rule == "sgd":
        assert param.grad is not None
        close(now.z, before.z - group["lr"] * param.grad)
    if change.get("lr", 1.0) > 0.0 and "averaging" not in change:
        stated = change.get("beta", 0.9)
        assert beta == group["interpolation"](stated, 13)


@built_in
def test_a_change_of_beta_reaches_parameters_without_a_gradient(info: OptimizerInfo) -> None:
    """Also they hold the y of the new beta afterwards, and their x and z stay."""
    idle, busy = make_params(dtype=torch.float64)
    optimizer = info.make([idle, busy])
    train(optimizer, range(12))
    before = optimizer.iterates(idle)
    optimizer.param_groups[0].update(info.beta_arguments(0.4))
    idle.grad = None
    set_gradients([busy], 12)
    optimizer.step()
    now = optimizer.iterates(idle)
    close(now.x, before.x)
    close(now.z, before.z)
    close(now.y, 0.6 * before.z + 0.4 * before.x)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda params: AdamWScheduleFree(params), {"inner_momentum": 0.9}),
        (lambda params: AdamWScheduleFree(params, inner_momentum=0.9), {"inner_momentum": 0.0}),
        (lambda params: MuonScheduleFree(params), {"use_muon": False}),
    ],
)
def test_options_that_change_what_is_kept_are_refused_and_nothing_is_changed(make: Any, change: dict[str, Any]) -> None:
    params = make_params()
    optimizer = make(params)
    train(optimizer, range(3))
    before, state = copies(params), copy.deepcopy(optimizer.state_dict()["state"])
    kept = {name: optimizer.param_groups[0][name] for name in change}
    optimizer.param_groups[0].update(change)
    with pytest.raises(
        ValueError, match=r"^parameter group 0: the state of a parameter has \['.*set them back, or make"
    ):
        train(optimizer, [3])
    assert equal(params, before)
    optimizer.param_groups[0].update(kept)
    assert str(optimizer.state_dict()["state"]) == str(state)
    train(optimizer, [3])


def test_a_step_size_is_one_for_all_groups_in_mid_run_too() -> None:
    first, second = make_params()
    optimizer = AdamWScheduleFree([{"params": [first]}, {"params": [second]}])
    train(optimizer, range(2))
    optimizer.param_groups[1]["step_size"] = PolyakStep()
    with pytest.raises(ValueError, match=r"step_size = ConstantStep\(\) in group 0, but another in some group"):
        train(optimizer, [2])
    muon = MuonScheduleFree(make_params())
    muon.param_groups[0]["step_size"] = PolyakStep()
    set_gradients(muon.param_groups[0]["params"], 0)
    with pytest.raises(
        ValueError,
        match=r"is not there for MuonScheduleFree: use AdamWScheduleFree or SGDScheduleFree, or ConstantStep\(\)",
    ):
        muon.step(loss=1.0)
