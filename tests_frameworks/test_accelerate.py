"""Accelerate with nothing but `attach`: every bit is that of a plain loop, and x is what is saved."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from models import Net
from sameness import equal, same
from torch import Tensor

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, ScheduleFreePlus, ScheduleFreeWrapper

STEPS, MICRO = 8, 2
Make = Callable[[torch.nn.Module], ScheduleFreeOptimizer]


def adamw(model: torch.nn.Module) -> ScheduleFreeOptimizer:
    return AdamWScheduleFree(model.parameters(), lr=0.1, weight_decay=0.1)


def wrapped(model: torch.nn.Module) -> ScheduleFreeOptimizer:
    return ScheduleFreeWrapper(torch.optim.RMSprop(model.parameters(), lr=0.01))


makes = pytest.mark.parametrize("make", [adamw, wrapped])


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def make_model() -> Net:
    torch.manual_seed(1)
    return Net()


def loss_of(model: torch.nn.Module, step: int, micro: int) -> Tensor:
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(MICRO * step + micro))
    return model(inputs).float().square().mean()


def plain_loop(make: Make, steps: int = STEPS, bf16: bool = False) -> tuple[Net, ScheduleFreeOptimizer]:
    """The loop by hand, of an optimizer that is attached to nothing and never evaluates."""
    model = make_model()
    optimizer = make(model)
    for step in range(steps):
        for micro in range(MICRO):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = loss_of(model, step, micro)
            (loss / MICRO).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def fit(accelerator: Accelerator, model: Any, optimizer: Any, steps: range, by_hand: bool = True) -> None:
    """With an evaluation after every micro-batch; ``by_hand`` with the switches of the optimizer itself, too."""
    for step in steps:
        for micro in range(MICRO):
            model.train()
            if by_hand:
                optimizer.train()
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, step, micro))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
            model.eval()
            if by_hand:
                optimizer.eval()


def prepared(accelerator: Accelerator, make: Make, attach: str = "before") -> tuple[Any, AcceleratedOptimizer]:
    model = make_model()
    optimizer = make(model)
    if attach == "before":
        optimizer.attach(model)
    accelerated = accelerator.prepare(model, optimizer)
    if attach == "after":
        optimizer.attach(accelerated[0])
    return accelerated


def averages(model: torch.nn.Module, optimizer: ScheduleFreeOptimizer) -> dict[str, Tensor]:
    found = {name: param.detach() for name, param in model.named_parameters()}
    trained = {param for group in optimizer.param_groups for param in group["params"]}
    return found | {name: optimizer.iterates(p).x for name, p in model.named_parameters() if p in trained}


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
    assert equal(model, averages(reference, plain))
    assert equal(model.train(), reference)
    assert same(optimizer.state_dict()["state"], plain.state_dict()["state"])


@pytest.mark.parametrize("attach", ["before", "after"])
def test_a_model_that_prepare_compiles(attach: str) -> None:
    reference, plain = plain_loop(adamw)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO, dynamo_backend="eager")
    model, optimizer = prepared(accelerator, adamw, attach)
    assert accelerator.unwrap_model(model, keep_torch_compile=False) is not model
    fit(accelerator, model, optimizer, range(STEPS))
    assert equal(accelerator.unwrap_model(model, keep_torch_compile=False), averages(reference, plain))
    assert equal(accelerator.unwrap_model(model.train(), keep_torch_compile=False), reference)


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
    assert equal(model, plain_loop(adamw)[0] if mode else expected)


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
    assert equal(model, averages(reference, plain))
    model.train()
    optimizer.train()
    assert equal(model, reference)
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
    assert equal(model, reference)
    assert same(optimizer.state_dict()["state"], plain.state_dict()["state"])


class Tracker(GeneralTracker):
    """Keeps what is logged."""

    name = "list"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, dict[str, Any]]] = []

    @property
    def tracker(self) -> Any:
        return self.logged

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logged.append((step, values))


def test_metrics_go_to_the_trackers() -> None:
    tracker = Tracker()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO, log_with=tracker)
    model, optimizer = prepared(accelerator, adamw)
    accelerator.init_trackers("run")
    fit(accelerator, model, optimizer, range(STEPS))
    accelerator.log(optimizer.optimizer.metrics(), step=STEPS)
    assert tracker.logged == [(STEPS, plain_loop(adamw)[1].metrics())]
