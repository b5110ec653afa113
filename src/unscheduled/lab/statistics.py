"""Means over seeds, and which contender is better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["better", "tie", "worse", "diverged", "one seed"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard error (of the mean, n - 1 in the variance); None where there is none."""

    mean: float | None
    standard_error: float | None

    def __str__(self) -> str:
        return self.shown()

    def decimals(self) -> int:
        """As many as show two digits of the standard error, or four digits of the mean if there is none."""
        size = self.standard_error or abs(self.mean or 1.0) / 100 or 1.0
        return max(0, 1 - math.floor(math.log10(size)))

    def shown(self, sign: str = "", most_decimals: int = 12) -> str:
        """As text; ``sign="+"`` shows the sign of a positive mean too."""
        if self.mean is None:
            return "diverged"
        digits = min(self.decimals(), most_decimals)
        mean = f"{self.mean:{sign}.{digits}f}"
        return mean if self.standard_error is None else f"{mean} ± {self.standard_error:.{digits}f}"


@dataclass(frozen=True)
class Comparison:
    """The mean of first - second over the seeds (negative: the first is better, lower values being better)."""

    difference: Estimate
    verdict: Verdict


def estimate(values: Sequence[float | None]) -> Estimate:
    """The estimate from one value a seed; None is a run that diverged, and leaves no mean."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values) or not finite:
        return Estimate(None, None)
    mean = math.fsum(finite) / len(finite)
    if len(finite) == 1:
        return Estimate(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in finite) / (len(finite) - 1)
    return Estimate(mean, math.sqrt(variance / len(finite)))


def compare(first: Sequence[float | None], second: Sequence[float | None]) -> Comparison:
    """Compare two contenders seed by seed: a pair shares initial weights and batches.

    The first is better or worse when the mean difference is more than two standard errors from 0, and otherwise it
    is a tie. A contender that diverged with any seed is worse than one that did not.
    """
    first_diverged, second_diverged = None in first, None in second
    if first_diverged or second_diverged:
        both = first_diverged and second_diverged
        return Comparison(Estimate(None, None), "diverged" if both else "worse" if first_diverged else "better")
    difference = estimate([a - b for a, b in zip(first, second, strict=True) if a is not None and b is not None])
    if difference.mean is None or difference.standard_error is None:
        return Comparison(difference, "one seed")
    if abs(difference.mean) <= 2 * difference.standard_error:
        return Comparison(difference, "tie")
    return Comparison(difference, "better" if difference.mean < 0 else "worse")
