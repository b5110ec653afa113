"""Whether what two runs leave is the same, to the last bit."""

from typing import Any

import torch
from torch import Tensor, nn


def same(some: Any, other: Any) -> bool:
    """Whether two state dicts, or other contents of files, are equal."""
    if isinstance(some, Tensor):
        return some.dtype == other.dtype and torch.equal(some, other)
    if isinstance(some, dict):
        return some.keys() == other.keys() and all(same(some[key], other[key]) for key in some)
    if isinstance(some, list | tuple):
        return len(some) == len(other) and all(map(same, some, other))
    return some == other


def equal(model: nn.Module, expected: nn.Module | dict[str, Tensor]) -> bool:
    """Whether the parameters themselves, not the state dict, are the expected ones."""
    if isinstance(expected, nn.Module):
        expected = dict(expected.named_parameters())
    return same(dict(model.named_parameters()), expected)
