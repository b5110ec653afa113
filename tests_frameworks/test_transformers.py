"""The Trainer of Transformers with nothing but `attach`: every bit is that of a plain loop, and x is what it ships."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from problems import same
from small_problem import holds
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments
from transformers_problem import (
    BATCH,
    STEPS,
    TRAINING,
    Make,
    adamw,
    compact,
    loss_at,
    make_model,
    make_trainer,
    plain_loop,
    wrapped,
)

from unscheduled import ScheduleFreeOptimizer, ScheduleFreePlus
from unscheduled.checkpoints.average import averaged_weights
from unscheduled.checkpoints.file import read

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")

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
    assert holds(model, reference.averages[STEPS])
    assert holds(model.train(), reference.model)
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
    assert holds(model.train(), reference.model)
    assert same(optimizer.state_dict()["state"], reference.optimizer.state_dict()["state"])
    assert holds(model.eval(), reference.averages[STEPS])
    assert holds(GPT2LMHeadModel.from_pretrained(tmp_path), reference.averages[STEPS])


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
    assert holds(ends[0], ends[1])
    assert not holds(ends[0], ends[2])


def test_a_model_in_eval_mode_as_it_comes_from_the_disk_is_trained_too(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    model = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert not model.training
    make_trainer(tmp_path, model, adamw(model).attach(model)).train()
    assert holds(model, plain_loop().model)


def test_training_goes_on_with_a_second_call(tmp_path: Path) -> None:
    model, often = make_model(), make_model()
    make_trainer(tmp_path, model, adamw(model).attach(model)).train()
    trainer = make_trainer(tmp_path, often, adamw(often).attach(often), max_steps=5)
    trainer.train()
    trainer.evaluate()
    trainer.train_dataset = TRAINING[5 * BATCH :]
    trainer.train()
    assert holds(often.train(), model)


def test_a_trainer_that_makes_its_model_and_optimizer(tmp_path: Path) -> None:
    """As for a search of hyperparameters."""

    class ScheduleFreeTrainer(Trainer):
        def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
            if self.optimizer is None:
                self.optimizer = adamw(self.model).attach(self.model)
            return self.optimizer

    trainer = make_trainer(tmp_path, None, model_init=lambda: make_model(), kind=ScheduleFreeTrainer, **EVALUATED)
    trainer.train()
    assert holds(trainer.model.train(), plain_loop().model)
    trainer.save_model()
    assert holds(GPT2LMHeadModel.from_pretrained(tmp_path), plain_loop().averages[STEPS])


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
        assert holds(loaded, plain_loop().averages[step])
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert holds(model.train(), plain_loop().model)


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
    assert holds(model, plain_loop().averages[best])
    model.train()  # as for more steps
    trainer.save_model(str(tmp_path / "best"))
    assert holds(GPT2LMHeadModel.from_pretrained(tmp_path / "best"), plain_loop().averages[best])
    assert trainer.evaluate()["eval_loss"] == losses[best]
    assert holds(model, plain_loop().averages[best])


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
    assert holds(resumed.eval(), model.eval())
    assert holds(resumed.train(), model.train())
    assert same(other.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("shards", [False, True])
def test_the_command_reads_the_folder_of_a_checkpoint(shards: bool, tmp_path: Path) -> None:
    model = make_model()
    make_trainer(tmp_path, model, adamw(model).attach(model), save_strategy="steps", save_steps=6).train()
    folder = tmp_path / "checkpoint-6"
    if shards:  # as the Trainer writes a model that is larger than a shard
        whole, folder = folder, tmp_path / "shards"
        GPT2LMHeadModel.from_pretrained(whole).save_pretrained(folder, max_shard_size="8KB")
        (whole / "optimizer.pt").rename(folder / "optimizer.pt")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    weights, count = averaged_weights(read(folder))
    assert count == len(weights)
    assert same(weights, plain_loop().averages[6])


# Logging.


class LoggingTrainer(Trainer):
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs | self.optimizer.optimizer.metrics(), start_time)


def test_what_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate of the Trainer is the one that was set; that of the step is the optimizer's effective_lr."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    model = make_model()
    optimizer = adamw(model).attach(model)
    options = {"logging_strategy": "steps", "logging_steps": 1, "report_to": "tensorboard"}
    trainer = make_trainer(tmp_path, model, optimizer, kind=LoggingTrainer, **options)
    trainer.train()
    rates = [0.02 * min(1, step / 4) for step in range(1, STEPS + 1)]
    logged = [logs for logs in trainer.state.log_history if "loss" in logs]
    assert [logs["learning_rate"] for logs in logged] == [0.02] * STEPS
    assert [logs["effective_lr"] for logs in logged] == rates
    metrics = plain_loop().optimizer.metrics()
    assert {name: logged[-1][name] for name in metrics} == metrics
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    recorded = [(event.step, event.value) for event in events.Scalars("train/effective_lr")]
    steps = [*range(1, STEPS + 1), STEPS]  # and the summary at the end
    assert recorded == list(zip(steps, torch.tensor([*rates, rates[-1]]).tolist(), strict=True))
    assert {f"train/{name}" for name in metrics} <= set(events.Tags()["scalars"])


def test_without_a_type_of_schedule_the_trainer_decays_the_learning_rate(tmp_path: Path) -> None:
    model = make_model()
    optimizer = adamw(model).attach(model)
    options = {"logging_strategy": "steps", "logging_steps": 1, "lr_scheduler_type": "linear"}
    trainer = make_trainer(tmp_path, model, optimizer, **options)
    trainer.train()
    assert TrainingArguments(str(tmp_path)).lr_scheduler_type == "linear"
    rates = [logs["learning_rate"] for logs in trainer.state.log_history if "loss" in logs]
    assert rates == pytest.approx([0.02 * (1 - step / STEPS) for step in range(STEPS)])


def test_the_polyak_step_is_not_for_the_trainer_which_keeps_the_loss_to_itself(tmp_path: Path) -> None:
    model = make_model()
    trainer = make_trainer(tmp_path, model, ScheduleFreePlus(model.parameters()).attach(model))
    with pytest.raises(ValueError, match="loss"):
        trainer.train()
