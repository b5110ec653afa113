"""A run that is killed at any moment, and resumed from its last checkpoint, is the run that was never killed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from registry import OptimizerInfo, optimizers

KILLS = 50


def differences(some: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested dictionaries or lists of tensors and numbers are not the same, bit for bit."""
    if isinstance(some, torch.Tensor):
        return [] if some.dtype == other.dtype and torch.equal(some, other) else [path]
    if isinstance(some, dict) and some.keys() == other.keys():
        return [place for key in some for place in differences(some[key], other[key], f"{path}/{key}")]
    if isinstance(some, list) and len(some) == len(other):
        pairs = enumerate(zip(some, other, strict=True))
        return [place for index, (a, b) in pairs for place in differences(a, b, f"{path}/{index}")]
    return [] if some == other else [path]


@pytest.mark.slow
@optimizers
@pytest.mark.parametrize("attached", [True, False])
def test_killed_fifty_times_it_ends_where_the_uninterrupted_run_ends(
    info: OptimizerInfo, attached: bool, tmp_path: Path
) -> None:
    arguments = [str(tmp_path), info.cls.__name__, str(attached), "5"]
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "support" / "killed_run.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    how = json.loads(run.stdout)
    assert len(how["starts"]) == KILLS + 1
    assert len(set(how["starts"])) > KILLS // 2  # most lives came further
    assert {start % 2 for start in how["starts"]} == {0, 1}  # resumed from files of train and of eval mode
    assert how["temporaries"] >= KILLS // 5  # killed while it saved
    ends = [torch.load(tmp_path / name, weights_only=True) for name in ("killed", "reference")]
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} < set(ends[0]["model"])
    assert differences(*ends) == []
