"""A battery on a Dask cluster has the numbers of one in processes of this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TASK = """
import torch
from torch import nn

from unscheduled.lab.task import OptimizerSettings, Task


def batches(generator):
    while True:
        inputs = torch.randn(16, 4, generator=generator)
        yield inputs, inputs.sum(1, keepdim=True)


def loss(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


settings = OptimizerSettings([0.03, 0.1])
task = Task(
    summary="a perceptron learns to add",
    model=lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)),
    batches=batches,
    loss=loss,
    metric=lambda model: loss(model, next(batches(torch.Generator().manual_seed(5)))).item(),
    metric_name="squared error",
    steps=16,
    warmup_steps=4,
    optimizers={"AdamW": settings, "AdamWScheduleFree": settings},
    seeds=2,
)
"""


def battery(task: Path, backend: str) -> dict[str, Any]:
    """With two workers and a cache of its own, in a process of its own, since Dask and Tornado warn."""
    out = task.parent / backend
    options = ["--races-only", "--seeds", "1", "--backend", backend, "--jobs", "2", "--out", str(out)]
    cache = {"UNSCHEDULED_CACHE": str(task.parent / f"cache of {backend}"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "unscheduled", "battery", str(task), *options],
        env={**os.environ, **cache},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (out / "battery.html").is_file()
    return json.loads((out / "addition.json").read_text())


def test_a_dask_cluster_gives_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    task = tmp_path / "addition.py"
    task.write_text(TASK)
    here, there = battery(task, "loky"), battery(task, "dask")
    assert len(here["contenders"]) > 10
    assert there["results"] == here["results"]
    for run, other in zip(here["runs"], there["runs"], strict=True):
        assert {**run, "seconds": 0, "seconds_of_steps": 0} == {**other, "seconds": 0, "seconds_of_steps": 0}
