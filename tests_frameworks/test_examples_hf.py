"""The examples of Transformers and Accelerate, and what is written on their pages, run as they are."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from sameness import same
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from unscheduled import AdamWScheduleFree

ROOT = Path(__file__).parents[1]


def run(name: str, directory: Path, steps: int) -> str:
    """What an example prints."""
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), "--steps", str(steps), "--out", "out"],
        cwd=directory,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        timeout=240,
        check=True,
        text=True,
    ).stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "times"), [("transformers_trainer.py", 1), ("accelerate_loop.py", 2)])
def test_an_example(name: str, times: int, tmp_path: Path) -> None:
    losses = re.findall(r"validation loss at x ([\d.]+), of the saved model ([\d.]+)", run(name, tmp_path, steps=30))
    assert len(losses) == times
    assert all(at_x == saved for at_x, saved in losses)
    assert float(losses[-1][0]) < 4.5  # nats per byte; it begins at log 256 = 5.5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    weights = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    (file,) = (tmp_path / "out").glob("checkpoint-30/optimizer.pt" if times == 1 else "state/optimizer.bin")
    assert {group["step"] for group in torch.load(file)["param_groups"]} == {30}


def blocks(page: str) -> list[str]:
    """The code of a page."""
    text = (ROOT / "docs" / "frameworks" / page).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def make_llama() -> LlamaForCausalLM:
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, bos_token_id=0, eos_token_id=0, **sizes))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning")
def test_the_page_on_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_llama()
    data = [{"input_ids": row, "labels": row} for row in torch.randint(16, (32, 6))]
    names: dict[str, Any] = {"model": model, "data": data, "AdamWScheduleFree": AdamWScheduleFree}
    names |= {"Trainer": Trainer, "TrainingArguments": TrainingArguments}
    fit, logging, making = blocks("transformers.md")
    exec(fit, names)
    optimizer, arguments = names["optimizer"], names["arguments"]
    assert optimizer.metrics()["step"] == 12
    assert model.training
    x = {name: optimizer.iterates(param).x for name, param in model.named_parameters()}
    names["trainer"].save_model()
    assert same(saved(tmp_path / "out"), x)
    assert same(dict(model.eval().named_parameters()), x)

    exec(logging, names)
    trainer = names["LoggingTrainer"](model, arguments, train_dataset=data, optimizers=(optimizer, None))
    trainer.train()
    assert trainer.state.log_history[-1]["gap_norm"] == optimizer.metrics()["gap_norm"]

    exec(making, names)
    trainer = names["ScheduleFreeTrainer"](None, arguments, train_dataset=data, model_init=lambda: make_llama())
    trainer.train()
    trainer.save_model()
    assert same(saved(tmp_path / "out"), dict(trainer.model.eval().named_parameters()))


def test_the_page_on_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(3, 1)
    names = {"model": model, "loss_fn": nn.MSELoss(), "AdamWScheduleFree": AdamWScheduleFree}
    names |= {
        "loader": [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)],
        "accelerator": Accelerator(cpu=True),
    }
    (fit,) = blocks("accelerate.md")
    exec(fit, names)
    optimizer = names["optimizer"].optimizer
    x = {name: optimizer.iterates(param).x for name, param in model.named_parameters()}
    assert optimizer.metrics()["step"] == 3
    assert same(dict(model.named_parameters()), x)
    assert same(saved(tmp_path / "out"), x)
