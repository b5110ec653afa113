"""The functions that four processes run: engines on 2-d meshes, tensor parallelism, and checkpoints between them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from problems import same
from processes import (
    OPTIMIZERS,
    Collectives,
    Net,
    assert_close,
    batch_of,
    collectives_of_a_step,
    fit,
    gathered,
    load,
    loss_of,
    one_process,
    save,
    whole,
)
from sharded_run import shard, spoil
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from unscheduled import PolyakStep, ScheduleFreeOptimizer, ScheduleFreePlus

CHAIN = ("adamw", "muon", "over nadam")
STEPS = 3
FULL = StateDictOptions(full_state_dict=True)


class Engine(NamedTuple):
    """How a model is distributed over the processes, and which part of a batch this process has."""

    lay: Callable[[nn.Sequential], nn.Module]
    part: int
    parts: int


def divide_tensors(model: nn.Sequential, mesh: DeviceMesh) -> nn.Module:
    """Divide the first layer by its outputs and the second by its inputs; the last layer keeps plain tensors."""
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def engines(rank: int) -> dict[str, Engine]:
    """The engines on a mesh of 4 processes, or of 2 times 2."""
    line = init_device_mesh("cpu", (4,))
    hybrid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return {
        "DDP": Engine(DistributedDataParallel, rank, 4),
        "FSDP2": Engine(lambda model: shard(model, line), rank, 4),
        "TP": Engine(lambda model: divide_tensors(model, line), 0, 1),
        "HSDP": Engine(lambda model: shard(model, hybrid), rank, 4),
        "FSDP2 x TP": Engine(
            lambda model: shard(divide_tensors(model, square["tensor"]), square["data"]), rank // 2, 2
        ),
    }


def made(engine: Engine, name: str) -> tuple[nn.Module, ScheduleFreeOptimizer]:
    model = engine.lay(Net())
    optimizer = OPTIMIZERS[name](model.parameters())
    return model, optimizer.attach(model)


def meshes(rank: int, folder: str) -> None:
    for label, engine in engines(rank).items():
        if label != "DDP":
            for name in OPTIMIZERS:
                trains_as_one_process(engine, name, exactly=label == "HSDP")
            steps_by_the_loss(engine)
    from_engine_to_engine(rank, folder)


def trains_as_one_process(engine: Engine, name: str, exactly: bool) -> None:
    """Training equals that of one process, in all processes, with and without evaluations.

    HSDP adds the gradients up in pairs and pairs of pairs, as the single process does. Four processes in a line, and
    tensor parallelism within a layer, add up in another order, so that they differ by rounding.
    """
    ends: list[Any] = []
    for evaluate in (False, True) if name == "adamw" else (True,):
        model, optimizer = made(engine, name)
        fit(model, optimizer, range(5), engine.part, engine.parts, evaluate)
        with Collectives() as collectives:
            if torch.distributed.get_rank() == 0:  # alone
                model.eval()
                model.train()
                model.state_dict()
                optimizer.state_dict()
        assert not collectives.calls
        needs_whole_matrices = name == "muon"
        calls = collectives_of_a_step(model, optimizer, 5, engine.part, engine.parts)
        assert bool(calls) is needs_whole_matrices
        ends.append((whole(model.named_parameters()), optimizer.metrics()))
    for params, metrics in [end for others in gathered(ends) for end in others]:
        assert same(params, ends[0][0])
        assert metrics == ends[0][1]
    x, truth = whole(model.state_dict()), one_process(name, 6, engine.parts)
    assert same(x, truth) if exactly else assert_close(x, truth) is None
    assert same(x, whole(get_model_state_dict(model, options=FULL)))
    assert same(x, whole(model.eval().named_parameters()))


def steps_by_the_loss(engine: Engine) -> None:
    """The Polyak step equals that of one process, whichever part of a tensor or of a batch a process has."""
    model, alone = engine.lay(Net()), Net()
    optimizer = ScheduleFreePlus(model.parameters(), warmup_steps=3)
    reference = ScheduleFreePlus(alone.parameters(), warmup_steps=3, step_size=PolyakStep(all_processes=False))
    for step in range(5):
        for some, its_optimizer, part, parts in (
            (model, optimizer, engine.part, engine.parts),
            (alone, reference, 0, 1),
        ):
            its_optimizer.zero_grad()
            loss = loss_of(some, batch_of(step, part, parts))
            loss.backward()
            its_optimizer.step(loss=loss)
        step_size = optimizer.metrics()["effective_lr"]
        assert step_size == pytest.approx(reference.metrics()["effective_lr"], rel=1e-12)
        assert gathered(step_size) == [step_size] * 4
    assert_close(whole(model.named_parameters()), whole(alone.named_parameters()))


def from_engine_to_engine(rank: int, folder: str) -> None:
    """Each engine resumes from the checkpoint of the engine before, saved in train and eval mode in turns.

    The last engine also writes a file of whole tensors.
    """
    for name in CHAIN:
        for turn, engine in enumerate(engines(rank).values()):
            model, optimizer = made(engine, name)
            if turn:
                spoil(model)
                load(model, optimizer, f"{folder}/{name}/{turn - 1}")
            model.train()
            fit(model, optimizer, range(STEPS * turn, STEPS * (turn + 1)), engine.part, engine.parts)
            assert_close(whole(model.state_dict()), one_process(name, STEPS * (turn + 1)))
            save(model.train(turn % 2 == 0), optimizer, f"{folder}/{name}/{turn}")
        weights, state = get_state_dict(model, optimizer, options=FULL)
        if rank == 0:
            torch.save({"model": weights, "optimizer": state}, f"{folder}/{name}/whole.pt")
