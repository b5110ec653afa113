"""fashion-mae: a small vision transformer, pre-trained as a masked autoencoder, is fine-tuned to tell clothes apart.

The race is about the fine-tuning. The pre-training (He et al., 2022) comes before it, with AdamW and cosine decay, on
all training images of Fashion-MNIST without their labels: the transformer sees 4 of the 16 patches of an image, and
from its vectors one more layer reconstructs the pixels of the others. That takes a minute, once: the weights are kept
in the cache folder.

The weight decay was chosen among 0.004, 0.02 and 0.1 for AdamW with cosine decay, seeds 2000 and 2001.
"""
# torch leaves some of its arguments without types:
# pyright: reportUnknownMemberType=false

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional

from unscheduled.lab.cache import cache_folder
from unscheduled.lab.data import load
from unscheduled.lab.task import OptimizerSettings, Task, source_sha256
from unscheduled.lab.tasks._images import Examples, cross_entropy, epochs, facts_of, fashion, loss_and_error

BATCH_SIZE = 32
PRETRAINING, TRAINING, HELD_OUT = 60_000, 10_000, 1000
SIZE, PATCH = 28, 7
PATCHES, VISIBLE = (SIZE // PATCH) ** 2, 4
WIDTH, HEADS, LAYERS = 32, 4, 3
PRETRAINING_STEPS, PRETRAINING_BATCH = 3000, 64


def layer() -> nn.Module:
    """Self-attention, then a two-layer perceptron, each normalised first and added to its input."""
    return nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def patches(images: Tensor) -> Tensor:
    """Images (batch, 1, 28, 28) to the pixels of their patches (batch, patch, pixel)."""
    return functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


class Encoder(nn.Module):
    """Images (batch, 1, 28, 28) to a vector for each patch, or for each of the visible patches (batch, n) if given."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(PATCH * PATCH, WIDTH)
        self.position = nn.Embedding(PATCHES, WIDTH)
        self.layers = nn.Sequential(*(layer() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        vectors = self.patch(patches(images)) + self.position.weight
        if visible is not None:
            vectors = vectors.take_along_dim(visible.unsqueeze(2), 1)
        return self.norm(self.layers(vectors))


class Autoencoder(nn.Module):
    """Images and their visible patches (batch, n) to the mean squared error at the hidden ones."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.hidden = nn.Parameter(torch.zeros(WIDTH))
        self.position = nn.Embedding(PATCHES, WIDTH)
        self.decoder = layer()
        self.pixels = nn.Linear(WIDTH, PATCH * PATCH)

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        seen = self.encoder(images, visible)
        vectors = self.hidden.expand(len(images), PATCHES, WIDTH)
        vectors = vectors.scatter(1, visible.unsqueeze(2).expand_as(seen), seen) + self.position.weight
        hidden = torch.ones(len(images), PATCHES, dtype=torch.bool).scatter(1, visible, False)
        return functional.mse_loss(self.pixels(self.decoder(vectors))[hidden], patches(images)[hidden])


class Classifier(nn.Module):
    """Images (batch, 1, 28, 28) to logits (batch, 10), from the mean of the encoder's vectors."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images).mean(1))


def pre_train() -> dict[str, Tensor]:
    """The weights of an encoder that has learned to reconstruct hidden patches of the training images."""
    images, _ = fashion("train", PRETRAINING)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        autoencoder = Autoencoder()
        optimizer = torch.optim.AdamW(autoencoder.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.002, total_steps=PRETRAINING_STEPS, pct_start=0.05, cycle_momentum=False
        )
        for _ in range(PRETRAINING_STEPS):
            chosen = torch.randint(len(images), (PRETRAINING_BATCH,))
            visible = torch.rand(PRETRAINING_BATCH, PATCHES).argsort(1)[:, :VISIBLE]
            optimizer.zero_grad()
            autoencoder(images[chosen], visible).backward()
            optimizer.step()
            schedule.step()
    return autoencoder.encoder.state_dict()


@functools.cache
def pre_trained() -> dict[str, Tensor]:
    """What ``pre_train`` returns; from the cache folder, unless the source or the images are new."""
    images = load("fashion-mnist")["train_images"]
    key = hashlib.sha256(source_sha256(Path(__file__)).encode() + images.tobytes()).hexdigest()[:12]
    file = cache_folder() / "pre-trained" / f"fashion-mae-{key}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            unfinished = file.with_suffix(".part")
            torch.save(pre_train(), unfinished)
            os.replace(unfinished, file)
    return torch.load(file, weights_only=True)


def model() -> nn.Module:
    """The pre-trained encoder with a freshly initialised head."""
    encoder = Encoder()
    encoder.load_state_dict(pre_trained())
    return Classifier(encoder)


def batches(generator: torch.Generator) -> Iterator[Examples]:
    """Epoch after epoch of the training images that are used with their labels."""
    images, labels = fashion("train", TRAINING)
    for chosen in epochs(len(labels), BATCH_SIZE, generator):
        yield images[chosen], labels[chosen]


def metric(model: nn.Module) -> Mapping[str, float]:
    """Over the test images that are used."""
    return loss_and_error(model, fashion("test", HELD_OUT))


def facts() -> dict[str, Any]:
    """The sizes of the data and their checksum, and that of the pre-trained weights."""
    weights = b"".join(tensor.numpy().tobytes() for tensor in pre_trained().values())
    return {
        "images for pre-training": PRETRAINING,
        **facts_of(fashion("train", TRAINING), fashion("test", HELD_OUT)),
        "pre-trained weights sha256": hashlib.sha256(weights).hexdigest(),
    }


settings = OptimizerSettings((0.002, 0.004, 0.008), {"betas": (0.9, 0.999), "weight_decay": 0.004})
task = Task(
    summary="a pre-trained vision transformer of 41,000 parameters, fine-tuned on 10,000 images of Fashion-MNIST",
    model=model,
    batches=batches,
    loss=cross_entropy,
    metric=metric,
    metric_name="test cross-entropy",
    steps=500,
    warmup_steps=25,
    optimizers={
        "AdamW": settings,
        "AdamWScheduleFree": settings,
    },
    evaluations=14,
    seeds=5,
    facts=facts,
    data=("fashion-mnist",),
)
