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

from unscheduled import AutoScheduleFree
from unscheduled.lab.battery.entries import ENTRIES
from unscheduled.lab.task import load_task

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


def cells_of(contender: str, *names: str) -> list[dict[str, Any]]:
    """The cells of a contender on these tasks, in the order of the tasks and horizons."""
    return [cell for name in names for cell in STUDY["tasks"][name]["cells"] if cell["contender"] == contender]


def mean_of(contender: str, names: Iterable[str]) -> str:
    """The geometric mean of the excess of a contender on these tasks."""
    return percent(exp(fmean(log(1.0 + cell["excess"]) for cell in cells_of(contender, *names))) - 1.0)


def test_the_counts_in_the_text_are_those_of_the_comparison() -> None:
    tasks = STUDY["tasks"]
    total = sum(cell["contender"] == "distance" for task in tasks.values() for cell in task["cells"])
    text = " ".join(PAGE.split())
    counts = f"is within 2% in {near(0.02, tasks)} of {total} cells"
    assert f"{counts}, and 5% in {near(0.05, tasks)}; it never diverged" in text
    assert counts in " ".join((ROOT / "CHANGELOG.md").read_text().split())
    developed_on = [name for name in tasks if name in DEVELOPMENT["developed_on"]]
    assert len(developed_on) == 11
    halves = {
        (group, held_back): [
            name for name, task in tasks.items() if task["group"] == group and (name not in developed_on) == held_back
        ]
        for group in ("networks", "convex")
        for held_back in (True, False)
    }
    assert [len(names) for names in halves.values()] == [6, 6, 5, 5]
    new, old, new_convex, old_convex = (
        (near(0.02, names), 4 * len(names), mean_of("distance", names)) for names in halves.values()
    )
    assert (
        f"On the six networks on which it was not, {new[0]} of {new[1]} cells are within 2%, and the mean is {new[2]}; "
        f"on the six on which it was, {old[0]} and {old[2]}."
    ) in text
    assert (
        f"On the five convex problems on which it was not, {new_convex[0]} of {new_convex[1]} cells are within 2%, and "
        f"the mean is {new_convex[2]}; on the other five {old_convex[0]} and {old_convex[2]}."
    ) in text


def test_what_the_text_says_of_ranks_is_that_of_the_comparison() -> None:
    text = " ".join(PAGE.split())
    assert "Its mean is the lowest in each group." in text
    assert "its mean excess is the lowest in each group of tasks" in " ".join(
        (ROOT / "CHANGELOG.md").read_text().split()
    )
    groups = {total["group"]: {} for total in STUDY["totals"]}
    for total in STUDY["totals"]:
        groups[total["group"]][total["contender"]] = total
    for totals in groups.values():
        assert min(totals, key=lambda name: totals[name]["mean_excess"]) == "distance"
    assert max(groups["convex"], key=lambda name: groups["convex"][name]["not_worse"]) == "prodigy-plus"
    assert min(groups["convex"], key=lambda name: groups["convex"][name]["worst"]) == "prodigy"
    near_own, near_plus = (groups["networks"][name]["within"]["2%"] for name in ("distance", "plus"))
    assert 0 < near_own - near_plus <= 2


def test_what_the_page_says_was_set_is_what_the_tasks_set() -> None:
    text = " ".join(PAGE.split())
    tasks = {entry.name: load_task(entry.task).task for entry in ENTRIES if entry.name in STUDY["tasks"]}
    options = {name: task.optimizers["AdamWScheduleFree"].options for name, task in tasks.items()}
    networks = {name: found for name, found in options.items() if STUDY["tasks"][name]["group"] == "networks"}
    decays = [found["weight_decay"] for found in networks.values()]
    assert f"the weight decay of the task, {min(decays):g} to {max(decays):g}" in text
    own, *parts = AutoScheduleFree([nn.Parameter(torch.zeros(1))]).param_groups
    assert not parts
    assert (own["weight_decay"], own["betas"]) == (0.0, (0.9, 0.99))
    assert "the default of `AutoScheduleFree` is 0" in text
    others = {name: found["betas"] for name, found in networks.items() if found["betas"] != own["betas"]}
    assert others == {"fashion-mae": (0.9, 0.999)}
    convex = [found for name, found in options.items() if name not in networks]
    assert [(found["weight_decay"], found["betas"]) for found in convex] == [(0.0, (0.9, 0.95))] * 10
    assert {task.warmup_steps / task.steps for task in tasks.values()} == {0.05}
    assert "of 5% of all steps: that is 40% of an eighth of them" in text
    assert "and with the weight decay of each task, its loss" in " ".join((ROOT / "README.md").read_text().split())


def total_of(contender: str) -> dict[str, Any]:
    """The totals of a contender on the networks."""
    wanted = (contender, "networks")
    (found,) = [each for each in STUDY["totals"] if (each["contender"], each["group"]) == wanted]
    return found


def test_what_the_page_says_of_verdicts_and_means_is_that_of_the_comparison() -> None:
    text = " ".join(PAGE.split())
    networks = [name for name, task in STUDY["tasks"].items() if task["group"] == "networks"]
    far = {
        name: [cell["excess"] for cell in cells_of("distance", name) if cell["verdict"] == "tie"] for name in networks
    }
    far = {name: [each for each in found if each > 0.15] for name, found in far.items() if max(found, default=0) > 0.15}
    excesses = [each for found in far.values() for each in found]
    count = f"{len(excesses)} of the {total_of('distance')['not_worse']} such cells"
    span = f"{min(excesses):.0%}".rstrip("%") + f" to {max(excesses):.0%} above, on `{'` and `'.join(far)}`"
    assert f"{count} of the distance step on the networks are {span}" in text

    guessing = {
        name: [value > log(10) - 0.1 for cell in cells_of(name, "mnist-cnn") for value in cell["values"]]
        for name in SHOWN
    }
    assert not any(guessing["distance"] + guessing["plus"] + guessing["prodigy-plus"])
    assert {len(found) for found in guessing.values()} == {20}
    prodigy, adaptation, dog = (sum(guessing[name]) for name in ("prodigy", "d-adaptation", "dog"))
    assert f"{prodigy} of 20 losses of Prodigy, {adaptation} of D-Adaptation and {dog} of DoG are still" in text

    others = [name for name in networks if name != "mnist-cnn"]
    means = {name: mean_of(name, others) for name in SHOWN}
    assert (
        f"the means on the networks are {means['distance']} for the distance step, {means['prodigy-plus']} for "
        f"prodigy-plus-schedule-free, {means['prodigy']} for Prodigy, {means['d-adaptation']} for D-Adaptation and "
        f"{means['dog']} for DoG"
    ) in text


def test_where_it_fails_is_that_of_the_comparison() -> None:
    text = " ".join(PAGE.split())
    cora, dna, iris = (
        [round(100 * cell["excess"]) for cell in cells_of("distance", name)]
        for name in ("cora-gcn", "logistic-dna", "logistic-iris")
    )
    assert f"it is {min(cora)} to {max(cora)}% above the rate that is best for each horizon" in text
    assert f"on `logistic-dna` {dna[2]} and {dna[3]}% at the last two" in text
    assert f"(+{iris[0]}% at an eighth of the steps, {iris[3]}% at the end)" in text
    early = [cells_of("distance", f"logistic-{name}")[0]["excess"] for name in ("glass", "vehicle", "segment")]
    assert f"by {100 * min(early):.0f} to {100 * max(early):.0f}%" in text
    assert [cell["verdict"] for cell in cells_of("distance", "mnist-cnn")].count("worse") == 1
    assert {round(100 * cell["excess"]) for cell in cells_of("distance", "translation-lstm")} == {3}
    assert "On `translation-lstm` it is 3% behind at all horizons" in text
    assert cells_of("schedule-free", "logistic-iris")[0]["lr"] == 2.0
    assert "a rate of 2 at first" in text
    assert text.count(f"{STUDY['seeds']} seeds") == len(re.findall(r"\d seeds", text)) == 3


def test_what_the_page_says_of_other_settings_is_that_of_the_record() -> None:
    text = " ".join(PAGE.split())
    better: dict[str, list[bool]] = {"convex": [], "networks": [], "half": []}
    for run in SETTINGS["runs"]:
        group = "half" if run["lr"] == 0.5 else STUDY["tasks"][run["task"]]["group"]
        usual = cells_of("distance", run["task"])
        better[group] += [new["excess"] < old["excess"] for new, old in zip(run["cells"].values(), usual, strict=True)]
    convex, half = better["convex"], better["half"]
    assert f"`DistanceStep(start=0.03)` is better in {sum(convex)} of {len(convex)} cells" in text
    assert f"better in {sum(half)} of the {len(half)} cells in which it was tried" in text
    assert not any(better["networks"][::4])


def test_the_headline_is_that_of_the_comparison() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    own = total_of("distance")
    within, mean, worst = own["within"], percent(own["mean_excess"])[1:], percent(own["worst"])[1:]
    assert f"for each task and horizon in {within['5%']} of {own['cells']} cells" in readme
    assert f"within 2% in {within['2%']}; it is {mean} above in the mean, and {worst} at worst" in readme
    assert "learning-rate-free.json](docs/results/learning-rate-free/learning-rate-free.json)" in readme
    networks = [name for name, task in STUDY["tasks"].items() if task["group"] == "networks"]
    assert sum(name in DEVELOPMENT["developed_on"] for name in networks) == 6
    assert "twelve networks of the battery, on six of which it was developed" in readme


def test_the_findings_are_those_of_the_comparison() -> None:
    findings = " ".join((ROOT / "docs" / "findings.md").read_text().split())
    own = total_of("distance")
    counts = f"in {own['within']['2%']} of {own['cells']} cells of the networks, and within 5% in {own['within']['5%']}"
    assert f"{counts}; the mean excess is {percent(own['mean_excess'])[1:]}, and no run diverged" in findings
    assert own["diverged"] == 0
    prodigy, adaptation, dog, plus = (
        total_of(name)["within"]["5%"] for name in ("prodigy", "d-adaptation", "dog", "prodigy-plus")
    )
    assert (
        f"Prodigy is within 5% in {prodigy} cells, D-Adaptation in {adaptation}, DoG in {dog} and "
        f"prodigy-plus-schedule-free in {plus}"
    ) in findings
