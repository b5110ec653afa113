"""The examples of Lightning, skorch and vision run as scripts, and print and save what they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
PATIENCE = 150  # seconds


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / arguments[0]), *arguments[1:]]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


def last_number(printed: str) -> float:
    return float(re.findall(r"\d+\.\d+", printed)[-1])


def test_lightning_module(tmp_path: Path) -> None:
    printed = run(tmp_path, "lightning_module.py", "--epochs", "2")
    assert re.search(r"^best of 2 epochs: loss \d\.\d{4}, accuracy 0\.\d{4}$", printed, re.MULTILINE)
    assert last_number(printed) > 0.8
    saved = torch.load(tmp_path / "lightning_run" / "best.ckpt", weights_only=True)
    assert saved["global_step"] == 44
    (logged,) = (tmp_path / "lightning_run").glob("lightning_logs/version_0/metrics.csv")
    assert "optimizer/effective_lr" in logged.read_text().splitlines()[0]


def test_lightning_manual(tmp_path: Path) -> None:
    printed = run(tmp_path, "lightning_manual.py", "--epochs", "3")
    assert re.search(r"^after 3 epochs: loss 0\.\d{5}$", printed, re.MULTILINE)
    assert last_number(printed) < 0.1
    assert list(tmp_path.iterdir()) == []


def test_skorch_net(tmp_path: Path) -> None:
    printed = run(tmp_path, "skorch_net.py", "--epochs", "3")
    assert re.search(r"^best of 3 epochs: accuracy 0\.\d{4}$", printed, re.MULTILINE)
    assert last_number(printed) > 0.8
    assert {file.name for file in (tmp_path / "skorch_run").iterdir()} >= {"params.pt", "optimizer.pt", "history.json"}


def test_vision_loop(tmp_path: Path) -> None:
    first = run(tmp_path, "vision_loop.py", "--epochs", "1")
    assert re.fullmatch(r"epoch 1: accuracy 0\.\d{4}\n", first)
    second = run(tmp_path, "vision_loop.py", "--epochs", "2", "--resume")
    assert re.fullmatch(r"epoch 2: accuracy 0\.\d{4}\n", second)
    assert last_number(second) > 0.9
    assert torch.load(tmp_path / "vision.pt", weights_only=True)["epoch"] == 2
    third = run(tmp_path, "vision_loop.py", "--epochs", "2", "--resume")
    assert third == "vision.pt has 2 epochs already: ask for more with --epochs\n"
