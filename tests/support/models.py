"""A model to train, and helpers to train, compare and save it."""

import copy
from typing import Any

import torch
from registry import OptimizerInfo
from torch import nn

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer


class Net(nn.Module):
    """Two layers, a tied weight, BatchNorm and a weight without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.norm(self.first(inputs)))) * self.frozen


def backward(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 4, generator=generator).to(next(model.parameters()).dtype)
    model(inputs).square().mean().backward()


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def trained(info: OptimizerInfo, steps: int = 5, attach: bool = True) -> tuple[Net, ScheduleFreeOptimizer]:
    torch.manual_seed(7)
    model = Net()
    optimizer = info.make(model.parameters())
    if attach:
        assert optimizer.attach(model) is optimizer
    fit(model, optimizer, range(steps))
    return model, optimizer


def at_average(model: nn.Module, optimizer: ScheduleFreeOptimizer) -> dict[str, Any]:
    with optimizer.averaged_parameters():
        return copy.deepcopy(dict(model.named_parameters(remove_duplicate=False)))


ADAMW = OptimizerInfo(AdamWScheduleFree, "adamw", 0.1, None, (), (), frozenset())
