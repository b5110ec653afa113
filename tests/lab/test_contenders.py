"""The contenders: their schedules, and that they start alike."""

import math

import pytest
import torch
from torch import nn

from unscheduled.lab.contenders import CONTENDERS

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


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedule_warms_up_decays_and_ends_at_the_horizon(name: str) -> None:
    def decay(progress: float) -> float:
        return 1 - progress if name == "linear" else (1 + math.cos(math.pi * progress)) / 2

    rates = learning_rates(name)
    assert rates[:WARMUP_STEPS] == pytest.approx([LR * k / WARMUP_STEPS for k in (1, 2, 3, 4, 5)])
    decayed = [LR * decay((k - WARMUP_STEPS) / (HORIZON - WARMUP_STEPS)) for k in range(WARMUP_STEPS, HORIZON)]
    assert rates[WARMUP_STEPS:HORIZON] == pytest.approx(decayed)
    assert rates[HORIZON - 1] > 0.0
    assert rates[HORIZON] == 0.0


@pytest.mark.parametrize("name", CONTENDERS)
def test_warmup_is_the_same_for_all(name: str) -> None:
    """The first step of any Adam moves the weight by the learning rate: lr / warmup_steps."""
    model = OneWeight()
    training = CONTENDERS[name].prepare(model, LR, {"weight_decay": 0.0}, WARMUP_STEPS, HORIZON)
    model.weight.grad = torch.ones_like(model.weight)
    training.optimizer.step()
    assert model.eval().weight.item() == pytest.approx(3.0 - LR / WARMUP_STEPS, abs=1e-8)
