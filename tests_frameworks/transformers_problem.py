"""A small GPT-2, a Trainer of Transformers for it, and the loop without the Trainer to compare with."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, ScheduleFreeWrapper

STEPS, BATCH, LENGTH, SYMBOLS = 10, 4, 12, 32
Make = Callable[[torch.nn.Module], ScheduleFreeOptimizer]


def adamw(model: torch.nn.Module) -> ScheduleFreeOptimizer:
    return AdamWScheduleFree(model.parameters(), lr=0.02, weight_decay=0.1, warmup_steps=4)


def wrapped(model: torch.nn.Module) -> ScheduleFreeOptimizer:
    return ScheduleFreeWrapper(torch.optim.RMSprop(model.parameters(), lr=0.005))


def compact(model: torch.nn.Module) -> ScheduleFreeOptimizer:
    return AdamWScheduleFree(model.parameters(), lr=0.02, state_precision="compact")


def make_model(dropout: float = 0.0) -> GPT2LMHeadModel:
    """A GPT-2 of 7,000 parameters, the same at every call; its head is tied to its embedding."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"n_positions": LENGTH, "n_embd": 16, "n_layer": 2, "n_head": 2}
    rates = dict.fromkeys(["attn_pdrop", "embd_pdrop", "resid_pdrop"], dropout)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=SYMBOLS, bos_token_id=0, eos_token_id=0, **sizes, **rates))
    assert model.lm_head.weight is model.transformer.wte.weight
    return model


def make_data(seed: int, size: int) -> list[dict[str, Tensor]]:
    symbols = torch.randint(SYMBOLS, (size, LENGTH), generator=torch.Generator().manual_seed(seed))
    labels = torch.where(torch.arange(LENGTH) == 0, -100, symbols)  # nothing predicts the first
    return [{"input_ids": row, "labels": label} for row, label in zip(symbols, labels, strict=True)]


def batch_of(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


TRAINING, HELD_OUT = make_data(2, 128), make_data(3, BATCH)


def make_trainer(
    directory: Path,
    model: GPT2LMHeadModel | None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    kind: type[Trainer] = Trainer,
    model_init: Callable[[], GPT2LMHeadModel] | None = None,
    callbacks: list[TrainerCallback] | None = None,
    **options: Any,
) -> Trainer:
    """A Trainer that has no more of ours than the optimizer."""
    chosen: dict[str, Any] = {
        "max_steps": STEPS,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": BATCH,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
    }
    arguments = TrainingArguments(str(directory), **chosen | options)
    return kind(
        model,
        arguments,
        train_dataset=TRAINING,
        eval_dataset=HELD_OUT,
        optimizers=(optimizer, None),
        model_init=model_init,
        callbacks=callbacks,
    )


class Reference(NamedTuple):
    """What a plain loop has: y at the end, and x after each number of steps."""

    model: GPT2LMHeadModel
    optimizer: ScheduleFreeOptimizer
    averages: list[dict[str, Tensor]]


@functools.cache
def plain_loop(make: Make = adamw, accumulation: int = 1, max_norm: float = 1.0, bf16: bool = False) -> Reference:
    """The loop by hand, of an optimizer that is attached to nothing and never evaluates."""
    model = make_model().train()
    optimizer = make(model)
    averages = [{name: param.detach().clone() for name, param in model.named_parameters()}]
    examples = iter(TRAINING)
    for _ in range(STEPS):
        micro = [batch_of([next(examples) for _ in range(BATCH)]) for _ in range(accumulation)]
        for batch in micro:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**batch, num_items_in_batch=torch.tensor(accumulation * BATCH * (LENGTH - 1))).loss
            loss.backward()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
        averages.append({name: optimizer.iterates(param).x for name, param in model.named_parameters()})
    return Reference(model, optimizer, averages)


def loss_at(average: dict[str, Tensor]) -> float:
    """The loss on the held-out data of a plain model."""
    model = make_model().eval()
    model.load_state_dict(average, strict=False)  # the tied head goes without saying
    with torch.no_grad():
        return model(**batch_of(HELD_OUT), num_items_in_batch=torch.tensor(BATCH * (LENGTH - 1))).loss.item()
