"""The example under torchrun: killed and resumed with another number of processes, it is the run of one process."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from processes import load
from torch import Tensor
from torch.nn import functional

from unscheduled import AdamWScheduleFree
from unscheduled.lab.tasks import char_lm

pytestmark = [
    pytest.mark.slow,
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp2_char_lm.py"
PATIENCE = 120  # seconds
EVERY = 5


def torchrun(processes: int, *arguments: object, killed_after: int | None = None) -> dict[int, float]:
    """The losses that it prints, by their steps. Its launcher, told to end, kills the processes wherever they are."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes", "1"]
    command = [*launcher, "--nproc-per-node", str(processes), str(EXAMPLE), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    output = ""
    losses: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as run:
        assert run.stdout is not None
        deadline = threading.Timer(PATIENCE, run.terminate)
        deadline.start()
        try:
            for line in run.stdout:
                output += line
                if found := re.match(r"step (\d+) of \d+: loss at x (\S+)", line):
                    losses[int(found[1])] = float(found[2])
                    if killed_after in losses:
                        run.terminate()
        except BaseException:
            run.terminate()
            raise
        finally:
            deadline.cancel()
    assert killed_after in losses if killed_after else run.returncode == 0, output
    return losses


def plain_loop(model: char_lm.GPT, optimizer: AdamWScheduleFree, steps: range) -> dict[int, float]:
    """What the example does, by one process without FSDP2, and all of the loss at once."""
    losses: dict[int, float] = {}
    _, held_out = char_lm.texts()
    starts = torch.linspace(0, len(held_out) - char_lm.CONTEXT - 1, char_lm.VALIDATION_WINDOWS).long()
    for step in steps:
        inputs, targets = next(char_lm.batches(torch.Generator().manual_seed(step)))
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs).transpose(1, 2), targets).backward()
        optimizer.step()
        if step % EVERY == 0:
            inputs, targets = char_lm.windows(held_out, starts)
            with torch.no_grad(), optimizer.averaged_parameters():
                losses[step] = functional.cross_entropy(model(inputs).transpose(1, 2), targets).item()
    return losses


def new_run() -> tuple[char_lm.GPT, AdamWScheduleFree]:
    torch.manual_seed(0)
    model = char_lm.GPT()
    return model, AdamWScheduleFree(model.parameters(), lr=0.008, betas=(0.9, 0.99), warmup_steps=20)


def test_killed_and_resumed_by_three_processes_it_is_the_run_of_one(tmp_path: Path) -> None:
    """Another order of sums is rounded otherwise. What was killed while it saved is passed over."""
    options = ("--every", EVERY, "--checkpoint", tmp_path)
    losses = torchrun(2, "--steps", 20, *options, killed_after=10)
    last = int(max(tmp_path.glob("step-*/.metadata")).parent.name.removeprefix("step-"))
    unfinished = tmp_path / f"step-{last + EVERY:08}"
    unfinished.mkdir(exist_ok=True)
    (unfinished / "__0_0.distcp").write_bytes(b"a part")
    resumed = torchrun(3, "--steps", 30, *options)
    assert list(resumed) == list(range(last + EVERY, 31, EVERY))

    model, optimizer = new_run()
    truth = plain_loop(model, optimizer, range(1, 31))
    assert truth[30] < truth[5] - 0.5
    losses |= resumed
    assert losses == pytest.approx({step: truth[step] for step in losses}, abs=2e-5)
    loaded, its_optimizer = new_run()
    load(loaded, its_optimizer.attach(loaded), tmp_path / "step-00000030")
    optimizer.eval()
    torch.testing.assert_close(weights(loaded), weights(model), rtol=0.0, atol=2e-5)


def weights(model: char_lm.GPT) -> dict[str, Tensor]:
    """All but the biases of the keys, which change no attention: their gradients are nothing but rounding."""
    found = {name: param.clone() for name, param in model.state_dict().items()}
    for name, param in found.items():
        if name.endswith("query_key_value.bias"):
            param[char_lm.WIDTH : 2 * char_lm.WIDTH] = 0.0
    return found
