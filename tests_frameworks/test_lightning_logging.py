"""What Lightning's loggers get of the optimizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_problem import QUIET, Module, optimizer_of, trainer
from small_problem import Batches
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
