"""The functions that the processes of the tests of DistributedDataParallel run."""

from problems import same
from processes import (
    OPTIMIZERS,
    Collectives,
    Net,
    fit,
    gathered,
    load,
    one_process,
    save,
    whole,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.parallel import DistributedDataParallel

from unscheduled import ScheduleFreeOptimizer


def replicated(name: str, attach_first: bool = True) -> tuple[nn.Module, ScheduleFreeOptimizer]:
    model = Net()
    optimizer = OPTIMIZERS[name](model.parameters())
    if attach_first:
        optimizer.attach(model)
    parallel = DistributedDataParallel(model)
    return parallel, optimizer if attach_first else optimizer.attach(parallel)


def data_parallel(rank: int, folder: str) -> None:
    """Training equals that of one process that adds up the same two gradients, also if rank 0 evaluates alone."""
    for name in OPTIMIZERS:
        for attach_first in (True, False):
            model, optimizer = replicated(name, attach_first)
            fit(model, optimizer, range(4), rank, 2, evaluate=attach_first)
            if rank == 0:
                with Collectives() as collectives:
                    x = whole(model.state_dict())
                    model.eval()
                    assert same(whole(model.named_parameters()), x)
                    model.train()
                    assert optimizer.metrics()["gap_norm"] > 0.0
                    optimizer.state_dict()
                assert not collectives.calls
                assert same(x, one_process(name, 4, parts=2))
            fit(model, optimizer, range(4, 6), rank, 2)
            y = whole(model.named_parameters())
            assert all(same(other, y) for other in gathered(y))
            x = whole(model.state_dict())
            assert same(x, one_process(name, 6, parts=2))
            assert same(x, whole(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))))
            path = f"{folder}/{name}/{attach_first}"
            save(model, optimizer, path)
            resumed, again = replicated(name, not attach_first)
            load(resumed, again, path)
            fit(model, optimizer, range(6, 8), rank, 2)
            fit(resumed, again, range(6, 8), rank, 2)
            assert same(whole(resumed.named_parameters()), whole(model.named_parameters()))
