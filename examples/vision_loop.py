"""A training loop in the manner of torchvision's references, with schedule-free SGD in place of SGD and its schedule.

BatchNorm's statistics are re-estimated at the average before each evaluation; a run resumes bit for bit.
On scikit-learn's digits: ``python vision_loop.py --epochs 5``, later ``python vision_loop.py --epochs 10 --resume``.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms import v2

from unscheduled import SGDScheduleFree

to_float = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.3], [0.38])])
augment = v2.Compose([v2.RandomCrop(16, padding=1), to_float])


def loaders() -> tuple[DataLoader, DataLoader]:
    digits = load_digits()
    images = v2.functional.resize(torch.tensor(digits.images * 15, dtype=torch.uint8).unsqueeze(1), [16, 16])
    data = TensorDataset(images.expand(-1, 3, -1, -1), torch.tensor(digits.target))
    training, unseen = torch.utils.data.random_split(data, [1400, 397], torch.Generator().manual_seed(0))
    return DataLoader(training, batch_size=64, shuffle=True), DataLoader(unseen, batch_size=397)


def train_one_epoch(model: nn.Module, optimizer: SGDScheduleFree, loader: DataLoader, epoch: int) -> None:
    torch.manual_seed(epoch)  # the same order and augmentation after a resume
    model.train()
    for images, labels in loader:
        loss = nn.functional.cross_entropy(model(augment(images)), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader) -> float:
    model.eval()  # the parameters are now the average x
    return torch.cat([model(to_float(images)).argmax(1) == labels for images, labels in loader]).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--file", default="vision.pt")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    training, unseen = loaders()
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10).to(memory_format=torch.channels_last)
    optimizer = SGDScheduleFree(model.parameters(), lr=1.0, warmup_steps=20).attach(model, bn_batches=20)
    start = 0
    if arguments.resume:
        saved = torch.load(arguments.file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["epoch"]
    for epoch in range(start, arguments.epochs):
        train_one_epoch(model, optimizer, training, epoch)
        print(f"epoch {epoch + 1}: accuracy {evaluate(model, unseen):.4f}")
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        torch.save(saved, arguments.file)  # the model at x


if __name__ == "__main__":
    main()
