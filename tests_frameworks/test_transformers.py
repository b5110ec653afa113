"""The Trainer of Transformers with nothing but `attach`: every bit is that of a plain loop, and x is what it ships."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from sameness import equal, same
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, ScheduleFreePlus, ScheduleFreeWrapper

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")

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


EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}

# Training and evaluating.


@pytest.mark.parametrize("make", [adamw, wrapped, compact])
def test_a_fit_is_the_plain_loop_and_what_is_evaluated_is_x(make: Make, tmp_path: Path) -> None:
    reference = plain_loop(make)
    model = make_model()
    trainer = make_trainer(tmp_path, model, make(model).attach(model), eval_strategy="steps", eval_steps=3)
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert losses == {step: loss_at(reference.averages[step]) for step in (3, 6, 9, STEPS)}
    assert not model.training
    assert equal(model, reference.averages[STEPS])
    assert equal(model.train(), reference.model)
    assert trainer.evaluate()["eval_loss"] == losses[STEPS]


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "never evaluated": ({}, {}),
    "evaluated after every step": (EVALUATED, {}),
    "accumulation": ({"gradient_accumulation_steps": 2}, {"accumulation": 2}),
    "clipped": ({"max_grad_norm": 0.1}, {"max_norm": 0.1}),
    "not clipped": ({"max_grad_norm": 0.0}, {"max_norm": 0.0}),
    "bfloat16": ({"bf16": True} | EVALUATED, {"bf16": True}),
    "activations recomputed": ({"activation_checkpointing": True}, {}),
    "compiled": ({"torch_compile": True, "torch_compile_backend": "eager"}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fit_is_the_plain_loop_with_options_of_the_trainer(variant: str, tmp_path: Path) -> None:
    options, settings = VARIANTS[variant]
    reference = plain_loop(**settings)
    model = make_model()
    optimizer = adamw(model).attach(model)
    trainer = make_trainer(tmp_path, model, optimizer, **options)
    trainer.train()
    trainer.save_model()
    assert equal(model.train(), reference.model)
    assert same(optimizer.state_dict()["state"], reference.optimizer.state_dict()["state"])
    assert equal(model.eval(), reference.averages[STEPS])
    assert equal(GPT2LMHeadModel.from_pretrained(tmp_path), reference.averages[STEPS])


@pytest.mark.parametrize("make", [adamw, lambda model: torch.optim.AdamW(model.parameters(), lr=0.02)])
def test_with_dropout_an_evaluation_draws_from_the_random_numbers_of_training_with_any_optimizer(
    make: Callable[[torch.nn.Module], torch.optim.Optimizer], tmp_path: Path
) -> None:
    """Which is for the page to say: the Trainer's data loader takes its seed there."""
    ends: list[GPT2LMHeadModel] = []
    for options in (EVALUATED, EVALUATED, {}):
        model = make_model(dropout=0.1)
        optimizer = make(model)
        if isinstance(optimizer, ScheduleFreeOptimizer):
            optimizer.attach(model)
        make_trainer(tmp_path, model, optimizer, **options).train()
        ends.append(model.train())
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


def test_a_model_in_eval_mode_as_it_comes_from_the_disk_is_trained_too(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    model = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert not model.training
    make_trainer(tmp_path, model, adamw(model).attach(model)).train()
    assert equal(model, plain_loop().model)


def test_training_goes_on_with_a_second_call(tmp_path: Path) -> None:
    model, often = make_model(), make_model()
    make_trainer(tmp_path, model, adamw(model).attach(model)).train()
    trainer = make_trainer(tmp_path, often, adamw(often).attach(often), max_steps=5)
    trainer.train()
    trainer.evaluate()
    trainer.train_dataset = TRAINING[5 * BATCH :]
    trainer.train()
    assert equal(often.train(), model)


def test_a_trainer_that_makes_its_model_and_optimizer(tmp_path: Path) -> None:
    """As for a search of hyperparameters."""

    class ScheduleFreeTrainer(Trainer):
        def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
            if self.optimizer is None:
                self.optimizer = adamw(self.model).attach(self.model)
            return self.optimizer

    trainer = make_trainer(tmp_path, None, model_init=lambda: make_model(), kind=ScheduleFreeTrainer, **EVALUATED)
    trainer.train()
    assert equal(trainer.model.train(), plain_loop().model)
    trainer.save_model()
    assert equal(GPT2LMHeadModel.from_pretrained(tmp_path), plain_loop().averages[STEPS])


# Saving and loading.


def test_what_is_saved_between_evaluations_is_x_of_that_step(tmp_path: Path) -> None:
    model = make_model()
    options = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 4}
    make_trainer(tmp_path, model, adamw(model).attach(model), **options).train()
    for step in (3, 6, 9, STEPS):
        directory = tmp_path / f"checkpoint-{step}"
        file = safetensors.torch.load_file(directory / "model.safetensors")
        assert same(file, plain_loop().averages[step])  # and the tied weight once
        loaded = GPT2LMHeadModel.from_pretrained(directory)
        assert equal(loaded, plain_loop().averages[step])
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert equal(model.train(), plain_loop().model)


@pytest.mark.parametrize("greater_is_better", [False, True])
@pytest.mark.parametrize("every", [3, 5])
def test_the_best_x_is_loaded_at_the_end(every: int, greater_is_better: bool, tmp_path: Path) -> None:
    """The least loss or, so that it is not always the same step, the greatest."""
    model = make_model()
    options: dict[str, Any] = {"metric_for_best_model": "loss", "greater_is_better": greater_is_better}
    options |= {"eval_strategy": "steps", "eval_steps": every, "save_strategy": "steps", "save_steps": every}
    trainer = make_trainer(tmp_path, model, adamw(model).attach(model), load_best_model_at_end=True, **options)
    trainer.train()
    losses = {step: loss_at(plain_loop().averages[step]) for step in (*range(every, STEPS, every), STEPS)}
    best = (max if greater_is_better else min)(losses, key=lambda step: losses[step])
    assert equal(model, plain_loop().averages[best])
    model.train()  # as for more steps
    trainer.save_model(str(tmp_path / "best"))
    assert equal(GPT2LMHeadModel.from_pretrained(tmp_path / "best"), plain_loop().averages[best])
    assert trainer.evaluate()["eval_loss"] == losses[best]
    assert equal(model, plain_loop().averages[best])


@pytest.mark.parametrize("step", [3, 6, 8])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("make", [adamw, wrapped, compact])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(
    make: Make, accumulation: int, step: int, tmp_path: Path
) -> None:
    """With dropout and shuffled data; of the steps saved only the last is one of evaluation."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": step, "eval_strategy": "steps", "eval_steps": 4}
    options |= {"gradient_accumulation_steps": accumulation, "train_sampling_strategy": "random"}
    model = make_model(dropout=0.1)
    optimizer = make(model).attach(model)
    make_trainer(tmp_path, model, optimizer, **options).train()
    torch.manual_seed(99)
    resumed = make_model(dropout=0.1)
    other = make(resumed).attach(resumed)
    trainer = make_trainer(tmp_path, resumed, other, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert equal(resumed.eval(), model.eval())
    assert equal(resumed.train(), model.train())
    assert same(other.state_dict(), optimizer.state_dict())


# Logging.


class Reporter(TrainerCallback):
    """Stands for TensorBoard and the like, which are told in on_log."""

    def __init__(self) -> None:
        self.reported: list[dict[str, float]] = []

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.reported.append(dict(logs))


class LoggingTrainer(Trainer):
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs | self.optimizer.optimizer.metrics(), start_time)


def test_what_is_logged(tmp_path: Path) -> None:
    """The learning rate of the Trainer is the one that was set; that of the step is the optimizer's effective_lr."""
    model, reporter = make_model(), Reporter()
    optimizer = adamw(model).attach(model)
    options = {"logging_strategy": "steps", "logging_steps": 1}
    make_trainer(tmp_path, model, optimizer, kind=LoggingTrainer, callbacks=[reporter], **options).train()
    logged = [logs for logs in reporter.reported if "loss" in logs]
    assert [logs["learning_rate"] for logs in logged] == [0.02] * STEPS
    assert [logs["effective_lr"] for logs in logged] == [0.02 * min(1, step / 4) for step in range(1, STEPS + 1)]
    assert logged[-1].items() >= plain_loop().optimizer.metrics().items()


def test_without_a_type_of_schedule_the_trainer_decays_the_learning_rate(tmp_path: Path) -> None:
    model, reporter = make_model(), Reporter()
    optimizer = adamw(model).attach(model)
    options = {"logging_strategy": "steps", "logging_steps": 1, "lr_scheduler_type": "linear"}
    make_trainer(tmp_path, model, optimizer, callbacks=[reporter], **options).train()
    assert TrainingArguments(str(tmp_path)).lr_scheduler_type == "linear"
    assert [logs["learning_rate"] for logs in reporter.reported if "loss" in logs] == pytest.approx(
        [0.02 * (1 - step / STEPS) for step in range(STEPS)]
    )


def test_the_polyak_step_is_not_for_the_trainer_which_keeps_the_loss_to_itself(tmp_path: Path) -> None:
    model = make_model()
    trainer = make_trainer(tmp_path, model, ScheduleFreePlus(model.parameters()).attach(model))
    with pytest.raises(ValueError, match="loss"):
        trainer.train()
