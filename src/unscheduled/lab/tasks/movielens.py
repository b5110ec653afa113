"""movielens: embeddings and a perceptron say who likes which film, on MovieLens-100k: the paper's recommender in small.

A rating of 4 or 5 counts as a click. The ratings are split at random, 80,000 for training and 20,000 held out: with a
split by time most users of the held-out part would be new ones, of whom nothing can be learned.

The weight decay was chosen among 0.2, 0.3 and 0.4 for AdamW with cosine decay, seeds 2000 and 2001. Without it all
contenders overfit from the third epoch on.
"""

import functools
from collections.abc import Iterator, Mapping
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
HELD_OUT = 20_000


@functools.cache
def ratings() -> tuple[Tensor, Tensor]:
    """All (user, film) pairs (100,000, 2) and whether it is a click (100,000,), shuffled once and for all."""
    data = load("movielens")
    order = torch.randperm(len(data["rating"]), generator=torch.Generator().manual_seed(0))
    pairs = torch.stack([torch.as_tensor(data["user"]), torch.as_tensor(data["item"])], 1)
    return pairs[order], (torch.as_tensor(data["rating"]) >= 4).float()[order]


@functools.cache
def user_features() -> tuple[Tensor, Tensor]:
    """Age and sex as numbers (users, 2), and the code of the occupation (users,)."""
    data = load("movielens")
    age, sex = (torch.as_tensor(data[name]).float() for name in ("user_age", "user_sex"))
    return torch.stack([standardised(age), sex], 1), torch.as_tensor(data["user_occupation"])


@functools.cache
def film_features() -> Tensor:
    """The year and the genres, as numbers (films, 1 + genres)."""
    data = load("movielens")
    year = torch.as_tensor(data["item_year"]).float()
    known = year.where(year > 0, year[year > 0].mean())
    return torch.cat([standardised(known).unsqueeze(1), torch.as_tensor(data["item_genres"])], 1)


def standardised(values: Tensor) -> Tensor:
    """With mean 0 and standard deviation 1."""
    return (values - values.mean()) / values.std()


class Recommender(nn.Module):
    """(user, film) pairs (batch, 2) to the logit of a click (batch,).

    The dot product of the embeddings of both, and a perceptron on these embeddings and all features.
    """

    def __init__(self) -> None:
        super().__init__()
        numbers, occupation = user_features()
        films = film_features()
        self.user = nn.Embedding(len(numbers), WIDTH)
        self.film = nn.Embedding(len(films), WIDTH)
        self.occupation = nn.Embedding(int(occupation.max()) + 1, WIDTH)
        self.perceptron = nn.Sequential(
            nn.Linear(3 * WIDTH + numbers.shape[1] + films.shape[1], 64), nn.ReLU(), nn.Linear(64, 1)
        )
        for embedding in (self.user, self.film, self.occupation):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, pairs: Tensor) -> Tensor:
        users, films = pairs.unbind(1)
        numbers, occupations = user_features()
        user, film = self.user(users), self.film(films)
        features = [user, film, self.occupation(occupations[users]), numbers[users], film_features()[films]]
        return (user * film).sum(1) + self.perceptron(torch.cat(features, 1)).squeeze(1)


def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch of the ratings that are not held out."""
    pairs, clicks = ratings()
    while True:
        order = HELD_OUT + torch.randperm(len(clicks) - HELD_OUT, generator=generator)
        for chosen in torch.split(order, BATCH_SIZE):
            yield pairs[chosen], clicks[chosen]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The cross-entropy of the click."""
    return functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def metric(model: nn.Module) -> Mapping[str, float]:
    """Over all ratings that are held out."""
    pairs, clicks = ratings()
    return click_metric(model(pairs[:HELD_OUT]), clicks[:HELD_OUT])


def facts() -> dict[str, Any]:
    """The size of the data and its checksum."""
    training = len(ratings()[1]) - HELD_OUT
    return {"training ratings": training, "held-out ratings": HELD_OUT, "data sha256": data_sha256("movielens")}


OPTIONS = {"betas": (0.9, 0.99), "weight_decay": 0.3}
task = Task(
    summary="embeddings and a perceptron predict who likes which film, on MovieLens-100k",
    model=Recommender,
    batches=batches,
    loss=loss,
    metric=metric,
    metric_name="held-out log loss",
    steps=2000,
    warmup_steps=100,
    optimizers={
        "AdamW": OptimizerSettings((0.016, 0.032, 0.064), OPTIONS),
        "AdamWScheduleFree": OptimizerSettings((0.032, 0.064, 0.128), OPTIONS),
    },
    evaluations=14,
    seeds=5,
    facts=facts,
    data=("movielens",),
)
