"""Lightning's DDP with two processes: what each holds, sees and saves is what one process would have, bit for bit."""

from pathlib import Path

import lightning_ddp_run
import pytest
import torch
from launching import launch
from lightning_ddp_run import STEPS, WORLD
from problems import copies, equal
from small_problem import batch, net
from torch.nn import functional

from unscheduled import AdamWScheduleFree

pytestmark = pytest.mark.slow


def test_two_processes_and_a_resumed_run_are_one_plain_loop(tmp_path: Path) -> None:
    model = net()
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.05)
    every_x, every_y = [copies(model.parameters())], [copies(model.parameters())]
    for step in range(STEPS):
        optimizer.zero_grad()
        for inputs, targets in zip(*(part.chunk(WORLD) for part in batch(step + 1)), strict=True):
            (functional.cross_entropy(model(inputs), targets) / WORLD).backward()
        optimizer.step()
        every_x.append([optimizer.iterates(param).x for param in model.parameters()])
        every_y.append(copies(model.parameters()))

    half = STEPS // 2
    launch(lightning_ddp_run.__file__, tmp_path)
    launch(lightning_ddp_run.__file__, tmp_path, tmp_path / f"{half}.ckpt")
    for end, seen in ((half, range(half + 1)), (STEPS, range(half + 1, STEPS + 1))):
        saved = torch.load(tmp_path / f"{end}.ckpt", weights_only=True)
        assert equal(saved["state_dict"].values(), every_x[end])
        for rank in range(WORLD):
            found = torch.load(tmp_path / f"{end}.{rank}.pt", weights_only=True)
            assert equal(found["y"], every_y[end])
            assert list(found["seen"]) == list(seen)
            assert all(equal(found["seen"][step], every_x[step]) for step in seen)
