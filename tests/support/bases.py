"""Optimizers to wrap, each with shapes that it supports and a learning rate that suits random gradients."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lion_pytorch
import prodigyopt
import pytest
import torch
from problems import copies, make_params
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from unscheduled import ScheduleFreeWrapper


@dataclass(frozen=True)
class Base:
    """An optimizer to wrap."""

    cls: Callable[..., Optimizer]
    arguments: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ((4, 3), (7,))
    copies: bool = True  # whether a deep copy of it works

    def make(self, params: Any, **arguments: Any) -> Optimizer:
        return self.cls(params, **self.arguments | arguments)

    def params(self, dtype: torch.dtype = torch.float32) -> list[Parameter]:
        return make_params(*self.shapes, dtype=dtype)


BASES = {
    "SGD": Base(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "Adam": Base(torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    "AdamW": Base(torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "NAdam": Base(torch.optim.NAdam, {"lr": 0.01}),
    "RAdam": Base(torch.optim.RAdam, {"lr": 0.01}),
    "Adamax": Base(torch.optim.Adamax, {"lr": 0.01}),
    "RMSprop": Base(torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "Adagrad": Base(torch.optim.Adagrad, {"lr": 0.05, "lr_decay": 0.1}),
    "Adadelta": Base(torch.optim.Adadelta, {"lr": 1.0}),
    "ASGD": Base(torch.optim.ASGD, {"lr": 0.05, "lambd": 0.1, "t0": 5}),
    "Rprop": Base(torch.optim.Rprop, {"lr": 0.01}),
    "Adafactor": Base(torch.optim.Adafactor, {"lr": 0.01, "weight_decay": 0.1}),
    "Lion": Base(lion_pytorch.Lion, {"lr": 0.003, "weight_decay": 0.1}, copies=False),
    "Prodigy": Base(prodigyopt.Prodigy, {"lr": 1.0, "d0": 0.01, "slice_p": 2}),
}
if hasattr(torch.optim, "Muon"):  # from torch 2.9 on
    BASES["Muon"] = Base(torch.optim.Muon, {"lr": 0.01}, ((4, 3), (2, 5)))

bases = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def kept(optimizer: ScheduleFreeWrapper) -> Any:
    """The parameters and both state dicts of a wrapper, to check that they do not change."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return copies(params), repr(optimizer.state_dict()), repr(optimizer.base.state_dict())


class CapturableSGD(Optimizer):
    """SGD with momentum, and Adam's count of steps, whose step may be captured on any device."""

    def __init__(self, params: Any, lr: float | Tensor, momentum: float = 0.5, capturable: bool = True) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "capturable": capturable})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float64, device=param.device)
                    state["momentum_buffer"] = torch.zeros_like(param)
                state["step"] += 1.0
                state["momentum_buffer"].mul_(group["momentum"]).add_(param.grad)
                unbiased = state["momentum_buffer"] / (1.0 - group["momentum"] ** state["step"])
                param.sub_(unbiased * group["lr"])
