"""Under skorch, three lines tie the optimizer to the module, and nothing differs from a plain loop."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import copies, equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint, TensorBoard
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from small_problem import average_of
from small_problem import net as module
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.tensorboard import SummaryWriter

from unscheduled import AdamWScheduleFree, ScheduleFreePlus

INPUTS, TARGETS = np.random.default_rng(0).normal(size=(40, 4)).astype("float32"), np.arange(40) % 3
UNSEEN, LABELS = np.random.default_rng(1).normal(size=(8, 4)).astype("float32"), np.arange(8) % 3


class Classifier(NeuralNetClassifier):
    def initialize_optimizer(self, *arguments: Any) -> "Classifier":
        super().initialize_optimizer(*arguments)
        self.optimizer_.attach(self.module_)
        return self


class Log(Callback):
    def on_epoch_end(self, net: NeuralNetClassifier, **_: Any) -> None:
        for name, value in net.optimizer_.metrics().items():
            net.history.record(name, value)


def classifier(epochs: int = 4, **options: Any) -> Classifier:
    settings = {
        "module": module,
        "criterion": nn.CrossEntropyLoss,
        "optimizer": AdamWScheduleFree,
        "optimizer__warmup_steps": 3,
        "lr": 0.05,
        "batch_size": 8,
        "train_split": predefined_split(Dataset(UNSEEN, LABELS)),
        "verbose": 0,
    }
    return Classifier(**(settings | options), max_epochs=epochs)


class PlainLoop:
    """The same without skorch and without attach()."""

    def __init__(self, epochs: int, make: Any = AdamWScheduleFree, **options: Any) -> None:
        self.model = module()
        self.optimizer = make(self.model.parameters(), **({"lr": 0.05, "warmup_steps": 3} | options))
        self.valid_losses, self.metrics = [], []
        self.every_x: list[list[Tensor]] = []
        inputs, targets = torch.from_numpy(INPUTS), torch.from_numpy(TARGETS)
        for _ in range(epochs):
            for start in range(0, 40, 8):
                self.optimizer.zero_grad()
                loss = functional.cross_entropy(self.model(inputs[start : start + 8]), targets[start : start + 8])
                loss.backward()
                self.optimizer.step(loss=loss)
            self.metrics.append(self.optimizer.metrics())
            average = average_of(self.model, self.optimizer)
            self.every_x.append(copies(average.parameters()))
            with torch.no_grad():
                outputs = average(torch.from_numpy(UNSEEN))
            self.valid_losses.append(functional.cross_entropy(outputs, torch.from_numpy(LABELS)).item())
            self.probabilities = outputs.softmax(1).numpy()
        self.y = copies(self.model.parameters())


def test_validation_and_prediction_are_at_the_average_and_training_at_y() -> None:
    plain = PlainLoop(4)
    net = classifier(callbacks=[Log()]).initialize()
    passes: list[bool] = []
    net.module_.register_forward_pre_hook(lambda module, _: passes.append(module.training))
    net.partial_fit(INPUTS, TARGETS)
    assert (passes.count(True), passes.count(False)) == (20, 4)  # none of them twice
    assert net.history[:, "valid_loss"] == plain.valid_losses
    assert np.array_equal(net.predict_proba(UNSEEN), plain.probabilities)
    assert net.score(UNSEEN, LABELS) == (plain.probabilities.argmax(1) == LABELS).mean()
    assert equal(net.module_.parameters(), plain.every_x[-1])
    net.module_.train()
    assert equal(net.module_.parameters(), plain.y)
    for name in plain.metrics[0].keys() - {"gap_norm"}:
        assert net.history[:, name] == [metrics[name] for metrics in plain.metrics]
    assert net.history[:, "gap_norm"] == pytest.approx([metrics["gap_norm"] for metrics in plain.metrics])


def test_what_is_recorded_goes_to_the_tensorboard_of_skorch(tmp_path: Path) -> None:
    classifier(callbacks=[Log(), TensorBoard(SummaryWriter(tmp_path))]).fit(INPUTS, TARGETS)
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in ("effective_lr", "window"):
        expected = torch.tensor([metrics[name] for metrics in PlainLoop(4).metrics]).tolist()
        assert [event.value for event in events.Scalars(name)] == expected


def test_the_loss_comes_to_the_polyak_step() -> None:
    """skorch's closure returns the loss."""
    net = classifier(optimizer=ScheduleFreePlus, lr=1.0).fit(INPUTS, TARGETS)
    assert np.array_equal(net.predict_proba(UNSEEN), PlainLoop(4, ScheduleFreePlus, lr=1.0).probabilities)


def test_checkpoints_hold_the_average_and_the_run_goes_on_from_them(tmp_path: Path) -> None:
    plain = PlainLoop(4)
    every = Checkpoint(monitor=None, dirname=tmp_path, f_params="{last_epoch[epoch]}.pt")
    classifier(2, callbacks=[every]).fit(INPUTS, TARGETS)
    for epoch in (1, 2):
        saved = torch.load(tmp_path / f"{epoch}.pt", weights_only=True)
        assert equal(saved.values(), plain.every_x[epoch - 1])
    resumed = classifier(2)
    resumed.load_params(checkpoint=every)
    assert len(resumed.history) == 2
    resumed.partial_fit(INPUTS, TARGETS)
    assert resumed.history[:, "valid_loss"] == plain.valid_losses
    resumed.module_.train()
    assert equal(resumed.module_.parameters(), plain.y)


@pytest.mark.parametrize("in_train_mode", [True, False])
def test_save_params_and_load_params(in_train_mode: bool, tmp_path: Path) -> None:
    """Without a validation the module is left in train mode, and saved at the average nevertheless."""
    plain = PlainLoop(4)
    options = {"train_split": None} if in_train_mode else {}
    files = {"f_params": tmp_path / "module.pt", "f_optimizer": tmp_path / "optimizer.pt"}
    net = classifier(2, **options).fit(INPUTS, TARGETS)
    assert net.module_.training is in_train_mode
    net.save_params(**files)
    assert equal(torch.load(files["f_params"], weights_only=True).values(), plain.every_x[1])
    resumed = classifier(2, **options).initialize()
    resumed.load_params(**files)
    resumed.partial_fit(INPUTS, TARGETS)
    assert np.array_equal(resumed.predict_proba(UNSEEN), plain.probabilities)
    resumed.module_.train()
    assert equal(resumed.module_.parameters(), plain.y)


def test_clones_are_nets_of_their_own() -> None:
    net = classifier().fit(INPUTS, TARGETS)
    before = net.predict_proba(UNSEEN)
    cloned = clone(net).set_params(max_epochs=2).fit(INPUTS, TARGETS)
    assert np.array_equal(cloned.predict_proba(UNSEEN), PlainLoop(2).probabilities)
    assert np.array_equal(net.predict_proba(UNSEEN), before)
    assert np.array_equal(
        net.set_params(lr=0.1).fit(INPUTS, TARGETS).predict_proba(UNSEEN), PlainLoop(4, lr=0.1).probabilities
    )


def test_a_grid_search_has_the_rates_one_by_one() -> None:
    search = GridSearchCV(classifier(train_split=None), {"lr": [0.002, 0.05]}, cv=2, refit=True).fit(INPUTS, TARGETS)
    best = search.best_params_["lr"]
    assert np.array_equal(search.predict_proba(UNSEEN), PlainLoop(4, lr=best).probabilities)


@pytest.mark.parametrize("in_train_mode", [True, False])
def test_a_pickle_predicts_at_the_average(in_train_mode: bool) -> None:
    net = classifier(train_split=None).fit(INPUTS, TARGETS)
    net.module_.train(in_train_mode)
    again = pickle.loads(pickle.dumps(net))
    assert np.array_equal(again.predict_proba(UNSEEN), PlainLoop(4).probabilities)


def test_a_pickle_does_not_train_on_and_says_so() -> None:
    """Its module is a plain copy at x, and the parameters of its optimizer are others."""
    again = pickle.loads(pickle.dumps(classifier().fit(INPUTS, TARGETS)))
    with pytest.raises(RuntimeError, match="no parameter of this optimizer has a gradient: it was copied"):
        again.partial_fit(INPUTS, TARGETS)
    assert np.array_equal(again.predict_proba(UNSEEN), PlainLoop(4).probabilities)


def test_the_learning_rate_of_skorch_takes_the_place_of_the_optimizers_own() -> None:
    net = Classifier(module, optimizer=AdamWScheduleFree).initialize()
    assert net.optimizer_.metrics()["lr"] == 0.01
