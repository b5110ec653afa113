"""The page on step sizes without a learning rate: its examples run, and its figures are those of the named files."""

import json
import re
from collections.abc import Iterable
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
STUDY: dict[str, Any] = json.loads((RESULTS / "learning-rate-free.json").read_text())
SETTINGS: dict[str, Any] = json.loads((RESULTS / "settings.json").read_text())
DEVELOPMENT: dict[str, Any] = json.loads((RESULTS / "development.json").read_text())
SHOWN = {
    "distance": "**distance step** (`AutoScheduleFree`)",
    "plus": "Polyak step (`ScheduleFreePlus`)",
    "prodigy-plus": "prodigy-plus-schedule-free",
    "prodigy": "Prodigy, cosine",
    "d-adaptation": "D-Adaptation (Adam), warmup and cosine",
    "dog": "DoG, averaged",
}
SIGNS = {"better": "+", "tie": "=", "worse": "\N{MINUS SIGN}", "diverged": "\N{MINUS SIGN}"}
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


def total_row(total: dict[str, Any]) -> str:
    """A line of the table of totals."""
    counts = " | ".join(str(each) for each in (*total["within"].values(), total["not_worse"]))
    mean, worst = (percent(total[name]) for name in ("mean_excess", "worst"))
    return (
        f"| {SHOWN[total['contender']]} | {total['group']} | {total['cells']} | {counts} | {mean} | {worst} | "
        f"{total['diverged']} |"
    )


def task_row(name: str, contender: str) -> str:
    """A line of a table of tasks: the excess of a contender at each horizon."""
    cells = [cell for cell in STUDY["tasks"][name]["cells"] if cell["contender"] == contender]
    shown = [
        "diverged" if cell["excess"] is None else f"{percent(cell['excess'])} {SIGNS[cell['verdict']]}"
        for cell in cells
    ]
    return f"| {name} | {' | '.join(shown)} |"


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


@pytest.mark.parametrize("total", STUDY["totals"], ids=lambda total: f"{total['contender']}-{total['group']}")
def test_the_totals_are_those_of_the_comparison(total: dict[str, Any]) -> None:
    assert total_row(total) in PAGE


@pytest.mark.parametrize("name", STUDY["tasks"])
def test_the_tasks_are_those_of_the_comparison(name: str) -> None:
    assert task_row(name, "distance") in PAGE
    assert (task_row(name, "plus") in PAGE) == (STUDY["tasks"][name]["group"] != "convex")


@pytest.mark.parametrize("run", SETTINGS["runs"], ids=lambda run: f"{run['task']}-{run['start']}-{run['lr']}")
def test_other_settings_are_those_of_the_record(run: dict[str, Any]) -> None:
    shown = " | ".join(percent(cell["excess"]) for cell in run["cells"].values())
    assert f"| {run['task']} | {run['start']:g} | {run['lr']:g} | {shown} |" in PAGE


def near(limit: float, names: Iterable[str]) -> int:
    """In how many cells of these tasks the distance step is within a limit."""
    cells = [cell for name in names for cell in STUDY["tasks"][name]["cells"] if cell["contender"] == "distance"]
    return sum(cell["excess"] <= limit for cell in cells)


def test_the_counts_in_the_text_are_those_of_the_comparison() -> None:
    tasks, networks = STUDY["tasks"], [name for name, task in STUDY["tasks"].items() if task["group"] == "networks"]
    total = sum(cell["contender"] == "distance" for task in tasks.values() for cell in task["cells"])
    text = " ".join(PAGE.split())
    assert f"in {near(0.02, tasks)} of {total} cells, and 5% in {near(0.05, tasks)}; it never diverged" in text
    developed_on = [name for name in tasks if name in DEVELOPMENT["developed_on"]]
    assert len(developed_on) == 11
    held_back_networks = [name for name in networks if name not in developed_on]
    assert f"{near(0.02, held_back_networks)} of {4 * len(held_back_networks)} cells are within 2%" in text


def test_the_headline_is_that_of_the_comparison() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    (own,) = [each for each in STUDY["totals"] if (each["contender"], each["group"]) == ("distance", "networks")]
    within = own["within"]["5%"]
    assert f"within 5% of the loss in {within} of {own['cells']} cells" in readme
    assert "learning-rate-free.json](docs/results/learning-rate-free/learning-rate-free.json)" in readme
