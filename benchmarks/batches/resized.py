"""Tasks of the race with batches of another size."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from unscheduled.lab.task import Task, load_task


def fourfold(name: str) -> Task:
    """The task of this name with four batches joined to one."""
    loaded = load_task(name)
    task = loaded.task

    def batches(generator: torch.Generator) -> Iterator[Any]:
        found = task.batches(generator)
        while True:
            yield tuple(torch.cat(tensors) for tensors in zip(*islice(found, 4), strict=True))

    return replace(task, batches=batches, facts=lambda: {**task.facts(), "resized": loaded.source_sha256})


def quarter(name: str) -> Task:
    """The task of this name with each batch divided into four."""
    loaded = load_task(name)
    task = loaded.task

    def batches(generator: torch.Generator) -> Iterator[Any]:
        for batch in task.batches(generator):
            yield from zip(*(tensor.chunk(4) for tensor in batch), strict=True)

    return replace(task, batches=batches, facts=lambda: {**task.facts(), "resized": loaded.source_sha256})
