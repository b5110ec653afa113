"""fashion-resnet: a small residual network with BatchNorm tells pieces of clothing apart."""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unscheduled.lab.data import load
from unscheduled.lab.task import OptimizerSettings, Task

BATCH_SIZE = 32
TRAINING, HELD_OUT = 10_000, 1000
WIDTHS = 8, 16, 32


class Block(nn.Module):
    """Two convolutions with BatchNorm, added to the input; with another number of channels it halves the image."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        stride = 1 if width == channels else 2
        self.first = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(channels, width, 1, stride=stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first_norm(self.first(x)).relu()
        return (self.shortcut(x) + self.second_norm(self.second(inner))).relu()


def model() -> nn.Module:
    """Images (batch, 1, 28, 28) to logits (batch, 10)."""
    first, second, third = WIDTHS
    return nn.Sequential(
        nn.Conv2d(1, first, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        Block(first, first),
        Block(first, second),
        Block(second, third),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(third, 10),
    )


@functools.cache
def clothes(part: str, size: int) -> tuple[Tensor, Tensor]:
    """The same ``size`` random images (size, 1, 28, 28), from 0 to 1, and labels of the official part."""
    data = load("fashion-mnist")
    images, targets = torch.tensor(data[f"{part}_images"]), torch.tensor(data[f"{part}_labels"])
    chosen = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))[:size]
    return images[chosen].unsqueeze(1) / 255, targets[chosen]


def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch of the training images."""
    images, targets = clothes("train", TRAINING)
    while True:
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            yield images[chosen], targets[chosen]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The cross-entropy of the piece of clothing."""
    return functional.cross_entropy(model(batch[0]), batch[1])


def held_out(model: nn.Module) -> dict[str, float]:
    """Loss and share of errors over the test images that are used."""
    images, targets = clothes("test", HELD_OUT)
    logits = model(images)
    return {
        "loss": functional.cross_entropy(logits, targets).item(),
        "error": (logits.argmax(1) != targets).float().mean().item(),
    }


def facts() -> dict[str, Any]:
    """The size of the data and its checksum, and how the weight decay was chosen."""
    tensors = *clothes("train", TRAINING), *clothes("test", HELD_OUT)
    sha256 = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
    return {
        "training images": TRAINING,
        "test images": HELD_OUT,
        "data sha256": sha256,
        "weight decay of AdamW": "0.02: the best of 0.004, 0.02 and 0.1 with cosine decay, seeds 2000 to 2005",
        "weight decay of SGD": "0.0002: the best of 0.00005, 0.0002 and 0.001 with cosine decay, seeds 2000 and 2001",
    }


ADAMW: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": 0.02}
task = Task(
    summary="a residual network of 20,000 parameters, with BatchNorm, on 10,000 images of Fashion-MNIST",
    model=model,
    batches=batches,
    loss=loss,
    metric=held_out,
    metric_name="test cross-entropy",
    steps=600,
    warmup_steps=30,
    optimizers={
        "AdamW": OptimizerSettings((0.004, 0.008, 0.016), ADAMW),
        "AdamWScheduleFree": OptimizerSettings((0.008, 0.016, 0.032), ADAMW),
        "SGD": OptimizerSettings((0.01, 0.03, 0.1), {"momentum": 0.9, "weight_decay": 0.0002}),
        "SGDScheduleFree": OptimizerSettings((0.3, 1.0, 3.0), {"weight_decay": 0.0002}),
    },
    evaluations=14,
    seeds=5,
    facts=facts,
    data=("fashion-mnist",),
)
