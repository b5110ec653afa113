"""The examples of Transformers and Accelerate run as they are, and say and save what their pages promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, directory: Path, steps: int) -> str:
    """What an example prints."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--steps", str(steps), "--out", "out"],
        cwd=directory,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        timeout=240,
        check=True,
        text=True,
    ).stdout


@pytest.mark.parametrize(("name", "times"), [("transformers_trainer.py", 1), ("accelerate_loop.py", 2)])
def test_an_example(name: str, times: int, tmp_path: Path) -> None:
    losses = re.findall(r"validation loss at x ([\d.]+), of the saved model ([\d.]+)", run(name, tmp_path, steps=30))
    assert len(losses) == times
    assert all(at_x == saved for at_x, saved in losses)
    assert float(losses[-1][0]) < 4.5  # nats per byte; it begins at log 256 = 5.5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    weights = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    (file,) = (tmp_path / "out").glob("checkpoint-30/optimizer.pt" if times == 1 else "state/optimizer.bin")
    assert {group["step"] for group in torch.load(file)["param_groups"]} == {30}
