"""Means over seeds, and comparisons of two contenders."""
# scipy has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

Verdict = Literal["better", "tie", "worse", "diverged", "one seed"]

LEVEL = 0.95
"""The confidence level of a comparison."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds (None if a run diverged) and its standard error, n - 1 in the variance (None for one seed)."""

    mean: float | None
    standard_error: float | None

    def __str__(self) -> str:
        return self.shown()

    def decimals(self) -> int:
        """The decimals that show two digits of the standard error, or four digits of the mean if there is none."""
        size = self.standard_error or abs(self.mean or 1.0) / 100 or 1.0
        return max(0, 1 - math.floor(math.log10(size)))

    def shown(self, sign: str = "", most_decimals: int = 12) -> str:
        """The estimate as text; ``sign="+"`` shows the sign of a positive mean too."""
        if self.mean is None:
            return "diverged"
        digits = min(self.decimals(), most_decimals)
        mean = f"{self.mean:{sign}.{digits}f}"
        return mean if self.standard_error is None else f"{mean} ± {self.standard_error:.{digits}f}"


@dataclass(frozen=True)
class Comparison:
    """The mean of first - second over the seeds, the half-width of its 95% interval, and the verdict on the first."""

    difference: Estimate
    half_width: float | None
    verdict: Verdict


def estimate(values: Sequence[float | None]) -> Estimate:
    """The estimate from one value for each seed; with a diverged run, whose value is None, there is no mean."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values) or not finite:
        return Estimate(None, None)
    mean = math.fsum(finite) / len(finite)
    if len(finite) == 1:
        return Estimate(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in finite) / (len(finite) - 1)
    return Estimate(mean, math.sqrt(variance / len(finite)))


def t_quantile(seeds: int) -> float:
    """The half-width of the 95% interval of a mean over this many seeds, in standard errors (Student's t)."""
    return float(stats.t.ppf(0.5 + LEVEL / 2, seeds - 1))


def compare(first: Sequence[float | None], second: Sequence[float | None], lower_is_better: bool = True) -> Comparison:
    """Compare two contenders seed by seed, since the runs of a seed share initial weights and batches.

    The first is better or worse when the 95% interval of the mean difference (Student's t for the number of seeds)
    does not contain 0; otherwise it is a tie. If one of the two diverged with any seed, it is the worse one.
    """
    first_diverged, second_diverged = None in first, None in second
    if first_diverged or second_diverged:
        both = first_diverged and second_diverged
        return Comparison(Estimate(None, None), None, "diverged" if both else "worse" if first_diverged else "better")
    differences = [a - b for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    difference = estimate(differences)
    if difference.mean is None or difference.standard_error is None:
        return Comparison(difference, None, "one seed")
    half_width = t_quantile(len(differences)) * difference.standard_error
    if abs(difference.mean) <= half_width:
        return Comparison(difference, half_width, "tie")
    return Comparison(difference, half_width, "better" if (difference.mean < 0) == lower_is_better else "worse")


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of numbers above 0."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))
