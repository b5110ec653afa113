"""The functions that the processes of the distributed tests of the distance step run."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mesh_run import engines
from polyak_run import WORLD, Gained, sharded
from problems import same
from processes import Collectives, Net, assert_close, gathered, whole
from processes import fit as fit_of_engines
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from unscheduled import AdamWScheduleFree, AutoScheduleFree, DistanceStep, ScheduleFreeOptimizer, SGDScheduleFree

STEPS = 14
EAGER = DistanceStep(start=0.01, growth=1.5)
RULES: dict[str, Callable[..., ScheduleFreeOptimizer]] = {
    "auto": AutoScheduleFree,
    "eager": lambda params: AdamWScheduleFree(params, betas=(0.9, 0.99), step_size=EAGER),
    "sgd": lambda params: SGDScheduleFree(params, step_size=EAGER),
}


def fit(
    model: nn.Module, optimizer: Any, steps: range, rank: int | None = None, reduce: Tensor | None = None
) -> list[float]:
    """Train on this rank's part of each batch or on all of it, and return the step sizes.

    The gradient of ``reduce`` is averaged over the processes by hand.
    """
    step_sizes: list[float] = []
    for step in steps:
        batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        model(batch if rank is None else batch.chunk(WORLD)[rank]).square().mean().backward()
        if reduce is not None:
            distributed.all_reduce(reduce.grad)
            reduce.grad /= WORLD  # type: ignore[operator]
        optimizer.step()
        inner = getattr(optimizer, "optim", optimizer)
        step_sizes.append(inner.param_groups[0]["effective_lr"])
    return step_sizes


def assert_one_run(step_sizes: list[float], model: nn.Module, name: str) -> None:
    """Assert that all processes have the same bits, and the numbers of a single process except for rounding."""
    params = whole(model.named_parameters())
    for other_sizes, other in gathered((step_sizes, params)):
        assert other_sizes == step_sizes
        assert same(other, params)
    alone = Gained()
    truth = fit(alone, RULES[name](alone.parameters()), range(len(step_sizes)))
    assert len(set(truth)) > STEPS // 2
    torch.testing.assert_close(step_sizes, truth, rtol=1e-6, atol=0)
    torch.testing.assert_close(params, whole(alone.named_parameters()), rtol=1e-6, atol=1e-9)


def data_parallel(rank: int, folder: str) -> None:
    """Nothing is communicated in a step."""
    for name, make in RULES.items():
        model = Gained()
        optimizer = make(model.parameters())
        assert_one_run(fit(DistributedDataParallel(model), optimizer, range(STEPS), rank), model, name)
        with Collectives() as seen:
            optimizer.step()
        assert not seen.calls


def fully_sharded(rank: int, folder: str) -> None:
    """FSDP over both processes, and the two degenerate meshes of HSDP, resumed in the middle."""
    meshes = [
        init_device_mesh("cpu", (WORLD,)),
        init_device_mesh("cpu", (1, WORLD), mesh_dim_names=("replicate", "shard")),
        init_device_mesh("cpu", (WORLD, 1), mesh_dim_names=("replicate", "shard")),
    ]
    for mesh in meshes:
        for name, make in RULES.items():
            model = sharded(mesh)
            optimizer = make(model.parameters())
            step_sizes = fit(model, optimizer, range(7), rank, model.gain)
            assert isinstance(optimizer.state[model.net[0].weight]["z0"], DTensor)
            resumed = sharded(mesh)
            resumed.load_state_dict(model.state_dict())
            again = make(resumed.parameters())
            again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            step_sizes += fit(resumed, again, range(7, STEPS), rank, resumed.gain)
            assert_one_run(step_sizes, resumed, name)


def meshes(rank: int, folder: str) -> None:
    """HSDP, tensor parallelism, FSDP and both: whichever part of a tensor or of a batch a process has."""
    for engine in engines(rank).values():
        model, alone = engine.lay(Net()), Net()
        optimizer, reference = (AutoScheduleFree(each.parameters(), step_size=EAGER) for each in (model, alone))
        for step in range(8):
            fit_of_engines(model, optimizer, [step], engine.part, engine.parts)
            fit_of_engines(alone, reference, [step])
            metrics = optimizer.metrics()
            assert metrics == pytest.approx(reference.metrics(), rel=1e-9)
            assert gathered(metrics["gamma"]) == [metrics["gamma"]] * 4
        assert_close(whole(model.named_parameters()), whole(alone.named_parameters()))


def partitioned(rank: int, folder: str) -> None:
    """Each process steps its own part of the parameters, with the sums over all."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # which warns of itself

    for name, step_size in (("auto", DistanceStep(partitioned=True)), ("eager", None)):
        model = Gained()
        rule = step_size or DistanceStep(start=EAGER.start, growth=EAGER.growth, partitioned=True)
        zero = ZeroRedundancyOptimizer(model.parameters(), AutoScheduleFree, step_size=rule)
        assert_one_run(fit(DistributedDataParallel(model), zero, range(STEPS), rank), model, name)


def refused(rank: int, folder: str) -> None:
    """A gradient that is not finite in the shard of one process refuses the step in both."""
    model = sharded(init_device_mesh("cpu", (WORLD,)))
    optimizer = AutoScheduleFree(model.parameters())
    fit(model, optimizer, range(3), rank, model.gain)
    before = whole(model.named_parameters())
    if rank == 1:
        grad: Any = model.net[0].weight.grad
        grad.to_local()[0] = float("nan")
    try:
        optimizer.step()
        message = ""
    except ValueError as error:
        message = str(error)
    assert "the gradient or a weight is not finite" in message
    assert same(whole(model.named_parameters()), before)
