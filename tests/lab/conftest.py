"""A user's own task file, small enough to race in a test."""

from pathlib import Path

import pytest

TINY_TASK = """
import time

import torch
from torch import nn

from unscheduled.lab.task import OptimizerSettings, Task

SECONDS_A_STEP = 0.0


def model():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))


def batches(generator):
    while True:
        inputs = torch.randn(16, 4, generator=generator)
        yield inputs, (inputs.sum(1, keepdim=True) > 0).float()


def loss(model, batch):
    time.sleep(SECONDS_A_STEP)
    return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def metric(model):
    return loss(model, next(batches(torch.Generator().manual_seed(5)))).item()


task = Task(
    summary="a perceptron learns the sign of a sum",
    model=model,
    batches=batches,
    loss=loss,
    metric=metric,
    metric_name="cross-entropy",
    steps=16,
    warmup_steps=4,
    optimizers={
        "AdamW": OptimizerSettings([0.01, 0.03], {"betas": (0.9, 0.99), "weight_decay": 0.0}),
        "AdamWScheduleFree": OptimizerSettings([0.01, 0.03], {"betas": (0.9, 0.99)}),
    },
    evaluations=4,
    seeds=2,
)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of finished runs and data, of this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("UNSCHEDULED_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny_task(tmp_path: Path) -> Path:
    """The path of the task file."""
    file = tmp_path / "tiny_task.py"
    file.write_text(TINY_TASK)
    return file


@pytest.fixture
def slow_task(tmp_path: Path) -> Path:
    """The same task, at 10 ms a step."""
    file = tmp_path / "slow_task.py"
    file.write_text(TINY_TASK.replace("SECONDS_A_STEP = 0.0", "SECONDS_A_STEP = 0.01"))
    return file
