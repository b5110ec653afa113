"""A module as a user of Lightning writes it, a Trainer for it, and the loop without Lightning to compare with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from problems import copies
from small_problem import PER_EPOCH, batch, net
from torch import Tensor, nn
from torch.nn import functional

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer

QUIET = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no .val_dataloader."),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

Weights = list[Tensor]


def adamw(params: Any) -> ScheduleFreeOptimizer:
    return AdamWScheduleFree(params, lr=0.05, warmup_steps=3)


class Module(lightning.LightningModule):
    """What a user writes, and a record of the weights that the validation saw."""

    def __init__(self, make: Callable[[Any], ScheduleFreeOptimizer] = adamw, attach_part: bool = False) -> None:
        super().__init__()
        self.net = net()
        self.make, self.attach_part = make, attach_part
        self.seen: list[tuple[int, Weights]] = []
        self.forward_passes = 0

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.forward_passes += 1
        return functional.cross_entropy(self.net(inputs), targets)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return self.loss(*batch)

    def validation_step(self, batch: Any, _: int) -> None:
        assert not self.training
        self.seen.append((self.global_step, copies(self.net.parameters())))
        self.log("val_loss", self.loss(*batch))

    test_step = validation_step

    def configure_optimizers(self) -> ScheduleFreeOptimizer:
        return self.make(self.net.parameters()).attach(self.net if self.attach_part else self)


def plain_loop(
    steps: int,
    make: Callable[[Any], ScheduleFreeOptimizer] = adamw,
    accumulate: int = 1,
    clip: float | None = None,
    autocast: bool = False,
) -> tuple[list[Weights], list[Weights]]:
    """The x and the y after each step of a loop without Lightning and without attach(), the first before them all."""
    model = net()
    optimizer = make(model.parameters())
    every_x, every_y = [copies(model.parameters())], [copies(model.parameters())]
    batches = iter(range(steps * accumulate))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.zeros(())
        for _ in range(accumulate):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                inputs, targets = batch(next(batches) % PER_EPOCH + 1)
                loss = functional.cross_entropy(model(inputs), targets) / accumulate
            loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step(loss=loss)
        every_x.append([optimizer.iterates(param).x for param in model.parameters()])
        every_y.append(copies(model.parameters()))
    return every_x, every_y


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    """A Trainer that says and writes nothing but what is asked for."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in options.get("callbacks", []))
    settings = {"max_epochs": 2, "enable_checkpointing": checkpoints, "devices": 1, "num_sanity_val_steps": 2}
    return lightning.Trainer(**(quiet | settings | options), default_root_dir=folder)


def optimizer_of(module: Module) -> ScheduleFreeOptimizer:
    optimizer = module.optimizers(use_pl_optimizer=False)
    assert isinstance(optimizer, ScheduleFreeOptimizer)
    return optimizer


def weights(file: Path | str) -> Weights:
    return list(torch.load(file, weights_only=True)["state_dict"].values())
