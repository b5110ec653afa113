"""One run: what contenders share, and what evaluating must not change."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unscheduled.lab.contenders import CONTENDERS
from unscheduled.lab.run import BATCH_NORM_BATCHES, BATCH_NORM_SEED, RunSettings, train
from unscheduled.lab.task import Task, load_task


def settings(contender: str, evaluate_at: tuple[int, ...] = (16,), horizon: int = 16, seed: int = 3) -> RunSettings:
    return RunSettings(contender, 0.03, {}, 4, horizon, evaluate_at, seed)


def nothing(step: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def task(tiny_task: Path) -> Task:
    return load_task(str(tiny_task)).task


def watched(task: Task) -> tuple[Task, list[nn.Module], list[Any]]:
    """The task, and the models and batches that it makes from now on."""
    models: list[nn.Module] = []
    batches: list[Any] = []

    def model() -> nn.Module:
        models.append(task.model())
        return models[-1]

    def recorded(generator: torch.Generator) -> Iterator[Any]:
        for batch in task.batches(generator):
            batches.append(batch)
            yield batch

    return replace(task, model=model, batches=recorded), models, batches


def test_contenders_share_initial_weights_and_batches(task: Task) -> None:
    runs: dict[str, tuple[dict[str, Any], list[Any]]] = {}
    for name in CONTENDERS:
        watched_task, _, batches = watched(task)
        runs[name] = train(watched_task, settings(name, evaluate_at=()), nothing), batches
    first, first_batches = runs.pop("schedule-free")
    for run, batches in runs.values():
        assert run["initial_weights_sha256"] == first["initial_weights_sha256"]
        assert run["first_batch_sha256"] == first["first_batch_sha256"]
        assert len(batches) == len(first_batches) == 16
        for batch, other in zip(batches, first_batches, strict=True):
            assert torch.equal(batch[0], other[0])
            assert torch.equal(batch[1], other[1])
    other_seed = train(task, settings("schedule-free", seed=4), nothing)
    assert other_seed["initial_weights_sha256"] != first["initial_weights_sha256"]
    assert other_seed["first_batch_sha256"] != first["first_batch_sha256"]


@pytest.mark.parametrize("name", CONTENDERS)
def test_evaluating_changes_nothing(task: Task, name: str) -> None:
    """Weights, BatchNorm's buffers and the dropout masks: bit-equal with 16 evaluations, one and none."""
    ends: list[tuple[dict[str, Any], dict[str, torch.Tensor]]] = []
    for evaluate_at in (tuple(range(1, 17)), (16,), ()):
        watched_task, models, _ = watched(task)
        run = train(watched_task, settings(name, evaluate_at), nothing)
        ends.append((run, models[0].state_dict()))
    (often, often_state), (once, once_state), (never, never_state) = ends
    assert len(often["curve"]) == 16
    assert often["curve"][-1] == once["curve"][-1]
    assert never["curve"] == []
    for key, value in never_state.items():
        assert torch.equal(value, often_state[key]), key
        assert torch.equal(value, once_state[key]), key


def test_schedule_free_is_judged_at_the_average(task: Task) -> None:
    """Trained at y and judged at x = mean of z: then z_t = t x_t - (t - 1) x_{t-1} and y_t = 0.1 z_t + 0.9 x_t."""
    trained: list[torch.Tensor] = []
    judged: list[torch.Tensor] = []

    def weight(model: nn.Module) -> torch.Tensor:
        return next(model.parameters()).detach().clone().double()

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        trained.append(weight(model))
        return task.loss(model, batch)

    def metric(model: nn.Module) -> float:
        judged.append(weight(model))
        return 0.0

    run = replace(settings("schedule-free", evaluate_at=tuple(range(1, 17))), warmup_steps=0)
    train(replace(task, loss=loss, metric=metric), run, nothing)
    assert not torch.equal(judged[14], trained[15])
    for t in range(2, 16):
        x, before = judged[t - 1], judged[t - 2]
        z = t * x - (t - 1) * before
        torch.testing.assert_close(trained[t], 0.1 * z + 0.9 * x, rtol=0.0, atol=1e-6)


def test_batch_norm_is_judged_with_statistics_of_the_judged_weights(task: Task) -> None:
    """With BatchNorm first they are those of the inputs: of the batches that re-estimate them, for every contender."""
    seen: list[torch.Tensor] = []

    def judged(model: nn.Module) -> float:
        assert isinstance(model, nn.Sequential)
        assert not model.training
        buffer = model[0].running_mean
        assert isinstance(buffer, torch.Tensor)
        seen.append(buffer.clone())
        return 0.0

    def norm_first() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))

    for name in ("schedule-free", "linear"):
        train(replace(task, model=norm_first, metric=judged), settings(name), nothing)
    re_estimating = itertools.islice(task.batches(torch.Generator().manual_seed(BATCH_NORM_SEED)), BATCH_NORM_BATCHES)
    means = torch.stack([inputs.mean(0) for inputs, _ in re_estimating])
    for statistics in seen:
        torch.testing.assert_close(statistics, means.mean(0))
    assert len(seen) == 2


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("where", ["loss", "gradient", "metric"])
def test_divergence_ends_the_run_and_is_told(task: Task, name: str, where: str) -> None:
    calls = itertools.count(1)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        value = task.loss(model, batch)
        if where == "metric" or next(calls) != 6:
            return value
        return value * float("nan") if where == "loss" else value + (value - value.detach()).sqrt()

    def metric(model: nn.Module) -> float:
        return float("inf") if where == "metric" and next(calls) == 3 else 0.5

    run = train(replace(task, loss=loss, metric=metric), settings(name, evaluate_at=(2, 4, 6, 8)), nothing)
    assert run["diverged_at"] == 6
    assert run["curve"] == [(2, 0.5), (4, 0.5)]


def test_batches_that_end_are_an_error(task: Task) -> None:
    def three(generator: torch.Generator) -> Iterator[Any]:
        return itertools.islice(task.batches(generator), 3)

    with pytest.raises(ValueError, match="batches ended after 3 of 16 steps"):
        train(replace(task, batches=three), settings("cosine"), nothing)


def test_progress_is_reported_at_every_step(task: Task) -> None:
    steps: list[int] = []
    report: Callable[[int], None] = steps.append
    train(task, settings("cosine"), report)
    assert steps == list(range(1, 17))
