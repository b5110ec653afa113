"""Lightning's manual optimization, with two schedule-free optimizers: each is attached to the module.

An autoencoder of scikit-learn's digits, whose encoder is trained by AdamW and whose decoder by SGD.

    python lightning_manual.py --epochs 20      # needs unscheduled, lightning and scikit-learn
"""

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, random_split

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, SGDScheduleFree


class Autoencoder(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64))

    def loss(self, images: Tensor) -> Tensor:
        return functional.mse_loss(self.decoder(self.encoder(images)), images)

    def training_step(self, images: Tensor, _: int) -> None:
        loss = self.loss(images)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def validation_step(self, images: Tensor, _: int) -> None:
        self.log("val_loss", self.loss(images))  # the weights of both are the average x

    def configure_optimizers(self) -> list[ScheduleFreeOptimizer]:
        return [
            AdamWScheduleFree(self.encoder.parameters(), lr=0.01, warmup_steps=50).attach(self),
            SGDScheduleFree(self.decoder.parameters(), lr=20.0, warmup_steps=50).attach(self),
        ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()

    lightning.seed_everything(0, verbose=False)
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    training, validation = random_split(images, [1400, len(images) - 1400])
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=arguments.epochs, **quiet)
    trainer.fit(
        Autoencoder(), DataLoader(training, batch_size=64, shuffle=True), DataLoader(validation, len(validation))
    )
    print(f"after {arguments.epochs} epochs: loss {trainer.callback_metrics['val_loss']:.5f}")


if __name__ == "__main__":
    main()
