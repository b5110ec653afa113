"""Lightning's checkpoints hold the average and the state beside it, whenever written, and a run resumes bit for bit."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning_problem import QUIET, Module, optimizer_of, plain_loop, trainer, weights
from problems import equal, same
from small_problem import Batches, batch, net
from torch import Tensor, nn
from torch.nn import functional

from unscheduled import AdamWScheduleFree

pytestmark = QUIET


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


def test_lightnings_wrapper_keeps_a_state_that_is_loaded_into_it_to_itself(tmp_path: Path) -> None:
    """Which is for the page to say: load it into the optimizer itself."""
    module = Module()
    trainer(tmp_path, max_epochs=1).fit(module, Batches())
    before = optimizer_of(module).state_dict()
    fresh = AdamWScheduleFree(net().parameters(), lr=0.5)
    module.optimizers().load_state_dict(fresh.state_dict())
    assert same(optimizer_of(module).state_dict(), before)
