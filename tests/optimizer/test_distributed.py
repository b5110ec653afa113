"""Several processes train as one does, the modes need no communication, and checkpoints change their world."""

from pathlib import Path
from typing import Any

import data_parallel_run
import mesh_run
import pytest
import sharded_run
import torch
from processes import OPTIMIZERS, Net, assert_close, fit, load, one_process, save, spawn, whole
from sharded_run import CASES, spoil
from torch import nn
from torch.distributed.checkpoint.state_dict import set_state_dict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit"),  # at the import of ZeRO
]


def test_data_parallel(tmp_path: Path) -> None:
    spawn(data_parallel_run.data_parallel, tmp_path)


def test_a_wrapper_over_zero(tmp_path: Path) -> None:
    import zero_run

    spawn(zero_run.over_zero, tmp_path)


def test_zero_over_a_schedule_free_optimizer(tmp_path: Path) -> None:
    import zero_run

    spawn(zero_run.within_zero, tmp_path)


def test_fully_sharded(tmp_path: Path) -> None:
    spawn(sharded_run.everything, tmp_path)


def decay_split(model: nn.Module) -> list[dict[str, Any]]:
    params = list(model.parameters())
    return [{"params": [param for param in params if (param.dim() == 2) is matrix]} for matrix in (True, False)]


def test_checkpoints_of_two_processes_into_one(tmp_path: Path) -> None:
    """The flattened form also into other groups."""
    spawn(sharded_run.checkpoints, tmp_path)
    for case, (attach, _, flat) in enumerate(CASES):
        model = Net()
        spoil(model)
        optimizer = OPTIMIZERS["adamw"](decay_split(model) if flat else model.parameters())
        if attach:
            optimizer.attach(model)
        load(model, optimizer, tmp_path / str(case), flat)
        model.train()
        optimizer.train()
        fit(model, optimizer, range(3, 6))
        optimizer.eval()
        assert_close(dict(model.named_parameters()), one_process("adamw", 6))


def test_checkpoints_of_one_process_into_two(tmp_path: Path) -> None:
    for case, (attach, training, flat) in enumerate(CASES):
        model = Net()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        if attach:
            optimizer.attach(model)
        fit(model, optimizer, range(3))
        (model if attach else optimizer).train(training)
        save(model, optimizer, tmp_path / str(case), flat)
    spawn(sharded_run.resharded, tmp_path)


def test_four_processes_in_all_engines_and_their_checkpoints_into_one(tmp_path: Path) -> None:
    spawn(mesh_run.meshes, tmp_path, processes=4)
    for name in mesh_run.CHAIN:
        truth = one_process(name, 18)
        for sharded in (True, False):
            model = Net()
            spoil(model)
            optimizer = OPTIMIZERS[name](model.parameters()).attach(model)
            if sharded:
                load(model, optimizer, tmp_path / name / "4")
            else:
                file = torch.load(tmp_path / name / "whole.pt", weights_only=True)
                set_state_dict(model, optimizer, model_state_dict=file["model"], optim_state_dict=file["optimizer"])
            fit(model.train(), optimizer, range(15, 18))
            assert_close(whole(model.state_dict()), truth)
