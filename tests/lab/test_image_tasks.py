"""The image tasks, on random images: what they train, measure and keep."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from unscheduled.lab.tasks import _images, fashion_mae, fashion_resnet, fashion_unet, mnist_cnn

TASKS = [mnist_cnn, fashion_resnet, fashion_unet, fashion_mae]


@pytest.fixture(autouse=True)
def random_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every data set is of random images, and the pre-training is short."""
    random = np.random.default_rng(0)
    arrays = {
        f"{part}{kind}": values
        for part, size in (("", 1100), ("train_", 300), ("test_", 100))
        for kind, values in (
            ("images", random.integers(256, size=(size, 28, 28), dtype=np.uint8)),
            ("labels", random.integers(10, size=size)),
        )
    }
    monkeypatch.setenv("UNSCHEDULED_CACHE", str(tmp_path))
    monkeypatch.setattr(fashion_mae, "PRETRAINING_STEPS", 3)
    monkeypatch.setattr(fashion_mae, "PRETRAINING", 300)
    for module in (_images, mnist_cnn, fashion_mae):
        monkeypatch.setattr(module, "load", lambda name: arrays)
    forget()
    yield
    forget()


def forget() -> None:
    """Empty the caches in memory."""
    for function in (mnist_cnn.digits, _images.fashion, fashion_unet.reconstructions, fashion_mae.pre_trained):
        function.cache_clear()


@pytest.mark.parametrize("module", TASKS)
def test_a_task_trains_and_measures(module: ModuleType) -> None:
    task = module.task
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in islice(task.batches(torch.Generator().manual_seed(0)), 2):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        assert all(param.grad is not None and param.grad.isfinite().all() for param in model.parameters())
        optimizer.step()
        assert loss.isfinite()
    with torch.no_grad():
        metric = task.metric(model.eval())
    assert next(iter(metric)) == "loss"
    assert all(np.isfinite(value) for value in metric.values())
    assert len(task.facts()["data sha256"]) == 64


@pytest.mark.parametrize("module", TASKS)
def test_batches_come_from_the_generator_alone(module: ModuleType) -> None:
    first, second, other = (
        list(islice(module.task.batches(torch.Generator().manual_seed(seed)), 50)) for seed in (1, 1, 2)
    )
    for (inputs, targets), (same_inputs, same_targets) in zip(first, second, strict=True):
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(targets, same_targets)
        assert 0.0 <= inputs.min() <= inputs.max() <= 2.0
    assert not torch.equal(first[0][0], other[0][0])


@pytest.mark.parametrize("module", TASKS)
def test_the_same_seed_makes_the_same_model(module: ModuleType) -> None:
    states: list[dict[str, torch.Tensor]] = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(module.task.model().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_held_out_digits_are_never_trained_on() -> None:
    _, (images, _) = mnist_cnn.digits()
    held_out = {image.sort().values.numpy().tobytes() for image in images.flatten(1)}
    assert len(held_out) == mnist_cnn.HELD_OUT
    for inputs, _ in islice(mnist_cnn.batches(torch.Generator().manual_seed(0)), 10):
        assert held_out.isdisjoint(image.sort().values.numpy().tobytes() for image in inputs.flatten(1))


def test_similarity_of_equal_images_is_1() -> None:
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(fashion_unet.similarity(images, images), torch.tensor(1.0))
    assert fashion_unet.similarity(images, torch.rand(3, 1, 28, 28)) < 0.2


def test_similarity_of_constants_is_that_of_their_means() -> None:
    """It is (2 a b + 0.01**2) / (a**2 + b**2 + 0.01**2) for the constants a and b: the structure is the same."""
    image = torch.full((1, 1, 28, 28), 0.2, dtype=torch.float64)
    expected = torch.tensor((2 * 0.2 * 0.6 + 0.01**2) / (0.2**2 + 0.6**2 + 0.01**2), dtype=torch.float64)
    torch.testing.assert_close(fashion_unet.similarity(image, image + 0.4), expected)


def test_a_quarter_of_the_columns_is_known_and_the_centre_is() -> None:
    known = fashion_unet.known_columns()
    frequencies = torch.fft.fftfreq(28) * 28
    assert known.sum() == 7
    assert {-1, 0, 1} <= {round(frequency) for frequency in frequencies[known].tolist()}
    assert torch.equal(known, fashion_unet.known_columns())
    slow = 1.0 + torch.cos(2 * torch.pi * torch.arange(28) / 28).expand(1, 1, 28, 28)
    torch.testing.assert_close(fashion_unet.from_known_columns(slow), slow, rtol=0.0, atol=1e-5)


def test_the_encoder_is_pre_trained_once_and_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = fashion_mae.model().state_dict()
    fashion_mae.pre_trained.cache_clear()
    monkeypatch.delattr(fashion_mae, "pre_train")
    torch.manual_seed(1)
    second = fashion_mae.model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    (file,) = tmp_path.glob("pre-trained/*.pt")
    assert file.name.startswith("fashion-mae-")


def test_pre_training_learns_and_gives_the_same_weights_again() -> None:
    images = torch.rand(8, 1, 28, 28)
    visible = torch.arange(fashion_mae.VISIBLE).expand(8, -1)
    autoencoder = fashion_mae.Autoencoder()
    before = autoencoder(images, visible)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        autoencoder(images, visible).backward()
        optimizer.step()
    assert autoencoder(images, visible) < before
    first, second = fashion_mae.pre_train(), fashion_mae.pre_train()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_visible_patches_are_all_that_the_encoder_sees() -> None:
    encoder = fashion_mae.Encoder()
    images = torch.rand(2, 1, 28, 28)
    visible = torch.tensor([[0, 5, 6, 15], [3, 2, 1, 12]])
    changed = images.clone()
    changed[0, 0, 0:7, 7:14] = changed[1, 0, 0:7, 0:7] = 0.0  # the patches 1 and 0
    assert torch.equal(encoder(images, visible), encoder(changed, visible))
    assert not torch.equal(encoder(images), encoder(changed))
