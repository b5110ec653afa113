"""Races that are killed or interrupted, and started again."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from races import contents, kept, race, start

from unscheduled.lab.execution import runs_folder

OPTIONS = ("--rates", "0.1")  # grids of one rate do not widen: 18 runs of tuning, and 18 of the race
RUNS = 36


def wait_for_runs(count: int) -> None:
    deadline = time.monotonic() + 60
    while len(kept()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_race_goes_on_where_it_was(slow_task: Path) -> None:
    """After kill -9 the workers end too (communicate waits for all that hold the output), and no run is done twice."""
    process = start(slow_task, *OPTIONS)
    wait_for_runs(5)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    before = kept()
    assert len(before) < RUNS
    for file in runs_folder().rglob("*.json"):
        json.loads(file.read_text())
    process = start(slow_task, *OPTIONS)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    after = kept()
    assert len(after) == RUNS
    assert {name: after[name] for name in before} == before
    assert f"{min(len(before), 18)} of 18 runs are done already" in printed
    assert not [*runs_folder().rglob("*.progress")]


@pytest.mark.slow
def test_interrupt_says_how_to_go_on(slow_task: Path) -> None:
    """Ctrl-C goes to the whole process group, the workers too."""
    process = start(slow_task, *OPTIONS)
    wait_for_runs(2)
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert printed.splitlines()[-1].startswith("interrupted: the finished runs are kept")
    trackers = [line for line in errors.splitlines() if "resource_tracker" in line or "warnings.warn" in line]
    assert errors.splitlines() == trackers  # joblib's, if it was interrupted while it started a worker


@pytest.mark.slow
def test_workers_change_no_number(tiny_task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = race(tiny_task, *OPTIONS)
    monkeypatch.setenv("UNSCHEDULED_CACHE", str(tiny_task.parent / "another cache"))
    process = start(tiny_task, *OPTIONS)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert contents(tiny_task.parent / "out" / "race.json")["results"] == here["results"]
