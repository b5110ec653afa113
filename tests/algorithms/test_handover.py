"""Handing a run over to a plain optimizer of torch."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bases import Base, bases
from problems import copies, equal, make_params, set_gradients, train
from registry import OPTIMIZERS, OptimizerInfo
from torch import Tensor
from torch.nn import Parameter

from unscheduled import (
    AdamWScheduleFree,
    NoAveraging,
    PolyakStep,
    RAdamScheduleFree,
    ScheduleFreeOptimizer,
    ScheduleFreePlus,
    ScheduleFreeWrapper,
    SGDScheduleFree,
    to_torch,
)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def started(
    cls: Callable[..., ScheduleFreeOptimizer], steps: int = 12, **arguments: Any
) -> tuple[Any, list[Parameter]]:
    params = make_params(dtype=torch.float64)
    optimizer = cls(params, **arguments)
    train(optimizer, range(steps))
    return optimizer, params


def x_of(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> list[Tensor]:
    return [optimizer.iterates(param).x for param in params]


def at_once(beta: float, c: float) -> float:
    """How much of a move of z is one of y in the same step."""
    return 1 - beta * (1 - c)


WARM = 12**2 / sum(step**2 for step in range(1, 13))
"""c after 12 of 24 steps of warmup."""


def step_plain(plain: torch.optim.Optimizer, params: list[Parameter], step: int = 100) -> list[Tensor]:
    """One step, and the gradients it was made with."""
    set_gradients(params, step)
    gradients = [param.grad.clone() for param in params if param.grad is not None]
    plain.step()
    return gradients


@pytest.mark.parametrize("inner_momentum", [0.0, 0.8])
@pytest.mark.parametrize("maximize", [False, True])
def test_adamw_goes_on_from_x_with_the_second_moments(inner_momentum: float, maximize: bool) -> None:
    optimizer, params = started(
        AdamWScheduleFree,
        lr=0.02,
        betas=(0.95, 0.99),
        eps=1e-4,
        weight_decay=0.1,
        inner_momentum=inner_momentum,
        maximize=maximize,
    )
    x, before = x_of(optimizer, params), [dict(optimizer.state[param]) for param in params]
    moments = [{name: state[name].clone() for name in state if name.startswith("exp")} for state in before]
    plain = to_torch(optimizer)
    assert type(plain) is torch.optim.AdamW
    assert equal(params, x)
    for param, kept in zip(params, moments, strict=True):
        assert float(plain.state[param]["step"]) == 12
        assert torch.equal(plain.state[param]["exp_avg_sq"], kept["exp_avg_sq"])
        assert torch.equal(plain.state[param]["exp_avg"], kept.get("exp_avg", torch.zeros_like(param)))
    (group,) = plain.param_groups
    lr, beta1 = at_once(0.95, 1 / 12) * 0.02, inner_momentum or 0.9
    assert group["lr"] == pytest.approx(lr)
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((beta1, 0.99), 1e-4, 0.1)
    gradients = step_plain(plain, params)
    for param, start, kept, gradient in zip(params, x, moments, gradients, strict=True):
        g = -gradient if maximize else gradient
        m = beta1 * kept.get("exp_avg", torch.zeros_like(g)) + (1 - beta1) * g
        v = 0.99 * kept["exp_avg_sq"] + 0.01 * g**2
        direction = m / (1 - beta1**13) / ((v / (1 - 0.99**13)).sqrt() + 1e-4)
        close(param.detach(), (1 - lr * 0.1) * start - lr * direction)


def test_radam_becomes_adamw_with_its_second_moments() -> None:
    optimizer, params = started(RAdamScheduleFree, lr=0.02, betas=(0.9, 0.99))
    x, v = x_of(optimizer, params), [optimizer.state[param]["exp_avg_sq"].clone() for param in params]
    rate = at_once(0.9, optimizer.metrics()["c"]) * optimizer.metrics()["effective_lr"]
    plain = to_torch(optimizer)
    assert type(plain) is torch.optim.AdamW
    assert equal(params, x)
    assert equal([plain.state[param]["exp_avg_sq"] for param in params], v)
    assert 0 < plain.param_groups[0]["lr"] == pytest.approx(rate)
    step_plain(plain, params)
    assert not equal(params, x)


def test_sgd_becomes_sgd_from_x() -> None:
    optimizer, params = started(SGDScheduleFree, lr=0.5, momentum=0.8, weight_decay=0.1, warmup_steps=24)
    x = x_of(optimizer, params)
    plain = to_torch(optimizer)
    assert type(plain) is torch.optim.SGD
    assert equal(params, x)
    lr = at_once(0.8, WARM) * 0.5 * 12 / 24
    assert plain.param_groups[0]["lr"] == pytest.approx(lr)
    gradients = step_plain(plain, params)
    for param, start, gradient in zip(params, x, gradients, strict=True):
        close(param.detach(), start - lr * (gradient + 0.1 * start))


def test_sgd_goes_on_to_maximize() -> None:
    optimizer, params = started(SGDScheduleFree, lr=0.5, maximize=True)
    plain, x = to_torch(optimizer), copies(params)
    gradients = step_plain(plain, params)
    for param, start, gradient in zip(params, x, gradients, strict=True):
        close(param.detach(), start + at_once(0.9, 1 / 12) * 0.5 * gradient)


def test_the_base_of_a_wrapper_takes_over_as_it_is() -> None:
    params = make_params(dtype=torch.float64)
    base = torch.optim.RMSprop(params, lr=0.01)
    optimizer = ScheduleFreeWrapper(base, momentum=0.75, warmup_steps=24)
    train(optimizer, range(12))
    x, v = x_of(optimizer, params), [base.state[param]["square_avg"].clone() for param in params]
    assert to_torch(optimizer) is base
    assert equal(params, x)
    lr = at_once(0.75, WARM) * 0.01 / 2
    assert base.param_groups[0]["lr"] == pytest.approx(lr)
    gradients = step_plain(base, params)
    for param, start, square, gradient in zip(params, x, v, gradients, strict=True):
        close(param.detach(), start - lr * gradient / ((0.99 * square + 0.01 * gradient**2).sqrt() + 1e-8))


def test_weight_decay_that_the_base_does_not_have_is_not_lost() -> None:
    optimizer, params = started(lambda params: ScheduleFreeWrapper(torch.optim.SGD(params), weight_decay_at_y=0.25))
    before = copies(params)
    with pytest.raises(
        ValueError, match=r"^parameter group 0: weight_decay = 0\.25 at y is none of the base's: make it"
    ):
        to_torch(optimizer)
    assert optimizer.training
    assert equal(params, before)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    assert to_torch(optimizer) is optimizer.base


@bases
def test_the_base_of_a_wrapper_goes_on_with_parameters_of_16_bits(base: Base) -> None:
    params = base.params(torch.bfloat16)
    optimizer = ScheduleFreeWrapper(base.make(params))
    train(optimizer, range(5))
    plain = to_torch(optimizer)
    buffers = [value for param in params for value in plain.state[param].values() if isinstance(value, Tensor)]
    assert all(value.dtype == torch.bfloat16 for value in buffers if value.dim())
    step_plain(plain, params)
    assert all(bool(param.isfinite().all()) for param in params)


class Estimating(torch.optim.SGD):
    """SGD with a step size lr d, d an estimate of its own that grows, as Prodigy's."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        self.param_groups[0].update(d=0.001, d0=0.001)

    def step(self, closure: Any = None) -> None:
        (group,) = self.param_groups
        group["d"] *= 1.5
        for param in group["params"]:
            with torch.no_grad():
                param -= group["lr"] * group["d"] * param.grad


def test_the_step_size_that_a_base_estimates_itself_is_not_counted_twice() -> None:
    params = make_params(dtype=torch.float64)
    optimizer = ScheduleFreeWrapper(Estimating(params, lr=1.0), momentum=0.75)
    train(optimizer, range(5))
    lr = at_once(0.75, 2.25**4 / sum(2.25**step for step in range(5)))
    plain, x = to_torch(optimizer), copies(params)
    gradients = step_plain(plain, params)
    for param, start, gradient in zip(params, x, gradients, strict=True):
        close(param.detach(), start - lr * 0.001 * 1.5**6 * gradient)


@pytest.mark.parametrize(("arguments", "share"), [({"averaging": NoAveraging()}, 1.0), ({"momentum": 1.0}, 1 / 12)])
def test_the_ends_of_the_axes(arguments: dict[str, Any], share: float) -> None:
    """Without averaging it is the very optimizer; with primal averaging y moves as little as x."""
    optimizer, _ = started(SGDScheduleFree, lr=0.5, **arguments)
    assert to_torch(optimizer).param_groups[0]["lr"] == pytest.approx(share * 0.5)


def test_a_learning_rate_that_is_a_tensor_stays_one() -> None:
    params = make_params()
    base = torch.optim.SGD(params, lr=torch.tensor(0.5))
    optimizer = ScheduleFreeWrapper(base)
    train(optimizer, range(1))
    assert torch.equal(to_torch(optimizer).param_groups[0]["lr"], torch.tensor(0.5))


@pytest.mark.parametrize("base", [False, True])
def test_before_the_first_step_it_is_the_rate_as_set(base: bool) -> None:
    params = make_params()
    optimizer: ScheduleFreeOptimizer = SGDScheduleFree(params, lr=0.5, warmup_steps=10)
    if base:
        optimizer = ScheduleFreeWrapper(torch.optim.SGD(params, lr=0.5), warmup_steps=10)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
    plain = to_torch(optimizer)
    assert equal(params, make_params())
    assert plain.param_groups[0]["lr"] == pytest.approx(0.1 * 0.25)
    step_plain(plain, params)


def test_the_beta_is_the_one_that_made_y() -> None:
    optimizer, _ = started(SGDScheduleFree, lr=0.5, momentum=0.6)
    optimizer.param_groups[0]["momentum"] = 0.9
    assert to_torch(optimizer).param_groups[0]["lr"] == pytest.approx(at_once(0.6, 1 / 12) * 0.5)


@pytest.mark.parametrize("cls", [AdamWScheduleFree, SGDScheduleFree])
@pytest.mark.parametrize("attached", [False, True])
def test_the_old_optimizer_is_detached_and_refuses_to_step(cls: Any, attached: bool) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = cls(model.parameters(), lr=0.01)
    if attached:
        optimizer.attach(model)
    train(optimizer, range(5))
    plain = to_torch(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) in eval mode"):
        optimizer.step()
    for step in range(3):
        model.train()
        step_plain(plain, list(model.parameters()), step)
        weights = copies(model.parameters())
        model.eval()
        assert equal(model.parameters(), weights)
    assert equal(model.state_dict().values(), weights)


@pytest.mark.parametrize("cls", [AdamWScheduleFree, SGDScheduleFree])
@pytest.mark.parametrize("evaluated", [False, True])
def test_groups_with_names(cls: Any, evaluated: bool) -> None:
    first, second = make_params(dtype=torch.float64)
    groups = [
        {"params": [("first", first)], "lr": 0.2, "weight_decay": 0.3},
        {"params": [("second", second)], "lr": 0.4},
    ]
    optimizer = cls(groups, lr=0.1)
    train(optimizer, range(5))
    x = x_of(optimizer, [first, second])
    plain = to_torch(optimizer.train(not evaluated))
    assert [group["param_names"] for group in plain.param_groups] == [["first"], ["second"]]
    assert [group["lr"] for group in plain.param_groups] == pytest.approx(
        [at_once(0.9, 1 / 5) * lr for lr in (0.2, 0.4)]
    )
    assert [group["weight_decay"] for group in plain.param_groups] == [0.3, 0.0]
    assert equal([first, second], x)
    step_plain(plain, [first, second])
    assert not equal([first, second], x)


def test_a_parameter_without_a_gradient_is_handed_over_without_state() -> None:
    idle, busy = make_params(dtype=torch.float64)
    optimizer = AdamWScheduleFree([idle, busy], lr=0.01)
    set_gradients([busy], 0)
    optimizer.step()
    plain = to_torch(optimizer)
    assert [bool(plain.state.get(param)) for param in (idle, busy)] == [False, True]
    step_plain(plain, [idle, busy])
    assert [float(plain.state[param]["step"]) for param in (idle, busy)] == [1, 2]


REFUSED = [info for info in OPTIMIZERS if info.counterpart is None]


@pytest.mark.parametrize("info", REFUSED, ids=lambda info: info.cls.__name__)
def test_what_torch_does_not_have_is_refused_and_nothing_is_changed(info: OptimizerInfo) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = info.make(model.parameters()).attach(model)
    train(optimizer, range(5))
    weights, metrics = copies(model.parameters()), optimizer.metrics()
    with pytest.raises(ValueError, match=f"torch.optim has no counterpart of {info.cls.__name__}"):
        to_torch(optimizer)
    assert optimizer.training
    assert equal(model.parameters(), weights)
    assert optimizer.metrics() == metrics
    model.eval()
    assert not equal(model.parameters(), weights)


@pytest.mark.parametrize("corrected_decay", [False, True])
def test_after_a_polyak_step_the_rate_is_that_of_the_last_step(corrected_decay: bool) -> None:
    """And AdamC's decay, which is gamma lambda, is made AdamW's."""
    params = make_params(dtype=torch.float64)
    optimizer = AdamWScheduleFree(
        params, lr=0.5, step_size=PolyakStep(max_step=2.0), weight_decay=5.0, corrected_decay=corrected_decay
    )
    gamma = 0.0
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.stack([param.square().sum() for param in params]).sum()
        loss.backward()
        optimizer.step(loss=loss)
        gamma = optimizer.metrics()["effective_lr"]
    assert 0 < gamma < 0.5
    share = at_once(0.9, optimizer.metrics()["c"])
    (group,) = to_torch(optimizer).param_groups
    assert group["lr"] == pytest.approx(share * gamma)
    assert group["weight_decay"] == pytest.approx(5.0 * (gamma if corrected_decay else 1.0))


def test_schedulefree_plus_is_handed_over_too() -> None:
    (weight,) = make_params((4,), dtype=torch.float64)
    optimizer = ScheduleFreePlus([weight], warmup_steps=0)
    for _ in range(50):
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        optimizer.step(loss=loss)
    plain, losses = to_torch(optimizer), []
    for _ in range(200):
        plain.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        plain.step()
        losses.append(loss.item())
    assert math.isfinite(losses[-1])
    assert losses[-1] < losses[0]


def test_without_averaging_sgd_goes_on_as_the_same_run() -> None:
    """With beta = 0 and c = 1 the plain optimizer makes the very steps that the old one would."""
    optimizer, params = started(SGDScheduleFree, lr=0.1, momentum=0.0, averaging=NoAveraging())
    other, others = started(SGDScheduleFree, lr=0.1, momentum=0.0, averaging=NoAveraging())
    plain = to_torch(optimizer)
    for step in range(12, 20):
        step_plain(plain, params, step)
    train(other, range(12, 20))
    for param, expected in zip(params, others, strict=True):
        close(param.detach(), expected.detach())
