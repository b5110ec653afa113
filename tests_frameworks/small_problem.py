"""A small problem: a network, and batches in a loader that may be taken up in the middle; and what is compared."""

import copy
from collections.abc import Iterator

import torch
from problems import same
from torch import Tensor, nn

from unscheduled import ScheduleFreeOptimizer

PER_EPOCH = 6


def batch(index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)


class Batches:
    """A loader of these batches, or of an epoch's, which Lightning may take up in the middle."""

    def __init__(self, *indices: int) -> None:
        self.indices = indices or range(1, PER_EPOCH + 1)
        self.given = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.given %= len(self)
        while self.given < len(self):
            self.given += 1
            yield batch(self.indices[self.given - 1])

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


def net() -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def holds(model: nn.Module, expected: nn.Module | dict[str, Tensor]) -> bool:
    """Whether the parameters themselves, not the state dict, are the expected ones, bit for bit."""
    wanted = dict(expected.named_parameters()) if isinstance(expected, nn.Module) else expected
    return same(dict(model.named_parameters()), wanted)


def averages(model: nn.Module, optimizer: ScheduleFreeOptimizer) -> dict[str, Tensor]:
    """x of the parameters, as ``iterates`` tells it; those of no optimizer are what they are."""
    found = {name: param.detach() for name, param in model.named_parameters()}
    trained = {param for group in optimizer.param_groups for param in group["params"]}
    return found | {name: optimizer.iterates(p).x for name, p in model.named_parameters() if p in trained}


@torch.no_grad()
def average_of(model: nn.Module, optimizer: ScheduleFreeOptimizer) -> nn.Module:
    """A copy of a plain model in eval mode, at x: nothing is switched for it."""
    average = copy.deepcopy(model).eval()
    for name, x in averages(model, optimizer).items():
        average.get_parameter(name).copy_(x)
    return average
