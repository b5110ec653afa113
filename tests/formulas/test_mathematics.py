"""The algebra of the gap, the averagings and the interpolations, as properties of floats."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unscheduled import (
    AnnealedInterpolation,
    Averaging,
    ExponentialAveraging,
    GrowingInterpolation,
    PolynomialAveraging,
)
from unscheduled.formulas import iterates
from unscheduled.formulas.step_size import linear_warmup, rectification

numbers = st.floats(-100, 100)
unit = st.floats(0, 1)


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-10)


@given(x=numbers, z=numbers, move=numbers, c=unit, beta=unit, next_beta=unit)
def test_advance_is_the_step_of_x_y_and_z(
    x: float, z: float, move: float, c: float, beta: float, next_beta: float
) -> None:
    y = (1 - beta) * z + beta * x
    next_z = z - move
    next_x = (1 - c) * x + c * next_z
    next_y = (1 - next_beta) * next_z + next_beta * next_x
    got_y, got_gap = iterates.advance(y, z - x, move, *iterates.coefficients(c, beta, next_beta))
    assert close(got_y, next_y)
    assert close(got_gap, next_z - next_x)
    assert close(iterates.averaged(got_y, got_gap, next_beta), next_x)
    assert close(iterates.base(got_y, got_gap, next_beta), next_z)


@given(x=numbers, gap=numbers, beta=unit, next_beta=unit)
def test_changing_beta_keeps_x_and_z(x: float, gap: float, beta: float, next_beta: float) -> None:
    y = iterates.gradient_point(x, gap, beta)
    y = iterates.reinterpolated(y, gap, beta, next_beta)
    assert close(iterates.averaged(y, gap, next_beta), x)
    assert close(iterates.base(y, gap, next_beta), x + gap)


@given(y=numbers, gap=numbers, move=numbers, beta=unit, next_beta=unit)
def test_without_averaging_the_gap_vanishes_exactly(
    y: float, gap: float, move: float, beta: float, next_beta: float
) -> None:
    _, next_gap = iterates.advance(y, gap, move, *iterates.coefficients(1.0, beta, next_beta))
    assert next_gap == 0.0


@given(r=st.floats(-0.9, 20), power=st.floats(0, 4), lrs=st.lists(st.floats(1e-4, 10), min_size=1, max_size=40))
def test_polynomial_averaging_is_the_weighted_mean(r: float, power: float, lrs: list[float]) -> None:
    averaging = PolynomialAveraging(r=r, weight_lr_power=power)
    x, weight_sum, lr_max, points, weights = 0.0, 0.0, 0.0, [], []
    for step, lr in enumerate(lrs, start=1):
        lr_max = max(lr_max, lr)
        z = math.sin(step)
        c, weight_sum = averaging(step, lr, lr_max, weight_sum)
        assert 0.0 < c <= 1.0
        x = (1 - c) * x + c * z
        points.append(z)
        weights.append(step**r * lr_max**power)
    mean = sum(w * z for w, z in zip(weights, points, strict=True)) / sum(weights)
    assert math.isclose(x, mean, rel_tol=1e-9, abs_tol=1e-12)


def test_the_window_grows_with_the_steps_and_shrinks_with_r() -> None:
    """c_t tends to (r + 1) / t."""
    for r in (0.0, 1.0, 3.0, 19.0):
        averaging, weight_sum, c = PolynomialAveraging(r=r), 0.0, 0.0
        for step in range(1, 10_001):
            c, weight_sum = averaging(step, 1.0, 1.0, weight_sum)
        assert c == pytest.approx((r + 1) / 10_000, rel=2e-3)


def weights_of(averaging: Averaging, lrs: list[float]) -> tuple[list[float], list[float]]:
    """c at each step, and the weights with which the z are in the x of the end."""
    weight_sum, lr_max, cs = 0.0, 0.0, []
    for step, lr in enumerate(lrs, start=1):
        lr_max = max(lr_max, lr)
        c, weight_sum = averaging(step, lr, lr_max, weight_sum)
        cs.append(c)
    return cs, weights_in_x(cs)


def weights_in_x(cs: list[float]) -> list[float]:
    remaining, weights = 1.0, []
    for c in reversed(cs):
        weights.append(remaining * c)
        remaining *= 1.0 - c
    return weights[::-1]


@given(lrs=st.lists(st.floats(1e-4, 10), min_size=1, max_size=40))
def test_schedulet_weighs_each_z_with_its_learning_rate(lrs: list[float]) -> None:
    """c_t = gamma_t / sum gamma_i, for any sequence."""
    cs, weights = weights_of(PolynomialAveraging(weight_lr="current", weight_lr_power=1), lrs)
    assert cs == pytest.approx([lr / sum(lrs[: t + 1]) for t, lr in enumerate(lrs)])
    assert weights == pytest.approx([lr / sum(lrs) for lr in lrs])


@given(r=st.floats(-0.9, 8), power=st.floats(0, 4), lrs=st.lists(st.floats(1e-3, 10), min_size=1, max_size=40))
def test_the_current_learning_rate_has_both_powers(r: float, power: float, lrs: list[float]) -> None:
    _, weights = weights_of(PolynomialAveraging(r=r, weight_lr_power=power, weight_lr="current"), lrs)
    expected = [t**r * lr**power for t, lr in enumerate(lrs, start=1)]
    assert weights == pytest.approx([weight / sum(expected) for weight in expected], abs=1e-12)


def test_under_a_decay_the_maximum_counts_all_steps_alike_and_the_current_rate_the_early_ones_more() -> None:
    lrs = [1.0 - t / 100 for t in range(100)]
    _, by_maximum = weights_of(PolynomialAveraging(), lrs)
    _, by_current = weights_of(PolynomialAveraging(weight_lr="current"), lrs)
    assert by_maximum == pytest.approx([0.01] * 100)
    assert by_current == pytest.approx([lr**2 / sum(lr**2 for lr in lrs) for lr in lrs])


def test_while_the_learning_rate_grows_the_maximum_is_the_current_one() -> None:
    lrs = [0.01 * t for t in range(1, 50)]
    assert weights_of(PolynomialAveraging(), lrs) == weights_of(PolynomialAveraging(weight_lr="current"), lrs)


def of_the_river(factor: float, beta: float, lrs: list[float]) -> list[float]:
    """c of the paper, c = min(1, C (1 - beta) gamma^2 / sum gamma^2)."""
    squares, cs = 0.0, []
    for lr in lrs:
        squares += lr**2
        cs.append(min(1.0, factor * (1.0 - beta) * lr**2 / squares))
    return cs


@given(C=st.floats(0.05, 100), beta=st.floats(0, 0.95))
def test_the_river_is_a_power(C: float, beta: float) -> None:  # noqa: N803
    if (1 - beta) * C <= 33:
        assert PolynomialAveraging.river(C, beta) == PolynomialAveraging(r=(1 - beta) * C - 1)
    else:
        with pytest.raises(ValueError, match=r"r = .* is outside \(-1, 32\]"):
            PolynomialAveraging.river(C, beta)


@pytest.mark.parametrize(("factor", "beta"), [(10, 0.9), (50, 0.9), (100, 0.95), (400, 0.95)])
@pytest.mark.parametrize("warmup_steps", [0, 500])
def test_the_window_of_the_river_tends_to_that_of_its_power(factor: float, beta: float, warmup_steps: int) -> None:
    """Both c tend to (1 - beta) C / t, and give the last half of the run the same weight."""
    lrs = [linear_warmup(t, warmup_steps) for t in range(1, 40_001)]
    averaging = PolynomialAveraging.river(factor, beta)
    ours, weights = weights_of(averaging, lrs)
    theirs = of_the_river(factor, beta, lrs)
    assert ours[-1] == pytest.approx(theirs[-1], rel=0.02)
    assert ours[-1] == pytest.approx((1 - beta) * factor / 40_000, rel=0.02)
    last_half = 1 - 0.5 ** (averaging.r + 1)
    assert sum(weights[20_000:]) == pytest.approx(last_half, rel=0.02)
    assert sum(weights_in_x(theirs)[20_000:]) == pytest.approx(last_half, rel=0.02)


def test_the_river_at_one_over_one_minus_beta_is_plain_averaging() -> None:
    averaging = PolynomialAveraging.river(C=8, beta=0.875)
    assert averaging == PolynomialAveraging(r=0)
    lrs = [linear_warmup(t, 20) for t in range(1, 200)]
    assert weights_of(averaging, lrs)[0] == pytest.approx(of_the_river(8, 0.875, lrs))


def test_weights_at_the_largest_power_stay_finite() -> None:
    c, weight_sum = PolynomialAveraging(r=32)(10**9, lr=1.0, lr_max=10.0, weight_sum=1e280)
    assert 0 < c < 1
    assert math.isfinite(weight_sum)


def test_no_weight_without_a_learning_rate() -> None:
    assert PolynomialAveraging()(1, lr=0.0, lr_max=0.0, weight_sum=0.0) == (0.0, 0.0)


@given(beta=st.floats(0, 0.99), beta_max=st.floats(0, 0.99), steps=st.integers(1, 1000), step=st.integers(0, 2000))
def test_annealing_goes_evenly_in_the_logarithm_of_the_weight_of_z(
    beta: float, beta_max: float, steps: int, step: int
) -> None:
    anneal = AnnealedInterpolation(beta_max, steps)
    assert anneal(beta, 0) == pytest.approx(beta, abs=1e-12)
    assert anneal(beta, steps) == pytest.approx(beta_max, abs=1e-12)
    assert anneal(beta, steps + step) == anneal(beta, steps)
    if 0 < step < steps:
        before, now, after = (math.log(1 - anneal(beta, t)) for t in (step - 1, step, step + 1))
        assert now - before == pytest.approx(after - now, abs=1e-9)


@given(beta=unit, power=st.floats(0.01, 8), start=st.integers(1, 1000), step=st.integers(0, 10**6))
def test_the_growing_beta_is_that_of_amuse(beta: float, power: float, start: int, step: int) -> None:
    """beta_t = 1 - (T0 / t)^rho (1 - beta), from T0 on."""
    grow = GrowingInterpolation(power, start)
    assert grow(beta, step) == pytest.approx(1 - (start / max(step, start)) ** power * (1 - beta), abs=1e-12)
    assert beta - 1e-12 <= grow(beta, step) <= grow(beta, step + 1) <= 1
    assert grow(beta, start) == pytest.approx(beta, abs=1e-12) == grow(beta, 0)
    assert grow(1.0, step) == 1.0


def test_the_growing_beta_tends_to_one_by_a_power_of_the_steps() -> None:
    grow = GrowingInterpolation(power=0.6, start=100)
    weights_of_z = [1 - grow(0.4, 10**exponent) for exponent in (4, 6, 8)]
    assert weights_of_z == pytest.approx([0.6 * 10 ** (-0.6 * (exponent - 2)) for exponent in (4, 6, 8)])


def test_warmup_reaches_the_full_rate_at_its_last_step() -> None:
    assert [linear_warmup(t, 5) for t in range(1, 8)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]
    assert linear_warmup(1, 0) == 1.0


def test_rectification_begins_at_the_fifth_step_and_tends_to_one() -> None:
    assert [rectification(t, 0.999) is None for t in range(1, 8)] == [True] * 4 + [False] * 3
    values = [rectification(t, 0.999) for t in range(5, 20_000)]
    assert all(a <= b for a, b in pairwise(values))
    assert values[-1] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ExponentialAveraging(0.0), r"c = 0\.0 is outside \(0, 1\]"),
        (lambda: ExponentialAveraging(1.5), r"c = 1\.5 is outside \(0, 1\]"),
        (lambda: PolynomialAveraging(r=-1), r"r = -1 is outside \(-1, 32\]"),
        (lambda: PolynomialAveraging(r=float("nan")), r"r = nan is outside"),
        (lambda: PolynomialAveraging(warmup_steps=-1), r"warmup_steps = -1 is no integer >= 0"),
        (lambda: AnnealedInterpolation(1.0, 10), r"beta_max = 1\.0 is outside \[0, 1\)"),
        (lambda: AnnealedInterpolation(0.9, 0), r"steps = 0 is no integer >= 1"),
        (lambda: PolynomialAveraging(weight_lr="last"), r"weight_lr = 'last' is neither 'maximum' nor 'current'"),  # type: ignore[arg-type]
        (lambda: PolynomialAveraging.river(0, 0.9), r"C = 0 is outside \(0, inf\): use 1 / \(1 - beta\) for plain"),
        (lambda: PolynomialAveraging.river(float("inf"), 0.9), r"C = inf is outside \(0, inf\)"),
        (lambda: PolynomialAveraging.river(10, 1.0), r"beta = 1\.0 is outside \[0, 1\)"),
        (lambda: PolynomialAveraging.river(10, -0.1), r"beta = -0\.1 is outside \[0, 1\)"),
        (lambda: PolynomialAveraging.river(1000, 0.9), r"r = 9\d\.\d* is outside \(-1, 32\]"),
        (lambda: GrowingInterpolation(0.0, 10), r"power = 0\.0 is outside \(0, 8\]"),
        (lambda: GrowingInterpolation(8.5, 10), r"power = 8\.5 is outside \(0, 8\]"),
        (lambda: GrowingInterpolation(0.7, 0), r"start = 0 is no integer >= 1"),
    ],
)
def test_axes_refuse_what_is_out_of_range(make: object, match: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=match):
        make()
