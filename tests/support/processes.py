"""Processes that train one model together: starting them, training, comparing the results, and checkpoints."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from registry import OPTIMIZERS as REGISTERED
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.utils._python_dispatch import TorchDispatchMode

from unscheduled import (
    AdamWScheduleFree,
    LionScheduleFree,
    MuonScheduleFree,
    RAdamScheduleFree,
    ScheduleFreeOptimizer,
    ScheduleFreeWrapper,
    SGDScheduleFree,
)

PATIENCE = 100  # seconds
BATCH = 8

OPTIMIZERS: dict[str, Callable[[Any], ScheduleFreeOptimizer]] = {
    **{info.rule: info.make for info in REGISTERED},
    "adamw": lambda params: AdamWScheduleFree(params, lr=0.01, weight_decay=0.1, warmup_steps=2),
    "sgd": lambda params: SGDScheduleFree(params, lr=0.1),
    "radam": lambda params: RAdamScheduleFree(params, lr=0.01, silent_sgd_phase=False),
    "lion": lambda params: LionScheduleFree(params, lr=0.003, inner_momentum=0.9),
    "muon": lambda params: MuonScheduleFree(params, lr=0.01, weight_decay=0.1),
    "over rmsprop": lambda params: ScheduleFreeWrapper(torch.optim.RMSprop(params, lr=0.01)),
    "over nadam": lambda params: ScheduleFreeWrapper(torch.optim.NAdam(params, lr=0.01)),
}


# Processes.


def spawn(run: Callable[[int, str], None], folder: Path, processes: int = 2) -> None:
    """Run a function in every process, with its rank and the folder; processes that hang are killed."""
    context = torch.multiprocessing.spawn(process, (run, str(folder), processes), nprocs=processes, join=False)
    deadline = time.monotonic() + PATIENCE
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < deadline, "the processes hang"
    finally:
        for each in context.processes:
            each.kill()


def process(rank: int, run: Callable[[int, str], None], folder: str, processes: int) -> None:
    """Run a process; it exits without the interpreter's shutdown, in which threads of gloo sometimes abort."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    run(rank, folder)
    dist.barrier()
    dist.destroy_process_group()
    Path(folder, "rendezvous").unlink(missing_ok=True)  # later processes make a new one
    os._exit(0)


def gathered(value: Any) -> list[Any]:
    """The values of all processes."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


class Collectives(TorchDispatchMode):
    """Records the communicating calls within the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # its local operations are dispatched again
        if func.namespace in ("c10d", "_c10d_functional"):
            self.calls.append(func.__name__)
        return func(*args, **(kwargs or {}))


# Training.


class Net(nn.Sequential):
    """A network that is too small for four shards of every layer."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        self.to(dtype)


def batch_of(step: int, part: int = 0, parts: int = 1) -> Tensor:
    """Part number ``part`` of the batch of a step, which has ``parts`` equal parts."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 4, generator=generator, dtype=torch.float64).chunk(parts)[part]


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch.to(next(model.parameters()).dtype)).square().mean()


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[int],
    part: int = 0,
    parts: int = 1,
    evaluate: bool = False,
    clip: float = 0.0,
) -> list[float]:
    """Train on one of the equal parts of each batch; return the norms of the gradients if they are clipped."""
    norms: list[float] = []
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, batch_of(step, part, parts)).backward()
        if clip:
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
            norms.append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
        optimizer.step()
        if evaluate:
            model.eval()
            with torch.no_grad():
                loss_of(model, batch_of(1000))
            model.train()
    return norms


def collectives_of_a_step(
    model: nn.Module, optimizer: ScheduleFreeOptimizer, step: int, part: int, parts: int
) -> list[str]:
    """Make a step, and return its communicating calls, without those of the backward pass."""
    optimizer.zero_grad()
    loss_of(model, batch_of(step, part, parts)).backward()
    with Collectives() as collectives:
        optimizer.step()
    return collectives.calls


def fit_in_parts(model: nn.Module, optimizer: ScheduleFreeOptimizer, steps: Iterable[int], parts: int) -> None:
    """Train as one process on the mean of the gradients of the parts, added up in pairs, and pairs of pairs.

    Two processes, and two times two, add them up in this order, so that the bits must be equal.
    """
    params = list(model.parameters())
    for step in steps:
        sums = [torch.autograd.grad(loss_of(model, batch_of(step, part, parts)), params) for part in range(parts)]
        while len(sums) > 1:
            sums = [tuple(map(torch.add, *pair)) for pair in zip(sums[::2], sums[1::2], strict=True)]
        for param, total in zip(params, sums[0], strict=True):
            param.grad = total / parts
        optimizer.step()


def one_process(name: str, steps: int, parts: int = 1, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The average x after ``steps`` steps of a single process."""
    model = Net(dtype)
    optimizer = OPTIMIZERS[name](model.parameters()).attach(model)
    fit_in_parts(model, optimizer, range(steps), parts)
    return whole(model.state_dict())


# Results.


def whole(named: Any) -> dict[str, Tensor]:
    """Full copies of the tensors of a state dict or of named parameters, by their names without the prefix of DDP."""
    return {
        name.removeprefix("module."): (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for name, value in (named.items() if isinstance(named, dict) else named)
    }


def assert_close(some: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    """Assert that tensors are equal except for rounding, where sums are added up in another order."""
    torch.testing.assert_close(some, other, rtol=tolerance, atol=tolerance)


# Checkpoints of torch.distributed.checkpoint.


def save(model: nn.Module, optimizer: ScheduleFreeOptimizer, path: str | Path, flat: bool = False) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path)


def load(model: nn.Module, optimizer: ScheduleFreeOptimizer, path: str | Path, flat: bool = False) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state, options=options)
