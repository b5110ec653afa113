"""Parameters that are z while a wrapped optimizer makes its step."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor
from torch.nn import Parameter

from unscheduled.formulas import iterates
from unscheduled.state.buffers import wide
from unscheduled.state.parameter import State, bits_of_y, state_dtype


class Loan:
    """A parameter that is z for the step of the base, as a tensor of its own in the precision of the state.

    Where that is another than the parameter's, or its gradient's, a parameter of that precision stands in for it: in
    another precision, it would lose what hangs on its gradient, as data parallelism does. What is no plain tensor (a
    DTensor has its memory elsewhere) is z in its own memory and precision, and y again afterwards.

    A stand-in is the same object in every step, since the base may know its parameters by what they are or by their
    ids. Between the steps it has no memory.
    """

    def __init__(self, param: Tensor, state: State, beta: float, stand_ins: dict[Tensor, Parameter]) -> None:
        self.param, self.z = param, param
        self._state, self._beta = state, beta
        self._grad, self._is_plain = cast(Tensor, param.grad), type(param) in (Tensor, Parameter)
        z = self._base_iterate(param)
        if not self._is_plain:
            self._y = param.detach().clone()
            param.copy_(z)
            return
        self._y = param.data
        if param.dtype == self._grad.dtype == z.dtype and param not in stand_ins:
            param.data = z
        else:
            self._version = param._version
            grad = self._grad.to(z.dtype)
            if param not in stand_ins:
                stand_ins[param] = Parameter(torch.empty(0, dtype=z.dtype, device=z.device))
            self.z = stand_ins[param].requires_grad_(param.requires_grad)
            vars(self.z).update(vars(param))
            self.z.data = z
            self.z.grad = grad

    def _base_iterate(self, y: Tensor) -> Tensor:
        """z, a new tensor in the precision of the state."""
        if not self._state:
            return y.detach().to(state_dtype(y), copy=True)
        bits = bits_of_y(y, self._state) if "low" in self._state else y.detach()
        return iterates.base(bits.to(state_dtype(y)), wide(self._state, "gap"), self._beta).to(state_dtype(y))

    def move(self) -> Tensor:
        """Return what the base has subtracted from z, in the precision of the state; a plain z lends it its memory.

        Raises:
            RuntimeError: if the base has written to a parameter for which another stands in.
        """
        if self.z is not self.param and self.param._version != self._version:
            raise RuntimeError(
                f"the base wrote to a parameter of {self.param.dtype}, for which one of {self.z.dtype} stands in, as "
                "one does that keeps parameters beside its param_groups: these weights are lost. Wrap it with "
                "parameters of float32"
            )
        before, z = self._base_iterate(self._y), self.z.detach()
        if self._is_plain:
            self.z.grad = None  # it may be a copy
            return torch.sub(before, z, out=z)
        return before.to(z.dtype).to(before.dtype) - z

    def give_back(self) -> None:
        """Make the parameter y again, bit for bit."""
        if not self._is_plain:
            self.param.copy_(self._y)
        elif self.z is self.param:
            self.param.data = self._y
        else:
            self.z.grad, self.z.data = None, torch.empty(0, dtype=self.z.dtype, device=self.z.device)
            vars(self.param).update(vars(self.z))  # what the base has noted on it
        self.param.grad = self._grad


@contextmanager
def lent(base: torch.optim.Optimizer, stand_ins: dict[Tensor, Tensor]) -> Generator[None, None, None]:
    """Within the ``with`` block the base has other parameters in place of some, with the state of these."""
    lists = [group["params"] for group in base.param_groups]
    if not stand_ins:
        yield
        return
    try:
        for group, params in zip(base.param_groups, lists, strict=True):
            group["params"] = [stand_ins.get(param, param) for param in params]
        for param, other in stand_ins.items():
            if param in base.state:
                base.state[other] = base.state.pop(param)
        yield
    finally:
        for group, params in zip(base.param_groups, lists, strict=True):
            group["params"] = params
        for param, other in stand_ins.items():
            if other in base.state:
                base.state[param] = base.state.pop(other)


def widen(base: torch.optim.Optimizer, params: Iterable[Tensor]) -> None:
    """Keep what the base has for parameters of 16 bits in the precision of their z."""
    for param in params:
        state: State = base.state.get(param) or {}
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dtype == param.dtype != state_dtype(param):
                state[name] = value.to(state_dtype(param))


def narrow(base: torch.optim.Optimizer, params: Iterable[Tensor]) -> None:
    """Undo :func:`widen`: keep it in the precision of the parameters, as the base does by itself."""
    for param in params:
        state: State = base.state.get(param) or {}
        for name, value in state.items():
            is_wide = isinstance(value, Tensor) and value.dtype == state_dtype(param) != param.dtype
            if is_wide and (value.dim() or value.shape == param.shape):  # others are counts and scalars of the base
                state[name] = value.to(param.dtype)
