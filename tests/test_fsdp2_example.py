"""The example under torchrun: killed and resumed with another number of processes, it is the run of one process."""

import os
import re
import signal
import subprocess
import sys
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

EXAMPLE = Path(__file__).parents[1] / "examples" / "fsdp2_char_lm.py"
PATIENCE = 120  # seconds
EVERY = 5


def torchrun(processes: int, *arguments: object) -> dict[int, float]:
    """The losses that it prints, by their steps."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes", "1"]
    command = [*launcher, "--nproc-per-node", str(processes), str(EXAMPLE), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as run:
        try:
            output, errors = run.communicate(timeout=PATIENCE)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, errors
    return {int(step): float(loss) for step, loss in re.findall(r"step (\d+) of \d+: loss at x (\S+)", output)}


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


def test_resumed_by_three_processes_it_is_the_run_of_one(tmp_path: Path) -> None:
    """Another order of sums is rounded otherwise. What was killed while it saved is passed over."""
    losses = torchrun(2, "--steps", 10, "--every", EVERY, "--checkpoint", tmp_path)
    assert list(losses) == [5, 10]
    (tmp_path / "step-00000015").mkdir()
    (tmp_path / "step-00000015" / "__0_0.distcp").write_bytes(b"a part")
    losses |= torchrun(3, "--steps", 20, "--every", EVERY, "--checkpoint", tmp_path)
    assert list(losses) == [5, 10, 15, 20]

    model, optimizer = new_run()
    truth = plain_loop(model, optimizer, range(1, 21))
    assert truth[20] < truth[5] - 0.5
    assert losses == pytest.approx(truth, abs=1e-5)
    resumed, its_optimizer = new_run()
    load(resumed, its_optimizer.attach(resumed), tmp_path / "step-00000020")
    optimizer.eval()
    torch.testing.assert_close(weights(resumed), weights(model), rtol=0.0, atol=1e-5)


def weights(model: char_lm.GPT) -> dict[str, Tensor]:
    """All but the biases of the keys, which change no attention: their gradients are nothing but rounding."""
    found = {name: param.clone() for name, param in model.state_dict().items()}
    for name, param in found.items():
        if name.endswith("query_key_value.bias"):
            param[char_lm.WIDTH : 2 * char_lm.WIDTH] = 0.0
    return found
