"""skorch with schedule-free AdamW: an ``initialize_optimizer`` of three lines ties it to the module.

Classifies scikit-learn's digits, keeps the best epoch, and goes on from a file as if it had never stopped.

    python skorch_net.py --epochs 20      # needs unscheduled, skorch and scikit-learn
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint
from torch import nn

from unscheduled import AdamWScheduleFree


class Classifier(NeuralNetClassifier):
    def initialize_optimizer(self, *arguments):
        super().initialize_optimizer(*arguments)
        self.optimizer_.attach(self.module_)
        return self


class LogOptimizer(Callback):
    """Put what the optimizer has to say into the history, and so into the printed table."""

    def on_epoch_end(self, net, **_):
        metrics = net.optimizer_.metrics()
        for name in ("effective_lr", "window", "gap_norm"):
            net.history.record(name, metrics[name])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("skorch_run"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    images, unseen, labels, unseen_labels = train_test_split(images, labels, test_size=397, random_state=0)
    best = Checkpoint(monitor="valid_loss_best", dirname=arguments.folder)
    net = Classifier(
        network,
        criterion=nn.CrossEntropyLoss,
        optimizer=AdamWScheduleFree,
        optimizer__warmup_steps=50,
        lr=0.01,
        batch_size=64,
        max_epochs=arguments.epochs,
        iterator_train__shuffle=True,
        callbacks=[best, LogOptimizer()],
    )
    net.fit(images, labels)  # validates at the average x after each epoch
    net.load_params(checkpoint=best)
    print(f"best of {arguments.epochs} epochs: accuracy {net.score(unseen, unseen_labels):.4f}")


if __name__ == "__main__":
    main()
