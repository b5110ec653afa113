"""Lightning with schedule-free AdamW: ``.attach(self)`` in ``configure_optimizers`` is all that is added.

Trains a small network on scikit-learn's digits, validates it after every epoch, and tests the best checkpoint.

    python lightning_module.py --epochs 20      # needs unscheduled, lightning and scikit-learn
"""

import argparse

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split

from unscheduled import AdamWScheduleFree


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, labels = batch
        logits = self.net(images)  # the weights are the average x
        self.log("val_loss", functional.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> AdamWScheduleFree:
        return AdamWScheduleFree(self.parameters(), lr=0.01, warmup_steps=50).attach(self)

    def on_train_batch_end(self, *_: object) -> None:
        metrics = self.optimizers().metrics()
        self.log_dict({f"optimizer/{name}": value for name, value in metrics.items()})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", default="lightning_run")
    arguments = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    digits = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    training, validation = random_split(digits, [1400, len(digits) - 1400])
    loaders = DataLoader(training, batch_size=64, shuffle=True), DataLoader(validation, batch_size=len(validation))

    best = ModelCheckpoint(arguments.folder, "best", monitor="val_loss", enable_version_counter=False)
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        callbacks=[best],
        logger=CSVLogger(arguments.folder),
        log_every_n_steps=10,
        enable_progress_bar=False,
    )
    trainer.fit(Digits(), *loaders)
    (result,) = trainer.validate(ckpt_path="best", dataloaders=loaders[1], verbose=False)
    print(f"best of {arguments.epochs} epochs: loss {result['val_loss']:.4f}, accuracy {result['val_accuracy']:.4f}")


if __name__ == "__main__":
    main()
