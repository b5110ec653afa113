"""Lists of tensors as arrays of a definition, so that it takes a few launches for all of them."""
# torch publishes its foreach operations under names with an underscore:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor


class Lists:
    """Lists of tensors as arrays of a definition: arithmetic, comparisons and the primitives, each a new list."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __neg__(self) -> Lists:
        return Lists(list(torch._foreach_neg(self.tensors)))

    def __add__(self, other: Any) -> Lists:
        return Lists(list(torch._foreach_add(self.tensors, _plain(other))))

    def __sub__(self, other: Any) -> Lists:
        return Lists(list(torch._foreach_sub(self.tensors, _plain(other))))

    def __mul__(self, other: Any) -> Lists:
        return Lists(list(torch._foreach_mul(self.tensors, _plain(other))))

    def __truediv__(self, other: Any) -> Lists:
        return Lists(list(torch._foreach_div(self.tensors, _plain(other))))

    __radd__, __rmul__ = __add__, __mul__

    def sqrt(self) -> Lists:
        """The square roots."""
        return Lists(list(torch._foreach_sqrt(self.tensors)))

    # What torch has on single tensors only.

    def _each(self, function: Callable[..., Tensor], *others: Any) -> Lists:
        columns = [each.tensors if isinstance(each, Lists) else [each] * len(self.tensors) for each in others]
        return Lists(list(map(function, self.tensors, *columns)))

    def __rsub__(self, other: Any) -> Lists:
        return self._each(torch.rsub, other)

    def __rtruediv__(self, other: Any) -> Lists:
        return self._each(Tensor.__rtruediv__, other)

    def __lt__(self, other: Any) -> Lists:
        return self._each(operator.lt, other)

    def __le__(self, other: Any) -> Lists:
        return self._each(operator.le, other)

    def __gt__(self, other: Any) -> Lists:
        return self._each(operator.gt, other)

    def __ge__(self, other: Any) -> Lists:
        return self._each(operator.ge, other)

    def __eq__(self, other: object) -> Lists:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._each(operator.eq, other)

    def __ne__(self, other: object) -> Lists:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._each(operator.ne, other)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a direction branches on an element, as if, min and max do: use where, minimum and maximum of "
            "unscheduled.formulas.primitives"
        )

    def __invert__(self) -> Lists:
        return self._each(torch.logical_not)

    def where(self, condition: Lists, other: Any) -> Lists:
        """These where the condition holds, else the other."""
        return self._each(Tensor.where, condition, other)


def _plain(other: Any) -> Any:
    return other.tensors if isinstance(other, Lists) else other
