"""What the tasks on images share: shuffled data, epochs, and how well a classifier does."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unscheduled.lab.data import load

Examples = tuple[Tensor, Tensor]
"""Images (n, 1, 28, 28), from 0 to 1, and what is to be made of them, such as labels (n,)."""


@functools.cache
def fashion(part: str, size: int) -> Examples:
    """The same random images of Fashion-MNIST with their labels.

    Args:
        part: of the official split, ``"train"`` or ``"test"``.
        size: how many images.
    """
    data = load("fashion-mnist")
    return shuffled(data[f"{part}_images"], data[f"{part}_labels"], size)


def shuffled(images: Any, labels: Any, size: int) -> Examples:
    """The first ``size`` of the images (n, 28, 28), from 0 to 255, and labels, in an order drawn once and for all."""
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:size]
    return torch.tensor(images)[chosen].unsqueeze(1) / 255, torch.tensor(labels)[chosen]


def epochs(size: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The indices of each batch: epoch after epoch of ``size`` examples, each in an order of its own."""
    while True:
        yield from torch.split(torch.randperm(size, generator=generator), batch_size)


def cross_entropy(model: nn.Module, batch: Examples) -> Tensor:
    """That of the labels, given the images: the loss of a classifier."""
    return functional.cross_entropy(model(batch[0]), batch[1])


def loss_and_error(model: nn.Module, examples: Examples) -> Mapping[str, float]:
    """The cross-entropy, and the share of images that are taken for another class than their own."""
    images, labels = examples
    logits = model(images)
    errors = logits.argmax(1) != labels
    return {"loss": functional.cross_entropy(logits, labels).item(), "error": errors.float().mean().item()}


def facts_of(training: Examples, held_out: Examples) -> dict[str, Any]:
    """The sizes of the data and their checksum."""
    sha256 = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in (*training, *held_out))).hexdigest()
    return {"training images": len(training[0]), "held-out images": len(held_out[0]), "data sha256": sha256}
