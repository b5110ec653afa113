"""The comparison of optimizers without a learning rate: what it counts, and its picture."""

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from benchmarks import learning_rate_free
from benchmarks.learning_rate_free_figure import draw
from unscheduled.lab.plan import Plan, make_plan
from unscheduled.lab.task import load_task

HORIZONS = (100, 200)


def cell(horizon: int, contender: str, excess: float | None, verdict: str | None) -> dict[str, Any]:
    mean = None if excess is None else 1.0 + excess
    return {"horizon": horizon, "contender": contender, "mean": mean, "excess": excess, "verdict": verdict}


def record(excesses: dict[str, list[float | None]]) -> dict[str, Any]:
    """That of two tasks; a contender that is not named is level."""
    cells = [cell(horizon, learning_rate_free.TUNED, 0.0, None) for horizon in HORIZONS]
    for name in learning_rate_free.CONTENDERS:
        for horizon, excess in zip(HORIZONS, excesses.get(name, [0.0, 0.0]), strict=True):
            cells.append(cell(horizon, name, excess, "worse" if excess is None or excess > 0.1 else "tie"))
    tasks = {name: {"group": "networks", "cells": cells} for name in ("one", "two")}
    contenders = dict.fromkeys((learning_rate_free.TUNED, *learning_rate_free.CONTENDERS), "")
    return {"contenders": contenders, "totals": learning_rate_free.totals_of(tasks), "tasks": tasks}


def test_the_totals_count_the_cells_near_the_reference() -> None:
    totals = record({"distance": [0.01, 0.21], "dog": [None, 0.04]})["totals"]
    distance, dog = (next(each for each in totals if each["contender"] == name) for name in ("distance", "dog"))
    assert distance["within"] == {"2%": 2, "5%": 2, "15%": 2}
    assert (distance["cells"], distance["not_worse"], distance["diverged"], distance["worst"]) == (4, 2, 0, 0.21)
    assert distance["mean_excess"] == pytest.approx(math.sqrt(1.01 * 1.21) - 1.0)
    assert dog["within"] == {"2%": 0, "5%": 2, "15%": 2}
    assert (dog["diverged"], dog["mean_excess"]) == (2, pytest.approx(0.04))
    learning_rate_free.print_totals(totals, Console())


def test_the_picture_has_a_row_for_each_task(tmp_path: Path) -> None:
    draw(record({"plus": [None, 7.0]}), tmp_path / "found.png")
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.size[0] > 1000


class Canned:
    """Stands in for the runner: the loss of a run is |log2(lr / 0.25)| + 1, with noise by the seed."""

    def run(self, jobs: list[Any], phase: str) -> list[dict[str, Any]]:
        return [self.result(job.settings) for job in jobs]

    def result(self, settings: Any) -> dict[str, Any]:
        loss = abs(math.log2(settings.lr / 0.25)) + 1.0 + 0.01 * (settings.seed % 10)
        return {
            **{name: getattr(settings, name) for name in ("contender", "horizon", "lr", "seed")},
            "initial": 100.0,
            "curve": [[step, loss] for step in settings.evaluate_at],
        }


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    loaded = load_task("logistic-iris")
    names = (learning_rate_free.TUNED, *learning_rate_free.CONTENDERS)
    made = make_plan(loaded, steps=40, horizons=[20, 40], contenders=names, seeds=3)
    monkeypatch.setattr(learning_rate_free, "read_rates", lambda plan, out: learning_rate_free.TunedRates({}, []))
    monkeypatch.setattr(Plan, "grid", lambda plan, contender: [1.0, 2.0, 4.0])
    return made


def test_the_reference_is_the_best_rate_of_a_grid_that_goes_on_until_it_lies_inside(plan: Plan, tmp_path: Path) -> None:
    runner: Any = Canned()
    assert learning_rate_free.best_rates(plan, tmp_path, runner) == ({20: 0.25, 40: 0.25}, set())
    cells = learning_rate_free.cells_of(plan, tmp_path, runner)
    assert len(cells) == 2 * (1 + len(learning_rate_free.CONTENDERS))
    assert [each["lr"] for each in cells if each["contender"] == learning_rate_free.TUNED] == [0.25, 0.25]
    distance = [each for each in cells if each["contender"] == "distance"]
    assert [each["excess"] for each in distance] == pytest.approx([2.0 / 1.01, 2.0 / 1.01])
    assert [each["verdict"] for each in distance] == ["worse", "worse"]
