"""The contenders: their schedules, and that they start alike."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from unscheduled.lab import contender
from unscheduled.lab.contender import Training
from unscheduled.lab.contenders import CONTENDERS
from unscheduled.lab.execution import Job
from unscheduled.lab.peers import PEERS
from unscheduled.lab.plan import make_plan
from unscheduled.lab.run import described
from unscheduled.lab.task import RaceError, load_task

WARMUP_STEPS, HORIZON, LR = 5, 25, 0.1


class OneWeight(nn.Module):
    """f(w) = w, whose gradient is 1 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))


def learning_rates(name: str) -> list[float]:
    """The learning rate of each step of a run, and after the last the one that would come next."""
    model = OneWeight()
    training = CONTENDERS[name].prepare(model, LR, {}, WARMUP_STEPS, HORIZON)
    assert training.schedule is not None
    rates: list[float] = []
    for _ in range(HORIZON):
        rates.append(training.optimizer.param_groups[0]["lr"])
        model.weight.grad = torch.ones_like(model.weight)
        training.optimizer.step()
        training.schedule.step()
    return [*rates, training.optimizer.param_groups[0]["lr"]]


DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "step": lambda progress: 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01,
    "wsd": lambda progress: 1.0 if progress < 0.8 else (1 - progress) / 0.2,
}


@pytest.mark.parametrize("optimizer", ["", "sgd-"])
@pytest.mark.parametrize("schedule", DECAYS)
def test_schedule_warms_up_decays_and_ends_at_the_horizon(optimizer: str, schedule: str) -> None:
    decay = DECAYS[schedule]
    rates = learning_rates(optimizer + schedule)
    assert rates[:WARMUP_STEPS] == pytest.approx([LR * k / WARMUP_STEPS for k in (1, 2, 3, 4, 5)])
    decayed = [LR * decay((k - WARMUP_STEPS) / (HORIZON - WARMUP_STEPS)) for k in range(WARMUP_STEPS, HORIZON)]
    assert rates[WARMUP_STEPS:HORIZON] == pytest.approx(decayed)
    assert rates[HORIZON - 1] > 0.0
    assert rates[HORIZON] == pytest.approx(0.001 if schedule == "step" else 0.0)


def test_sgd_has_the_momentum_of_the_task() -> None:
    """Under a gradient of 1 the second step is 1 + 0.9 long."""
    model = OneWeight()
    training = CONTENDERS["sgd-wsd"].prepare(model, LR, {"momentum": 0.9}, 0, HORIZON)
    assert CONTENDERS["sgd-wsd"].settings_of == "SGD"
    for moved in (1.0, 2.9):
        model.weight.grad = torch.ones_like(model.weight)
        training.step(torch.tensor(1.0))
        assert model.weight.item() == pytest.approx(3.0 - LR * moved)


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name not in ("plus", "radam", "distance", *PEERS)])
def test_warmup_is_the_same_for_all(name: str) -> None:
    """But for those that have a step size of their own at first."""
    model = OneWeight()
    training = CONTENDERS[name].prepare(model, LR, {"weight_decay": 0.0}, WARMUP_STEPS, HORIZON)
    (group,) = training.optimizer.param_groups
    rate = group["lr"]
    model.weight.grad = torch.ones_like(model.weight)
    training.step(torch.tensor(1.0))
    assert group.get("effective_lr", rate) == pytest.approx(LR / WARMUP_STEPS)
    assert model.eval().weight.item() < 3.0


def test_plus_takes_the_polyak_step() -> None:
    """f = 3 and the gradient is 1: s = 3 / sqrt(pi / 2) after the warmup, whatever the learning rate."""
    model = OneWeight()
    training = CONTENDERS["plus"].prepare(model, 1.0, {"weight_decay": 0.0}, 0, HORIZON)
    model.weight.grad = torch.ones_like(model.weight)
    training.step(torch.tensor(3.0))
    assert training.optimizer.param_groups[0]["effective_lr"] == pytest.approx(3.0 / math.sqrt(math.pi / 2))


def test_distance_takes_its_own_step() -> None:
    """gamma is 1.2 times that of the start; neither the learning rates of the task, its warmup nor its betas count."""
    model = OneWeight()
    options = {"weight_decay": 0.1, "betas": (0.8, 0.999)}
    training = CONTENDERS["distance"].prepare(model, 1.0, options, WARMUP_STEPS, HORIZON)
    assert CONTENDERS["distance"].lr == 1.0
    model.weight.grad = torch.ones_like(model.weight)
    training.step(torch.tensor(3.0))
    (group,) = training.optimizer.param_groups
    assert group["effective_lr"] == pytest.approx(1.2 * 1.6e-3)
    assert (group["weight_decay"], group["betas"]) == (0.1, (0.9, 0.99))


def test_muon_leaves_the_ends_of_a_model_to_adamw() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 7))
    training = CONTENDERS["muon"].prepare(model, LR, {}, 0, HORIZON)
    model(torch.arange(3)).sum().backward()
    training.step(torch.tensor(1.0))
    state = training.optimizer.state
    by_muon = [name for name, param in model.named_parameters() if "momentum_buffer" in state[param]]
    assert by_muon == ["1.weight"]


def run_of(name: str, steps: int) -> tuple[Training, nn.Linear, list[float]]:
    """A model after some steps of a contender without a learning rate, and the rates of its schedule."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    inputs = torch.randn(64, 3)
    targets = inputs @ torch.tensor([[1.0], [-2.0], [0.5]])
    training = CONTENDERS[name].prepare(model, 1.0, {"weight_decay": 0.01}, WARMUP_STEPS, HORIZON)
    rates: list[float] = []
    for _ in range(steps):
        rates.append(training.optimizer.param_groups[0]["lr"])
        training.optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        training.step(loss)
    return training, model, rates


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_has_no_learning_rate_to_tune(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    training, model, rates = run_of(name, HORIZON)
    assert CONTENDERS[name].lr == 1.0
    schedule = {
        "prodigy": [(1 + math.cos(math.pi * k / HORIZON)) / 2 for k in range(HORIZON)],
        "d-adaptation": [min(1.0, (k + 1) / WARMUP_STEPS) for k in range(WARMUP_STEPS)]
        + [(1 + math.cos(math.pi * k / (HORIZON - WARMUP_STEPS))) / 2 for k in range(HORIZON - WARMUP_STEPS)],
    }
    assert rates == pytest.approx(schedule.get(name, [1.0] * HORIZON))
    decay = 0.0 if name == "dog" else 0.01
    assert training.optimizer.param_groups[0]["weight_decay"] == decay
    assert all(param.isfinite().all() for param in model.parameters())
    json.dumps(described(training.optimizer), allow_nan=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["prodigy-plus", "dog"])
def test_a_peer_that_averages_is_judged_at_its_average(name: str) -> None:
    training, model, _ = run_of(name, HORIZON)
    trained = model.weight.clone()
    with training.judged(model) as judged:
        average = judged.weight.detach().clone()
    assert not torch.equal(average, trained)
    assert torch.equal(model.weight, trained)


@pytest.mark.parametrize("name", ["schedule-free", "prodigy", "d-adaptation"])
def test_others_are_judged_as_they_are(name: str) -> None:
    training, model, _ = run_of(name, 2)
    with training.judged(model) as judged:
        assert judged is model


def test_dog_starts_with_larger_steps_if_there_is_batch_norm() -> None:
    for layer, first in ((nn.BatchNorm1d(3), 1e-4), (nn.LayerNorm(3), 1e-6)):
        training = CONTENDERS["dog"].prepare(nn.Sequential(nn.Linear(3, 3), layer), 1.0, {}, 0, HORIZON)
        assert training.optimizer.param_groups[0]["reps_rel"] == first


def test_a_peer_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("digits")
    monkeypatch.setitem(task.task.contenders, "dog", dataclasses.replace(CONTENDERS["dog"], library="no-such-package"))
    with pytest.raises(RaceError, match=re.escape("contender dog needs an extra: pip install 'unscheduled[peers]'")):
        make_plan(task, contenders=["schedule-free", "dog"])


def test_the_runs_of_a_peer_depend_on_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(load_task("digits"), contenders=["schedule-free", "dog"])

    def files() -> list[Path]:
        return [Job(plan.loaded, plan.settings(name, plan.steps, 1.0, 0)).file for name in plan.contenders]

    before = files()
    monkeypatch.setattr(contender, "version", lambda name: f"another version of {name}")
    assert [old == new for old, new in zip(before, files(), strict=True)] == [True, False]
