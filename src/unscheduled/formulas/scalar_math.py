"""Decisions and functions on numbers, for formulas that hold on the host and on a device alike.

A plain number is decided on at once. The host does not know a number that stands on a device, in a tensor of no
dimensions, so that a formula cannot branch on it: both branches are computed, and the device takes one. How it does is
registered by :mod:`unscheduled.state.device_math`, since the mathematics knows no tensors.
"""

import functools
import math
from collections.abc import Callable
from typing import Any


def where(condition: Any, some: Any, other: Any) -> Any:
    """``some`` where the condition holds, else ``other``. Both are computed, so neither may raise.

    Example:
        >>> where(1 < 2, 3.0, 4.0)
        3.0
    """
    if not isinstance(condition, bool):
        for kind, where_of_kind in KINDS:
            if isinstance(condition, kind):
                return where_of_kind(condition, some, other)
    return some if condition else other


KINDS: list[tuple[type, Callable[[Any, Any, Any], Any]]] = []
"""The types of conditions on a device, each with its :func:`where`: a list, since torch.compile looks into it."""


def minimum(some: Any, other: Any) -> Any:
    """The smaller of two numbers, as ``min`` gives it.

    Example:
        >>> minimum(1, 2.0)
        1
    """
    return where(other < some, other, some)


def maximum(some: Any, other: Any) -> Any:
    """The larger of two numbers, as ``max`` gives it.

    Example:
        >>> maximum(1, 2.0)
        2.0
    """
    return where(other > some, other, some)


@functools.singledispatch
def sqrt(number: Any) -> Any:
    """The square root, as ``math.sqrt`` gives it.

    Example:
        >>> sqrt(0.25)
        0.5
    """
    return math.sqrt(number)


@functools.singledispatch
def expm1(number: Any) -> Any:
    """e^number - 1, as ``math.expm1`` gives it.

    Example:
        >>> expm1(0.0)
        0.0
    """
    return math.expm1(number)
