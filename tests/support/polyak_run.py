"""The functions that the processes of the distributed tests of the Polyak step run."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from problems import same
from processes import gathered, whole
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from unscheduled import (
    AdamWScheduleFree,
    AnnealedInterpolation,
    PolyakStep,
    ScheduleFreeOptimizer,
    ScheduleFreePlus,
    SGDScheduleFree,
)

WORLD = 2
STEPS = 10
BOUND = 0.05  # the largest norm of a clipped gradient
RULES: dict[str, Callable[..., ScheduleFreeOptimizer]] = {
    "sgd": lambda params, **step: SGDScheduleFree(params, step_size=PolyakStep(**step)),
    "adamw, smoothed": lambda params, **step: AdamWScheduleFree(params, step_size=PolyakStep(norm_beta=0.9, **step)),
    "plus": lambda params, **step: ScheduleFreePlus(
        params, warmup_steps=3, interpolation=AnnealedInterpolation(0.96, 5), step_size=PolyakStep(**step)
    ),
}


class Gained(nn.Module):
    """A network whose last layer is too small for two shards, with a gain that is never sharded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 1)).double()
        self.gain = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, batch: Tensor) -> Tensor:
        return self.gain * self.net(batch) + batch.sum(1, keepdim=True)


def fit(
    model: nn.Module,
    optimizer: ScheduleFreeOptimizer,
    rank: int | None = None,
    clip: bool = False,
    steps: int = STEPS,
    reduce: Tensor | None = None,
) -> list[float]:
    """Train on this rank's part of each batch or on all of it, and return the step sizes.

    The gradient of ``reduce`` is averaged over the processes by hand.
    """
    step_sizes: list[float] = []
    for step in range(steps):
        batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        part = batch if rank is None else batch.chunk(WORLD)[rank]
        optimizer.zero_grad()
        loss = model(part).square().mean()
        loss.backward()
        if reduce is not None:
            dist.all_reduce(reduce.grad)
            reduce.grad /= WORLD  # type: ignore[operator]
        norm = clip_grad_norm_(list(optimizer.param_groups[0]["params"]), BOUND) if clip else None
        optimizer.step(loss=loss, grad_norm=norm)
        step_sizes.append(optimizer.metrics()["effective_lr"])
    return step_sizes


def single_process(name: str, clip: bool = False, rank: int | None = None, steps: int = STEPS) -> Any:
    """The step sizes and the final parameters of one process, on all of each batch or on a part of it."""
    model = Gained()
    step_sizes = fit(model, RULES[name](model.parameters(), all_processes=False), rank, clip, steps)
    return step_sizes, whole(model.named_parameters())


def assert_one_run(step_sizes: list[float], model: nn.Module, name: str, clip: bool) -> None:
    """Assert that all processes have the same bits, and the numbers of a single process except for rounding."""
    params = whole(model.named_parameters())
    for other_sizes, other in gathered((step_sizes, params)):
        assert other_sizes == step_sizes
        assert same(other, params)
    truth, true_params = single_process(name, clip)
    assert len(set(truth)) > STEPS // 2
    torch.testing.assert_close(step_sizes, truth, rtol=1e-6, atol=0)
    torch.testing.assert_close(params, true_params, rtol=1e-6, atol=1e-9)


def data_parallel(rank: int, folder: str) -> None:
    for name, make in RULES.items():
        for clip in (False, True):
            model = Gained()
            parallel = DistributedDataParallel(model)
            assert_one_run(fit(parallel, make(model.parameters()), rank, clip), model, name, clip)


def sharded(mesh: DeviceMesh) -> Gained:
    """The model with its network sharded, but not its gain."""
    model = Gained()
    for layer in (model.net[0], model.net[2], model.net):
        fully_shard(layer, mesh=mesh)
    return model


def fully_sharded(rank: int, folder: str) -> None:
    """FSDP over both processes, and the two degenerate meshes of HSDP."""
    meshes = [
        init_device_mesh("cpu", (WORLD,)),
        init_device_mesh("cpu", (1, WORLD), mesh_dim_names=("replicate", "shard")),
        init_device_mesh("cpu", (WORLD, 1), mesh_dim_names=("replicate", "shard")),
    ]
    for mesh in meshes:
        for name, make in RULES.items():
            model = sharded(mesh)
            assert isinstance(model.net[0].weight, DTensor)
            optimizer = make(model.parameters())
            assert_one_run(fit(model, optimizer, rank, reduce=model.gain), model, name, clip=False)


def fully_sharded_and_clipped(rank: int, folder: str) -> None:
    """With FSDP the norm of the gradients is a DTensor that is not reduced yet."""
    for make in RULES.values():
        model = sharded(init_device_mesh("cpu", (WORLD,)))
        params = list(model.net.parameters())
        step_sizes = fit(model, make(params), rank, clip=True)
        reference = Gained()
        truth = fit(reference, make(reference.net.parameters(), all_processes=False), clip=True)
        assert all(other == step_sizes for other in gathered(step_sizes))
        torch.testing.assert_close(step_sizes, truth, rtol=1e-6, atol=0)
        torch.testing.assert_close(
            whole(model.net.named_parameters()), whole(reference.net.named_parameters()), rtol=1e-6, atol=1e-9
        )


def partial_numbers(rank: int, folder: str) -> None:
    """A loss and a norm may be DTensors of which every process has a part."""
    mesh = init_device_mesh("cpu", (WORLD,))
    ends: list[dict[str, Tensor]] = []
    for parts in (False, True):
        model = sharded(mesh)
        optimizer = AdamWScheduleFree(model.net.parameters(), step_size=PolyakStep())
        model(torch.ones(2, 4, dtype=torch.float64)).square().mean().backward()
        loss, norm = (
            DTensor.from_local(torch.tensor(value * (rank + 1)), mesh, [Partial()]) if parts else 3 * value
            for value in (1.0, 100.0)
        )
        optimizer.step(loss=loss, grad_norm=norm)
        ends.append(whole(model.net.named_parameters()))
    assert same(*ends)


def independent(rank: int, folder: str) -> None:
    """Two independent runs on different data, one of them longer; their results are written to the folder."""
    runs = {name: single_process(name, rank=rank, steps=STEPS + 3 * rank) for name in RULES}
    torch.save(runs, f"{folder}/{rank}")


def refused(rank: int, folder: str) -> None:
    """A mistake in one process raises an error in both; nothing changes, and both continue together."""
    nan, inf = float("nan"), float("inf")
    cases: list[tuple[tuple[float, float], str]] = [
        ((1.0, nan), "loss = nan is not finite"),
        ((inf, 1.0), "loss = inf is not finite"),
        ((1.0, -2.0), "loss = -0.5 is below f_star = 0.0"),
    ]
    for make in RULES.values():
        for sharding in (False, True):
            model = sharded(init_device_mesh("cpu", (WORLD,))) if sharding else Gained()
            optimizer = make(model.parameters())
            parallel = model if sharding else DistributedDataParallel(model)
            reduce = model.gain if sharding else None
            fit(parallel, optimizer, rank, steps=2, reduce=reduce)
            before, metrics = whole(model.named_parameters()), optimizer.metrics()
            for losses, message in cases:
                assert message in refusal(optimizer, losses[rank])
            if rank == 1:  # of a shard, or of a replica
                grad: Any = model.net[0].weight.grad
                (grad.to_local() if sharding else grad)[0] = nan
            assert "the gradient is not finite (its size is nan)" in refusal(optimizer, 1.0)
            assert same(whole(model.named_parameters()), before)
            assert optimizer.metrics() == metrics
            step_sizes = fit(parallel, optimizer, rank, steps=2, reduce=reduce)
            assert all(other == step_sizes for other in gathered(step_sizes))


def different(rank: int, folder: str) -> None:
    """Gradients that are not reduced, and parts of the parameters as ZeRO has them, are refused in both processes."""
    for make in RULES.values():
        for params_of in (list[nn.Parameter], lambda params: list(params)[rank::WORLD]):
            model = Gained()
            optimizer = make(params_of(model.parameters()))
            model(torch.full((2, 4), rank + 1.0, dtype=torch.float64)).square().mean().backward()
            before = whole(model.named_parameters())
            assert "the processes have different gradients" in refusal(optimizer, 1.0)
            assert same(whole(model.named_parameters()), before)
            assert not optimizer.state


def refusal(optimizer: ScheduleFreeOptimizer, loss: float) -> str:
    """The message of the error with which the optimizer refuses to step."""
    try:
        optimizer.step(loss=loss)
    except ValueError as error:
        return str(error)
    return ""
