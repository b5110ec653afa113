"""Under Lightning's own Trainer ``.attach(self)`` is all that there is to write: nothing differs from a plain loop."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning_problem import QUIET, Module, Weights, adamw, plain_loop, trainer, weights
from problems import copies, equal
from small_problem import PER_EPOCH, Batches, batch, net
from torch import nn
from torch.nn import functional

from unscheduled import ScheduleFreeOptimizer, ScheduleFreePlus, averaged_state_dict, update_bn

pytestmark = QUIET


@pytest.mark.parametrize("attach_part", [False, True])
def test_validation_sees_the_average_and_changes_no_bit(attach_part: bool, tmp_path: Path) -> None:
    """Before the training, in the middle of an epoch and at its end; the module or the part with the parameters."""
    every_x, every_y = plain_loop(12)
    module = Module(attach_part=attach_part)
    trainer(tmp_path, val_check_interval=2).fit(module, Batches(), Batches(100, 101))
    assert [step for step, _ in module.seen] == [0, 0, *(step for step in (2, 4, 6, 8, 10, 12) for _ in range(2))]
    assert all(equal(seen, every_x[step]) for step, seen in module.seen)
    assert module.training
    assert equal(module.net.parameters(), every_y[12])
    assert equal(module.state_dict().values(), every_x[12])
    without = Module()
    trainer(tmp_path).fit(without, Batches())
    assert equal(without.net.parameters(), every_y[12])
    assert without.forward_passes == 12  # none of them twice, since the step gets them as its closure


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3, "val_check_interval": 2},  # which validates between two batches of a step
        {"gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_options_of_the_trainer_do_what_they_do_in_a_plain_loop(options: dict[str, Any], tmp_path: Path) -> None:
    accumulate = options.get("accumulate_grad_batches", 1)
    every_x, every_y = plain_loop(
        12 // accumulate, accumulate=accumulate, clip=options.get("gradient_clip_val"), autocast="precision" in options
    )
    module = Module()
    trainer(tmp_path, **options).fit(module, Batches(), Batches(100))
    assert all(equal(seen, every_x[step]) for step, seen in module.seen)
    assert equal(module.net.parameters(), every_y[12 // accumulate])


def test_parameters_of_bfloat16(tmp_path: Path) -> None:
    """The Trainer converts the module before it asks for the optimizer, so that attach() finds the new parameters."""
    module = Module()
    trainer(tmp_path, precision="bf16-true", max_epochs=1).fit(module, Batches(), Batches(100))
    model = net().bfloat16()
    optimizer = adamw(model.parameters())
    for index in range(PER_EPOCH):
        inputs, targets = batch(index + 1)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs.bfloat16()), targets).backward()
        optimizer.step()
    assert equal(module.net.parameters(), model.parameters())
    optimizer.eval()
    assert equal(module.seen[-1][1], model.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_comes_to_the_polyak_step(accumulate: int, tmp_path: Path) -> None:
    """Lightning's closure returns the loss, which is all that it needs; but of several batches that of the last."""
    every_x, every_y = plain_loop(12 // accumulate, ScheduleFreePlus, accumulate)
    module = Module(ScheduleFreePlus)
    trainer(tmp_path, accumulate_grad_batches=accumulate).fit(module, Batches(), Batches(100))
    assert equal(module.seen[-1][1], every_x[12 // accumulate])
    assert equal(module.net.parameters(), every_y[12 // accumulate])


def test_the_same_module_may_be_trained_again(tmp_path: Path) -> None:
    """The second optimizer starts from the average that the first has reached."""
    every_x, _ = plain_loop(12)
    module = Module()
    trainer(tmp_path).fit(module, Batches())
    again = trainer(tmp_path, max_epochs=1)
    again.fit(module, Batches(), Batches(100))
    assert equal(module.seen[0][1], every_x[12])
    model = net()
    for param, x in zip(model.parameters(), every_x[12], strict=True):
        param.data.copy_(x)
    optimizer = adamw(model.parameters())
    for index in range(PER_EPOCH):
        optimizer.zero_grad()
        inputs, targets = batch(index + 1)
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    assert equal(module.net.parameters(), model.parameters())


@pytest.mark.filterwarnings("ignore:Found 5 module.s. in eval mode at the start of training")
def test_a_module_in_eval_mode_is_trained_at_y_nevertheless(tmp_path: Path) -> None:
    """The Trainer leaves the flags as they are, and each step runs its closure at y."""
    every_x, every_y = plain_loop(6)
    module = Module()
    module.eval()
    trainer(tmp_path, max_epochs=1).fit(module, Batches())
    assert equal(module.net.parameters(), every_x[6])
    module.train()
    assert equal(module.net.parameters(), every_y[6])


@pytest.mark.parametrize("kept", [0, 3])
def test_batch_norm_is_validated_with_the_statistics_at_the_average(kept: int, tmp_path: Path) -> None:
    """If what is attached is the module that ``training_step`` calls, and keeps batches."""

    def with_batch_norm() -> nn.Sequential:
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    class Normed(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = with_batch_norm()

        def validation_step(self, *arguments: Any) -> None:
            super().validation_step(*arguments)
            validated.append(copies(self.net.state_dict().values()))

        def configure_optimizers(self) -> ScheduleFreeOptimizer:
            return adamw(self.net.parameters()).attach(self.net, bn_batches=kept)

    validated: list[Weights] = []
    trained = trainer(tmp_path, num_sanity_val_steps=0, max_epochs=1)
    trained.fit(Normed(), Batches(), Batches(100))
    trained.save_checkpoint(tmp_path / "saved.ckpt")
    model = with_batch_norm()
    optimizer = adamw(model.parameters())
    for index in range(1, PER_EPOCH + 1):
        optimizer.zero_grad()
        functional.cross_entropy(model(batch(index)[0]), batch(index)[1]).backward()
        optimizer.step()
    if kept:
        update_bn([batch(index) for index in (4, 5, 6)], model, optimizer)
    expected = averaged_state_dict(model, optimizer)
    assert equal(validated[-1], expected.values())
    assert equal(weights(tmp_path / "saved.ckpt"), expected.values())


def test_batches_are_not_to_be_kept_of_the_module_itself(tmp_path: Path) -> None:
    """Which Lightning does not call: it calls ``training_step``."""

    class Normed(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

        def configure_optimizers(self) -> ScheduleFreeOptimizer:
            return adamw(self.net.parameters()).attach(self, bn_batches=3)

    with pytest.warns(UserWarning, match="no training batch was kept for BatchNorm, since Normed was never called"):
        trainer(tmp_path, num_sanity_val_steps=0, max_epochs=1).fit(Normed(), Batches(), Batches(100))


@pytest.mark.parametrize("attach_first", [True, False])
def test_fabric(attach_first: bool, tmp_path: Path) -> None:
    """Its wrappers of the model and of the optimizer are followed through, before and after ``setup``."""
    every_x, every_y = plain_loop(6)

    def set_up(fabric: lightning.Fabric) -> tuple[Any, Any]:
        model = net()
        optimizer = adamw(model.parameters())
        if attach_first:
            return fabric.setup(model, optimizer.attach(model))
        wrapped_model, wrapped_optimizer = fabric.setup(model, optimizer)
        return wrapped_model, wrapped_optimizer.attach(model)

    def fit(fabric: lightning.Fabric, model: Any, optimizer: Any, steps: range) -> None:
        for step in steps:
            model.eval()
            assert equal(model.parameters(), every_x[step])
            model.train()
            inputs, targets = batch(step % PER_EPOCH + 1)
            optimizer.zero_grad()
            fabric.backward(functional.cross_entropy(model(inputs), targets))
            optimizer.step()
            assert equal(model.parameters(), every_y[step + 1])

    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    model, optimizer = set_up(fabric)
    fit(fabric, model, optimizer, range(3))
    fabric.save(tmp_path / "saved.ckpt", {"model": model, "optimizer": optimizer})
    assert equal(torch.load(tmp_path / "saved.ckpt", weights_only=True)["model"].values(), every_x[3])
    model, optimizer = set_up(fabric)
    fabric.load(tmp_path / "saved.ckpt", {"model": model, "optimizer": optimizer})
    fit(fabric, model, optimizer, range(3, 6))
