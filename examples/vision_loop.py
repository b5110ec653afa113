"""A training loop in the manner of torchvision's references, with schedule-free SGD in place of SGD and its schedule.

BatchNorm's statistics are re-estimated at the average before each evaluation; a run resumes bit for bit.
On scikit-learn's digits: ``python vision_loop.py --epochs 5``, later ``python vision_loop.py --epochs 10 --resume``.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from unscheduled import SGDScheduleFree


class Block(nn.Module):
    """Two convolutions with BatchNorm, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)) for _ in range(2)]
        self.layers = nn.Sequential(*layers[0], nn.ReLU(), *layers[1])

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(images + self.layers(images))


def resnet(width: int = 32) -> nn.Module:
    first, halved = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(first, Block(width), halved, Block(2 * width), *pooled, nn.Linear(2 * width, 10))


def augment(images: Tensor) -> Tensor:
    """Move the images of a batch by up to a pixel."""
    return images.roll(torch.randint(-1, 2, (2,)).tolist(), (2, 3))


def loaders() -> tuple[DataLoader, DataLoader]:
    digits = load_digits()
    data = TensorDataset(
        torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
    )
    training, unseen = torch.utils.data.random_split(data, [1400, 397], torch.Generator().manual_seed(0))
    return DataLoader(training, batch_size=64, shuffle=True), DataLoader(unseen, batch_size=397)


def train_one_epoch(model: nn.Module, optimizer: SGDScheduleFree, loader: DataLoader, epoch: int) -> None:
    torch.manual_seed(epoch)  # the same order and augmentation after a resume
    model.train()
    for images, labels in loader:
        images = augment(images).to(memory_format=torch.channels_last)
        loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader) -> float:
    model.eval()  # the parameters are now the average x
    return torch.cat([model(images).argmax(1) == labels for images, labels in loader]).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--file", default="vision.pt")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    training, unseen = loaders()
    torch.manual_seed(0)
    model = resnet().to(memory_format=torch.channels_last)
    optimizer = SGDScheduleFree(model.parameters(), lr=1.0, warmup_steps=20).attach(model, bn_batches=20)
    start = 0
    if arguments.resume:
        saved = torch.load(arguments.file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["epoch"]
    if start >= arguments.epochs:
        print(f"{arguments.file} has {start} epochs already: ask for more with --epochs")
    for epoch in range(start, arguments.epochs):
        train_one_epoch(model, optimizer, training, epoch)
        print(f"epoch {epoch + 1}: accuracy {evaluate(model, unseen):.4f}")
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        torch.save(saved, arguments.file)  # the model at x


if __name__ == "__main__":
    main()
