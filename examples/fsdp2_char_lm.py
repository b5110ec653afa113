"""A small GPT learns Python's standard library, character by character, sharded by FSDP2 over any number of processes.

    torchrun --nproc-per-node 2 examples/fsdp2_char_lm.py --steps 100 --checkpoint DIR

Run it again, with more steps or another number of processes: it goes on from the last checkpoint, and with the batches
of a run that was never interrupted.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from unscheduled import AdamWScheduleFree
from unscheduled.lab.tasks import char_lm

DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of this process's part of a batch, weighted so that the mean over the processes is that of the batch.

    The batch is the same however many processes there are, as long as each has a part.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    inputs, targets = (whole[rank::world].to(DEVICE) for whole in batch)
    return char_lm.loss(model, (inputs, targets)) * (len(inputs) * world / len(batch[0]))


def training_batch(step: int) -> tuple[Tensor, Tensor]:
    """It depends on the step alone, so that a resumed run goes on with the batches of the one before."""
    return next(char_lm.batches(torch.Generator().manual_seed(step)))


@torch.no_grad()
def loss_at_x(model: nn.Module) -> float:
    """The loss of the average x on held-out text."""
    _, held_out = char_lm.texts()
    starts = torch.linspace(0, len(held_out) - char_lm.CONTEXT - 1, char_lm.VALIDATION_WINDOWS).long()
    model.eval()  # moves the parameters to x, without a word to the other processes
    loss = loss_of(model, char_lm.windows(held_out, starts))
    model.train()  # and back to y, to the last bit
    dist.all_reduce(loss)
    return loss.item() / dist.get_world_size()


def save(model: nn.Module, optimizer: AdamWScheduleFree, folder: Path) -> None:
    weights, state = get_state_dict(model, optimizer)  # the weights are x
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def resume(model: nn.Module, optimizer: AdamWScheduleFree, checkpoints: Path) -> None:
    """Load the last checkpoint that is complete, if there is one: its ``.metadata`` is written when all else is."""
    complete = sorted(path.parent for path in checkpoints.glob("step-*/.metadata"))
    if complete:
        weights, state = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=complete[-1])
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
        if dist.get_rank() == 0:
            print(f"going on from {complete[-1]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="train up to this step (100)")
    parser.add_argument("--every", type=int, default=20, help="evaluate and save after so many steps (20)")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the folder for the checkpoints")
    arguments = parser.parse_args()

    if DEVICE.type != "cpu":
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()  # gloo, or nccl on GPUs
    torch.manual_seed(0)
    model = char_lm.GPT().to(DEVICE)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.008, betas=(0.9, 0.99), warmup_steps=20).attach(model)
    resume(model, optimizer, arguments.checkpoint)
    for step in range(optimizer.param_groups[0]["step"] + 1, arguments.steps + 1):
        optimizer.zero_grad()
        loss_of(model, training_batch(step)).backward()
        optimizer.step()
        if step % arguments.every == 0 or step == arguments.steps:
            loss = loss_at_x(model)
            save(model, optimizer, arguments.checkpoint / f"step-{step:08}")
            if dist.get_rank() == 0:
                print(f"step {step} of {arguments.steps}: loss at x {loss:.5f}", flush=True)
    dist.barrier()  # a process that ends before the others breaks their connections
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
