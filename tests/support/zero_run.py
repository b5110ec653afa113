"""The functions that the processes of the tests of ZeroRedundancyOptimizer run."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from problems import same
from processes import Net, fit, gathered, whole
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, ScheduleFreeWrapper


def sharded_moments() -> tuple[nn.Module, ScheduleFreeOptimizer, ZeroRedundancyOptimizer]:
    """A wrapper over ZeRO: each process has a part of AdamW's state, and the whole gap."""
    model = Net()
    zero = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.01)
    return DistributedDataParallel(model), ScheduleFreeWrapper(zero).attach(model), zero


def over_zero(rank: int, folder: str) -> None:
    """Training equals that over AdamW itself; rank 0 may evaluate alone; saving needs ZeRO's consolidation."""
    plain = Net()
    plain_optimizer = ScheduleFreeWrapper(torch.optim.AdamW(plain.parameters(), lr=0.01)).attach(plain)
    plain_parallel = DistributedDataParallel(plain)
    fit(plain_parallel, plain_optimizer, range(6), rank, 2)
    model, optimizer, zero = sharded_moments()
    fit(model, optimizer, range(6), rank, 2, evaluate=True)
    if rank == 0:
        model.eval()
        model.train()
    assert sum(gathered(len(zero.optim.state))) == len(list(model.parameters()))
    assert same(whole(model.named_parameters()), whole(plain.named_parameters()))
    assert same(whole(model.state_dict()), whole(plain.state_dict()))

    zero.consolidate_state_dict(to=0)
    if rank == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/over")
    dist.barrier()
    resumed, again, _ = sharded_moments()
    file = torch.load(f"{folder}/over", weights_only=True)
    resumed.load_state_dict(file["model"])
    again.load_state_dict(file["optimizer"])
    fit(plain_parallel, plain_optimizer, range(6, 9), rank, 2)
    fit(resumed, again, range(6, 9), rank, 2)
    assert same(whole(resumed.named_parameters()), whole(plain.named_parameters()))

    for option in ("parameters_as_bucket_view", "overlap_with_ddp"):
        elsewhere = ZeroRedundancyOptimizer(Net().parameters(), torch.optim.AdamW, lr=0.01, **{option: True})
        with pytest.raises(ValueError, match=f"{option}=False"):
            ScheduleFreeWrapper(elsewhere)


def within_zero(rank: int, folder: str) -> None:
    """Each process switches its own part of the parameters, and has to receive the other parts."""

    def zero_of(model: nn.Module) -> Any:
        return ZeroRedundancyOptimizer(model.parameters(), AdamWScheduleFree, lr=0.01, warmup_steps=2)

    plain = Net()
    plain_optimizer = AdamWScheduleFree(plain.parameters(), lr=0.01, warmup_steps=2).attach(plain)
    plain_parallel = DistributedDataParallel(plain)
    model = DistributedDataParallel(Net())
    zero = zero_of(model)
    for some, optimizer in ((plain_parallel, plain_optimizer), (model, zero)):
        fit(some, optimizer, range(4), rank, 2)
    assert same(whole(model.named_parameters()), whole(plain.named_parameters()))

    zero.optim.eval()
    assert not same(whole(model.named_parameters()), whole(plain.state_dict()))  # a part is y
    share(model, zero)
    assert same(whole(model.named_parameters()), whole(plain.state_dict()))
    zero.optim.train()
    share(model, zero)
    assert same(whole(model.named_parameters()), whole(plain.named_parameters()))

    zero.consolidate_state_dict(to=0)
    if rank == 0:  # the weights are y
        torch.save({"model": model.state_dict(), "optimizer": zero.state_dict()}, f"{folder}/within")
    dist.barrier()
    file = torch.load(f"{folder}/within", weights_only=False)  # the axes are objects in it
    resumed = DistributedDataParallel(Net())
    again = zero_of(resumed)
    resumed.load_state_dict(file["model"])
    again.load_state_dict(file["optimizer"])
    for some, optimizer in ((plain_parallel, plain_optimizer), (model, zero), (resumed, again)):
        fit(some, optimizer, range(4, 8), rank, 2)
        assert same(whole(some.named_parameters()), whole(plain.named_parameters()))
    again.optim.eval()
    share(resumed, again)
    assert same(whole(resumed.named_parameters()), whole(plain.state_dict()))


def share(model: nn.Module, zero: ZeroRedundancyOptimizer) -> None:
    """Give every parameter its values in the process whose optimizer has it."""
    mine = {param for group in zero.optim.param_groups for param in group["params"]}
    for param in model.parameters():
        if param not in mine:
            param.data.zero_()
        dist.all_reduce(param.data)
