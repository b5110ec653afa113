"""Known limits and exact equivalences: what Schedule-Free learning becomes at the ends of its axes."""

from math import comb, sqrt
from typing import Any

import pytest
import torch
from problems import copies, make_params, set_gradients
from registry import OptimizerInfo, implementations, optimizers
from torch.nn import Parameter

from unscheduled import (
    AdamWScheduleFree,
    ExponentialAveraging,
    NoAveraging,
    RAdamScheduleFree,
    ScheduleFreeOptimizer,
    SGDScheduleFree,
)
from unscheduled.step_size import rectification


@implementations
@pytest.mark.parametrize("complex_too", [False, True])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True, "weight_decay": 0.1}])
def test_adamw_with_inner_momentum_and_no_averaging_is_adamw(
    implementation: Any, options: dict[str, Any], complex_too: bool
) -> None:
    dtype = torch.complex128 if complex_too else torch.float64
    ours, theirs = make_params(dtype=dtype), make_params(dtype=dtype)
    plain = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.99), **({"weight_decay": 0.0} | options))
    schedule_free = AdamWScheduleFree(
        ours,
        lr=0.01,
        betas=(0.7, 0.99),
        inner_momentum=0.9,
        averaging=NoAveraging(),
        implementation=implementation,
        **options,
    )
    compare(schedule_free, plain, ours, theirs)


@implementations
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True, "weight_decay": 0.1}])
def test_sgd_without_averaging_is_sgd(implementation: Any, options: dict[str, Any]) -> None:
    ours, theirs = make_params(dtype=torch.float64), make_params(dtype=torch.float64)
    plain = torch.optim.SGD(theirs, lr=0.1, **options)
    schedule_free = SGDScheduleFree(ours, lr=0.1, averaging=NoAveraging(), implementation=implementation, **options)
    compare(schedule_free, plain, ours, theirs)


def compare(
    schedule_free: ScheduleFreeOptimizer,
    plain: torch.optim.Optimizer,
    ours: list[Parameter],
    theirs: list[Parameter],
) -> None:
    for step in range(100):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        schedule_free.step()
        plain.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    with schedule_free.averaged_parameters():
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@optimizers
def test_beta_zero_is_polyak_ruppert_averaging(info: OptimizerInfo) -> None:
    """y is z, and x the mean of all z."""
    (param,) = make_params((5,), dtype=torch.float64)
    optimizer = info.make([param], **info.beta_arguments(0.0))
    visited = []
    for step in range(50):
        set_gradients([param], step)
        before = param.detach().clone()
        optimizer.step()
        if not torch.equal(param, before):  # RAdam stands still at first
            visited.append(param.detach().clone())
        assert torch.equal(optimizer.iterates(param).z, param)
    # RAdam's weights are the squares of its growing rate, so its mean is a weighted one
    weights = torch.ones(len(visited), dtype=torch.float64)
    if info.cls is RAdamScheduleFree:
        rates = [rectification(t, 0.999) for t in range(1, 51)]
        weights = torch.tensor([rate**2 for rate in rates if rate], dtype=torch.float64)
    mean = (torch.stack(visited) * weights[:, None]).sum(0) / weights.sum()
    torch.testing.assert_close(optimizer.iterates(param).x, mean, rtol=1e-12, atol=1e-13)


@optimizers
def test_beta_one_is_primal_averaging(info: OptimizerInfo) -> None:
    """y is x: evaluating moves nothing."""
    params = make_params(dtype=torch.float64)
    optimizer = info.make(params, **info.beta_arguments(1.0))
    for step in range(20):
        set_gradients(params, step)
        optimizer.step()
    training = copies(params)
    optimizer.eval()
    assert all(torch.equal(param, y) for param, y in zip(params, training, strict=True))


def test_the_quadratic_has_its_exact_solution() -> None:
    """On f = s u^2 / 2 with gamma s = 10 and beta = 0.9 the average is (-1)^t C(9, t), then 0, for ever."""
    weight = Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = SGDScheduleFree([weight], lr=10.0, momentum=0.9)
    for t in range(1, 40):
        optimizer.zero_grad()
        (weight**2 / 2).sum().backward()
        optimizer.step()
        assert optimizer.iterates(weight).x.item() == pytest.approx((-1) ** t * comb(9, t), abs=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("factor", "stable"), [(0.98, True), (1.05, False)])
def test_it_diverges_beyond_two_over_one_minus_beta(beta: float, factor: float, stable: bool) -> None:
    weight = Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = SGDScheduleFree([weight], lr=factor * 2 / (1 - beta), momentum=beta)
    for _ in range(2000):
        optimizer.zero_grad()
        (weight**2 / 2).sum().backward()
        optimizer.step()
    z = abs(optimizer.iterates(weight).z.item())
    assert z < 1e-3 if stable else z > 1e20


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 1.0])
def test_the_convex_bound(beta: float) -> None:
    """Theorem 1: F(x_T) - F* <= D G / sqrt(T) with gamma = D / (G sqrt(T)), for any beta; here F is the norm."""
    steps = 400
    start = torch.tensor([3.0, -4.0, 12.0], dtype=torch.float64)  # D = 13, G = 1
    weight = Parameter(start.clone())
    optimizer = SGDScheduleFree([weight], lr=13 / sqrt(steps), momentum=beta)
    for _ in range(steps):
        optimizer.zero_grad()
        weight.norm().backward()
        optimizer.step()
    assert 0 < optimizer.iterates(weight).x.norm() <= 13 / sqrt(steps)


def test_constant_averaging_weight_is_gpa() -> None:
    """Generalized Primal Averaging: y = mu_y x + (1 - mu_y) z, z' = z - gamma g(y), x' = mu_x x + (1 - mu_x) z'."""
    weight = Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = SGDScheduleFree([weight], lr=0.3, momentum=0.8, averaging=ExponentialAveraging(0.1))
    x = z = weight.detach().clone()
    curvature = torch.tensor([1.0, 0.2], dtype=torch.float64)
    for _ in range(50):
        y = 0.8 * x + 0.2 * z
        z = z - 0.3 * curvature * y
        x = 0.9 * x + 0.1 * z
        optimizer.zero_grad()
        (curvature * weight**2 / 2).sum().backward()
        optimizer.step()
    torch.testing.assert_close(optimizer.iterates(weight).x, x, rtol=1e-12, atol=0)
    torch.testing.assert_close(optimizer.iterates(weight).z, z, rtol=1e-12, atol=0)
