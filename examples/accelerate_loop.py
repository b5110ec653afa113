"""Schedule-Free in a loop with Accelerate: a small network learns the source of Python's standard library by bytes.

Half of the steps are made, the rest from their checkpoint, as in a new process. Needs no download and no GPU:
python examples/accelerate_loop.py --steps 400 --out out
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from accelerate import Accelerator, load_checkpoint_in_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unscheduled import AdamWScheduleFree

LENGTH = 16  # bytes to tell the next one from


def make_model() -> nn.Module:
    return nn.Sequential(nn.Embedding(256, 32), nn.Flatten(), nn.Linear(512, 128), nn.GELU(), nn.Linear(128, 256))


def loss_at(model: nn.Module, text: Tensor, starts: Tensor) -> Tensor:
    windows = text[starts.unsqueeze(1) + torch.arange(LENGTH + 1)].to(next(model.parameters()).device)
    return cross_entropy(model(windows[:, :-1]), windows[:, -1])


def main(steps: int, out: str) -> None:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = torch.frombuffer(bytearray(b"\n".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
    training, held_out = text[:-400_000], text[-400_000:]
    for half in (0, 1):
        accelerator = Accelerator(gradient_accumulation_steps=2)
        model = make_model()
        optimizer = AdamWScheduleFree(model.parameters(), lr=0.01, warmup_steps=20).attach(model)
        model, optimizer = accelerator.prepare(model, optimizer)
        if half == 1:
            accelerator.load_state(f"{out}/state")
        for _ in range(max(1, steps // 2) * 2):  # micro-batches, of which a step has two
            with accelerator.accumulate(model):
                accelerator.backward(loss_at(model, training, torch.randint(len(training) - LENGTH, (64,))))
                optimizer.step()
                optimizer.zero_grad()
        accelerator.save_state(f"{out}/state")
        accelerator.save_model(model.eval(), out)  # either way x, in either mode
        load_checkpoint_in_model(saved := make_model(), out)
        with torch.no_grad():
            x, file = (loss_at(each, held_out, torch.arange(0, len(held_out) - LENGTH, 99)) for each in (model, saved))
        metrics = optimizer.optimizer.metrics()
        print(f"step {metrics['step']:.0f}: validation loss at x {x:.6f}, of the saved model {file:.6f}")
        print("  " + ", ".join(f"{name} {metrics[name]:.4g}" for name in ("effective_lr", "window", "gap_norm")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", default="out")
    main(**vars(parser.parse_args()))
