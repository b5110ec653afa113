"""Accelerate with nothing but `attach`: every bit is that of a plain loop, and x is what is saved."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate_problem import (
    MICRO,
    STEPS,
    Make,
    adamw,
    fit,
    loss_of,
    make_model,
    plain_loop,
    prepared,
    wrapped,
)
from problems import same
from small_problem import averages, holds
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unscheduled import ScheduleFreePlus
from unscheduled.checkpoints.average import averaged_weights
from unscheduled.checkpoints.file import read

makes = pytest.mark.parametrize("make", [adamw, wrapped])


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@makes
@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
@pytest.mark.parametrize("by_hand", [True, False])
def test_accumulating_clipping_and_evaluating_in_between_is_the_plain_loop(
    make: Make, attach: str, mixed_precision: str, by_hand: bool
) -> None:
    reference, plain = plain_loop(make, bf16=mixed_precision == "bf16")
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO, mixed_precision=mixed_precision)
    model, optimizer = prepared(accelerator, make, attach)
    fit(accelerator, model, optimizer, range(STEPS), by_hand)
    assert holds(model, averages(reference, plain))
    assert holds(model.train(), reference)
    assert same(optimizer.state_dict()["state"], plain.state_dict()["state"])


@pytest.mark.parametrize("attach", ["before", "after"])
def test_a_model_that_prepare_compiles(attach: str) -> None:
    reference, plain = plain_loop(adamw)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO, dynamo_backend="eager")
    model, optimizer = prepared(accelerator, adamw, attach)
    assert accelerator.unwrap_model(model, keep_torch_compile=False) is not model
    fit(accelerator, model, optimizer, range(STEPS))
    assert holds(accelerator.unwrap_model(model, keep_torch_compile=False), averages(reference, plain))
    assert holds(accelerator.unwrap_model(model.train(), keep_torch_compile=False), reference)


@pytest.mark.parametrize("mode", [True, False])
def test_whatever_is_saved_is_x(mode: bool, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO)
    model, optimizer = prepared(accelerator, adamw)
    fit(accelerator, model, optimizer, range(STEPS))
    model.train(mode)
    expected = averages(*plain_loop(adamw))
    accelerator.save_model(model, str(tmp_path / "model"))
    accelerator.save_state(str(tmp_path / "state"))
    for found in (
        accelerator.get_state_dict(model),
        accelerator.unwrap_model(model).state_dict(),
        safetensors.torch.load_file(tmp_path / "model" / "model.safetensors"),
        safetensors.torch.load_file(tmp_path / "state" / "model.safetensors"),
    ):
        assert same({name: found[name] for name in expected}, expected)
    assert holds(model, plain_loop(adamw)[0] if mode else expected)


@pytest.mark.parametrize("safe", [True, False])
def test_the_command_reads_a_model_in_shards(safe: bool, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO)
    model, optimizer = prepared(accelerator, adamw)
    fit(accelerator, model, optimizer, range(STEPS))
    accelerator.save_model(model, str(tmp_path / "model"), max_shard_size=64, safe_serialization=safe)
    accelerator.save_state(str(tmp_path / "state"))
    assert len(list((tmp_path / "model").glob("*-of-*"))) > 1
    for optimizer_path in (tmp_path / "state" / "optimizer.bin", None):
        weights, count = averaged_weights(read(tmp_path / "model", optimizer_path))
        assert count > 1
        expected = averages(*plain_loop(adamw))
        assert same({name: weights[name] for name in expected}, expected)
        (tmp_path / "model" / "optimizer.bin").write_bytes((tmp_path / "state" / "optimizer.bin").read_bytes())


@makes
@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("attach", ["before", "after", "never"])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_interrupted(
    make: Make, saved: bool, loaded: bool, attach: str, tmp_path: Path
) -> None:
    """Saved in the one mode, loaded in the other, into objects of a new process."""
    reference, plain = plain_loop(make)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO)
    model, optimizer = prepared(accelerator, make, attach)
    fit(accelerator, model, optimizer, range(3))
    model.train(saved)
    if saved:
        optimizer.train()
    accelerator.save_state(str(tmp_path))

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO)
    torch.manual_seed(99)
    model, optimizer = prepared(accelerator, make, attach)
    fit(accelerator, model, optimizer, range(20, 21))  # something else
    model.train(loaded)
    if loaded:
        optimizer.train()
    accelerator.load_state(str(tmp_path))
    fit(accelerator, model, optimizer, range(3, STEPS))
    assert holds(model, averages(reference, plain))
    model.train()
    optimizer.train()
    assert holds(model, reference)
    assert same(optimizer.state_dict()["state"], plain.state_dict()["state"])


def test_the_polyak_step_gets_its_losses_from_a_closure() -> None:
    reference, model = make_model(), make_model()
    plain = ScheduleFreePlus(reference.parameters())
    for step in range(STEPS):
        losses = [loss_of(reference, step, micro) for micro in range(MICRO)]
        for loss in losses:
            (loss / MICRO).backward()
        plain.step(loss=losses)
        plain.zero_grad()

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO)
    model, optimizer = accelerator.prepare(model, ScheduleFreePlus(model.parameters()).attach(model))
    for step in range(STEPS):
        losses = []
        for micro in range(MICRO):
            with accelerator.accumulate(model):
                losses.append(loss_of(model, step, micro))
                accelerator.backward(losses[-1])
                optimizer.step(lambda losses=losses: losses)
                optimizer.zero_grad()
        with pytest.raises(TypeError, match="loss"):
            optimizer.step(loss=losses)
    assert holds(model, reference)
    assert same(optimizer.state_dict()["state"], plain.state_dict()["state"])


def test_metrics_go_to_the_trackers(tmp_path: Path) -> None:
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=MICRO, log_with="tensorboard", project_dir=str(tmp_path)
    )
    model, optimizer = prepared(accelerator, adamw)
    accelerator.init_trackers("run")
    fit(accelerator, model, optimizer, range(STEPS))
    accelerator.log(optimizer.optimizer.metrics(), step=STEPS)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    logged = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    metrics = plain_loop(adamw)[1].metrics()
    assert logged == {name: [(STEPS, torch.tensor(value).item())] for name, value in metrics.items()}
