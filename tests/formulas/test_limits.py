"""Known limits and exact equivalences: what Schedule-Free learning becomes at the ends of its axes."""

from itertools import pairwise
from math import comb, sqrt
from typing import Any

import pytest
import torch
from problems import copies, make_params, set_gradients, train
from registry import OptimizerInfo, implementations, optimizers
from torch.nn import Parameter

from unscheduled import (
    AdamWScheduleFree,
    ExponentialAveraging,
    NoAveraging,
    PolynomialAveraging,
    ScheduleFreeOptimizer,
    SGDScheduleFree,
)


@pytest.mark.covering(2)
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
    visited, rates = [], []
    for step in range(50):
        set_gradients([param], step)
        before = param.detach().clone()
        optimizer.step()
        assert torch.equal(param, before) == (step < info.silent_steps)
        visited.append(param.detach().clone())
        rates.append(optimizer.metrics()["effective_lr"])
        assert torch.equal(optimizer.iterates(param).z, param)
    weights = torch.tensor(rates, dtype=torch.float64) ** 2  # the weights of a rate that never falls
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


@pytest.mark.parametrize("beta", [0.0, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_gpa_decays_z_and_x_through_it(beta: float, rule: str) -> None:
    """z' = (1 - gamma lambda) z - gamma d(y), and x only averages."""
    (param,) = make_params((5,), dtype=torch.float64)
    optimizer = gpa(rule, param, lr=0.1, beta=beta, c=0.05, weight_decay=0.5, decay_at="z")
    x = z = param.detach().clone()
    v = torch.zeros_like(x)
    for step in range(1, 40):
        y = (1 - beta) * z + beta * x
        torch.testing.assert_close(param.detach(), y, rtol=1e-11, atol=1e-13)
        set_gradients([param], step)
        assert param.grad is not None
        d = param.grad.clone()
        if rule == "adamw":
            v = 0.999 * v + 0.001 * d**2
            d = d / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        z = (1 - 0.1 * 0.5) * z - 0.1 * d
        x = 0.95 * x + 0.05 * z
        optimizer.step()
        torch.testing.assert_close(optimizer.iterates(param).x, x, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(optimizer.iterates(param).z, z, rtol=1e-11, atol=1e-13)


def gpa(rule: str, param: Parameter, *, lr: float, beta: float, c: float, **arguments: Any) -> ScheduleFreeOptimizer:
    averaging = ExponentialAveraging(c)
    if rule == "sgd":
        return SGDScheduleFree([param], lr=lr, momentum=beta, averaging=averaging, **arguments)
    return AdamWScheduleFree([param], lr=lr, betas=(beta, 0.999), averaging=averaging, **arguments)


def sizes_without_a_gradient(
    rule: str, decay_at: Any, beta: float, c: float, weight_decay: float, steps: int
) -> list[tuple[float, float, float]]:
    """|x|, |y| and |z| from step to step, from x = y = z = 1, at lr = 1."""
    param = Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = gpa(rule, param, lr=1.0, beta=beta, c=c, weight_decay=weight_decay, decay_at=decay_at)
    sizes = [(1.0, 1.0, 1.0)]
    for _ in range(steps):
        param.grad = torch.zeros_like(param)
        optimizer.step()
        now = optimizer.iterates(param)
        sizes.append((abs(now.x.item()), abs(now.y.item()), abs(now.z.item())))
    return sizes


@pytest.mark.covering(2)
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("c", [0.0033, 0.1, 1.0])
@pytest.mark.parametrize("weight_decay", [0.001, 0.1, 0.9])
def test_decay_at_z_only_ever_shrinks(rule: str, beta: float, c: float, weight_decay: float) -> None:
    sizes = sizes_without_a_gradient(rule, "z", beta, c, weight_decay, steps=200)
    for before, after in pairwise(sizes):
        assert all(now <= earlier + 1e-15 for earlier, now in zip(before, after, strict=True))
    assert all(size < 1 for size in sizes[-1])


@pytest.mark.covering(2)
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("c", [0.0033, 0.1, 1.0])
def test_decay_at_y_never_takes_x_and_y_beyond_where_they_began(rule: str, beta: float, c: float) -> None:
    sizes = sizes_without_a_gradient(rule, "y", beta, c, weight_decay=0.1, steps=2000)
    assert all(x <= 1 and y <= 1 for x, y, _ in sizes)
    assert all(size < 0.2 for size in sizes[-1])


def test_decay_at_y_takes_z_far_beyond_0_where_the_average_is_slow() -> None:
    """It makes y vanish, not z, for which z has to stand against x: a reason for decay at z."""
    sizes = sizes_without_a_gradient("sgd", "y", 0.9, 0.0033, weight_decay=0.1, steps=2000)
    assert max(z for _, _, z in sizes) > 3
    assert max(z for _, _, z in sizes_without_a_gradient("sgd", "z", 0.9, 0.0033, weight_decay=0.1, steps=2000)) == 1


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_schedulet_under_a_decaying_learning_rate(beta: float) -> None:
    """x = sum gamma_i z_i / sum gamma_i, and by the maximum the plain mean."""
    for averaging, power in (
        (PolynomialAveraging(weight_lr="current", weight_lr_power=1), 1),
        (PolynomialAveraging(), 0),
    ):
        (param,) = make_params((5,), dtype=torch.float64)
        optimizer = SGDScheduleFree([param], lr=1.0, momentum=beta, averaging=averaging)
        lrs, visited = [1 / (1 + step) for step in range(50)], []
        for step, lr in enumerate(lrs):
            optimizer.param_groups[0]["lr"] = lr
            train(optimizer, [step])
            visited.append(optimizer.iterates(param).z)
        weights = torch.tensor([lr**power for lr in lrs], dtype=torch.float64)
        mean = (torch.stack(visited) * weights[:, None]).sum(0) / weights.sum()
        torch.testing.assert_close(optimizer.iterates(param).x, mean, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("start", [0, 20])
@pytest.mark.parametrize("by_restart", [False, True])
def test_a_cooldown_is_to_the_average_what_a_linear_decay_is_to_the_last_iterate(start: int, by_restart: bool) -> None:
    """On the same gradients they are the same, since a mean of sums is a sum with linearly falling weights."""
    ours, theirs = make_params(dtype=torch.float64), make_params(dtype=torch.float64)
    averaging = PolynomialAveraging(cooldown_start=None if by_restart or start == 0 else start)
    optimizer, plain = SGDScheduleFree(ours, lr=0.1, averaging=averaging), torch.optim.SGD(theirs, lr=0.1)
    for step in range(50):
        if step == start and by_restart:
            optimizer.restart_averaging()
        plain.param_groups[0]["lr"] = 0.1 * min(1.0, (50 - step) / (50 - start))
        for params, each in ((ours, optimizer), (theirs, plain)):
            set_gradients(params, step)
            each.step()
    with optimizer.averaged_parameters():
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
