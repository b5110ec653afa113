"""mnist-cnn: a small convolutional network without BatchNorm reads handwritten digits: the paper's CIFAR in small.

The weight decay was chosen for AdamW with cosine decay among 0.02, 0.1 and 0.5, and for SGD with cosine decay among
0.0002, 0.001 and 0.005, seeds 2000 and 2001.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from unscheduled.lab.data import load
from unscheduled.lab.task import OptimizerSettings, Task
from unscheduled.lab.tasks._images import Examples, cross_entropy, epochs, facts_of, loss_and_error, shuffled

BATCH_SIZE = 32
SIZE, HELD_OUT = 5000, 1000


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
def digits() -> tuple[Examples, Examples]:
    """For training, and held out."""
    data = load("mnist-5k")
    images, labels = shuffled(data["images"], data["labels"], SIZE)
    return (images[HELD_OUT:], labels[HELD_OUT:]), (images[:HELD_OUT], labels[:HELD_OUT])


def batches(generator: torch.Generator) -> Iterator[Examples]:
    """Epoch after epoch of the training images, each batch moved by up to two pixels."""
    (images, labels), _ = digits()
    for chosen in epochs(len(labels), BATCH_SIZE, generator):
        down, right = (int(torch.randint(-2, 3, (), generator=generator)) for _ in range(2))
        yield images[chosen].roll((down, right), (2, 3)), labels[chosen]


def metric(model: nn.Module) -> Mapping[str, float]:
    """Over all images that are held out."""
    _, held_out = digits()
    return loss_and_error(model, held_out)


def facts() -> dict[str, Any]:
    """The sizes of the data and their checksum."""
    return facts_of(*digits())


ADAMW = {"betas": (0.9, 0.99), "weight_decay": 0.1}
task = Task(
    summary="a convolutional network of 48,000 parameters, without BatchNorm, on 5,000 digits of MNIST",
    model=model,
    batches=batches,
    loss=cross_entropy,
    metric=metric,
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
