"""A small problem: a network, and batches in a loader that may be taken up in the middle."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

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
