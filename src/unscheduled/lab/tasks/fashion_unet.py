"""fashion-unet: a small U-Net reconstructs images from a quarter of their Fourier coefficients: fastMRI in small.

Of the columns of an image's Fourier transform those of the 3 lowest frequencies and 4 others, drawn once and for all,
are known: 7 of 28. The input is the magnitude of the inverse transform with zeros in the place of the unknown columns.

The weight decay was chosen among 0.02, 0.1 and 0.5 for AdamW with cosine decay, seeds 2000 and 2001.
"""
# torch leaves some of its results without types:
# pyright: reportUnknownMemberType=false

import functools
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from unscheduled.lab.task import OptimizerSettings, Task
from unscheduled.lab.tasks._images import Examples, epochs, facts_of, fashion

BATCH_SIZE = 8
TRAINING, HELD_OUT = 10_000, 200
SIZE, CENTRE, KEPT = 28, 3, 7  # columns of an image, of the lowest frequencies, and those known
WINDOW = 7


def convolution(channels: int, width: int) -> nn.Module:
    """A convolution, normalised for each image by itself."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.InstanceNorm2d(width), nn.LeakyReLU(0.2)
    )


class UNet(nn.Module):
    """Images (batch, 1, 28, 28) to images: down to a quarter of the size and up again, past which details go."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = convolution(1, 8)
        self.middle = convolution(8, 16)
        self.coarse = convolution(16, 32)
        self.to_middle = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.middle_up = convolution(32, 16)
        self.to_fine = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.fine_up = convolution(16, 8)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        mean, deviation = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
        fine = self.fine((images - mean) / deviation)
        middle = self.middle(functional.avg_pool2d(fine, 2))
        coarse = self.coarse(functional.avg_pool2d(middle, 2))
        middle = self.middle_up(torch.cat((self.to_middle(coarse), middle), 1))
        return mean + deviation * self.out(self.fine_up(torch.cat((self.to_fine(middle), fine), 1)))


def known_columns() -> Tensor:
    """Which columns of the Fourier transform are known, the lowest frequency first as ``torch.fft`` has them."""
    columns = torch.arange(SIZE)
    by_frequency = torch.minimum(columns, SIZE - columns).argsort(stable=True)
    others = by_frequency[CENTRE:]
    chosen = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[: KEPT - CENTRE]]
    known = torch.zeros(SIZE, dtype=torch.bool)
    known[by_frequency[:CENTRE]] = known[chosen] = True
    return known


def from_known_columns(images: Tensor) -> Tensor:
    """The images (batch, 1, 28, 28) as they look with zeros in the place of the unknown columns."""
    coefficients = cast(Tensor, torch.fft.fft2(images)) * known_columns()
    return cast(Tensor, torch.fft.ifft2(coefficients)).abs()


@functools.cache
def reconstructions(part: str, size: int) -> Examples:
    """The inputs, and the images as they are to be reconstructed."""
    images, _ = fashion(part, size)
    return from_known_columns(images), images


def batches(generator: torch.Generator) -> Iterator[Examples]:
    """Epoch after epoch of the training images."""
    inputs, targets = reconstructions("train", TRAINING)
    for chosen in epochs(len(targets), BATCH_SIZE, generator):
        yield inputs[chosen], targets[chosen]


def loss(model: nn.Module, batch: Examples) -> Tensor:
    """The mean absolute error of a pixel."""
    return functional.l1_loss(model(batch[0]), batch[1])


def similarity(images: Tensor, others: Tensor) -> Tensor:
    """The structural similarity (SSIM, Wang et al., 2004) of images from 0 to 1, by means over windows of 7 x 7."""

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, WINDOW, stride=1)

    mean_1, mean_2 = mean(images), mean(others)
    variance_1, variance_2 = mean(images**2) - mean_1**2, mean(others**2) - mean_2**2
    covariance = mean(images * others) - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + 0.01**2) / (mean_1**2 + mean_2**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_1 + variance_2 + 0.03**2)
    return (luminance * structure).mean()


def metric(model: nn.Module) -> Mapping[str, float]:
    """Mean absolute error and structural similarity over the test images that are used."""
    inputs, targets = reconstructions("test", HELD_OUT)
    outputs = model(inputs)
    return {"loss": functional.l1_loss(outputs, targets).item(), "ssim": similarity(outputs, targets).item()}


def facts() -> dict[str, Any]:
    """The sizes of the data and their checksum."""
    return facts_of(reconstructions("train", TRAINING), reconstructions("test", HELD_OUT))


settings = OptimizerSettings((0.008, 0.016, 0.032), {"betas": (0.9, 0.99), "weight_decay": 0.1})
task = Task(
    summary="a U-Net of 14,000 parameters reconstructs images of Fashion-MNIST from 1 in 4 Fourier coefficients",
    model=UNet,
    batches=batches,
    loss=loss,
    metric=metric,
    metric_name="test mean absolute error",
    steps=800,
    warmup_steps=40,
    optimizers={"AdamW": settings, "AdamWScheduleFree": settings},
    evaluations=14,
    seeds=5,
    facts=facts,
    data=("fashion-mnist",),
)
