"""The benchmark of GPUs, as far as it runs without one."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.workloads import Workload, equal_tensors


def test_all_contenders_are_timed_and_one_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds_of(call: Callable[[], object]) -> float:
        call()
        return 0.002

    def fails(params: Any) -> Any:
        raise RuntimeError("no such device\nwith a trace")

    monkeypatch.setattr(gpu, "seconds_of", seconds_of)
    monkeypatch.setattr(gpu, "CACHE", 1024)
    makes = {"torch": lambda params: torch.optim.AdamW(params), "other": fails}
    race = gpu.race(Workload("small", equal_tensors(3, 300), ()), makes, torch.device("cpu"), rounds=4)
    assert race["seconds"] == {"torch": 0.002}
    assert race["problems"] == {"other": "RuntimeError: no such device"}
    assert len(race["all_seconds"]["torch"]) == 4


def test_goals_are_ratios_of_medians() -> None:
    seconds = {"unscheduled fused": 1.0, "torch fused": 0.8, "unscheduled fused compact": 0.6}
    race = {"workload": "big", "parameters": 100, "seconds": seconds}
    found = gpu.goals({"streaming_rate": 5600.0, "races": [race]})
    assert [each["measured"] for each in found] == [1.25, pytest.approx(0.75), None, 0.5]


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    run = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "there is no GPU that torch can use" in run.stderr
