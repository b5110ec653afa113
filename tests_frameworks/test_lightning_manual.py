"""Lightning's manual optimization: several optimizers, losses for the Polyak step, and Lightning's wrappers."""

from pathlib import Path
from typing import Any

import pytest
from lightning_problem import QUIET, Module, adamw, optimizer_of, plain_loop, trainer
from problems import copies, equal
from small_problem import PER_EPOCH, Batches, batch, net
from torch.nn import functional

from unscheduled import ScheduleFreeOptimizer, ScheduleFreePlus, SGDScheduleFree

pytestmark = QUIET


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
