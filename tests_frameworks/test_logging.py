"""What ``metrics()`` gives goes into TensorBoard, a dictionary of Weights & Biases' kind or a file of JSON as it is."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import train
from small_problem import net
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from unscheduled import AdamWScheduleFree, LionScheduleFree, SGDScheduleFree

NAMES = ["step", "lr", "effective_lr", "beta", "c", "window", "gap_norm"]


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    optimizer = AdamWScheduleFree(net().parameters(), lr=0.25, warmup_steps=4)
    written: list[dict[str, float]] = []
    with SummaryWriter(tmp_path) as writer:
        for step in range(6):
            train(optimizer, [step])
            written.append(optimizer.metrics())
            for name, value in written[-1].items():
                writer.add_scalar(f"optimizer/{name}", value, step)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(f"optimizer/{name}" for name in NAMES)
    for name in NAMES:
        recorded = events.Scalars(f"optimizer/{name}")
        assert [event.step for event in recorded] == list(range(6))
        assert [event.value for event in recorded] == torch.tensor([values[name] for values in written]).tolist()
    assert [values["effective_lr"] for values in written] == [0.0625, 0.125, 0.1875, 0.25, 0.25, 0.25]
    assert {values["lr"] for values in written} == {0.25}
    assert [values["window"] for values in written] == pytest.approx(windows([0.0625, 0.125, 0.1875, 0.25, 0.25, 0.25]))


def windows(rates: list[float]) -> list[float]:
    """1/c of weights that are the square of the largest rate so far."""
    return [sum(rate**2 for rate in rates[: index + 1]) / rates[index] ** 2 for index in range(len(rates))]


@pytest.mark.parametrize("make", [AdamWScheduleFree, SGDScheduleFree, LionScheduleFree])
@pytest.mark.parametrize("training", [True, False])
def test_the_entries_are_plain_finite_numbers_in_either_mode(make: Any, training: bool) -> None:
    optimizer = make(net().parameters(), lr=0.25)
    for step in range(3):
        train(optimizer, [step])
        before = optimizer.metrics()
        optimizer.train(training)
        assert optimizer.metrics() == before
        entries = optimizer.metrics() | {"loss": 1.5}
        optimizer.train()
        assert list(entries) == [*NAMES, "loss"]
        assert all(type(value) is float and math.isfinite(value) for value in entries.values())
        assert json.loads(json.dumps(entries, allow_nan=False)) == entries
        gaps = [optimizer.iterates(param) for param in optimizer.param_groups[0]["params"]]
        assert entries["gap_norm"] == pytest.approx(math.hypot(*(float((gap.z - gap.x).norm()) for gap in gaps)), 1e-4)


def test_of_several_groups_each_has_its_names() -> None:
    model = net()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}]
    optimizer = AdamWScheduleFree(groups, lr=0.25)
    train(optimizer, range(3))
    metrics = optimizer.metrics()
    assert list(metrics) == [f"group{index}/{name}" for index in (0, 1) for name in NAMES]
    assert (metrics["group0/effective_lr"], metrics["group1/effective_lr"]) == (0.25, 0.5)
    assert metrics["group0/window"] == metrics["group1/window"] == pytest.approx(3.0)


def test_before_the_first_step_the_window_is_infinite() -> None:
    """Which JSON does not know: log from the first step on."""
    metrics = AdamWScheduleFree(net().parameters()).metrics()
    assert {name for name, value in metrics.items() if not math.isfinite(value)} == {"window"}


def test_a_gradient_that_is_not_finite_shows_in_the_gap() -> None:
    optimizer = AdamWScheduleFree(net().parameters(), lr=0.25)
    train(optimizer, range(2))
    params = optimizer.param_groups[0]["params"]
    params[0].grad = torch.full_like(params[0], math.inf)
    optimizer.step()
    metrics = optimizer.metrics()
    assert [name for name, value in metrics.items() if not math.isfinite(value)] == ["gap_norm"]
