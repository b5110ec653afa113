"""Decisions and functions on numbers, for formulas that hold on the host and on a device alike.

A plain number is decided on at once. One that stands on a device
(:class:`unscheduled.state.device_number.DeviceNumber`) is not known to the host, so a formula cannot branch on it: both
branches are computed, and the device takes one.
"""

import math
from typing import Any


def either(condition: Any, some: Any, other: Any) -> Any:
    """``some`` if the condition holds, else ``other``. Both are computed, so neither may raise.

    Example:
        >>> either(1 < 2, 3.0, 4.0)
        3.0
    """
    if isinstance(condition, bool) or not hasattr(condition, "either"):  # as NumPy's
        return some if condition else other
    return condition.either(some, other)


def least(some: Any, other: Any) -> Any:
    """The smaller of two numbers, as ``min`` gives it.

    Example:
        >>> least(1, 2.0)
        1
    """
    return either(other < some, other, some)


def greatest(some: Any, other: Any) -> Any:
    """The larger of two numbers, as ``max`` gives it.

    Example:
        >>> greatest(1, 2.0)
        2.0
    """
    return either(other > some, other, some)


def chosen(condition: Any, some: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """``some`` numbers if the condition holds, else the others of the same names.

    Example:
        >>> chosen(1 < 2, {"c": 0.5}, {"c": 0.0, "step": 1})
        {'c': 0.5}
    """
    if condition is True:
        return some
    return {name: either(condition, number, others[name]) for name, number in some.items()}


def sqrt(number: Any) -> Any:
    """The square root, as ``math.sqrt`` gives it.

    Example:
        >>> sqrt(0.25)
        0.5
    """
    return number.sqrt() if hasattr(number, "sqrt") else math.sqrt(number)


def expm1(number: Any) -> Any:
    """e^number - 1, as ``math.expm1`` gives it.

    Example:
        >>> expm1(0.0)
        0.0
    """
    return number.expm1() if hasattr(number, "expm1") else math.expm1(number)
