"""A number that stands on a device, and is never brought to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor


class DeviceNumber:
    """A float64 number, or a condition, in a tensor of no dimensions: arithmetic with it is arithmetic on its device.

    It takes the place of a Python float in the formulas of the averaging weight, the interpolation and the step size
    while a step is captured. What asks for its value, as ``if``, ``min`` and ``float`` do, is refused.

    Args:
        tensor: float64 or bool, of no dimensions.

    Example:
        >>> from unscheduled.formulas.scalar_math import greatest
        >>> number = DeviceNumber(torch.tensor(3.0, dtype=torch.float64))
        >>> greatest(1.0 / number, 0.5).tensor.item()
        0.5
        >>> max(1.0 / number, 0.5)
        Traceback (most recent call last):
        ...
        ValueError: an averaging or an interpolation decides by if, min or max, or with a function of Python, on a ...
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def _with(self, function: Callable[..., Any], *operands: Any) -> DeviceNumber:
        operands = tuple(each.tensor if isinstance(each, DeviceNumber) else each for each in operands)
        return DeviceNumber(function(*operands))

    # Arithmetic.

    def __neg__(self) -> DeviceNumber:
        return self._with(torch.neg, self)

    def __add__(self, other: Any) -> DeviceNumber:
        return self._with(torch.add, self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> DeviceNumber:
        return self._with(torch.sub, self, other)

    def __rsub__(self, other: Any) -> DeviceNumber:
        return self._with(torch.rsub, self, other)

    def __mul__(self, other: Any) -> DeviceNumber:
        return self._with(torch.mul, self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> DeviceNumber:
        return self._with(torch.div, self, other)

    def __rtruediv__(self, other: Any) -> DeviceNumber:
        return self._with(torch.div, self._like_this(other), self)

    def __pow__(self, other: Any) -> DeviceNumber:
        return self._with(torch.pow, self, other)

    def __rpow__(self, other: Any) -> DeviceNumber:
        return self._with(torch.pow, other, self)

    def sqrt(self) -> DeviceNumber:
        """The square root."""
        return self._with(torch.sqrt, self)

    def expm1(self) -> DeviceNumber:
        """e^number - 1."""
        return self._with(torch.expm1, self)

    # Conditions.

    def __lt__(self, other: Any) -> DeviceNumber:
        return self._with(torch.lt, self, other)

    def __le__(self, other: Any) -> DeviceNumber:
        return self._with(torch.le, self, other)

    def __gt__(self, other: Any) -> DeviceNumber:
        return self._with(torch.gt, self, other)

    def __ge__(self, other: Any) -> DeviceNumber:
        return self._with(torch.ge, self, other)

    def __eq__(self, other: object) -> DeviceNumber:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._with(torch.eq, self, other)

    def either(self, some: Any, other: Any) -> DeviceNumber:
        """``some`` where this condition holds, else ``other``."""
        return self._with(torch.where, self, self._like_this(some), self._like_this(other))

    def _like_this(self, number: Any) -> Tensor:
        """A number as a tensor on the same device: filled there, since a copy from the host would wait for it."""
        if isinstance(number, DeviceNumber):
            return number.tensor
        return torch.full((), cast(float, number), dtype=torch.float64, device=self.tensor.device)

    # What would bring it to the host.

    def _refuse(self, *others: Any) -> NoReturn:
        raise ValueError(
            "an averaging or an interpolation decides by if, min or max, or with a function of Python, on a number of "
            "the device: use either, least and greatest of unscheduled.formulas.scalar_math, or capturable=False"
        )

    __bool__ = __float__ = __int__ = __index__ = __abs__ = __round__ = _refuse
    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __and__ = __rand__ = __or__ = __ror__ = _refuse


def as_tensor(number: float | DeviceNumber, device: torch.device) -> Tensor:
    """A number, or a condition as 0 or 1, as a float64 tensor on a device, without a copy from the host."""
    if isinstance(number, DeviceNumber):
        return number.tensor.to(torch.float64)
    return torch.full((), number, dtype=torch.float64, device=device)
