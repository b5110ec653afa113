"""fashion-resnet: a small residual network with BatchNorm tells clothes apart: the paper's ImageNet in small.

The weight decay was chosen for AdamW with cosine decay among 0.004, 0.02 and 0.1, seeds 2000 to 2005, and for SGD with
cosine decay among 0.00005, 0.0002 and 0.001, seeds 2000 and 2001. That of AdamW hardly matters here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unscheduled.lab.task import OptimizerSettings, Task
from unscheduled.lab.tasks._images import Examples, cross_entropy, epochs, facts_of, fashion, loss_and_error

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
    """Images (batch, 1, 28, 28), halved at once, to logits (batch, 10)."""
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


def batches(generator: torch.Generator) -> Iterator[Examples]:
    """Epoch after epoch of the training images."""
    images, labels = fashion("train", TRAINING)
    for chosen in epochs(len(labels), BATCH_SIZE, generator):
        yield images[chosen], labels[chosen]


def metric(model: nn.Module) -> Mapping[str, float]:
    """Over the test images that are used."""
    return loss_and_error(model, fashion("test", HELD_OUT))


def facts() -> dict[str, Any]:
    """The sizes of the data and their checksum."""
    return facts_of(fashion("train", TRAINING), fashion("test", HELD_OUT))


ADAMW = {"betas": (0.9, 0.99), "weight_decay": 0.02}
task = Task(
    summary="a residual network of 20,000 parameters, with BatchNorm, on 10,000 images of Fashion-MNIST",
    model=model,
    batches=batches,
    loss=cross_entropy,
    metric=metric,
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
