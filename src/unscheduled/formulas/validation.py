"""Checks of arguments: each error states name = value, the allowed range and the remedy."""

import math
from numbers import Real
from typing import Any


def require_within(interval: str, name: str, value: Any, remedy: str) -> None:
    """Raise ValueError unless ``value`` is a number in ``interval``, given in mathematical notation such as "[0, 1)".

    NaN is in no interval.

    Example:
        >>> require_within("[0, 1)", "beta", 0.9, "use 0.9")
        >>> require_within("[0, 1)", "beta", 1.0, "use 0.9")
        Traceback (most recent call last):
        ...
        ValueError: beta = 1.0 is outside [0, 1): use 0.9
    """
    require_number(name, value, remedy)
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        raise ValueError(f"{name} = {value} is outside {interval}: {remedy}")


def require_count(least: int, name: str, value: Any, remedy: str) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``least``.

    Example:
        >>> require_count(0, "warmup_steps", 0.05, "give the number of steps, not a fraction")
        Traceback (most recent call last):
        ...
        ValueError: warmup_steps = 0.05 is no integer >= 0: give the number of steps, not a fraction
    """
    require_number(name, value, remedy)
    if isinstance(value, bool) or not math.isfinite(value) or value != int(value) or value < least:
        raise ValueError(f"{name} = {value} is no integer >= {least}: {remedy}")


def require_number(name: str, value: Any, remedy: str) -> None:
    """Raise ValueError unless ``value`` is a real number; a string is not.

    Example:
        >>> require_number("lr", "1e-3", "use 0.001")
        Traceback (most recent call last):
        ...
        ValueError: lr = '1e-3' is not a number: use 0.001
    """
    if not isinstance(value, Real):
        raise ValueError(f"{name} = {value!r} is not a number: {remedy}")
