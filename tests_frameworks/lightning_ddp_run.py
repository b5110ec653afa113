"""What the processes of the test of Lightning's DDP run: ``python lightning_ddp_run.py FOLDER [CHECKPOINT]``."""

import sys
from pathlib import Path

import lightning
import torch
from small_problem import PER_EPOCH, Batches, net
from torch import Tensor
from torch.nn import functional

from unscheduled import AdamWScheduleFree

WORLD = 2
STEPS = PER_EPOCH


class Module(lightning.LightningModule):
    """Each process takes its part of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.seen: dict[int, list[Tensor]] = {}

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, targets = (part.chunk(WORLD)[self.global_rank] for part in batch)
        return functional.cross_entropy(self.net(inputs), targets)

    def validation_step(self, *_: object) -> None:
        self.seen[self.global_step] = [param.clone() for param in self.net.parameters()]

    def configure_optimizers(self) -> AdamWScheduleFree:
        return AdamWScheduleFree(self.net.parameters(), lr=0.05).attach(self)


def main(folder: Path, checkpoint: Path | None) -> None:
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=WORLD,
        max_steps=STEPS if checkpoint else STEPS // 2,
        val_check_interval=1,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    trainer.fit(module, Batches(), Batches(1), ckpt_path=checkpoint, weights_only=True)
    assert trainer.world_size == WORLD
    trainer.save_checkpoint(folder / f"{trainer.global_step}.ckpt")
    found = {"seen": module.seen, "y": list(module.net.parameters())}
    torch.save(found, folder / f"{trainer.global_step}.{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
