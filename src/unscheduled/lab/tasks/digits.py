"""digits: a convolutional network with BatchNorm reads scikit-learn's handwritten digits."""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.nn import functional

from unscheduled.lab.task import OptimizerSettings, Task

BATCH_SIZE = 32
HELD_OUT = 450


def model() -> nn.Module:
    """Images (batch, 1, 8, 8) to logits (batch, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, 10),
    )


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8), from 0 to 1, and their digits, in an order shuffled once and for all."""
    data = cast("Any", load_digits())
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return images[order], torch.tensor(data.target)[order]


def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch of the images that are not held out, each image moved by up to one pixel."""
    images, targets = digits()
    while True:
        order = HELD_OUT + torch.randperm(len(images) - HELD_OUT, generator=generator)
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            down, right = (int(torch.randint(-1, 2, (), generator=generator)) for _ in range(2))
            yield images[chosen].roll((down, right), (2, 3)), targets[chosen]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The cross-entropy of the digit."""
    return functional.cross_entropy(model(batch[0]), batch[1])


def held_out_loss(model: nn.Module) -> float:
    """Over all images that are held out."""
    images, targets = digits()
    return loss(model, (images[:HELD_OUT], targets[:HELD_OUT])).item()


def facts() -> dict[str, Any]:
    """The size of the data and its checksum."""
    images, targets = digits()
    sha256 = hashlib.sha256(images.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()
    return {"training images": len(images) - HELD_OUT, "held-out images": HELD_OUT, "data sha256": sha256}


BETAS = (0.9, 0.99)
settings = OptimizerSettings((0.004, 0.008, 0.016), {"betas": BETAS, "weight_decay": 0.05})
task = Task(
    summary="a convolutional network of 15,000 parameters, with BatchNorm, on scikit-learn's handwritten digits",
    model=model,
    batches=batches,
    loss=loss,
    metric=held_out_loss,
    metric_name="validation cross-entropy",
    steps=1000,
    warmup_steps=50,
    optimizers={
        "AdamW": settings,
        "AdamWScheduleFree": settings,
        "SGDScheduleFree": OptimizerSettings((0.3, 1.0, 3.0), {"weight_decay": 0.001}),
        "LionScheduleFree": OptimizerSettings((0.001, 0.003, 0.01), {"betas": BETAS, "weight_decay": 0.2}),
    },
    seeds=5,
    facts=facts,
)
