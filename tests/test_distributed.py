"""Two processes: the modes need no communication, shards are saved at x, and checkpoints change their world."""

from pathlib import Path

import distributed_run
import pytest
import torch
import torch.distributed.checkpoint as dcp
from distributed_run import CASES, assert_close, decay_split, fit, load, net, of, single_process, spawn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

pytestmark = pytest.mark.slow


def test_data_parallel(tmp_path: Path) -> None:
    spawn(distributed_run.data_parallel, tmp_path)


@pytest.mark.filterwarnings("ignore")  # those of torch.distributed.checkpoint
def test_fully_sharded_and_checkpoints_into_one_process(tmp_path: Path) -> None:
    """Saved by two processes, loaded by one; the flattened form also into other groups."""
    spawn(distributed_run.fully_sharded, tmp_path)
    for case, (attach, _, flat) in enumerate(CASES):
        model = net()
        with torch.no_grad():
            for param in model.parameters():
                param.zero_()
        optimizer = of(decay_split(model) if flat else model.parameters())
        if attach:
            optimizer.attach(model)
        load(model, optimizer, tmp_path / str(case), flat)
        model.train()
        optimizer.train()
        fit(model, optimizer, range(3, 6))
        optimizer.eval()
        assert_close(dict(model.named_parameters()), single_process(range(6)))


@pytest.mark.filterwarnings("ignore")  # those of torch.distributed.checkpoint
def test_checkpoints_of_one_process_into_several(tmp_path: Path) -> None:
    for case, (attach, training, flat) in enumerate(CASES):
        model = net()
        optimizer = of(model.parameters())
        if attach:
            optimizer.attach(model)
        fit(model, optimizer, range(3))
        (model if attach else optimizer).train(training)
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        weights, state = get_state_dict(model, optimizer, options=options)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=tmp_path / str(case), no_dist=True)
    spawn(distributed_run.resharded, tmp_path)
