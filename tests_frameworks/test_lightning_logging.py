"""What Lightning's loggers get of the optimizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_problem import QUIET, Module, Weights, optimizer_of, plain_loop, trainer
from problems import equal
from small_problem import Batches, batch, net
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

pytestmark = QUIET
NAMES = ("step", "lr", "effective_lr", "beta", "c", "window", "gap_norm")


@pytest.mark.parametrize("prefix", ["", "optimizer/"])
def test_what_is_logged_is_in_the_event_files(prefix: str, tmp_path: Path) -> None:
    """Without a prefix, Lightning takes the entry ``step`` for the axis, and does not log it."""

    class Logging(Module):
        def on_train_batch_end(self, *_: Any) -> None:
            metrics = {prefix + name: value for name, value in optimizer_of(self).metrics().items()}
            logged.append(metrics)
            self.log_dict(metrics)

    logged: list[dict[str, float]] = []
    logger = TensorBoardLogger(tmp_path)
    monitor = LearningRateMonitor(log_momentum=True, log_weight_decay=True)
    trainer(tmp_path, logger=logger, log_every_n_steps=1, callbacks=[monitor]).fit(Logging(), Batches())
    events = EventAccumulator(logger.log_dir).Reload()
    assert len(logged) == 12
    assert logged[0].keys() == {prefix + name for name in NAMES}
    assert [metrics[prefix + "step"] for metrics in logged] == list(range(1, 13))
    for name in logged[0].keys() - {"step"}:
        recorded = events.Scalars(name)
        assert [event.value for event in recorded] == torch.tensor([metrics[name] for metrics in logged]).tolist()
        assert [event.step for event in recorded] == list(range(12) if prefix else range(1, 13))
    assert ("step" in events.Tags()["scalars"]) is False
    rates = [metrics[prefix + "effective_lr"] for metrics in logged]
    assert rates == pytest.approx([0.05 / 3, 0.1 / 3, *[0.05] * 10])
    named = "lr-AdamWScheduleFree"
    for name, value in [(named, 0.05), (f"{named}-momentum", 0.9), (f"{named}-weight_decay", 0.0)]:
        assert {event.value for event in events.Scalars(name)} == {torch.tensor(value).item()}


def test_the_loss_at_x_and_at_y_is_logged_beside_a_validation(tmp_path: Path) -> None:
    """Where the module is in eval mode; training goes on as if nothing had been asked."""

    class Logging(Module):
        def on_validation_epoch_end(self) -> None:
            metrics = optimizer_of(self).metrics(lambda: self.loss(*batch(100)))
            self.log_dict({name: metrics[name] for name in ("loss_at_x", "loss_at_y")})

    every_x, every_y = plain_loop(12)
    logger = TensorBoardLogger(tmp_path)
    module = Logging()
    trainer(tmp_path, logger=logger, log_every_n_steps=1, val_check_interval=2).fit(module, Batches(), Batches(100))
    events = EventAccumulator(logger.log_dir).Reload()
    for name, sequence in (("loss_at_x", every_x), ("loss_at_y", every_y)):
        losses = [(step - 1, loss_with(sequence[step])) for step in range(2, 13, 2)]  # Lightning counts from 0
        assert [(event.step, event.value) for event in events.Scalars(name)] == losses
    assert equal(module.net.parameters(), every_y[12])


def loss_with(weights: Weights) -> float:
    model = net()
    with torch.no_grad():
        for param, weight in zip(model.parameters(), weights, strict=True):
            param.copy_(weight)
        return functional.cross_entropy(model(batch(100)[0]), batch(100)[1]).item()
