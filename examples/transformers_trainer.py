"""Schedule-Free in the Trainer of Transformers: a small GPT-2 learns the source of Python's standard library by bytes.

Half of the steps are made, the rest from their checkpoint, as in a new process. Needs no download and no GPU:
python examples/transformers_trainer.py --steps 200 --out out
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from unscheduled import AdamWScheduleFree

LENGTH = 64


def windows(files: list[Path]) -> list[dict[str, torch.Tensor]]:
    """The text of the files in pieces of LENGTH bytes."""
    text = torch.frombuffer(bytearray(b"\n".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
    return [{"input_ids": row, "labels": row} for row in text[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)]


def make_trainer(out: str, steps: int, save_steps: int) -> Trainer:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    sizes = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.01, betas=(0.9, 0.99), warmup_steps=20).attach(model)
    arguments = TrainingArguments(
        out,
        max_steps=steps,
        save_steps=save_steps,
        per_device_train_batch_size=16,
        lr_scheduler_type="constant",  # else the Trainer decays the learning rate
    )
    training, held_out = windows([file for file in files if file not in files[::10]]), windows(files[::10])[:512]
    return Trainer(model, arguments, train_dataset=training, eval_dataset=held_out, optimizers=(optimizer, None))


def main(steps: int, out: str) -> None:
    half = max(1, steps // 2)
    make_trainer(out, half, save_steps=half).train()
    trainer = make_trainer(out, steps, save_steps=half)
    trainer.train(resume_from_checkpoint=f"{out}/checkpoint-{half}")
    trainer.save_model(out)
    saved = Trainer(GPT2LMHeadModel.from_pretrained(out), trainer.args, eval_dataset=trainer.eval_dataset)
    losses = [each.evaluate()["eval_loss"] for each in (trainer, saved)]
    print(f"validation loss at x {losses[0]:.6f}, of the saved model {losses[1]:.6f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="out", help="folder of the checkpoints and of the model")
    main(**vars(parser.parse_args()))
