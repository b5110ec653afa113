"""census-dlrm: a DLRM says who earns more than 50,000 dollars, on the Census-Income data: the paper's DLRM in small.

As with clicks on advertisements, the inputs are many categories and a few numbers, and positive examples are rare (6%).

The weight decay was chosen among 0.01, 0.03 and 0.1 for AdamW with cosine decay, seeds 2000 and 2001.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unscheduled.lab.data import load
from unscheduled.lab.task import OptimizerSettings, Task
from unscheduled.lab.tasks._checksum import data_sha256
from unscheduled.lab.tasks._clicks import click_metric

WIDTH = 16
BATCH_SIZE = 256
HELD_OUT = 10_000  # rows of the test set

Inputs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rows:
    """Codes (n, 33), numbers (n, 7) and labels (n,), 1.0 for a high income."""

    codes: Tensor
    numbers: Tensor
    labels: Tensor

    def take(self, chosen: Tensor) -> tuple[Inputs, Tensor]:
        """The inputs and the labels of some rows."""
        return (self.codes[chosen], self.numbers[chosen]), self.labels[chosen]


@functools.cache
def category_sizes() -> Tensor:
    """How many values each categorical column has."""
    return torch.as_tensor(load("census-income")["category_sizes"])


@functools.cache
def rows() -> tuple[Rows, Rows]:
    """The training set, and of the test set the same 10,000 rows for all.

    The numbers are sums of money and counts, many of them 0: their logarithms are standardised. The codes of all
    columns are numbered consecutively, so that one table holds all embeddings.
    """
    data = {name: torch.as_tensor(array) for name, array in load("census-income").items()}
    offsets = category_sizes().cumsum(0) - category_sizes()
    deviation, mean = torch.std_mean(data["train_numbers"].log1p(), 0)
    chosen = torch.randperm(len(data["test_labels"]), generator=torch.Generator().manual_seed(0))[:HELD_OUT]

    def rows_of(part: str) -> Rows:
        numbers = (data[f"{part}_numbers"].log1p() - mean) / deviation
        return Rows(data[f"{part}_categories"] + offsets, numbers, data[f"{part}_labels"].float())

    test = rows_of("test")
    return rows_of("train"), Rows(test.codes[chosen], test.numbers[chosen], test.labels[chosen])


class DLRM(nn.Module):
    """Inputs to logits (batch,), after Naumov et al., "Deep learning recommendation model", 2019.

    A perceptron makes the numbers a vector of the size of the embeddings. The dot products of all pairs of these
    vectors and the numbers' vector itself are what the last perceptron gets.
    """

    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        sizes, (training, _) = category_sizes(), rows()
        self.embedding = nn.Embedding(int(sizes.sum()), WIDTH)
        self.bottom = nn.Sequential(nn.Linear(training.numbers.shape[1], 32), nn.ReLU(), nn.Linear(32, WIDTH))
        vectors = len(sizes) + 1
        self.top = nn.Sequential(nn.Linear(WIDTH + vectors * (vectors - 1) // 2, 64), nn.ReLU(), nn.Linear(64, 1))
        self.register_buffer("pairs", torch.triu_indices(vectors, vectors, 1), persistent=False)
        nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)

    def forward(self, inputs: Inputs) -> Tensor:
        codes, numbers = inputs
        dense = self.bottom(numbers)
        vectors = torch.cat([dense.unsqueeze(1), self.embedding(codes)], 1)
        products = (vectors @ vectors.mT)[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([dense, products], 1)).squeeze(1)


def batches(generator: torch.Generator) -> Iterator[tuple[Inputs, Tensor]]:
    """Epoch after epoch of the training set."""
    training, _ = rows()
    while True:
        for chosen in torch.split(torch.randperm(len(training.labels), generator=generator), BATCH_SIZE):
            yield training.take(chosen)


def loss(model: nn.Module, batch: tuple[Inputs, Tensor]) -> Tensor:
    """The cross-entropy of the label."""
    return functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def metric(model: nn.Module) -> Mapping[str, float]:
    """Over the held-out rows."""
    _, held_out = rows()
    return click_metric(model((held_out.codes, held_out.numbers)), held_out.labels)


def facts() -> dict[str, Any]:
    """The size of the data and its checksum."""
    training, held_out = rows()
    sizes = {"training rows": len(training.labels), "held-out rows": len(held_out.labels)}
    return {**sizes, "data sha256": data_sha256("census-income")}


settings = OptimizerSettings((0.008, 0.016, 0.032), {"betas": (0.9, 0.99), "weight_decay": 0.01})
task = Task(
    summary="a DLRM of 46,000 parameters predicts a high income, on the Census-Income data",
    model=DLRM,
    batches=batches,
    loss=loss,
    metric=metric,
    metric_name="held-out log loss",
    steps=800,
    warmup_steps=40,
    optimizers={
        "AdamW": settings,
        "AdamWScheduleFree": settings,
    },
    evaluations=14,
    seeds=5,
    facts=facts,
    data=("census-income",),
)
