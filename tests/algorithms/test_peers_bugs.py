"""Bugs of other implementations, each a test that ours does not have it.

Some stand in the tests of the contract: gradients overwritten, steps in eval mode, complex second moments, arguments
out of range, the first step at lr = 0. The others are here, named after where they were found.
"""

import copy
import math
from itertools import pairwise

import pytest
import schedulefree
import torch
from problems import copies, equal, make_params, set_gradients, train
from registry import OptimizerInfo, implementations, optimizers
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.nn import Parameter

from unscheduled import (
    AdamWScheduleFree,
    ExponentialAveraging,
    RAdamScheduleFree,
    ScheduleFreeOptimizer,
    SGDScheduleFree,
)
from unscheduled.formulas.step_size import rectification


@optimizers
def test_schedulefree_skips_a_group_added_late_in_eval_and_corrupts_it_in_train(info: OptimizerInfo) -> None:
    early, late = make_params()
    optimizer = info.make([early])
    train(optimizer, range(5))
    optimizer.eval()
    optimizer.add_param_group({"params": [late]})
    start = late.detach().clone()
    optimizer.train()
    assert torch.equal(late, start)
    train(optimizer, range(10))
    y, x = copies([early, late]), [optimizer.iterates(param).x for param in (early, late)]
    assert equal(optimizer.eval().param_groups[1]["params"], x[1:])
    assert torch.equal(early, x[0])
    optimizer.train()
    assert equal([early, late], y)


@implementations
def test_schedulefree_makes_the_first_step_of_a_late_parameter_30_times_too_large(implementation: str) -> None:
    early, late = (Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = AdamWScheduleFree([early, late], lr=0.1, implementation=implementation)
    theirs = [Parameter(torch.zeros(3)) for _ in range(2)]
    reference = schedulefree.AdamWScheduleFree(theirs, lr=0.1)
    reference.train()
    for _ in range(1000):
        early.grad, theirs[0].grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        reference.step()
    late.grad, theirs[1].grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    reference.step()
    torch.testing.assert_close(optimizer.iterates(late).z, torch.full((3,), -0.1))  # as a first step of Adam is
    assert reference.state[theirs[1]]["z"].min() < -2.0  # the bug is real


@implementations
def test_a_late_parameter_is_rectified_by_its_own_count(implementation: str) -> None:
    """Its first four steps of RAdam are silent, and the fifth is as small as everybody's fifth."""
    early, late = (Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    optimizer = RAdamScheduleFree([early, late], lr=0.1, eps=1e-30, implementation=implementation)
    for step in range(1, 108):
        early.grad = torch.ones_like(early)
        late.grad = torch.ones_like(late) if step > 100 else None
        before = optimizer.iterates(late).z
        optimizer.step()
        expected = 0.1 * (rectification(step - 100, 0.999) or 0.0) if step > 100 else 0.0
        torch.testing.assert_close(before - optimizer.iterates(late).z, torch.full_like(late, expected))


@optimizers
def test_schedulefree_divides_by_beta_in_eval(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params, **info.beta_arguments(0.0))
    train(optimizer, range(10))
    optimizer.eval()
    assert all(param.isfinite().all() for param in params)


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_torch_dcp_initialises_a_fresh_optimizer_with_a_step_that_must_not_count(
    info: OptimizerInfo, tensor_lr: bool
) -> None:
    model = torch.nn.Linear(3, 2)
    lr = torch.tensor(info.lr) if tensor_lr else info.lr
    optimizer = info.make(model.parameters(), lr=lr, weight_decay=0.1, weight_lr_power=0.0)
    before = copies(model.parameters())
    saved = get_optimizer_state_dict(model, optimizer)
    assert set(saved["state"]["weight"]) == info.buffers | {"step", "y"}
    assert equal(model.parameters(), before)
    (group,) = optimizer.param_groups
    assert (group["step"], group["weight_sum"], group["lr_max"]) == (0, 0.0, 0.0)
    assert [state["step"] for state in optimizer.state.values()] == [0, 0]
    undisturbed = torch.nn.Linear(3, 2)
    undisturbed.load_state_dict(model.state_dict())
    plain = info.make(undisturbed.parameters(), weight_decay=0.1, weight_lr_power=0.0)
    train(optimizer, range(10))
    train(plain, range(10))
    torch.testing.assert_close(list(model.parameters()), list(undisturbed.parameters()), rtol=1e-6, atol=1e-7)


def test_torch_dcp_step_leaves_a_started_optimizer_counting() -> None:
    """Only a fresh group's first call with nothing in it is left out."""
    optimizer = SGDScheduleFree(make_params())
    train(optimizer, range(2))
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.metrics()["step"] == 3


@optimizers
def test_optax_keeps_the_averaging_sums_in_the_dtype_of_the_parameters(info: OptimizerInfo) -> None:
    """In bfloat16 a count stops at 256, and c with it."""
    params = make_params(dtype=torch.bfloat16)
    optimizer = info.make(params, r=0.0, weight_lr_power=0.0)
    train(optimizer, range(1000))
    assert optimizer.metrics()["c"] == 1 / (1000 - info.silent_steps)


@implementations
def test_pytorch_optimizer_makes_radam_steps_too_small(implementation: str) -> None:
    """With a constant gradient of 1 the direction is 1, so that each step is lr times the rectification."""
    param = Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = RAdamScheduleFree([param], lr=0.1, eps=1e-30, implementation=implementation)
    for step in range(1, 200):
        before = optimizer.iterates(param).z
        param.grad = torch.ones_like(param)
        optimizer.step()
        expected = 0.1 * (rectification(step, 0.999) or 0.0)
        torch.testing.assert_close(before - optimizer.iterates(param).z, torch.full_like(param, expected))


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("decay_at", ["y", "z"])
def test_pytorch_optimizer_moves_x_by_decay(info: OptimizerInfo, decay_at: str) -> None:
    """x moves by averaging alone: x' = (1 - c) x + c z'."""
    params = make_params(dtype=torch.float64)
    optimizer = info.make(params, weight_decay=0.5, decay_at=decay_at)
    for step in range(20):
        before = [optimizer.iterates(param).x for param in params]
        train(optimizer, [step])
        c = optimizer.metrics()["c"]
        for param, x in zip(params, before, strict=True):
            after = optimizer.iterates(param)
            torch.testing.assert_close(after.x, (1 - c) * x + c * after.z, rtol=1e-12, atol=1e-14)


def test_pytorch_optimizer_weighs_by_step_to_the_lr() -> None:
    optimizer = SGDScheduleFree(make_params(), lr=0.5, r=2.0)
    train(optimizer, range(3))
    assert optimizer.metrics()["c"] == pytest.approx(9 / (1 + 4 + 9))


@pytest.mark.covering(2)
@optimizers
@implementations
@pytest.mark.parametrize("decay_at", ["y", "z"])
def test_gpa_adamw_makes_weights_grow_by_decay(info: OptimizerInfo, implementation: str, decay_at: str) -> None:
    """With zero gradients decay at z shrinks x, y and z at every step; at y, where z may swing, none grows above 1."""
    param = Parameter(torch.ones(4, dtype=torch.float64))
    optimizer = info.make(
        [param],
        lr=0.1,
        weight_decay=1.0,
        decay_at=decay_at,
        averaging=ExponentialAveraging(0.05),
        implementation=implementation,
    )
    sizes = [torch.ones(3, dtype=torch.float64)]
    for _ in range(300):
        param.grad = torch.zeros_like(param)
        optimizer.step()
        sizes.append(torch.stack([each.abs().max() for each in optimizer.iterates(param)]))
    assert sizes[-1].max() < 0.5
    if decay_at == "z":
        assert all((now < before).all() for before, now in pairwise(sizes[info.silent_steps + 1 :]))
    assert all((now <= 1).all() for now in sizes)


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_heavyball_walks_at_random_by_switching_modes(info: OptimizerInfo, dtype: torch.dtype) -> None:
    params = make_params(dtype=dtype)
    optimizer = info.make(params)
    train(optimizer, range(10))
    y = copies(params)
    x = copies(optimizer.eval().param_groups[0]["params"])
    for _ in range(100):
        assert equal(optimizer.train().param_groups[0]["params"], y)
        assert equal(optimizer.eval().param_groups[0]["params"], x)


def test_keras_never_evaluates_at_x() -> None:
    """On a noisy quadratic the loss at x goes on falling, at y and z the noise stays; eval() must show x."""
    weight = Parameter(torch.full((200,), 3.0))
    optimizer = SGDScheduleFree([weight], lr=1.0, momentum=0.5)
    for _ in range(2000):
        weight.grad = weight.detach() + torch.randn(200)
        optimizer.step()
    at_y = weight.square().mean().item()
    optimizer.eval()
    at_x = weight.square().mean().item()
    assert at_x < 0.01 * at_y


@optimizers
def test_bias_correction_uses_each_parameters_own_count_after_a_rest(info: OptimizerInfo) -> None:
    first, second = make_params()
    optimizer = info.make([first, second])
    for step in range(6):
        set_gradients([first, second], step)
        if step % 2:
            second.grad = None
        optimizer.step()
    assert [optimizer.state[param]["step"] for param in (first, second)] == [6, 3]
    assert optimizer.metrics()["step"] == 6
    assert math.isfinite(optimizer.metrics()["gap_norm"])


def fitted(model: torch.nn.Module, optimizer: ScheduleFreeOptimizer, steps: int = 5) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()


@optimizers
def test_schedulefree_evaluates_y_if_one_forgets_to_switch_the_optimizer(info: OptimizerInfo) -> None:
    model, inputs = torch.nn.Linear(3, 2), torch.randn(5, 3)
    optimizer = info.make(model.parameters()).attach(model)
    fitted(model, optimizer)
    x = [optimizer.iterates(param).x for param in (model.weight, model.bias)]
    assert torch.equal(model.eval()(inputs), torch.nn.functional.linear(inputs, *x))


@optimizers
def test_schedulefree_saves_y_if_a_trainer_saves_without_evaluating(info: OptimizerInfo) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = info.make(model.parameters()).attach(model)
    fitted(model, optimizer)
    assert model.training
    assert torch.equal(model.state_dict()["weight"], optimizer.iterates(model.weight).x)


@optimizers
def test_schedulefree_cannot_step_after_resuming_from_a_checkpoint_of_eval_mode(info: OptimizerInfo) -> None:
    model, resumed = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer, again = info.make(model.parameters()), info.make(resumed.parameters()).attach(resumed)
    fitted(model, optimizer)
    optimizer.eval()
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(model.state_dict())
    optimizer.train()
    fitted(resumed, again)
    fitted(model, optimizer)
    assert equal(resumed.parameters(), model.parameters())


@optimizers
def test_lightning_collects_both_states_before_a_hook_can_switch(info: OptimizerInfo) -> None:
    """Whatever is switched between the two, and after: they belong together."""
    model, resumed = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer = info.make(model.parameters()).attach(model)
    fitted(model, optimizer)
    for order in ((True, False), (False, True)):
        collected = {}
        for weights in order:
            collected[weights] = copy.deepcopy((model if weights else optimizer).state_dict())
            model.train(not model.training)
        again = info.make(resumed.parameters()).attach(resumed)
        resumed.load_state_dict(collected[True])
        again.load_state_dict(collected[False])
        assert equal(resumed.parameters(), model.train().parameters())
