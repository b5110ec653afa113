"""The page on step sizes without a learning rate: its examples run, and its figures are those of the named files."""

import json
import re
from math import exp, inf, log
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "learning-rate-free.md").read_text()
RESULTS = ROOT / "docs" / "results" / "learning-rate-free"
DEVELOPMENT: dict[str, Any] = json.loads((RESULTS / "development.json").read_text())
COLUMNS = (
    "translation-lstm",
    "pubmed-gcn",
    "movielens",
    "fashion-mae",
    "mnist-cnn",
    "digits",
    "char-lm",
    "logistic-glass",
    "logistic-vehicle",
    "logistic-wine",
)
POLYAK = [name for name in DEVELOPMENT["variants"] if name.startswith("polyak")]
STEPS = [name for name in DEVELOPMENT["variants"] if name not in POLYAK]


def percent(share: float) -> str:
    """A share as a signed number of two or three digits, in per cent."""
    shown = f"{100 * share:+.1f}" if abs(share) < 0.1 else f"{100 * share:+.0f}"
    return f"{shown}%".replace("-", "\N{MINUS SIGN}")


def mean_excess(tasks: dict[str, Any], name: str) -> str:
    """The geometric mean over the horizons of the excess of a variant on a task."""
    if name not in tasks:
        return ""
    losses = [(inf if cell["loss"] is None else cell["loss"]) / cell["reference"] for cell in tasks[name].values()]
    return "diverged" if max(losses) == inf else percent(exp(fmean(map(log, losses))) - 1.0)


def variant_row(name: str) -> str:
    """A line of the table of what was tried."""
    tasks = DEVELOPMENT["variants"][name]["tasks"]
    return f"| {name} | {' | '.join(mean_excess(tasks, column) for column in COLUMNS)} |"


def held_back(name: str) -> list[float]:
    """The excess of a variant in all cells of the tasks that it was not developed on."""
    tasks = DEVELOPMENT["variants"][name]["tasks"]
    return [
        cell["loss"] / cell["reference"] - 1.0
        for task, cells in tasks.items()
        if task not in DEVELOPMENT["developed_on"]
        for cell in cells.values()
    ]


def held_back_row(name: str) -> str:
    found = held_back(name)
    counts = " | ".join(str(sum(each <= near for each in found)) for near in (0.02, 0.05, 0.15))
    mean = exp(fmean(log(1.0 + each) for each in found)) - 1.0
    return f"| {name} | {len(found)} | {counts} | {percent(mean)} | {percent(max(found))} |"


def test_the_examples_run_one_after_the_other() -> None:
    names: dict[str, Any] = {
        "model": nn.Linear(2, 1),
        "loader": [(torch.randn(4, 2), torch.randn(4, 1))] * 3,
        "loss_fn": nn.MSELoss(),
        "torch": torch,
    }
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, names)


@pytest.mark.parametrize("name", DEVELOPMENT["variants"])
def test_what_was_tried_is_that_of_the_record(name: str) -> None:
    assert variant_row(name) in PAGE


@pytest.mark.parametrize("name", ["corrected", "chosen"])
def test_the_tasks_that_were_held_back_are_those_of_the_record(name: str) -> None:
    assert held_back_row(name) in PAGE


def test_the_figures_of_the_polyak_step_are_those_of_the_benchmark() -> None:
    assert "](benchmarks/polyak.json)" in PAGE
    record = json.loads((ROOT / "docs" / "benchmarks" / "polyak.json").read_text())
    for found in record["comparisons"]:
        best = found["best_rate"]
        assert f"| {found['task']} | {found['batch']} | {shown(found, best)} " in PAGE
        assert f"| {shown(found, 'defaults')} | {shown(found, 'inner momentum 0.9')} |" in PAGE
        if found["batch"] == "usual":
            for variant in found["minus_best_rate"]:
                if variant.startswith(("factor", "no")):
                    assert shown(found, variant) in PAGE


def shown(found: dict[str, Any], name: str) -> str:
    if found["mean"][name] is None or found["mean"][name] > 100.0:
        return "diverged"
    return f"{found['mean'][name]:.3f} ± {found['standard_error'][name]:.3f}"
