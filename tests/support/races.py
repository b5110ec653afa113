"""Races of the tiny task within a test, and invented runs."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from unscheduled.cli import main
from unscheduled.lab.execution import runs_folder
from unscheduled.lab.plan import Plan, make_plan
from unscheduled.lab.task import load_task


def race(task: Path, *options: str, out: Path | None = None) -> dict[str, Any]:
    """Race in this process, and return the contents of ``race.json``."""
    out = out or task.parent / "out"
    with pytest.raises(SystemExit) as exit_:
        main(["race", str(task), "--jobs", "1", "--out", str(out), *options])
    assert exit_.value.code == 0
    return contents(out / "race.json")


def contents(file: Path) -> dict[str, Any]:
    """The contents of a JSON file, which must not have NaN or infinity."""

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(file.read_text(), parse_constant=no_constants)


def refused(task: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Race, and return the one line of the error with which the race ends."""
    with pytest.raises(SystemExit) as exit_:
        main(["race", str(task), "--jobs", "1", "--out", str(task.parent / "out"), *options])
    assert exit_.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def kept() -> dict[str, int]:
    """The time at which each finished run was written, by the name of its file."""
    return {file.name: file.stat().st_mtime_ns for file in runs_folder().rglob("*.json")}


def start(task: Path, *options: str) -> "subprocess.Popen[str]":
    """Start a race with two workers in a new process group."""
    command = [sys.executable, "-m", "unscheduled", "race", str(task), "--jobs", "2"]
    return subprocess.Popen(
        [*command, "--out", str(task.parent / "out"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def planned(task: Path, **choices: Any) -> Plan:
    """The plan of a race on the task as it is on disk now."""
    load_task.cache_clear()
    return make_plan(load_task(str(task)), **choices)


def made_up(
    contender: str,
    curve: Mapping[int, float],
    *,
    horizon: int = 16,
    seed: int = 0,
    initial: float | None = 1.0,
    others: Mapping[str, Sequence[float | None]] | None = None,
    seconds: float = 1.0,
    diverged_at: int | None = None,
) -> dict[str, Any]:
    """The result of an invented run with this curve."""
    return {
        "contender": contender,
        "horizon": horizon,
        "lr": 0.1,
        "seed": seed,
        "initial": initial,
        "curve": [[step, value] for step, value in curve.items()],
        "others": others or {},
        "diverged_at": diverged_at,
        "seconds_of_steps": seconds,
    }
