"""README and the page of findings state the figures of the battery."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BATTERY: dict[str, Any] = json.loads((ROOT / "docs/results/battery/battery.json").read_text())
FINDINGS = (ROOT / "docs/findings.md").read_text()
README = (ROOT / "README.md").read_text()
SIGNS = {"better": "+", "tie": "=", "worse": "\N{MINUS SIGN}"}
SHOWN = {
    "schedule-free": "Schedule-Free AdamW",
    "schedule-free-r1": "the same with β 0.8, r 1, decay at z",
    "polyak-ruppert": "Polyak-Ruppert averaging, β = 0",
    "primal": "primal averaging, β = 1",
    "constant": "AdamW at a constant rate, not averaged",
    "plus": "ScheduleFree+, no learning rate",
    "river": "r = 4 (Through the River)",
    "sgd": "Schedule-Free SGD",
    "sgd-r1": "Schedule-Free SGD with r 1",
    "muon-r1": "Schedule-Free Muon with β 0.8, r 1",
    "amuse-slow": "AMUSE, power 0.5",
}
KINDS = {"deep": "networks", "convex": "convex", "long": "10 times as long"}


def total_row(total: dict[str, Any]) -> str:
    """A line of the table of totals."""
    counts = " | ".join(str(total[name]) for name in ("cells", "better", "tie", "worse"))
    steps = f"{total['steps_ratio']:.2f} | {total['never_reached']}"
    shares = " | ".join(f"{total[name]:.0%}" for name in ("not_worse", "early_not_worse", "within"))
    ratio = f"{total['loss_ratio']:.3f}"
    return f"| {SHOWN[total['contender']]} | {KINDS[total['group']]} | {counts} | {shares} | {ratio} | {steps} |"


def task_row(task: str, contender: str) -> str:
    """A line of the table of tasks: loss over that of the best schedule at each horizon."""
    cells = [cell for cell in BATTERY["cells"] if (cell["task"], cell["contender"]) == (task, contender)]
    shown = [f"{cell['ratio']:.3f} {SIGNS[cell['verdict']]}" if cell["ratio"] else "diverged" for cell in cells]
    return f"| {task} | {contender} | {' | '.join(shown)} |"


def convex_row(row: dict[str, Any]) -> str:
    """A line of the table of convex problems."""
    cells = [
        f"{value:.1f}" + (f" ({row['paper'][name]:.1f})" if name in (row["paper"] or {}) else "")
        for name, value in row["accuracy"].items()
    ]
    return f"| {row['set']} | {' | '.join(cells)} |"


RECORDS: dict[str, Any] = {
    name: json.loads((ROOT / f"docs/results/battery/{name}.json").read_text()) for name in BATTERY["tasks"]
}
ABLATIONS = {
    name: record["ablations"]
    for name, record in RECORDS.items()
    if record["ablations"] and record["entry"]["length"] == 1
}
LONG = {name: record for name, record in RECORDS.items() if record["entry"]["length"] > 1}


def ablation_row(choice: str, value: str) -> str:
    """A line of the table of ablations: loss over that of the default, as the geometric mean over the horizons."""
    cells: list[str] = []
    for rows in ABLATIONS.values():
        found = [row for row in rows if (row["choice"], row["value"]) == (choice, value)]
        ratios = found[0]["ratios"] if found else None
        mean = None if ratios is None else prod(ratios) ** (1 / len(ratios))
        cells.append("" if not found else "diverged" if mean is None else f"{mean:.3f}")
    return f"| {choice}: {value} | {' | '.join(cells)} |"


def long_row(task: str, beta: dict[str, Any]) -> str:
    """A line of the table of β in long runs: loss over that of the default at each horizon."""
    cells = [f"{ratio:.3f}" for ratio in beta["ratios"]]
    return f"| {task} | {beta['value']} | {' | '.join(cells)} |"


VARIANTS = list(
    dict.fromkeys(
        (row["choice"], row["value"]) for rows in ABLATIONS.values() for row in rows if row["choice"] != "default"
    )
)


def one_setting_row(contender: str) -> str:
    """A line of the table of one rate for all: the best of them, and what it costs."""
    rows = [row for row in BATTERY["one_setting"] if row["contender"] == contender and row["ratio"] is not None]
    tuned = next(row["ratio"] for row in rows if row["lr"] is None)
    best = min((row for row in rows if row["lr"] is not None), key=lambda row: row["ratio"])
    return f"| {contender} | {tuned:.3f} | {best['lr']:g} | {best['ratio']:.3f} |"


TOTALS = [total for total in BATTERY["totals"] if total["group"] in KINDS]
TASK_ROWS = sorted(
    {
        (cell["task"], cell["contender"])
        for cell in BATTERY["cells"]
        if cell["group"] in ("deep", "long")
        and cell["contender"] in ("schedule-free", "schedule-free-r1", "sgd", "sgd-r1")
    }
)


@pytest.mark.parametrize("total", TOTALS, ids=lambda total: f"{total['contender']}-{total['group']}")
def test_totals(total: dict[str, Any]) -> None:
    assert total_row(total) in FINDINGS
    if total["contender"] in ("schedule-free", "schedule-free-r1"):
        assert total_row(total) in README


@pytest.mark.parametrize(("task", "contender"), TASK_ROWS)
def test_tasks(task: str, contender: str) -> None:
    assert task_row(task, contender) in FINDINGS


@pytest.mark.parametrize("row", BATTERY["convex"], ids=lambda row: row["set"])
def test_convex(row: dict[str, Any]) -> None:
    assert convex_row(row) in FINDINGS


@pytest.mark.parametrize(("choice", "value"), VARIANTS)
def test_ablations(choice: str, value: str) -> None:
    assert ablation_row(choice, value) in FINDINGS


@pytest.mark.parametrize("task", LONG)
def test_beta_in_long_runs(task: str) -> None:
    for row in LONG[task]["ablations"]:
        if row["choice"] == "β":
            assert long_row(task, row) in FINDINGS


@pytest.mark.parametrize("contender", ["schedule-free", "schedule-free-r1", "cosine"])
def test_one_setting(contender: str) -> None:
    row = one_setting_row(contender)
    assert row in FINDINGS
    assert row.split(" | ")[-1].strip(" |") in README


def test_every_race_is_beside_the_summary() -> None:
    folder = ROOT / "docs/results/battery"
    for name in BATTERY["tasks"]:
        assert (folder / f"{name}.json").is_file()
    for picture in ("frontier.png", "averaging.png"):
        assert (folder / picture).is_file()
