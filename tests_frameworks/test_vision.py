"""A loop in the manner of torchvision's references: what is evaluated and saved is the average; it resumes by bits."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import same
from small_problem import average_of, holds
from torch import nn

from unscheduled import AdamWScheduleFree, SGDScheduleFree, update_bn

FILE = Path(__file__).parents[1] / "examples" / "vision_loop.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("vision_loop", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(example: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> Any:
    """Call the example's main(), and give the file that it wrote."""
    file = arguments[1]
    monkeypatch.setattr(sys, "argv", [str(FILE), *map(str, arguments)])
    example.main()
    return torch.load(file, weights_only=True)


def test_the_example_is_a_plain_loop_with_the_average_evaluated_and_saved(
    example: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(example, monkeypatch, "--file", tmp_path / "whole.pt", "--epochs", "2")
    printed = capsys.readouterr().out

    training, unseen = example.loaders()
    torch.manual_seed(0)
    model = example.resnet().to(memory_format=torch.channels_last)
    optimizer = SGDScheduleFree(model.parameters(), lr=1.0, warmup_steps=20)
    accuracies: list[float] = []
    for epoch in range(2):
        torch.manual_seed(epoch)
        model.train()
        batches: list[torch.Tensor] = []
        for images, labels in training:
            batches.append(example.augment(images))
            optimizer.zero_grad()
            batches[-1] = batches[-1].to(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(model(batches[-1]), labels, label_smoothing=0.1)
            loss.backward()
            optimizer.step()
        update_bn(batches[-20:], model, optimizer)
        ((images, labels),) = unseen
        average = average_of(model, optimizer)
        with torch.no_grad():
            accuracies.append((average(images).argmax(1) == labels).float().mean().item())
    assert printed == "".join(f"epoch {epoch}: accuracy {accuracies[epoch - 1]:.4f}\n" for epoch in (1, 2))
    assert accuracies[1] > 0.9
    assert same(whole["model"], average.state_dict())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)

    run(example, monkeypatch, "--file", tmp_path / "cut.pt", "--epochs", "1")
    resumed = run(example, monkeypatch, "--file", tmp_path / "cut.pt", "--epochs", "2", "--resume")
    assert same(resumed, whole)


@pytest.mark.parametrize("kept", [0, 2])
def test_depthwise_convolutions_under_autocast(kept: int) -> None:
    """In channels-last and bfloat16, with BatchNorm and dropout: evaluated at the average, trained at y."""
    torch.manual_seed(0)
    batches = [torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last) for _ in range(5)]

    def fit(model: nn.Module, optimizer: Any, evaluate: bool) -> None:
        for step, images in enumerate(batches):
            torch.manual_seed(step)
            model.train()
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images), torch.arange(4))
            loss.backward()
            optimizer.step()
            if evaluate:
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                    model.eval()
                    model(batches[0])

    def network() -> nn.Module:
        torch.manual_seed(1)
        depthwise = [nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish()]
        layers = [nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(), *depthwise]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 4)]
        return nn.Sequential(*layers, *head).to(memory_format=torch.channels_last)

    model, plain = network(), network()
    optimizer = AdamWScheduleFree(model.parameters(), lr=1e-3).attach(model, bn_batches=kept)
    reference = AdamWScheduleFree(plain.parameters(), lr=1e-3)
    fit(model, optimizer, evaluate=True)
    fit(plain, reference, evaluate=False)
    if kept:
        with torch.autocast("cpu", torch.bfloat16):
            update_bn(batches[-kept:], plain, reference)
    average = average_of(plain, reference)
    assert same(model.state_dict(), average.state_dict())
    assert holds(model, average)
    model.train()
    assert same(model.state_dict(), average.state_dict())
    assert holds(model, plain)
