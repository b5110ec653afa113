"""Which gradients were taken while the parameters held x: they are of no use for a step, which is made from y."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import TensorWeakRef


class Seen(NamedTuple):
    """A gradient, and how often it had been written."""

    grad: TensorWeakRef
    version: int


class GradientWatch:
    """Watches the gradients of parameters as long as they hold x, by hooks that are there only then."""

    def __init__(self) -> None:
        self._before: dict[Tensor, Seen | None] = {}  # parameters that hold x: the gradient from before
        self._accumulated: set[int] = set()  # ids of those that a backward pass has come to since
        self.at_average: dict[Tensor, TensorWeakRef] = {}
        """Parameters that hold y again, and gradients of theirs that were taken at x."""
        self._hooks: dict[Tensor, RemovableHandle] = {}

    def watch(self, at_x: set[Tensor]) -> None:
        """From here on these parameters hold x, and the others y."""
        for param in at_x - self._before.keys():
            self._before[param] = None if param.grad is None else Seen(TensorWeakRef(param.grad), param.grad._version)
            if param.requires_grad:
                self._hook(param, cast(Any, param).register_post_accumulate_grad_hook(_adding_to(self._accumulated)))
        for param in self._before.keys() - at_x:
            before, grad = self._before.pop(param), param.grad
            if grad is not None and not self._is_untouched(param, grad, before) and not _is_zero(grad):
                self.at_average[param] = TensorWeakRef(grad)
            self._hook(param, None)
            self._accumulated.discard(id(param))
            if param in self.at_average and param.requires_grad:
                self._hook(param, cast(Any, param).register_hook(_forgetting_if_zeroed(self, param)))

    def taken_at_average(self) -> list[Tensor]:
        """The parameters whose gradient has a part that was taken at x, whatever was done to it since."""
        return [
            param
            for param, taken in self.at_average.items()
            if param.grad is not None and taken() is param.grad and not _is_zero(param.grad)
        ]

    def forget(self, params: list[Tensor] | None = None) -> None:
        """The gradients of these, or of all, are gone."""
        for param in list(self.at_average) if params is None else params:
            self.at_average.pop(param, None)
            if param not in self._before:
                self._hook(param, None)

    def _is_untouched(self, param: Tensor, grad: Tensor, before: Seen | None) -> bool:
        """Whether no backward pass has come to the gradient of a parameter since."""
        if before is None or before.grad() is not grad or id(param) in self._accumulated:
            return False
        return param in self._hooks or before.version == grad._version  # it was frozen, and may be so no longer

    def _hook(self, param: Tensor, handle: RemovableHandle | None) -> None:
        """The hook of a parameter instead of the one that it has."""
        if param in self._hooks:
            self._hooks.pop(param).remove()
        if handle is not None:
            self._hooks[param] = handle


def _adding_to(found: set[int]) -> Callable[[Tensor], None]:
    """A hook after accumulation: it notes the parameter's id, and keeps neither the parameter nor the watch alive."""
    return lambda param: found.add(id(param))


def _forgetting_if_zeroed(watch: GradientWatch, param: Tensor) -> Callable[[Tensor], None]:
    """A hook before accumulation: a gradient that was zeroed in place has nothing of x, and is about to change."""
    its_watch, itself = weakref.ref(watch), TensorWeakRef(param)

    def hook(_: Tensor) -> None:
        watch, param = its_watch(), itself()
        if watch is not None and param is not None and param.grad is not None and _is_zero(param.grad):
            watch.forget([param])

    return hook


def _is_zero(grad: Tensor) -> bool:
    """Whether it is all 0, as after zero_grad(set_to_none=False)."""
    return not bool((grad.coalesce().values() if grad.is_sparse else grad).any())
