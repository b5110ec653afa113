"""The algebra of the gap, the averagings and the interpolations, as properties of floats."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unscheduled import AnnealedInterpolation, ExponentialAveraging, PolynomialAveraging, iterates
from unscheduled.step_size import linear_warmup, rectification

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
    ],
)
def test_axes_refuse_what_is_out_of_range(make: object, match: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=match):
        make()
