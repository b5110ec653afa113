"""The workloads: lists of shapes, their parameters, and a backward pass that computes new gradients."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Workload(NamedTuple):
    """A list of shapes of parameters, and the names of the contenders that race on them."""

    name: str
    shapes: tuple[Shape, ...]
    contenders: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """The number of elements of all parameters."""
        return sum(map(math.prod, self.shapes))


def equal_tensors(tensors: int, parameters: int) -> tuple[Shape, ...]:
    """The shapes of flat tensors of equal size, with this many parameters in all."""
    return ((parameters // tensors,),) * tensors


def resnet50() -> tuple[Shape, ...]:
    """The shapes of the 161 tensors of a ResNet-50."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for shape in ((width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, shape[:1], shape[:1]]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return (*shapes, (1000, channels), (1000,))


def gpt2_small() -> tuple[Shape, ...]:
    """The shapes of the 148 tensors of GPT-2 small."""
    width = 768
    norm: tuple[Shape, ...] = ((width,), (width,))
    attention: tuple[Shape, ...] = ((width, 3 * width), (3 * width,), (width, width), (width,))
    perceptron: tuple[Shape, ...] = ((width, 4 * width), (4 * width,), (4 * width, width), (width,))
    return ((50_257, width), (1024, width), *(norm + attention + norm + perceptron) * 12, *norm)


def initial(index: int, shape: Shape) -> Tensor:
    """The initial values of the parameter with this index, the same for every contender."""
    return torch.empty(shape).uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(index))


def fresh_parameters(shapes: tuple[Shape, ...]) -> list[Tensor]:
    """New parameters of these shapes with their initial values."""
    return [initial(index, shape).requires_grad_() for index, shape in enumerate(shapes)]


class Gradients:
    """Computes gradients of the loss sum(weight · parameter) · factor at every step, in new memory.

    The weights are views of one array, and between 0.5 and 1.5 in size, so that every parameter moves.
    """

    def __init__(self, shapes: tuple[Shape, ...]) -> None:
        size = max(map(math.prod, shapes))
        weights = initial(len(shapes), (size,))
        weights += torch.where(weights < 0.0, -0.5, 0.5)
        self._weights = [weights[: math.prod(shape)].view(shape) for shape in shapes]

    def compute(self, optimizer: torch.optim.Optimizer, params: list[Tensor], step: int) -> None:
        """Drop the gradients of the step before, and compute those of this step by a backward pass."""
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros(())
        for param, weight in zip(params, self._weights, strict=True):
            loss = loss + (param * weight).sum()
        (loss * (1.5 + math.cos(step))).backward()
