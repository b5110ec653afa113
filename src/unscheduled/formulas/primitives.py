"""The elementwise primitives: what a direction may use beside ``+ - * /`` and comparisons. The set is closed.

A rule names them, and each lowering supplies their meaning for its own kind of array. Only three need one:

- :func:`sqrt` and :func:`where`: an array has methods of these names, as a tensor has them;
- :func:`sign`, where a compiler types the numbers.

The others are defined by these, so they are the same in every lowering, bit for bit. Infinity and NaN are not hidden.
"""

import math
from typing import Any


def sqrt(value: Any) -> Any:
    """The square root of a float or of the elements of an array.

    Example:
        >>> sqrt(0.25)
        0.5
    """
    return math.sqrt(value) if isinstance(value, (int, float)) else value.sqrt()


def where(condition: Any, some: Any, other: Any) -> Any:
    """``some`` where the condition holds, else ``other``. Both are computed.

    Args:
        condition: a comparison: True, False or an array of these.
        some: a float or an array.
        other: likewise. One of the two is an array if the condition is one.

    Example:
        >>> where(1.0 < 2.0, 3.0, 4.0)
        3.0
    """
    if isinstance(condition, bool):
        return some if condition else other
    return other.where(~condition, some) if isinstance(some, (int, float)) else some.where(condition, other)


def sign(value: Any) -> Any:
    """The sign, -1, 0 or 1. Infinity and NaN have the sign NaN.

    Example:
        >>> sign(-0.25), sign(0.0), sign(3.0)
        (-1.0, 0.0, 1.0)
    """
    zero = value - value  # a literal times a condition would have torch's default dtype
    return (zero + (value > 0.0)) - (zero + (value < 0.0))


def minimum(some: Any, other: Any) -> Any:
    """The smaller of two values, ``some`` if they are equal, and NaN if one is NaN.

    Example:
        >>> minimum(1.0, 2.0)
        1.0
    """
    return where(other < some, other, where(other >= some, some, some + other))


def maximum(some: Any, other: Any) -> Any:
    """The larger of two values, ``some`` if they are equal, and NaN if one is NaN.

    Example:
        >>> maximum(1.0, 2.0)
        2.0
    """
    return where(other > some, other, where(other <= some, some, some + other))


def clip(value: Any, lowest: Any, highest: Any) -> Any:
    """The value, but at least ``lowest`` and at most ``highest``, where ``highest`` has the last word.

    Example:
        >>> clip(3.0, -1.0, 1.0)
        1.0
    """
    return minimum(maximum(value, lowest), highest)
