"""Multinomial logistic regression, the convex problems of the paper "The Road Less Scheduled".

As in the paper, the whole set is training data and what is judged is how well it is fitted: a convex problem asks how
fast an optimizer gets to the minimum. The features are standardised, batches have 16 examples, Adam's betas are
(0.9, 0.95), and there is no weight decay. 100 epochs, but at most 4,000 steps: the larger sets see fewer epochs than
in the paper.

One thing differs: on wine a linear model separates the classes soon, so that the loss goes to 0 at any learning rate
that is large enough. There the penalty |W|^2 / 2n is added to the loss, with n the number of examples.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from unscheduled.lab.data import load
from unscheduled.lab.task import OptimizerSettings, Task
from unscheduled.lab.tasks._checksum import data_sha256

BATCH_SIZE = 16
EPOCHS = 100
MOST_STEPS = 4000
BETAS = (0.9, 0.95)


@functools.cache
def examples_of(name: str) -> tuple[Tensor, Tensor]:
    """The features (n, d) with mean 0 and standard deviation 1, or 0 where constant, and the classes (n,)."""
    data = load(name)
    features = torch.as_tensor(data["features"]).double()
    deviation, mean = torch.std_mean(features, 0, correction=0)
    standardised = (features - mean) / deviation.clamp(min=1e-9)
    return standardised.float(), torch.as_tensor(data["labels"])


def logistic_task(name: str, examples: int, adamw: float, schedule_free: float, separable: bool = False) -> Task:
    """Logistic regression on a table.

    Args:
        name: of the data set.
        examples: its size, from which the steps follow.
        adamw: the middle of the learning rates of AdamW; the others are half and twice of it.
        schedule_free: the middle of those of Schedule-Free AdamW.
        separable: whether the classes are separated within the budget, so that a penalty is needed.
    """
    steps = min(EPOCHS * math.ceil(examples / BATCH_SIZE), MOST_STEPS)

    def model() -> nn.Module:
        features, classes = examples_of(name)
        return nn.Linear(features.shape[1], int(classes.max()) + 1)

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Epoch after epoch of the whole set."""
        features, classes = examples_of(name)
        while True:
            for chosen in torch.split(torch.randperm(len(classes), generator=generator), BATCH_SIZE):
                yield features[chosen], classes[chosen]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The cross-entropy of the class, and the penalty."""
        cross_entropy = functional.cross_entropy(model(batch[0]), batch[1])
        if not separable:
            return cross_entropy
        return cross_entropy + cast(Tensor, model.weight).square().sum() / (2 * examples)

    def metric(model: nn.Module) -> Mapping[str, float]:
        """Over the whole set."""
        features, classes = examples_of(name)
        correct = int((model(features).argmax(1) == classes).sum())
        return {"loss": loss(model, (features, classes)).item(), "accuracy": 100 * correct / len(classes)}

    def facts() -> dict[str, Any]:
        """The shape of the table and its checksum."""
        features, classes = examples_of(name)
        shape = {"examples": len(classes), "features": features.shape[1], "classes": int(classes.max()) + 1}
        return {**shape, "data sha256": data_sha256(name)}

    def settings(middle: float) -> OptimizerSettings:
        return OptimizerSettings((middle / 2, middle, 2 * middle), {"betas": BETAS, "weight_decay": 0.0})

    return Task(
        summary=f"multinomial logistic regression on {name}, {examples:,} examples",
        model=model,
        batches=batches,
        loss=loss,
        metric=metric,
        metric_name="training loss",
        steps=steps,
        warmup_steps=steps // 20,
        optimizers={"AdamW": settings(adamw), "AdamWScheduleFree": settings(schedule_free)},
        evaluations=8,
        seeds=10,
        facts=facts,
        data=(name,),
    )
