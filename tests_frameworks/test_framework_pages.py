"""What is written on the pages of the frameworks is run as it is, and does what the page says."""

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from lightning_problem import QUIET, Module, plain_loop, trainer
from problems import equal, same
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from small_problem import Batches, averages, batch, holds, net
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from unscheduled import AdamWScheduleFree, SGDScheduleFree

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning"),
]
PAGES = Path(__file__).parents[1] / "docs" / "frameworks"


def blocks(page: str) -> list[str]:
    """The code of a page."""
    return re.findall(r"^```python\n(.*?)^```", (PAGES / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def make_llama() -> LlamaForCausalLM:
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, bos_token_id=0, eos_token_id=0, **sizes))


def test_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_llama()
    data = [{"input_ids": row, "labels": row} for row in torch.randint(16, (32, 6))]
    names: dict[str, Any] = {"model": model, "data": data, "AdamWScheduleFree": AdamWScheduleFree}
    names |= {"Trainer": Trainer, "TrainingArguments": TrainingArguments}
    fit, logging, making = blocks("transformers")
    exec(fit, names)
    optimizer, arguments = names["optimizer"], names["arguments"]
    assert optimizer.metrics()["step"] == 12
    assert model.training
    x = averages(model, optimizer)
    names["trainer"].save_model()
    assert same(saved(tmp_path / "out"), x)
    assert holds(model.eval(), x)

    exec(logging, names)
    arguments.logging_steps = 12
    datasets = {"train_dataset": data, "eval_dataset": data}
    logging_trainer = names["LoggingTrainer"](model, arguments, **datasets, optimizers=(optimizer, None))
    logging_trainer.evaluate()
    logging_trainer.train()
    (entry,) = [entry for entry in logging_trainer.state.log_history if "loss" in entry]
    assert entry["gap_norm"] == optimizer.metrics()["gap_norm"]

    exec(making, names)
    making_trainer = names["ScheduleFreeTrainer"](None, arguments, train_dataset=data, model_init=lambda: make_llama())
    making_trainer.train()
    making_trainer.save_model()
    assert same(saved(tmp_path / "out"), averages(making_trainer.model, making_trainer.optimizer.optimizer))


def test_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(3, 1)
    names = {"model": model, "loss_fn": nn.MSELoss(), "AdamWScheduleFree": AdamWScheduleFree}
    names |= {
        "loader": [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)],
        "accelerator": Accelerator(cpu=True),
    }
    (fit,) = blocks("accelerate")
    exec(fit, names)
    optimizer = names["optimizer"].optimizer
    x = averages(model, optimizer)
    assert optimizer.metrics()["step"] == 3
    assert holds(model, x)
    assert same(saved(tmp_path / "out"), x)


def test_lightning(tmp_path: Path) -> None:
    names: dict[str, Any] = {"AdamWScheduleFree": AdamWScheduleFree, "SGDScheduleFree": SGDScheduleFree}
    configuring, with_batch_norm, logging = blocks("lightning")
    exec(configuring, names)
    exec(logging, names)

    class Written(Module):
        configure_optimizers = names["configure_optimizers"]
        on_train_batch_end = names["on_train_batch_end"]

    every_x, every_y = plain_loop(12, lambda params: AdamWScheduleFree(params, lr=3e-3, warmup_steps=200))
    module, running = Written(), trainer(tmp_path)
    running.fit(module, Batches(), Batches(100))
    assert equal(module.seen[-1][1], every_x[12])
    assert equal(module.net.parameters(), every_y[12])
    assert running.callback_metrics["optimizer/step"] == 12

    exec(f"def configure_optimizers(self):\n{textwrap.indent(with_batch_norm, '    ')}", names)

    class Normed(Module):
        configure_optimizers = names["configure_optimizers"]

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    normed = Normed()
    trainer(tmp_path, max_epochs=1).fit(normed, Batches(), Batches(100))
    hidden = normed.net.eval()[0](torch.cat([batch(index)[0] for index in range(1, 7)]))  # all batches, at x
    torch.testing.assert_close(normed.net[1].running_mean, hidden.mean(0))


def test_skorch() -> None:
    names: dict[str, Any] = {"module": net, "AdamWScheduleFree": AdamWScheduleFree, "Callback": Callback}
    names["NeuralNetClassifier"] = NeuralNetClassifier
    fit, logging = blocks("skorch")
    exec(fit, names)
    exec(logging, names)
    classifier = names["net"].set_params(callbacks=[names["LogOptimizer"]()], verbose=0, criterion=nn.CrossEntropyLoss)
    classifier.fit(np.eye(4, dtype="float32").repeat(6, 0), np.arange(24) % 3)
    assert classifier.history[-1, "window"] == classifier.optimizer_.metrics()["window"]
    assert not classifier.module_.training
    assert holds(classifier.module_, averages(classifier.module_, classifier.optimizer_))
    assert classifier.optimizer_.param_groups[0]["warmup_steps"] == 200


def test_vision() -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    names: dict[str, Any] = {"torch": torch, "SGDScheduleFree": SGDScheduleFree}
    names["resnet50"] = lambda: nn.Sequential(*layers)
    (making,) = blocks("vision")
    exec(making, names)
    model, optimizer = names["model"], names["optimizer"]
    images = torch.randn(4, 3, 8, 8)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), torch.arange(4) % 2).backward()
        optimizer.step()
    model.eval()(images)
    assert holds(model, averages(model, optimizer))
    torch.testing.assert_close(model[1].running_mean, model[0](images).mean((0, 2, 3)))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_logging() -> None:
    class Run:
        def log(self, values: dict[str, float]) -> None:
            logged.append(values)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            scalars.append((name, value, step))

    logged: list[dict[str, float]] = []
    scalars: list[tuple[str, float, int]] = []
    model = net()
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.05).attach(model)
    inputs, targets = batch(1)
    for _ in range(3):
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
    names = {"optimizer": optimizer, "model": model, "loss": loss, "run": Run(), "writer": Run(), "step": 3}
    names |= {"loss_fn": nn.CrossEntropyLoss(), "inputs": inputs, "targets": targets}
    steps, losses = blocks("logging")
    exec(steps, names)
    metrics = optimizer.metrics()
    assert logged == [metrics | {"loss": loss.item()}]
    assert scalars == [(f"optimizer/{name}", value, 3) for name, value in metrics.items()]
    exec(losses, names)
    x = functional.cross_entropy(model(inputs), targets).item()
    y = functional.cross_entropy(model.train()(inputs), targets).item()
    assert logged[1:] == [metrics | {"loss_at_x": x, "loss_at_y": y}]
