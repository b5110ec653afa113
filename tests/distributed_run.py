"""What the processes of the distributed tests run: a module of its own, since they import it anew."""

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer

WORLD = 2
PATIENCE = 120  # seconds
BATCH = 8
CASES = list(itertools.product((True, False), repeat=3))  # attached, saved in train mode, flattened


def spawn(run: Callable[..., None], *arguments: Any) -> None:
    """Run it in every process; processes that hang are killed."""
    context = torch.multiprocessing.spawn(run, tuple(map(str, arguments)), nprocs=WORLD, join=False)
    deadline = time.monotonic() + PATIENCE
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < deadline, "the processes hang"
    finally:
        for process in context.processes:
            process.kill()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def of(params: Any) -> ScheduleFreeOptimizer:
    return AdamWScheduleFree(params, lr=0.01)


def decay_split(model: nn.Module) -> list[dict[str, Any]]:
    params = list(model.parameters())
    return [{"params": [param for param in params if (param.dim() == 2) is matrix]} for matrix in (True, False)]


def fit(
    model: nn.Module, optimizer: ScheduleFreeOptimizer, steps: range, evaluate: bool = False, rank: int | None = None
) -> None:
    """Train on this rank's part of each batch, or on all of it."""
    for step in steps:
        batch = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(step))
        part = batch if rank is None else batch.chunk(WORLD)[rank]
        optimizer.zero_grad()
        model(part).square().mean().backward()
        optimizer.step()
        if evaluate:
            model.eval()
            with torch.no_grad():
                model(torch.ones(2, 4))
            model.train()


def single_process(steps: range) -> dict[str, Tensor]:
    model = net()
    fit(model, of(model.parameters()).attach(model), steps)
    return dict(model.eval().named_parameters())


def whole(named: Any) -> dict[str, Tensor]:
    """Full copies, by their plain names."""
    return {
        name.removeprefix("module."): (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for name, value in named
    }


def same(some: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return some.keys() == other.keys() and all(torch.equal(some[name], other[name]) for name in some)


def assert_close(some: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    torch.testing.assert_close(some, other, rtol=1e-5, atol=1e-6)


def join(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)


def leave() -> NoReturn:
    """End this process without the interpreter's shutdown, in which threads of gloo sometimes abort."""
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


def data_parallel(rank: int, folder: str) -> None:
    """Rank 0 evaluates and saves alone; training is as without, and as in one process."""
    join(rank, folder)
    for attach_first in (True, False):
        ends: list[dict[str, Tensor]] = []
        for evaluate in (False, True):
            model = net()
            optimizer = of(model.parameters())
            if attach_first:
                optimizer.attach(model)
            parallel = DistributedDataParallel(model)
            if not attach_first:
                optimizer.attach(parallel)
            fit(parallel, optimizer, range(3), evaluate, rank)
            if evaluate and rank == 0:
                saved = whole(parallel.state_dict().items())
                parallel.eval()
                model(torch.ones(1, 4))
                assert same(saved, whole(model.named_parameters()))
                parallel.train()
            fit(parallel, optimizer, range(3, 6), evaluate, rank)
            ends.append(whole(model.named_parameters()))
        assert same(*ends)
        others: list[Any] = [None] * WORLD
        dist.all_gather_object(others, ends[0])
        assert all(same(ends[0], other) for other in others)
        assert_close(whole(parallel.state_dict().items()), single_process(range(6)))
    leave()


def sharded(attach: bool = True) -> tuple[nn.Module, ScheduleFreeOptimizer]:
    model = net()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = of(model.parameters())
    return model, optimizer.attach(model) if attach else optimizer


def fully_sharded(rank: int, folder: str) -> None:
    """A forward pass without backward leaves no stale weights; shards of x are saved, and resume bit for bit."""
    join(rank, folder)
    ends: list[dict[str, Tensor]] = []
    for evaluate in (False, True):
        model, optimizer = sharded()
        fit(model, optimizer, range(6), evaluate, rank)
        ends.append(whole(model.named_parameters()))
    assert same(*ends)
    assert_close(whole(model.state_dict().items()), single_process(range(6)))
    assert same(whole(model.state_dict().items()), whole(model.eval().named_parameters()))

    for case, (attach, training, flat) in enumerate(CASES):
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        model, optimizer = sharded(attach)
        fit(model, optimizer, range(3), rank=rank)
        (model if attach else optimizer).train(training)
        path = f"{folder}/{case}"
        weights, state = get_state_dict(model, optimizer, options=options)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path)
        resumed, again = sharded(attach)
        with torch.no_grad():
            for param in resumed.parameters():
                param.mul_(1.5)
        load(resumed, again, path, flat)
        for each in (model, optimizer, resumed, again):
            each.train()
        assert same(whole(resumed.named_parameters()), whole(model.named_parameters()))
        fit(model, optimizer, range(3, 6), rank=rank)
        fit(resumed, again, range(3, 6), rank=rank)
        assert same(whole(resumed.named_parameters()), whole(model.named_parameters()))
    leave()


def resharded(rank: int, folder: str) -> None:
    """What one process has saved goes on in all of them."""
    join(rank, folder)
    for case, (attach, _, flat) in enumerate(CASES):
        model, optimizer = sharded(attach)
        with torch.no_grad():
            for param in model.parameters():
                param.zero_()
        load(model, optimizer, f"{folder}/{case}", flat)
        model.train()
        optimizer.train()
        fit(model, optimizer, range(3, 6), rank=rank)
        optimizer.eval()
        assert_close(whole(model.named_parameters()), single_process(range(6)))
    leave()


def load(model: nn.Module, optimizer: ScheduleFreeOptimizer, path: str | Path, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=path, no_dist=not dist.is_initialized())
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state, options=options)
