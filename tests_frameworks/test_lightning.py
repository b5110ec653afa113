"""Under Lightning's own Trainer ``.attach(self)`` is all that there is to write: nothing differs from a plain loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from problems import copies, equal
from small_problem import PER_EPOCH, Batches, batch, net, same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional

from unscheduled import (
    AdamWScheduleFree,
    ScheduleFreeOptimizer,
    ScheduleFreePlus,
    SGDScheduleFree,
    averaged_state_dict,
    update_bn,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no .val_dataloader."),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

NAMES = ("step", "lr", "effective_lr", "beta", "c", "window", "gap_norm")
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


class Manual(Module):
    """Manual optimization of two optimizers, each of a layer: of one loss, or in turns, as for a GAN."""

    def __init__(self, in_turns: bool) -> None:
        super().__init__()
        self.automatic_optimization, self.in_turns = False, in_turns

    def training_step(self, batch: Any, _: int) -> None:
        if self.in_turns:
            for optimizer in self.optimizers():
                with optimizer.toggle_model():  # the others' parameters require no gradient meanwhile
                    optimizer.zero_grad()
                    self.manual_backward(self.loss(*batch))
                    optimizer.step()
        else:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(self.loss(*batch))
            for optimizer in self.optimizers():
                optimizer.step()
        self.log("window", self.optimizers()[1].metrics()["window"])

    def configure_optimizers(self) -> list[ScheduleFreeOptimizer]:
        first, second = self.net[0].parameters(), self.net[2].parameters()
        return [adamw(first).attach(self), SGDScheduleFree(second, lr=0.3).attach(self)]


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


# Training and validation.


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


# Checkpoints.


def test_every_checkpoint_holds_the_average_and_the_state_that_belongs_to_it(tmp_path: Path) -> None:
    """Also between two validations, where the parameters hold y: Lightning has collected both before its hooks."""
    every_x, every_y = plain_loop(12)
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    module = Module()
    trainer(tmp_path, callbacks=[every]).fit(module, Batches(), Batches(100))
    for step in range(1, 13):
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert equal(saved["state_dict"].values(), every_x[step])
        state = saved["optimizer_states"][0]
        assert equal([state["state"][index]["y"] for index in range(4)], every_y[step])
        assert state["param_groups"][0]["step"] == step


def test_the_best_checkpoint_is_what_was_validated(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, "{step}", monitor="val_loss")
    trained = trainer(tmp_path, callbacks=[best], val_check_interval=2, max_epochs=4)
    trained.fit(Module(), Batches(), Batches(3))
    every_x, _ = plain_loop(24)
    model = net()
    losses: dict[int, Tensor] = {}
    for step in range(2, 25, 2):
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(every_x[step]), model.parameters())
        with torch.no_grad():
            losses[step] = functional.cross_entropy(model(batch(3)[0]), batch(3)[1])
    step = min(losses, key=losses.__getitem__)
    assert best.best_model_score == losses[step]
    assert equal(weights(best.best_model_path), every_x[step])
    for run in (trained.validate, trained.test):
        again = Module()
        run(again, Batches(3), ckpt_path="best", weights_only=True, verbose=False)
        assert equal(again.seen[0][1], every_x[step])
    assert equal(Module.load_from_checkpoint(best.best_model_path).net.parameters(), every_x[step])


@pytest.mark.parametrize("step", [4, 6, 9])  # in the middle of an epoch, at its end, in the next
@pytest.mark.parametrize("in_eval_mode", [False, True])
def test_a_run_resumes_bit_for_bit(step: int, in_eval_mode: bool, tmp_path: Path) -> None:
    """From a file that was written in train mode, or in the validation of that step."""

    class Saving(Callback):
        def save(self, running: lightning.Trainer) -> None:
            if running.global_step == step and not running.sanity_checking:
                running.save_checkpoint(tmp_path / "saved.ckpt")

        def on_train_batch_end(self, running: lightning.Trainer, *_: Any) -> None:
            if not in_eval_mode:
                self.save(running)

        def on_validation_epoch_end(self, running: lightning.Trainer, *_: Any) -> None:
            if in_eval_mode:
                self.save(running)

    every_x, every_y = plain_loop(12)
    whole = Module()
    trainer(tmp_path, callbacks=[Saving()], val_check_interval=1).fit(whole, Batches(), Batches(100))
    assert equal(weights(tmp_path / "saved.ckpt"), every_x[step])
    resumed = Module()
    trainer(tmp_path, num_sanity_val_steps=0, val_check_interval=1).fit(
        resumed, Batches(), Batches(100), ckpt_path=tmp_path / "saved.ckpt", weights_only=True
    )
    assert resumed.seen[-1][0] == 12
    assert all(equal(seen, every_x[step]) for step, seen in resumed.seen)
    assert equal(resumed.net.parameters(), every_y[12])
    assert same(optimizer_of(resumed).state_dict(), optimizer_of(whole).state_dict())


@pytest.mark.parametrize("weights_first", [True, False])
def test_weights_and_state_may_be_loaded_by_hand(weights_first: bool, tmp_path: Path) -> None:
    every_x, every_y = plain_loop(12)
    first = Module()
    trainer(tmp_path, max_epochs=1).fit(first, Batches())
    x, state = first.state_dict(), optimizer_of(first).state_dict()

    class Loading(Module):
        def on_train_start(self) -> None:
            if weights_first:
                self.load_state_dict(x)
            optimizer_of(self).load_state_dict(state)
            if not weights_first:
                self.load_state_dict(x)

    module = Loading()
    trainer(tmp_path, max_epochs=1, val_check_interval=2).fit(module, Batches(), Batches(100))
    assert all(equal(seen, every_x[6 + step]) for step, seen in module.seen if step)
    assert equal(module.net.parameters(), every_y[12])


# Manual optimization.


@pytest.mark.parametrize("in_turns", [False, True])
def test_manual_optimization_with_two_optimizers(in_turns: bool, tmp_path: Path) -> None:
    model = net()
    first, second = adamw(model[0].parameters()), SGDScheduleFree(model[2].parameters(), lr=0.3)
    for index in range(9):
        inputs, targets = batch(index % PER_EPOCH + 1)
        for optimizers in ([first], [second]) if in_turns else ([first, second],):
            model.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            for optimizer in optimizers:
                optimizer.step()
    y = copies(model.parameters())
    cut = trainer(tmp_path, max_steps=8, max_epochs=-1)  # of which Lightning counts each optimizer's
    cut.fit(Manual(in_turns), Batches(), Batches(100))
    cut.save_checkpoint(tmp_path / "cut.ckpt")
    module = Manual(in_turns)
    longer = trainer(tmp_path, max_steps=18, max_epochs=-1)
    longer.fit(module, Batches(), Batches(100), ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert equal(module.net.parameters(), y)
    assert longer.callback_metrics["window"] == pytest.approx(second.metrics()["window"])
    longer.validate(module, Batches(100), verbose=False)
    first.eval()
    second.eval()
    assert equal(module.seen[-1][1], model.parameters())


def test_the_polyak_step_gets_the_loss_from_a_closure_in_manual_optimization(tmp_path: Path) -> None:
    """Since Lightning passes a closure of its own if there is none, which excludes ``loss=``."""

    class ManualPolyak(Module):
        def __init__(self, as_closure: bool) -> None:
            super().__init__(ScheduleFreePlus)
            self.automatic_optimization, self.as_closure = False, as_closure

        def training_step(self, batch: Any, _: int) -> None:
            loss = self.loss(*batch)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step(lambda: loss) if self.as_closure else optimizer.step(loss=loss)

    _, every_y = plain_loop(12, ScheduleFreePlus)
    module = ManualPolyak(as_closure=True)
    trainer(tmp_path).fit(module, Batches())
    assert equal(module.net.parameters(), every_y[12])
    with pytest.raises(ValueError, match=r"exclude each other: let the closure return the loss"):
        trainer(tmp_path).fit(ManualPolyak(as_closure=False), Batches())


def test_the_polyak_step_gets_the_losses_of_accumulated_gradients_in_manual_optimization(tmp_path: Path) -> None:
    class Accumulating(Module):
        def __init__(self) -> None:
            super().__init__(ScheduleFreePlus)
            self.automatic_optimization, self.losses = False, []

        def training_step(self, batch: Any, _: int) -> None:
            self.losses.append(self.loss(*batch) / 3)
            self.manual_backward(self.losses[-1])
            if len(self.losses) == 3:
                self.optimizers().step(lambda: self.losses)
                self.optimizers().zero_grad()
                self.losses = []

    model = net()
    optimizer = ScheduleFreePlus(model.parameters())
    for start in (1, 4):
        losses = [functional.cross_entropy(model(batch(start + k)[0]), batch(start + k)[1]) / 3 for k in range(3)]
        for loss in losses:
            loss.backward()
        optimizer.step(loss=losses)
        optimizer.zero_grad()
    module = Accumulating()
    trainer(tmp_path, max_epochs=1).fit(module, Batches())
    assert equal(module.net.parameters(), model.parameters())


@pytest.mark.parametrize("attach", [True, False])
def test_lightnings_wrapper_of_the_optimizer_switches_it_too(attach: bool, tmp_path: Path) -> None:
    """``self.optimizers()`` is an object of Lightning's with the methods of the optimizer."""

    class Switching(Module):
        def on_train_batch_end(self, *_: Any) -> None:
            wrapped, optimizer = self.optimizers(), optimizer_of(self)
            y = copies(self.net.parameters())
            wrapped.eval()
            x = copies(self.net.parameters())
            assert not optimizer.training
            assert equal(x, [optimizer.iterates(param).x for param in self.net.parameters()])
            assert equal(y, [optimizer.iterates(param).y for param in self.net.parameters()])
            assert optimizer.state_dict()["param_groups"][0]["training"] is False
            assert wrapped.metrics() == optimizer.metrics()
            wrapped.train()
            assert optimizer.training
            assert equal(self.net.parameters(), y)
            with wrapped.averaged_parameters():
                assert equal(self.net.parameters(), x)
                assert not optimizer.training
            assert optimizer.training
            assert equal(self.net.parameters(), y)

        def configure_optimizers(self) -> ScheduleFreeOptimizer:
            optimizer = self.make(self.net.parameters())
            return optimizer.attach(self) if attach else optimizer

    _, every_y = plain_loop(12)
    module = Switching()
    trainer(tmp_path).fit(module, Batches())
    assert equal(module.net.parameters(), every_y[12])


# Fabric.


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


# Logging.


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
