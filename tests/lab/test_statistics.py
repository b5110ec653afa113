"""Means, standard errors and verdicts on numbers worked out by hand."""

import pytest

from unscheduled.lab.statistics import Estimate, compare, estimate


def test_standard_error_of_the_mean() -> None:
    """1, 2, 3: variance 1 with n - 1 = 2, so the mean has a standard error of 1 / sqrt(3)."""
    result = estimate([1.0, 2.0, 3.0])
    assert (result.mean, result.standard_error) == (2.0, pytest.approx(3**-0.5))


@pytest.mark.parametrize(
    ("first", "second", "difference", "verdict"),
    [
        # Differences -2, -3, -4: mean -3, standard error 0.577, of which three seeds need 4.3.
        ([0.0, 0.0, 0.0], [2.0, 3.0, 4.0], -3.0, "better"),
        ([2.0, 3.0, 4.0], [0.0, 0.0, 0.0], 3.0, "worse"),
        # Differences 0, 1, 2: mean 1 is within 4.3 times 0.577.
        ([0.0, 1.0, 2.0], [0.0, 0.0, 0.0], 1.0, "tie"),
        # Differences 0 and 2: mean 1, standard error 1.
        ([0.0, 2.0], [0.0, 0.0], 1.0, "tie"),
        # The seeds differ widely but always by the same: paired, that is clear.
        ([10.0, 20.0, 30.0], [10.5, 20.5, 30.5], -0.5, "better"),
        ([1.0, 2.0], [1.0, 2.0], 0.0, "tie"),
        ([1.0], [2.0], -1.0, "one seed"),
        ([1.0, None], [1.0, 2.0], None, "worse"),
        ([1.0, 2.0], [None, 2.0], None, "better"),
        ([1.0, None], [None, 2.0], None, "diverged"),
    ],
)
def test_verdict(first: list[float | None], second: list[float | None], difference: float | None, verdict: str) -> None:
    comparison = compare(first, second)
    assert comparison.difference.mean == difference
    assert comparison.verdict == verdict


def test_the_border_with_two_seeds() -> None:
    """Differences d - 1 and d + 1 have mean d and standard error 1, of which two seeds need 12.706."""
    assert compare([11.70, 13.70], [0.0, 0.0]).verdict == "tie"
    assert compare([11.71, 13.71], [0.0, 0.0]).verdict == "worse"
    assert compare([11.71, 13.71], [0.0, 0.0], lower_is_better=False).verdict == "better"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (Estimate(1.57412, 0.00213), "1.5741 ± 0.0021"),
        (Estimate(0.1, 0.03), "0.100 ± 0.030"),
        (Estimate(123.4, 56.7), "123 ± 57"),
        (Estimate(1.5, None), "1.500"),
        (Estimate(0.0123456, None), "0.01235"),
        (Estimate(0.0, 0.0), "0.000 ± 0.000"),
        (Estimate(None, None), "diverged"),
    ],
)
def test_shown_with_two_digits_of_the_standard_error(shown: Estimate, text: str) -> None:
    assert str(shown) == text


def test_shown_with_a_sign_and_no_more_decimals_than_wanted() -> None:
    assert Estimate(0.09274, 0.00078).shown("+", most_decimals=4) == "+0.0927 ± 0.0008"
    assert Estimate(-0.09274, 0.00078).shown("+") == "-0.09274 ± 0.00078"
