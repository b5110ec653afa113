"""The examples of the frameworks run as scripts, learn, and print and save what they say."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
PATIENCE = 240  # seconds


class Example(NamedTuple):
    """How an example is run, and what comes of it."""

    runs: list[str]  # the arguments of each run, one after the other in the same folder
    printed: str  # a pattern of the lines in question, whose groups are numbers
    lines: int  # how many of them all runs print
    learnt: Callable[..., bool]  # whether the numbers of the last line are those of a run that has learnt something
    steps: int  # that were made, by the file that is left behind
    file: str | None = None  # which is that
    state: Callable[[Any], dict[str, Any]] = lambda file: file  # and where in it the optimizer's state is


def low_and_saved(at_x: float, saved: float) -> bool:
    return at_x == saved and at_x < 4.5  # nats per byte; it begins at log 256 = 5.5


def accurate(accuracy: float) -> bool:
    return accuracy > 0.8


LOSSES = r"validation loss at x ([\d.]+), of the saved model ([\d.]+)"
ACCURACY = r"^best of \d epochs: .*accuracy ([\d.]+)$"
ALL = {
    "transformers_trainer": Example(["--steps 30"], LOSSES, 1, low_and_saved, 30, "out/checkpoint-30/optimizer.pt"),
    "accelerate_loop": Example(["--steps 30"], LOSSES, 2, low_and_saved, 30, "out/state/optimizer.bin"),
    "lightning_module": Example(
        ["--epochs 2"], ACCURACY, 1, accurate, 44, "lightning_run/best.ckpt", lambda file: file["optimizer_states"][0]
    ),
    "lightning_manual": Example(["--epochs 3"], r"^after 3 epochs: loss ([\d.]+)$", 1, lambda loss: loss < 0.1, 0),
    "skorch_net": Example(["--epochs 3"], ACCURACY, 1, accurate, 54, "skorch_run/optimizer.pt"),
    "vision_loop": Example(
        ["--epochs 1", "--epochs 2 --resume", "--epochs 2 --resume"],  # the last of which has nothing to do
        r"^epoch \d: accuracy ([\d.]+)$",
        2,
        accurate,
        44,
        "vision.pt",
        lambda file: file["optimizer"],
    ),
}


def run(name: str, folder: Path, arguments: str) -> str:
    """What it prints."""
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", str(EXAMPLES / f"{name}.py"), *arguments.split()],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_an_example(name: str, tmp_path: Path) -> None:
    example = ALL[name]
    printed = "".join(run(name, tmp_path, arguments) for arguments in example.runs)
    lines = [match.groups() for match in re.finditer(example.printed, printed, re.MULTILINE)]
    assert len(lines) == example.lines, printed
    assert example.learnt(*map(float, lines[-1])), printed
    if example.file is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert [path.name for path in tmp_path.iterdir()] == [Path(example.file).parts[0]]
        state = example.state(torch.load(tmp_path / example.file, weights_only=True))
        assert {group["step"] for group in state["param_groups"]} == {example.steps}


def test_every_example_is_run() -> None:
    """But for that of many processes, which has a test of its own."""
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {*ALL, "fsdp2_char_lm"}
