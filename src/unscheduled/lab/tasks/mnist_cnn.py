"""mnist-cnn: a small convolutional network without BatchNorm reads handwritten digits."""

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
HELD_OUT = 1000


def model() -> nn.Module:
    """Images (batch, 1, 28, 28) to logits (batch, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """All images (5000, 1, 28, 28), from 0 to 1, and their digits, in an order shuffled once and for all."""
    data = load("mnist-5k")
    images, targets = torch.tensor(data["images"]), torch.tensor(data["labels"])
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    return images[order].unsqueeze(1) / 255, targets[order]


def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch of the images that are not held out, each batch moved by up to two pixels."""
    images, targets = digits()
    while True:
        order = HELD_OUT + torch.randperm(len(images) - HELD_OUT, generator=generator)
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            down, right = (int(torch.randint(-2, 3, (), generator=generator)) for _ in range(2))
            yield images[chosen].roll((down, right), (2, 3)), targets[chosen]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The cross-entropy of the digit."""
    return functional.cross_entropy(model(batch[0]), batch[1])


def held_out(model: nn.Module) -> dict[str, float]:
    """Loss and share of errors over all images that are held out."""
    images, targets = (tensor[:HELD_OUT] for tensor in digits())
    logits = model(images)
    return {
        "loss": functional.cross_entropy(logits, targets).item(),
        "error": (logits.argmax(1) != targets).float().mean().item(),
    }


def facts() -> dict[str, Any]:
    """The size of the data and its checksum, and how the weight decay was chosen."""
    images, targets = digits()
    sha256 = hashlib.sha256(images.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()
    return {
        "training images": len(images) - HELD_OUT,
        "held-out images": HELD_OUT,
        "data sha256": sha256,
        "weight decay of AdamW": "0.1: the best of 0.02, 0.1 and 0.5 with cosine decay, seeds 2000 and 2001",
        "weight decay of SGD": "0.001: the best of 0.0002, 0.001 and 0.005 with cosine decay, seeds 2000 and 2001",
    }


ADAMW: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": 0.1}
task = Task(
    summary="a convolutional network of 48,000 parameters, without BatchNorm, on 5,000 images of MNIST",
    model=model,
    batches=batches,
    loss=loss,
    metric=held_out,
    metric_name="held-out cross-entropy",
    steps=1500,
    warmup_steps=75,
    optimizers={
        "AdamW": OptimizerSettings((0.004, 0.008, 0.016), ADAMW),
        "AdamWScheduleFree": OptimizerSettings((0.016, 0.032, 0.064), ADAMW),
        "SGD": OptimizerSettings((0.01, 0.03, 0.1), {"momentum": 0.9, "weight_decay": 0.001}),
        "SGDScheduleFree": OptimizerSettings((0.3, 1.0, 3.0), {"weight_decay": 0.001}),
    },
    evaluations=14,
    seeds=5,
    facts=facts,
    data=("mnist-5k",),
)
