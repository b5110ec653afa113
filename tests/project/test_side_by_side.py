"""The two algorithms that "How it works" has side by side are, line by line, those of torch and of the library."""

import importlib.util
import inspect
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from unscheduled import AdamWScheduleFree
from unscheduled.lab.schedules import cosine, warmup_then

DOCS = Path(__file__).parents[2] / "docs"
STEPS, WARMUP = 50, 8
SETTINGS: dict[str, Any] = {"betas": (0.9, 0.97), "eps": 1e-6, "decay": 0.1, "warmup": WARMUP}
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(20, 6, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randn(20, generator=GENERATOR, dtype=torch.float64)
START = torch.randn(6, generator=GENERATOR, dtype=torch.float64)


def gradient(point: Tensor) -> Tensor:
    """The gradient of sum log cosh(A w - b)."""
    return INPUTS.T @ torch.tanh(INPUTS @ point - TARGETS)


def algorithm(name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location("side_by_side", DOCS / "examples" / "side_by_side.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def check(ours: Any, theirs: Any) -> None:
    """Compare two tensors or numbers in float64."""
    ours, theirs = (torch.as_tensor(value, dtype=torch.float64) for value in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def options(weight: Parameter) -> dict[str, Any]:
    """The settings as the arguments of an optimizer."""
    betas, eps, decay = SETTINGS["betas"], SETTINGS["eps"], SETTINGS["decay"]
    return {"params": [weight], "lr": 0.05, "betas": betas, "eps": eps, "weight_decay": decay}


def test_adamw_with_a_schedule_is_that_of_torch() -> None:
    weight = Parameter(START.clone())
    optimizer = torch.optim.AdamW(**options(weight))
    scheduler = LambdaLR(optimizer, warmup_then(cosine, WARMUP, STEPS))
    steps = list(algorithm("adamw")(START, gradient, lr=0.05, steps=STEPS, **SETTINGS))
    assert len(steps) == STEPS
    for w, m, v, gamma in steps:
        check(gamma, scheduler.get_last_lr()[0])
        weight.grad = gradient(weight.detach())
        optimizer.step()
        scheduler.step()
        check(m, optimizer.state[weight]["exp_avg"])
        check(v, optimizer.state[weight]["exp_avg_sq"])
        check(w, weight.detach())
    assert scheduler.get_last_lr() == [0.0]  # the horizon


@pytest.mark.parametrize("lowered", [False, True], ids=["constant", "lowered"])
def test_schedule_free_adamw_is_that_of_the_library(lowered: bool) -> None:
    """Also where the learning rate is lowered on the way: the weights are those of the largest."""
    lr = torch.tensor(0.05, dtype=torch.float64)
    weight = Parameter(START.clone())
    optimizer = AdamWScheduleFree(**options(weight), warmup_steps=WARMUP)
    steps = algorithm("schedule_free")(START, gradient, lr=lr, **SETTINGS)
    for t, (x, y, z, v, c, gamma) in enumerate(islice(steps, STEPS), start=1):
        check(y, weight.detach())
        weight.grad = gradient(weight.detach())
        optimizer.step()
        iterates = optimizer.iterates(weight)
        check(gamma, optimizer.metrics()["effective_lr"])
        check(v, optimizer.state[weight]["exp_avg_sq"])
        check(z, iterates.z)
        check(c, optimizer.metrics()["c"])
        check(x, iterates.x)
        if lowered and t == 30:
            optimizer.param_groups[0]["lr"] = lr.mul_(0.25).item()


@pytest.mark.parametrize(("column", "name"), [(0, "adamw"), (1, "schedule_free")])
def test_the_lines_of_the_table_are_those_of_the_code(column: int, name: str) -> None:
    table = re.findall(r"^\| (\d+) \|[^|]*\|([^|]*)\|([^|]*)\|$", (DOCS / "how-it-works.md").read_text(), re.MULTILINE)
    assert [int(number) for number, *_ in table] == list(range(1, 14))
    stated = [number for number, *cells in table if cells[column].strip() != "none"]
    assert list(dict.fromkeys(re.findall(r"  # (\d+)$", inspect.getsource(algorithm(name)), re.MULTILINE))) == stated
