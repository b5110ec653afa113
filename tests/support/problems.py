"""Random parameters and gradients, for steps without a model."""

import io
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from unscheduled import ScheduleFreeOptimizer


def make_params(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Parameter]:
    """Random parameters, the same at every call within a test."""
    generator = torch.Generator().manual_seed(1)
    return [Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes or ((4, 3), (7,))]


def set_gradients(params: Iterable[Tensor], step: int) -> None:
    """Set random gradients, which depend on the step and on the number of elements only."""
    for param in params:
        generator = torch.Generator().manual_seed(1000 * step + param.numel())
        exact = torch.complex128 if param.is_complex() else torch.float64
        gradient = torch.randn(param.shape, generator=generator, dtype=exact)
        param.grad = gradient.to(param.device, param.dtype)


def train(optimizer: ScheduleFreeOptimizer, steps: Iterable[int]) -> None:
    """Make steps with random gradients."""
    for step in steps:
        set_gradients([param for group in optimizer.param_groups for param in group["params"]], step)
        optimizer.step()


def copies(params: Iterable[Tensor]) -> list[Tensor]:
    return [param.detach().clone() for param in params]


def equal(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether all tensors are equal, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def same(some: Any, other: Any) -> bool:
    """Whether two values are equal, in all that dictionaries, lists and tuples hold; tensors bit for bit."""
    if isinstance(some, Tensor):
        return isinstance(other, Tensor) and some.dtype == other.dtype and torch.equal(some, other)
    if isinstance(some, dict):
        return some.keys() == other.keys() and all(same(some[key], other[key]) for key in some)
    if isinstance(some, (list, tuple)):
        return len(some) == len(other) and all(map(same, some, other))
    return bool(some == other)


def includes(some: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether a dictionary has the expected entries, maybe among others; tensors bit for bit."""
    return all(same(some[name], expected[name]) for name in expected)


def through_a_file(value: Any, weights_only: bool = True) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)
