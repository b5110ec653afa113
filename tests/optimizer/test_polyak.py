"""The Polyak step against the float64 oracle, exact cases, and the defects that it must not have."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Oracle, PolyakOracle
from problems import copies, equal, make_params, set_gradients
from registry import implementations
from torch import Tensor
from torch.nn import Parameter

from unscheduled import (
    AdamWScheduleFree,
    AnnealedInterpolation,
    GrowingInterpolation,
    NoAveraging,
    PolyakStep,
    PolynomialAveraging,
    ScheduleFreePlus,
    SGDScheduleFree,
)

SHAPES = [(3, 4), (), (5,)]
KINDS: list[type[Any]] = [AdamWScheduleFree, SGDScheduleFree, ScheduleFreePlus]
ROOT = math.sqrt(math.pi / 2)

kinds = pytest.mark.parametrize("cls", KINDS)


@dataclass(frozen=True)
class Case:
    """Arguments of the optimizer, the same for the oracle, the rule of the step, and what the second group has."""

    desc: str
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    step_size: PolyakStep = field(default_factory=PolyakStep)
    group: dict[str, Any] = field(default_factory=dict)
    group_settings: dict[str, Any] = field(default_factory=dict)


def alike(desc: str, step_size: PolyakStep | None = None, **both: Any) -> Case:
    """What optimizer and oracle call alike."""
    return Case(desc, both, both, step_size or PolyakStep())


SHARED = (
    alike("default"),
    alike("norm_beta", PolyakStep(norm_beta=0.9)),
    alike("the present step alone", PolyakStep(norm_beta=0.0)),
    alike("f_star", PolyakStep(f_star=-0.25)),
    alike("max_step, eps", PolyakStep(max_step=0.02, eps=0.5)),
    alike("warmup", warmup_steps=9),
    alike("decay at z, warmup, norm_beta", PolyakStep(norm_beta=0.5), weight_decay=0.1, decay_at="z", warmup_steps=9),
    alike("r", r=1.5),
    Case(
        "averaging warmup",
        {"averaging": PolynomialAveraging(r=1, warmup_steps=7)},
        {"r": 1, "averaging_warmup_steps": 7},
    ),
    Case(
        "current lr",
        {"averaging": PolynomialAveraging(weight_lr_power=1, weight_lr="current")},
        {"weight_lr": "current", "weight_lr_power": 1},
    ),
    Case("annealed", {"interpolation": AnnealedInterpolation(0.97, 30)}, {"beta_max": 0.97, "anneal_steps": 30}),
    Case("growing", {"interpolation": GrowingInterpolation(0.7, 5)}, {"growing_power": 0.7, "growing_start": 5}),
    Case("lr of a group", {"lr": 0.5}, {"lr": 0.5}, group={"lr": 2.0}, group_settings={"lr": 2.0}),
)
ADAMW = (
    Case("two betas", group={"betas": (0.5, 0.9)}, group_settings={"beta": 0.5, "beta2": 0.9}),
    alike("AdamC", weight_decay=5.0, corrected_decay=True),
    alike("AdamC at z", weight_decay=5.0, corrected_decay=True, decay_at="z", warmup_steps=5),
    alike("inner momentum", inner_momentum=0.8),
    Case(
        "everything",
        {
            "interpolation": AnnealedInterpolation(0.97, 30), "averaging": PolynomialAveraging(r=1, warmup_steps=7),
            "inner_momentum": 0.8, "weight_decay": 5.0, "corrected_decay": True, "warmup_steps": 5,
        },
        {
            "beta_max": 0.97, "anneal_steps": 30, "r": 1, "averaging_warmup_steps": 7,
            "inner_momentum": 0.8, "weight_decay": 5.0, "corrected_decay": True, "warmup_steps": 5,
        },
        PolyakStep(f_star=-0.25, norm_beta=0.9, max_step=0.2, eps=1e-6),
        {"betas": (0.5, 0.9), "lr": 2.0, "inner_momentum": 0.0},
        {"beta": 0.5, "beta2": 0.9, "lr": 2.0, "inner_momentum": 0.0},
    ),
)  # fmt: skip
SGD = (
    Case("two betas", group={"momentum": 0.5}, group_settings={"beta": 0.5}),
    Case("beta 0 and 1", {"momentum": 0.0}, {"beta": 0.0}, group={"momentum": 1.0}, group_settings={"beta": 1.0}),
)


@pytest.mark.covering(2)
@pytest.mark.parametrize(
    ("rule", "case"),
    [
        pytest.param(rule, case, id=f"{rule}-{case.desc}")
        for rule, own in (("adamw", ADAMW), ("sgd", SGD))
        for case in SHARED + own
    ],
)
@implementations
def test_x_y_z_and_the_step_equal_the_oracle_at_every_step(rule: str, case: Case, implementation: Any) -> None:
    """Random gradients and losses, two groups; some of the steps are 0."""
    random = np.random.default_rng(0)
    starts = [np.asarray(random.standard_normal(shape)) for shape in SHAPES]
    params = [Parameter(torch.from_numpy(start.copy())) for start in starts]
    settings = {"rule": rule, "lr": 1.0, "beta": 0.9} | case.settings
    oracles = [Oracle(start, **settings) for start in starts[:2]]
    oracles.append(Oracle(starts[2], **settings | case.group_settings))
    rule_of_step = case.step_size
    truth = PolyakOracle(oracles, rule_of_step.f_star, rule_of_step.norm_beta, rule_of_step.max_step, rule_of_step.eps)
    cls = AdamWScheduleFree if rule == "adamw" else SGDScheduleFree
    optimizer = cls(
        [{"params": params[:2]}, {"params": params[2:], **case.group}],
        implementation=implementation,
        step_size=rule_of_step,
        **case.arguments,
    )
    lr, warmup = settings["lr"], settings.get("warmup_steps", 0)
    steps: list[float] = []
    for step in range(1, 61):
        gradients = [np.asarray(random.standard_normal(shape)) for shape in SHAPES]
        if step == 20:
            gradients = [np.zeros_like(gradient) for gradient in gradients]
        loss = max(0.0, float(random.standard_normal()))
        steps.append(truth.step(gradients, loss))
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = torch.from_numpy(gradient)
        optimizer.step(loss=loss)
        warm = lr * min(1.0, step / warmup if warmup else 1.0)
        assert optimizer.metrics()["group0/effective_lr"] == pytest.approx(warm * steps[-1], rel=1e-9)
        for param, oracle in zip(params, oracles, strict=True):
            for ours, true in zip(optimizer.iterates(param), (oracle.x, oracle.y, oracle.z), strict=True):
                np.testing.assert_allclose(ours, true, rtol=1e-9, atol=1e-12)
    assert steps[19] == 0.0
    assert 0.0 < max(steps) < math.inf
    if rule_of_step.f_star == 0.0:
        assert 2 <= steps.count(0.0) <= 50


def test_complex_parameters_are_pairs_of_real_ones() -> None:
    number = Parameter(torch.randn(5, dtype=torch.complex128))
    pair = Parameter(torch.view_as_real(number.detach()).clone())
    one, other = (AdamWScheduleFree([param], step_size=PolyakStep()) for param in (number, pair))
    for step in range(20):
        gradient = torch.randn(5, 2, dtype=torch.float64)
        number.grad, pair.grad = torch.view_as_complex(gradient), gradient
        one.step(loss=1.0 + step % 3)
        other.step(loss=1.0 + step % 3)
        torch.testing.assert_close(torch.view_as_real(number.detach()), pair.detach(), rtol=1e-12, atol=0)


# What the authors' code does wrong.


@kinds
def test_a_smoothed_size_does_not_shrink_the_step(cls: type[Any]) -> None:
    """With the same gradient and numerator at every step, the means are that of one step."""
    (param,) = make_params((7,), dtype=torch.float64)
    optimizer = cls([param], step_size=PolyakStep(norm_beta=0.9), warmup_steps=0)
    size = 7.0 * (1.0 if cls is SGDScheduleFree else ROOT)
    for _ in range(30):
        param.grad = torch.ones(7, dtype=torch.float64)
        correlation = float((optimizer.iterates(param).z - param.detach()).sum())
        optimizer.step(loss=5.0 - correlation)
        assert optimizer.metrics()["effective_lr"] == pytest.approx(5.0 / size, rel=1e-9)
    group = optimizer.param_groups[0]
    assert group["polyak_norm"] / group["polyak_weight"] == pytest.approx(size)
    assert group["polyak_weight"] == pytest.approx((1 - 0.9**30) / 0.1)


@pytest.mark.parametrize("interpolation", [AnnealedInterpolation(0.99, 3), GrowingInterpolation(2.0, 1)])
def test_the_correlation_is_with_the_y_that_the_gradient_was_taken_at(interpolation: Any) -> None:
    """While beta changes: s by the formula, with <g, z - y> of the iterates as they are."""
    (param,) = make_params((7,), dtype=torch.float64)
    optimizer = SGDScheduleFree([param], momentum=0.3, interpolation=interpolation, step_size=PolyakStep(norm_beta=0.0))
    betas: set[float] = set()
    for step in range(6):
        set_gradients([param], step)
        gradient = param.grad
        assert gradient is not None
        _, y, z = optimizer.iterates(param)
        betas.add(optimizer.metrics()["beta"])
        s = max(0.0, 9.0 + float(torch.dot(gradient, z - y))) / float(gradient.square().sum())
        optimizer.step(loss=9.0)
        assert optimizer.metrics()["effective_lr"] == pytest.approx(s, rel=1e-9)
    assert len(betas) > 3


@pytest.mark.covering(2)
@kinds
@implementations
@pytest.mark.parametrize("at", [0, 4])
def test_a_zero_gradient_does_not_move_and_has_no_weight(cls: type[Any], implementation: Any, at: int) -> None:
    """At a minimum with a positive loss, where the authors' step is infinite."""
    params = make_params()
    optimizer = cls(params, implementation=implementation, step_size=PolyakStep(norm_beta=0.5), warmup_steps=0)
    for step in range(8):
        set_gradients(params, step)
        before, old = copies(params), dict(optimizer.param_groups[0])
        if step == at:
            for param in params:
                param.grad = torch.zeros_like(param)
        optimizer.step(loss=1.0)
        group = optimizer.param_groups[0]
        if step == at:
            assert equal(params, before)
            assert (group["effective_lr"], group["c"]) == (0.0, 0.0)
            assert all(
                group[name] == old[name] for name in ("lr_max", "weight_sum", "beta", "polyak_excess", "polyak_weight")
            )
        assert math.isfinite(group["lr_max"])
        assert math.isfinite(group["weight_sum"])
    assert 0.0 < group["effective_lr"] <= group["lr_max"] < 1.0
    assert all(param.isfinite().all() for param in params)
    assert not equal(params, make_params())


@pytest.mark.parametrize(("cls", "buffers"), [(SGDScheduleFree, 1), (AdamWScheduleFree, 2), (ScheduleFreePlus, 2)])
def test_the_memory_is_that_without_the_polyak_step(cls: type[Any], buffers: int) -> None:
    (param,) = make_params((100, 30))
    optimizer = cls([param], step_size=PolyakStep(norm_beta=0.9))
    for step in range(3):
        set_gradients([param], step)
        optimizer.step(loss=1.0)
    kept = [value for value in optimizer.state[param].values() if isinstance(value, Tensor)]
    assert sum(value.numel() for value in kept) == buffers * param.numel()


# Exact cases, and convergence.


@implementations
def test_on_a_parabola_the_first_step_goes_halfway_to_the_minimum(implementation: Any) -> None:
    """f = (w - 1)^2 / 2: s = f / |g|^2 = 1/2; then x = y = z, so that every step does. With f_star above 0, less."""
    weight = Parameter(torch.tensor(5.0, dtype=torch.float64))
    optimizer = SGDScheduleFree(
        [weight], averaging=NoAveraging(), step_size=PolyakStep(eps=1e-30), implementation=implementation
    )
    for step in range(1, 6):
        weight.grad = weight.detach() - 1
        optimizer.step(loss=weight.grad**2 / 2)
        assert weight.item() == pytest.approx(1 + 4 / 2**step, rel=1e-14)
    weight = Parameter(torch.tensor(5.0, dtype=torch.float64))
    weight.grad = weight.detach() - 1
    SGDScheduleFree([weight], step_size=PolyakStep(f_star=4.0)).step(loss=8.0)
    assert weight.item() == pytest.approx(5 - (8 - 4) / 4, rel=1e-9)


def test_on_an_absolute_value_the_first_step_is_the_minimum() -> None:
    """f = |<a, w>|: s |a|^2 = f, and the minimum on the line is hit exactly."""
    direction = torch.tensor([3.0, -4.0], dtype=torch.float64)
    weight = Parameter(torch.tensor([2.0, 1.0], dtype=torch.float64))
    optimizer = SGDScheduleFree([weight], step_size=PolyakStep())
    loss = torch.dot(direction, weight).abs()
    loss.backward()
    optimizer.step(loss=loss)
    assert float(torch.dot(direction, weight.detach())) == pytest.approx(0.0, abs=1e-12)


def test_the_first_step_of_adamw_divides_by_the_one_norm() -> None:
    weight = Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    optimizer = AdamWScheduleFree([weight], eps=1e-30, step_size=PolyakStep())
    weight.grad = torch.tensor([2.0, -0.5], dtype=torch.float64)
    optimizer.step(loss=4.0)
    s = 4.0 / (ROOT * 2.5)
    torch.testing.assert_close(weight.detach(), torch.tensor([3.0 - s, -2.0 + s], dtype=torch.float64))


@pytest.mark.parametrize(("cls", "least"), [(SGDScheduleFree, 1e-3), (AdamWScheduleFree, 1e-2)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_it_converges_without_a_learning_rate_whatever_the_scale(cls: type[Any], least: float, scale: float) -> None:
    """Consistent least squares, in other units: of the weights for SGD, of the loss for both."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    target = matrix @ torch.randn(6, generator=generator, dtype=torch.float64)
    weight = Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = cls([weight], step_size=PolyakStep(), **({} if cls is SGDScheduleFree else {"betas": (0.9, 0.99)}))

    def loss() -> Tensor:
        return scale * (matrix @ weight - target).square().mean()

    first = loss().item()
    for _ in range(400):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step(loss=value)
    optimizer.eval()
    assert loss().item() < least * first


@pytest.mark.parametrize("cls", [AdamWScheduleFree, SGDScheduleFree])
def test_the_size_of_a_large_gradient_is_exact(cls: type[Any]) -> None:
    """A sum of 16 million squares in float32 is wrong by 0.1%."""
    weight = Parameter(torch.zeros(1 << 24))
    weight.grad = torch.rand(1 << 24, generator=torch.Generator().manual_seed(0))
    size = weight.grad.double().square().sum() if cls is SGDScheduleFree else ROOT * weight.grad.double().sum()
    optimizer = cls([weight], step_size=PolyakStep())
    optimizer.step(loss=1.0)
    assert optimizer.param_groups[0]["effective_lr"] == pytest.approx(1.0 / size.item(), rel=1e-9)
