"""The functions that the processes of the tests of FSDP2 run."""

import itertools

import pytest
import torch
import torch.distributed as dist
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
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, ScheduleFreePlus

CASES = list(itertools.product((True, False), repeat=3))  # attached, saved in train mode, flattened


def shard(model: nn.Sequential, mesh: DeviceMesh) -> nn.Module:
    """Shard two layers alone; the third belongs to the root, which keeps it gathered after a forward pass."""
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sharded(
    name: str, attach: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, ScheduleFreeOptimizer]:
    model = shard(Net(dtype), init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = OPTIMIZERS[name](model.parameters())
    return model, optimizer.attach(model) if attach else optimizer


def everything(rank: int, folder: str) -> None:
    """Run several tests in processes that are started once."""
    fully_sharded(rank)
    clipped(rank)
    gradients_to_be_added_up()
    loss_to_be_added_up()
    first_step_without_learning_rate(rank)
    narrow(rank, folder)
    refused()


def fully_sharded(rank: int) -> None:
    """Training equals that of one process that adds up the same gradients, with and without evaluations."""
    for name in OPTIMIZERS:
        ends: list[dict[str, Tensor]] = []
        for evaluate in (False, True):
            model, optimizer = sharded(name)
            fit(model, optimizer, range(5), rank, 2, evaluate)  # a forward pass without backward leaves it gathered
            with Collectives() as collectives:
                if rank == 0:  # alone
                    model.eval()
                    model.train()
                    model.state_dict()
                    optimizer.state_dict()
            assert not collectives.calls
            needs_whole_matrices = name == "muon"
            assert bool(collectives_of_a_step(model, optimizer, 5, rank, 2)) is needs_whole_matrices
            ends.append(whole(model.named_parameters()))
        assert all(same(end, other) for end in ends for others in gathered(ends) for other in others)
        x = whole(model.state_dict())
        assert same(x, one_process(name, 6, parts=2))
        assert same(x, whole(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))))
        assert same(x, whole(model.eval().named_parameters()))


def clipped(rank: int) -> None:
    """Gradients are clipped by the norm of the whole gradient, and ``gap_norm`` is the norm of the whole gap."""
    alone = Net()
    reference = OPTIMIZERS["adamw"](alone.parameters()).attach(alone)
    norms = fit(alone, reference, range(6), clip=0.001)
    assert min(norms) > 0.001
    model, optimizer = sharded("adamw")
    torch.testing.assert_close(fit(model, optimizer, range(6), rank, 2, clip=0.001), norms, rtol=1e-12, atol=0.0)
    assert_close(whole(model.state_dict()), whole(alone.state_dict()))
    with Collectives() as collectives:
        metrics = optimizer.metrics()
    assert collectives.calls == ["allreduce_.default"]
    assert all(other == metrics for other in gathered(metrics))
    truth = reference.metrics()
    assert metrics["gap_norm"] == pytest.approx(truth.pop("gap_norm"), rel=1e-12)
    assert metrics.items() > truth.items()


def gradients_to_be_added_up() -> None:
    """A replicated parameter whose inputs are divided has gradients that are not added up yet."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    inputs, weight = torch.randn(8, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    dist.broadcast(inputs, 0)
    dist.broadcast(weight, 0)
    for make in (*OPTIMIZERS.values(), ScheduleFreePlus):
        alone, divided = nn.Parameter(weight.clone()), nn.Parameter(distribute_tensor(weight, mesh, [Replicate()]))
        reference, optimizer = make([alone]), make([divided])
        its_inputs = distribute_tensor(inputs, mesh, [Shard(0)])
        for _ in range(3):
            for param, rows, each in ((alone, inputs, reference), (divided, its_inputs, optimizer)):
                each.zero_grad()
                loss = (rows @ param.t()).square().mean()
                loss.backward()
                each.step(loss=loss)
        assert divided.grad.placements[0].is_partial()
        torch.testing.assert_close(divided.full_tensor(), alone.detach(), rtol=1e-12, atol=1e-12)
        metrics = reference.metrics()
        assert optimizer.metrics() == pytest.approx(metrics, rel=1e-12)


def loss_to_be_added_up() -> None:
    """A loss may be a DTensor whose parts are not added up yet, as under tensor parallelism."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    weight = torch.arange(6.0).reshape(3, 2)
    param = nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)]))
    metrics = AdamWScheduleFree([param]).metrics(lambda: param.sum())
    assert (metrics["loss_at_x"], metrics["loss_at_y"]) == (15.0, 15.0)


def first_step_without_learning_rate(rank: int) -> None:
    """A first step at lr = 0 is a step of all processes, also of those whose shards have zero gradients."""
    model, optimizer = sharded("sgd")
    group = optimizer.param_groups[0]
    group["lr"] = 0.0
    loss_of(model, batch_of(0)).backward()
    for index, param in enumerate(model.parameters()):
        if index or rank:
            param.grad.to_local().zero_()
    optimizer.step()
    assert group["step"] == 1


def checkpoints(rank: int, folder: str) -> None:
    """Shards are saved in either mode, and resume bit for bit."""
    for case, (attach, training, flat) in enumerate(CASES):
        model, optimizer = sharded("adamw", attach)
        fit(model, optimizer, range(3), rank, 2)
        (model if attach else optimizer).train(training)
        save(model, optimizer, f"{folder}/{case}", flat)
        resumed, again = sharded("adamw", attach)
        spoil(resumed)
        load(resumed, again, f"{folder}/{case}", flat)
        for each in (model, optimizer, resumed, again):
            each.train()
        assert same(whole(resumed.named_parameters()), whole(model.named_parameters()))
        fit(model, optimizer, range(3, 6), rank, 2)
        fit(resumed, again, range(3, 6), rank, 2)
        assert same(whole(resumed.named_parameters()), whole(model.named_parameters()))


def resharded(rank: int, folder: str) -> None:
    """A checkpoint of one process resumes in all processes."""
    for case, (attach, _, flat) in enumerate(CASES):
        model, optimizer = sharded("adamw", attach)
        spoil(model)
        load(model, optimizer, f"{folder}/{case}", flat)
        model.train()
        optimizer.train()
        fit(model, optimizer, range(3, 6), rank, 2)
        optimizer.eval()
        assert_close(whole(model.named_parameters()), one_process("adamw", 6))


def spoil(model: nn.Module) -> None:
    """Overwrite the parameters with weights that belong to no run."""
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(7.0)


def narrow(rank: int, folder: str) -> None:
    """Sharded split weights: x equals that of one process, also after a resume."""
    model, optimizer = sharded("adamw", dtype=torch.bfloat16)
    fit(model, optimizer, range(4), rank, 2, evaluate=True)
    assert same(whole(model.state_dict()), one_process("adamw", 4, 2, torch.bfloat16))
    save(model, optimizer, f"{folder}/narrow")
    resumed, again = sharded("adamw", dtype=torch.bfloat16)
    spoil(resumed)
    load(resumed, again, f"{folder}/narrow")
    fit(resumed, again, range(4, 8), rank, 2)
    assert same(whole(resumed.state_dict()), one_process("adamw", 8, 2, torch.bfloat16))


def refused() -> None:
    """Compact states are refused for sharded parameters."""
    model, _ = sharded("adamw")
    with pytest.raises(ValueError, match=r"state_precision = 'compact' is for whole parameters.*one is sharded"):
        AdamWScheduleFree(model.parameters(), state_precision="compact")
