"""Steps whose numbers are on the device: equal to the loop, and still so when what was recorded is made again."""

import copy
import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from bases import CapturableSGD
from problems import make_params, set_gradients, train
from registry import OPTIMIZERS
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from unscheduled import (
    AdamWScheduleFree,
    AnnealedInterpolation,
    ConstantStep,
    DistanceStep,
    PolyakStep,
    PolynomialAveraging,
    ScheduleFreeOptimizer,
    ScheduleFreePlus,
    ScheduleFreeWrapper,
    SGDScheduleFree,
    averaged_state_dict,
    to_torch,
)
from unscheduled.formulas import scalar_math
from unscheduled.formulas.rule import Rule
from unscheduled.kernels import compiled
from unscheduled.state import device_math, param_groups

PLUS = pytest.param(partial(ScheduleFreePlus, step_size=ConstantStep()), id="ScheduleFreePlus")
DISTANCE = pytest.param(
    partial(AdamWScheduleFree, step_size=DistanceStep(start=0.05, growth=1.5)), id="AdamWScheduleFree, distance step"
)
CAPTURABLE = [*(info.cls for info in OPTIMIZERS if info.capturable), PLUS, DISTANCE]
RULES = {PLUS.values[0]: 1, DISTANCE.values[0]: 1} | {info.cls: info.rules for info in OPTIMIZERS}
CASES = [
    pytest.param(info, configuration, id=f"{info.cls.__name__}-{configuration.desc}")
    for info in OPTIMIZERS
    if info.capturable
    for configuration in info.configurations()
]
cases = pytest.mark.parametrize(("info", "configuration"), CASES)
NUMBERS = ("step", "weight_sum", "lr_max", "beta", "c", "effective_lr", "averaging_start", "averaging_state")

Pair = tuple[ScheduleFreeOptimizer, ScheduleFreeOptimizer]


def pair(
    cls: Any, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, lr: Any = 0.01, **arguments: Any
) -> Pair:
    """A capturable optimizer and one that is not, on the same parameters."""
    return tuple(
        cls(
            make_params(*shapes, dtype=dtype),
            lr=copy.deepcopy(lr),
            implementation="auto" if capturable else "loop",
            capturable=capturable,
            **arguments,
        )
        for capturable in (True, False)
    )  # pyright: ignore[reportReturnType]


def params_of(optimizer: ScheduleFreeOptimizer) -> list[Any]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def assert_equal(ours: ScheduleFreeOptimizer, loop: ScheduleFreeOptimizer, rtol: float = 1e-12) -> None:
    """All numbers, all counts of gradients and all sequences."""
    for group, other in zip(ours.param_groups, loop.param_groups, strict=True):
        counters = param_groups.counters_on_host(group)
        for name in NUMBERS:
            assert isinstance(group[name], Tensor)
            assert type(counters[name]) is type(other[name])
            assert counters[name] == (
                pytest.approx(other[name], rel=1e-12) if isinstance(other[name], float) else other[name]
            )
    for param, other in zip(params_of(ours), params_of(loop), strict=True):
        count = ours.state.get(param, {}).get("step")
        assert count is None or isinstance(count, Tensor)
        assert count == loop.state.get(other, {}).get("step")
        torch.testing.assert_close(ours.iterates(param), loop.iterates(other), rtol=rtol, atol=rtol)


class Recording(TorchDispatchMode):
    """What a step does to memory, whatever tensors stand there later: what a CUDA graph is."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse_to_wait(func)
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}))
        out = func(*args, **kwargs)
        memory = {
            each.untyped_storage().data_ptr()
            for each in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(each, Tensor)
        }
        outs = [each for each in torch.utils._pytree.tree_leaves(out) if isinstance(each, Tensor)]
        fresh = [each for each in outs if each.untyped_storage().data_ptr() not in memory]
        assert not fresh or len(fresh) == len(outs)
        self._calls.append((func, args, kwargs, fresh))
        return out

    def call_whole(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function that only writes to tensors, and record it as one operation."""
        with _disable_current_modes():
            function(*args)
        self._calls.append((function, args, {}, []))

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, fresh in self._calls:
            out = func(*args, **kwargs)
            for place, value in zip(fresh, torch.utils._pytree.tree_leaves(out), strict=False):
                place.copy_(value)


WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "item", "equal", "lift_fresh", "_to_cpu")


def refuse_to_wait(func: Any) -> None:
    """Reading a number, or bringing one from the host, which :func:`torch.tensor` does by ``lift_fresh``."""
    assert func.overloadpacket.__name__ not in WAITING, f"{func} waits for the device"


def put_gradients(params: list[Parameter], step: int) -> None:
    """As :func:`set_gradients`, in the memory of those that are there."""
    grads = [param.grad for param in params]
    set_gradients([param for param, grad in zip(params, grads, strict=True) if grad is not None], step)
    for param, grad in zip(params, grads, strict=True):
        if grad is not None:
            param.grad = grad.copy_(param.grad)  # pyright: ignore[reportArgumentType]


def recorded(optimizer: ScheduleFreeOptimizer) -> Recording:
    with Recording() as recording:
        optimizer.step()
    return recording


# It is the loop.


@pytest.mark.covering(1)
@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_those_of_the_loop(info: Any, configuration: Any, dtype: torch.dtype) -> None:
    ours, loop = pair(info.cls, dtype=dtype, lr=info.lr, **configuration.arguments)
    for step in range(60):
        for optimizer in (ours, loop):
            if step % 20 == 10:
                optimizer.param_groups[0]["lr"] = info.lr * (1 + step / 10)
            train(optimizer, [step])
    assert_equal(ours, loop, 1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.covering(1)
@cases
def test_a_recorded_step_that_is_made_again_is_the_next_step(info: Any, configuration: Any) -> None:
    ours, loop = pair(info.cls, lr=torch.tensor(info.lr, dtype=torch.float64), **configuration.arguments)
    for optimizer in (ours, loop):
        train(optimizer, range(2))
    put_gradients(params_of(ours), 2)
    recording = recorded(ours)
    train(loop, [2])
    for step in range(3, 60):
        for optimizer in (ours, loop):
            optimizer.param_groups[0]["lr"].fill_(info.lr * (1 + step % 3))
        put_gradients(params_of(ours), step)
        recording.replay()
        train(loop, [step])
        if step == 30:
            assert_equal(ours, loop)
    assert_equal(ours, loop)


@pytest.mark.parametrize("cls", CAPTURABLE)
def test_nothing_in_a_step_waits_for_the_device(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair(cls, lr=torch.tensor(0.01), interpolation=AnnealedInterpolation(0.95, 30), warmup_steps=9, r=1.0)
    train(ours, range(2))
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, lambda *_: pytest.fail("the host waits for the device"))
    for _ in range(3):
        with Recording():
            ours.step()


@pytest.mark.parametrize("cls", CAPTURABLE)
def test_no_number_of_a_step_is_looked_at(cls: Any) -> None:
    """A tensor on the meta device has none."""
    params = [Parameter(torch.empty(shape, device="meta")) for shape in ((4, 3), (7,))]
    averaging = PolynomialAveraging(r=1.0, warmup_steps=2, cooldown_start=9)
    optimizer = cls(
        params, lr=0.1, averaging=averaging, warmup_steps=3, capturable=True, implementation="loop", weight_decay=0.1
    )
    for step in range(5):
        for position, param in enumerate(params):
            param.grad = None if position == step % 3 else torch.empty_like(param)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")


def test_an_ordinary_step_that_is_made_again_is_the_same_step() -> None:
    """So that the recordings of these tests do notice a number that stands on the host."""
    ours, other = (SGDScheduleFree(make_params(), lr=0.1, implementation="loop") for _ in range(2))
    for optimizer in (ours, other):
        train(optimizer, range(2))
    recording = recorded(ours)
    recording.replay()
    for _ in range(2):
        other.step()
    assert not torch.allclose(ours.iterates(params_of(ours)[0]).x, other.iterates(params_of(other)[0]).x)


# Its formulas.


@pytest.mark.parametrize(
    "formula",
    [
        lambda a, b: scalar_math.where(a > b, a, 0.5),
        lambda a, b: scalar_math.where(a == b, 1.0, 0.5),
        scalar_math.minimum,
        scalar_math.maximum,
        lambda a, b: scalar_math.minimum(1.0, a),
        lambda a, b: scalar_math.maximum(b, 1.0),
        lambda a, b: scalar_math.sqrt(a) + b,
        lambda a, b: scalar_math.expm1(-a * b),
    ],
)
@pytest.mark.parametrize(("some", "other"), [(0.25, 3.0), (3.0, 0.25), (2.0, 2.0)])
def test_the_functions_of_formulas_are_the_same_for_both(formula: Any, some: float, other: float) -> None:
    here = [torch.tensor(number, dtype=torch.float64) for number in (some, other)]
    found = formula(*here)
    assert (found.dtype, found.shape) == (torch.float64, ())
    assert found.item() == pytest.approx(formula(some, other), rel=1e-15)


class Shrinking(SGDScheduleFree):
    """Whose directions, which are made tensor by tensor, depend on the gradients that a parameter has seen."""

    def _rule(self, group: Any, param: Any = None) -> Rule:
        return SHRINKING

    def _rule_scalars(self, group: Any, rule: Rule, step: int) -> dict[str, float]:
        return {"factor": 1.0 / step}


SHRINKING = Rule(lambda grad, factor: (factor * grad,), elementwise=False)


def test_directions_that_are_made_tensor_by_tensor_know_their_counts() -> None:
    run_of(Shrinking).go(6, missing=[1]).go(6).go(6, missing=[0, 2]).check()


# The life of a run, with steps that are recorded.


def part(params: list[Any], step: int, missing: Any = ()) -> None:
    """Random gradients for all parameters but those at some positions."""
    set_gradients(params, step)
    for position in missing:
        params[position].grad = None


@dataclass
class Run:
    """A capturable optimizer, whose steps are replayed as long as nothing asks for another recording, and the loop."""

    ours: ScheduleFreeOptimizer
    loop: ScheduleFreeOptimizer
    step: int = 0

    def go(self, steps: int, missing: Any = ()) -> "Run":
        """A step by hand, one that is recorded, and replays of it."""
        recording: Recording | None = None
        for number in range(steps):
            part(params_of(self.loop), self.step, missing)
            self.loop.step()
            if recording is None:
                part(params_of(self.ours), self.step, missing)
            else:
                put_gradients(params_of(self.ours), self.step)
            if number == 0:
                self.ours.step()
            elif recording is None:
                recording = recorded(self.ours)
            else:
                recording.replay()
            self.step += 1
        return self

    def both(self, change: Callable[[ScheduleFreeOptimizer], Any]) -> "Run":
        change(self.ours)
        change(self.loop)
        return self

    def check(self) -> None:
        assert_equal(self.ours, self.loop)


def run_of(cls: Any = AdamWScheduleFree, **arguments: Any) -> Run:
    defaults: dict[str, Any] = {"interpolation": AnnealedInterpolation(0.95, 40), "warmup_steps": 5, "r": 1.0}
    return Run(*pair(cls, (4, 3), (7,), (2,), **(defaults | arguments)))


@pytest.mark.parametrize("cls", CAPTURABLE)
def test_each_parameter_counts_its_own_gradients(cls: Any) -> None:
    """Its y is formed anew meanwhile, since beta changes."""
    run = run_of(cls).go(6, missing=[1]).go(6).go(6, missing=[0, 2]).go(3, missing=[0, 1, 2]).go(6)
    run.check()


def record_each(run: Run, sets: Iterable[list[int]]) -> list[tuple[list[int], list[Any], Recording]]:
    """Record a step without the gradients of each of these sets; with it, those that it is recorded with."""
    recordings: list[tuple[list[int], list[Any], Recording]] = []
    for missing in sets:
        part(params_of(run.ours), run.step, missing)
        recordings.append((missing, [param.grad for param in params_of(run.ours)], recorded(run.ours)))
        step_of_loop(run, missing)
    return recordings


def replay_each(run: Run, recordings: Iterable[tuple[list[int], list[Any], Recording]]) -> None:
    for missing, grads, recording in recordings:
        for param, grad in zip(params_of(run.ours), grads, strict=True):
            param.grad = grad
        put_gradients(params_of(run.ours), run.step)
        recording.replay()
        step_of_loop(run, missing)


def step_of_loop(run: Run, missing: list[int]) -> None:
    part(params_of(run.loop), run.step, missing)
    run.loop.step()
    run.step += 1


def test_recordings_of_different_gradients_take_turns() -> None:
    """Two parameters have been in as many recordings, but these are replayed a different number of times."""
    run = run_of().go(1, missing=[0]).go(1, missing=[1])
    first, second = record_each(run, ([0], [1]))
    replay_each(run, [first] * 7 + [second] * 2 + [first])
    run.go(4).check()
    assert [run.ours.state[param]["step"].item() for param in params_of(run.ours)] == [8, 14, 18]


@pytest.mark.parametrize(
    "change",
    [lambda optimizer: None, lambda optimizer: optimizer.freeze_averaging(), lambda optimizer: optimizer.metrics()],
)
def test_parameters_that_have_seen_as_many_gradients_need_not_in_replays(change: Callable[[Any], Any]) -> None:
    """Each has moved in two of three steps when they are recorded."""
    run, sets = run_of(), ([2], [0], [1])
    for missing in sets:
        run.go(1, missing)
    first, second, _ = record_each(run.both(change), sets)
    replay_each(run, [first] * 2 + [second] * 5 + [first] * 3)
    run.check()


def test_evaluations_lie_between() -> None:
    run = run_of()
    for _ in range(3):
        run.go(5).both(lambda optimizer: optimizer.eval()).check()
        run.both(lambda optimizer: optimizer.train())
    run.go(3).check()


def test_one_recording_serves_after_an_evaluation_a_restart_and_a_freeze() -> None:
    run = run_of(lr=torch.tensor(0.01), corrected_decay=True, weight_decay=1.0)
    run.go(2)
    part(params_of(run.ours), run.step)
    recording = recorded(run.ours)
    train(run.loop, [run.step])
    changes: dict[int, Callable[[Any], Any]] = {
        5: lambda optimizer: optimizer.eval().train(),
        10: lambda optimizer: optimizer.restart_averaging(),
        20: lambda optimizer: optimizer.freeze_averaging(),
        23: lambda optimizer: optimizer.restart_averaging(),
        24: lambda optimizer: optimizer.freeze_averaging(),
        30: lambda optimizer: optimizer.freeze_averaging(False),
        37: lambda optimizer: optimizer.metrics(),
        40: lambda optimizer: optimizer.param_groups[0]["lr"].zero_(),  # z stays, and the average with it
        42: lambda optimizer: optimizer.param_groups[0]["lr"].fill_(0.02),
    }
    for step in range(3, 50):
        put_gradients(params_of(run.ours), step)
        recording.replay()
        train(run.loop, [step])
        run.both(changes.get(step, lambda _: None))
    run.check()


def test_a_group_comes_later() -> None:
    run = run_of().go(5)
    run.both(
        lambda optimizer: optimizer.add_param_group({"params": make_params((5,), dtype=torch.float64), "lr": 0.03})
    )
    run.go(6).check()


@pytest.mark.parametrize("training", [True, False])
def test_states_are_loaded_from_and_into_others(training: bool) -> None:
    run = run_of().go(7).both(lambda optimizer: optimizer.train(training))
    other = run_of()
    for ours, theirs in ((other.ours, run.loop), (other.loop, run.ours)):
        for param, there in zip(params_of(ours), params_of(theirs), strict=True):
            param.data.copy_(there)
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    other.both(lambda optimizer: optimizer.train())
    other.step = run.step
    run.both(lambda optimizer: optimizer.train()).go(7)
    other.go(7).check()
    assert_equal(other.ours, run.loop)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
def test_copies_go_on(copied: Any) -> None:
    run = copied(run_of().go(7)).go(7)
    assert run.ours.capturable
    run.check()


def test_everything_that_looks_at_the_numbers_sees_those_of_the_replays() -> None:
    run = run_of(AdamWScheduleFree).go(9)
    assert run.ours.metrics() == pytest.approx(run.loop.metrics(), rel=1e-12)
    for looked in (
        lambda optimizer: optimizer.state_dict()["param_groups"][0]["weight_sum"],
        lambda optimizer: optimizer.iterates(params_of(optimizer)[0]).x,
        lambda optimizer: torch.cat([each.flatten() for each in map(optimizer._averages(), params_of(optimizer))]),
        lambda optimizer: to_torch(optimizer).param_groups[0]["lr"],
    ):
        run = run_of(AdamWScheduleFree).go(9)
        torch.testing.assert_close(looked(run.ours), looked(run.loop), rtol=1e-12, atol=1e-12)


def test_a_parameter_whose_state_was_dropped_starts_anew() -> None:
    run = run_of().go(20).both(lambda optimizer: optimizer.state.pop(params_of(optimizer)[1]))
    run.go(4).check()
    run.both(lambda optimizer: optimizer.state.clear()).go(4).check()


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0)])
def test_a_parameter_moves_to_another_group(source: int, target: int) -> None:
    def move(optimizer: ScheduleFreeOptimizer) -> None:
        groups = optimizer.param_groups
        groups[target]["params"].append(groups[source]["params"].pop())

    run = run_of()
    run.both(lambda optimizer: optimizer.add_param_group({"params": make_params((5,), (6,), dtype=torch.float64)}))
    run.go(20).both(move).go(4).check()


def test_numbers_that_were_set_by_hand_hold() -> None:
    run = run_of().go(9).both(lambda optimizer: optimizer.param_groups[0].update(weight_sum=1e-3, lr_max=1e-4))
    run.go(4).check()


def test_a_model_is_attached() -> None:
    def make(capturable: bool) -> tuple[torch.nn.Module, ScheduleFreeOptimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).double()
        return model, AdamWScheduleFree(
            model.parameters(), lr=0.01, implementation="auto" if capturable else "loop", capturable=capturable
        ).attach(model)

    (model, ours), (other, loop) = make(True), make(False)
    run = Run(ours, loop).go(6)
    averages = averaged_state_dict(model, ours)
    torch.testing.assert_close(averages, averaged_state_dict(other, loop), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.eval().state_dict(), averages)
    other.eval()
    model.train()
    other.train()
    run.go(5).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_parameters_of_another_precision(dtype: torch.dtype) -> None:
    ours, loop = pair(AdamWScheduleFree, (4, 3), (), dtype=dtype)
    Run(ours, loop).go(20)
    for param, other in zip(params_of(ours), params_of(loop), strict=True):
        torch.testing.assert_close(ours.iterates(param), loop.iterates(other), rtol=2e-6, atol=2e-6)


def test_a_step_with_a_closure() -> None:
    ours, loop = pair(AdamWScheduleFree)
    for step in range(5):
        for optimizer in (ours, loop):
            optimizer.step(partial(set_gradients, params_of(optimizer), step))
    with Recording():
        ours.step(lambda: None)
    loop.step(lambda: None)
    assert_equal(ours, loop)


def test_buffers_that_are_only_initialised_count_no_step() -> None:
    """As torch's DCP does."""
    ours, loop = pair(AdamWScheduleFree, lr=0.0)
    for optimizer in (ours, loop):
        for param in params_of(optimizer):
            param.grad = torch.zeros_like(param)
        optimizer.step()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.01
        train(optimizer, range(3))
    assert_equal(ours, loop)


# The numbers are tensors, which stay where they are.


def numbers_of(optimizer: ScheduleFreeOptimizer) -> dict[str, Tensor]:
    """Every number of the groups and the parameters, by what it is."""
    groups, params = optimizer.param_groups, params_of(optimizer)
    counters = {f"{name} of {at}": group[name] for at, group in enumerate(groups) for name in param_groups.NUMBERS}
    return counters | {f"step of parameter {at}": optimizer.state[param]["step"] for at, param in enumerate(params)}


@pytest.mark.parametrize("cls", CAPTURABLE)
def test_all_numbers_are_tensors_that_keep_their_place(cls: Any) -> None:
    ours, _ = pair(cls, interpolation=AnnealedInterpolation(0.95, 30), warmup_steps=9, r=1.0)
    assert all(isinstance(ours.param_groups[0][name], Tensor) for name in param_groups.NUMBERS)
    train(ours, [0])
    before = numbers_of(ours)
    places = {name: number.data_ptr() for name, number in before.items()}
    assert len(set(places.values())) == len(places)
    for number in before.values():
        assert (number.dtype, number.shape) == (torch.float64, ())
    train(ours, range(1, 9))
    ours.restart_averaging()
    ours.freeze_averaging()
    ours.eval().train()
    ours.state_dict()
    ours.metrics()
    train(ours, [9])
    after = numbers_of(ours)
    assert all(after[name] is number and number.data_ptr() == places[name] for name, number in before.items())


@pytest.mark.parametrize("cls", CAPTURABLE)
def test_files_have_plain_numbers(cls: Any) -> None:
    ours, loop = pair(cls, warmup_steps=9)
    for optimizer in (ours, loop):
        train(optimizer, range(3))
    ours.freeze_averaging()
    loop.freeze_averaging()
    saved, others = ours.state_dict(), loop.state_dict()
    kinds = [{name: type(value) for name, value in each["param_groups"][0].items()} for each in (saved, others)]
    assert kinds[0] == kinds[1]
    assert saved["param_groups"][0]["averaging_state"] == "frozen"
    assert [type(state["step"]) for state in saved["state"].values()] == [int, int]
    for number in ("step", "averaging_start"):
        assert type(saved["param_groups"][0][number]) is int


def test_the_learning_rate_of_the_user_stays_the_tensor_that_it_is() -> None:
    lr = torch.tensor(0.1)
    optimizer = SGDScheduleFree(make_params(), lr=lr, capturable=True)
    train(optimizer, range(2))
    assert optimizer.param_groups[0]["lr"] is lr


# Over another optimizer.


def wrapped(dtype: torch.dtype = torch.float64, lr: Any = None, **arguments: Any) -> Pair:
    """The wrapper as :func:`pair` makes others."""
    lr = torch.tensor(0.05, dtype=torch.float64) if lr is None else lr
    return tuple(
        ScheduleFreeWrapper(
            CapturableSGD(make_params((4, 3), (7,), (), dtype=dtype), lr=copy.deepcopy(lr)),
            implementation="auto" if capturable else "loop",
            capturable=capturable,
            **arguments,
        )
        for capturable in (True, False)
    )  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"warmup_steps": 20, "weight_decay_at_y": 0.1, "r": 1.0},
        {"interpolation": AnnealedInterpolation(0.95, 30), "averaging": PolynomialAveraging(cooldown_start=30)},
    ],
)
def test_a_recorded_step_of_a_wrapper_that_is_made_again_is_the_next_step(dtype: Any, arguments: Any) -> None:
    ours, loop = wrapped(dtype, **arguments)
    for optimizer in (ours, loop):
        train(optimizer, range(2))
    put_gradients(params_of(ours), 2)
    recording = recorded(ours)
    train(loop, [2])
    for step in range(3, 50):
        for optimizer in (ours, loop):
            optimizer.param_groups[0]["lr"].fill_(0.05 * (1 + step % 3))
        put_gradients(params_of(ours), step)
        recording.replay()
        train(loop, [step])
    assert_equal(ours, loop, {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-5}[dtype])


def test_nothing_in_a_step_of_a_wrapper_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = wrapped(torch.float32, lr=torch.tensor(0.05), warmup_steps=9, weight_decay_at_y=0.1)
    train(ours, range(2))
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, lambda *_: pytest.fail("the host waits for the device"))
    for _ in range(3):
        with Recording():
            ours.step()


def test_a_wrapper_makes_a_tensor_of_its_bases_learning_rate() -> None:
    """Of float32, in which a float is rounded."""
    ours, loop = wrapped(lr=0.0625, warmup_steps=4)
    for optimizer in (ours, loop):
        train(optimizer, range(9))
    base: Any = ours.base  # pyright: ignore[reportAttributeAccessIssue]
    assert base.param_groups[0]["lr"].dtype == torch.float32
    assert_equal(ours, loop)
    other, _ = wrapped(lr=0.0625, warmup_steps=4)
    for param, there in zip(params_of(other), params_of(ours), strict=True):
        param.data.copy_(there)
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    for optimizer in (ours, other):
        train(optimizer, range(9, 12))
    torch.testing.assert_close(other.state_dict()["state"], ours.state_dict()["state"], rtol=0.0, atol=0.0)


def test_a_wrapper_is_capturable_if_its_base_is() -> None:
    for base in (
        torch.optim.SGD(make_params()),
        torch.optim.Adam(make_params()),
        CapturableSGD(make_params(), 0.1, capturable=False),
    ):
        with pytest.raises(ValueError, match=f"capturable = True, but the base {type(base).__name__} keeps numbers"):
            ScheduleFreeWrapper(base, capturable=True)
    assert ScheduleFreeWrapper(torch.optim.Adam(make_params(), capturable=True), capturable=True).capturable


# Compiled.


@pytest.fixture
def quick_graphs(graphs: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The same, by a compiler that takes less time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    return graphs


@pytest.mark.covering(1)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("cls", CAPTURABLE)
def test_compiled_it_is_one_graph_while_the_numbers_change(cls: Any, whole: bool, quick_graphs: dict[str, int]) -> None:
    ours, loop = pair(cls, interpolation=AnnealedInterpolation(0.95, 30), warmup_steps=20, r=1.0, weight_decay=0.1)
    ours.implementation = "compiled"
    step_of_ours: Any = torch.compile(ours.step) if whole else ours.step
    for step in range(50):
        for optimizer in (ours, loop):
            optimizer.param_groups[0].update(lr=0.01 * (1 + step % 3), weight_decay=0.1 * (1 + step % 2))
            set_gradients(params_of(optimizer), step)
        step_of_ours()
        loop.step()
    assert quick_graphs["unique_graphs"] == (1 if whole else RULES[cls])
    assert_equal(ours, loop, 1e-11)


@pytest.mark.parametrize("cls", CAPTURABLE)
def test_a_recorded_call_of_the_graph_that_is_made_again_is_the_next_step(
    cls: Any, quick_graphs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch compiles nothing while its operations are recorded, so the graph is recorded as one operation."""
    ours, loop = pair(cls, interpolation=AnnealedInterpolation(0.95, 30), warmup_steps=20, weight_decay=0.1)
    ours.implementation = "compiled"
    for optimizer in (ours, loop):
        train(optimizer, range(2))
    put_gradients(params_of(ours), 2)
    recording, compiled_graph = Recording(), compiled._graph  # pyright: ignore[reportPrivateUsage]
    with recording, monkeypatch.context() as patch:
        patch.setattr(compiled, "_graph", lambda *of: partial(recording.call_whole, compiled_graph(*of)))
        ours.step()
    train(loop, [2])
    for step in range(3, 40):
        put_gradients(params_of(ours), step)
        recording.replay()
        train(loop, [step])
    assert quick_graphs["unique_graphs"] == RULES[cls]
    assert_equal(ours, loop, 1e-11)


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"implementation": "foreach"}, "capturable = True, implementation = 'foreach' exclude each other"),
        ({"foreach": True}, "capturable = True, foreach = True exclude each other: use implementation = 'auto'"),
        ({"fused": True}, "capturable = True, fused = True exclude each other on the CPU: use implementation = 'auto'"),
        ({"implementation": "fused"}, "capturable = True, implementation = 'fused' exclude each other"),
        ({"state_precision": "compact"}, "capturable = True, state_precision = 'compact' exclude each other"),
        ({"step_size": PolyakStep()}, r"capturable = True, step_size = PolyakStep\(.* use ConstantStep\(\)"),
        ({"capturable": 1}, "capturable = 1 is neither True nor False"),
    ],
)
def test_what_cannot_be_captured_is_refused(arguments: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        AdamWScheduleFree(make_params(), **({"capturable": True} | arguments))


@dataclass(frozen=True)
class Window:
    """The example of the documentation, which asks for a number by ``max``."""

    length: int

    def __call__(self, step: int, lr: float, lr_max: float, weight_sum: float) -> tuple[float, float]:
        return max(1 / step, 1 / self.length), weight_sum


def test_an_averaging_that_branches_is_refused_and_nothing_is_changed() -> None:
    match = (
        "parameter group 0: .* use where, minimum and maximum of unscheduled.formulas.scalar_math, or capturable=False"
    )
    with pytest.raises(ValueError, match=match.removeprefix("parameter group 0: ")):
        AdamWScheduleFree(make_params(), capturable=True, averaging=Window(9))
    run = run_of().go(4)
    before = copy.deepcopy(run.ours.state_dict()["state"])
    run.ours.param_groups[0]["averaging"] = Window(9)
    set_gradients(params_of(run.ours), 4)
    with pytest.raises(ValueError, match=match):
        run.ours.step()
    run.ours.param_groups[0]["averaging"] = PolynomialAveraging(r=1.0)
    torch.testing.assert_close(run.ours.state_dict()["state"], before, rtol=0.0, atol=0.0)
    run.go(4).check()


@dataclass(frozen=True)
class WindowOnDevice(Window):
    """The same with what takes the place of ``max``."""

    def __call__(self, step: Any, lr: float, lr_max: float, weight_sum: float) -> tuple[float, float]:
        return scalar_math.maximum(1 / step, 1 / self.length), weight_sum


@dataclass(frozen=True)
class Asking:
    """An averaging that asks for the number of the step."""

    ask: Callable[[Any], Any]

    def __call__(self, step: int, lr: float, lr_max: float, weight_sum: float) -> tuple[float, float]:
        self.ask(step)
        return 1.0, weight_sum


@pytest.mark.parametrize("ask", [bool, float, int, round, math.sqrt, range, lambda step: max(step, 2)])
def test_a_number_of_the_device_is_not_told(ask: Callable[[Any], Any]) -> None:
    SGDScheduleFree(make_params(), averaging=Asking(ask))
    with pytest.raises(ValueError, match=r"use where, minimum and maximum of unscheduled.formulas.scalar_math"):
        SGDScheduleFree(make_params(), capturable=True, averaging=Asking(ask))


def test_an_averaging_of_the_user() -> None:
    run = run_of(averaging=WindowOnDevice(9), r=None).go(20)
    run.check()
    assert run.ours.param_groups[0]["c"].item() == pytest.approx(1 / 9)


def test_a_learning_rate_comes_to_the_device_with_a_state() -> None:
    saved = SGDScheduleFree(make_params((2,)), lr=torch.tensor(0.1)).state_dict()
    optimizer = SGDScheduleFree([Parameter(torch.empty(2, device="meta"))], capturable=True, implementation="loop")
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"].is_meta


def test_devices_have_to_agree() -> None:
    param, elsewhere = torch.zeros(2), torch.zeros(2, device="meta")
    with pytest.raises(ValueError, match="the parameters are on cpu and meta: make a group for each device"):
        SGDScheduleFree([param, elsewhere], capturable=True)
    with pytest.raises(ValueError, match="lr = a tensor on cpu, the parameters are on meta: put it there"):
        SGDScheduleFree([elsewhere], lr=torch.tensor(0.1), capturable=True)


def test_a_polyak_step_that_comes_later_is_refused() -> None:
    optimizer = AdamWScheduleFree(make_params(), capturable=True)
    train(optimizer, range(2))
    optimizer.param_groups[0]["step_size"] = PolyakStep()
    with pytest.raises(ValueError, match="capturable = True, step_size = PolyakStep"):
        optimizer.step(loss=1.0)


def test_a_group_has_no_say() -> None:
    with pytest.raises(ValueError, match="capturable = True in a group: it is for all groups"):
        SGDScheduleFree([{"params": make_params(), "capturable": True}])


def test_what_a_replay_would_do_wrong_is_refused_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    (ours, plain), (new, _) = pair(AdamWScheduleFree), pair(AdamWScheduleFree)
    for optimizer in (ours, plain):
        train(optimizer, range(2))
    new.state[params_of(new)[0]] = {}
    for module in ("optimizer.stepper", "state.param_groups", "state.device_math"):
        monkeypatch.setattr(f"unscheduled.{module}.is_capturing", lambda _: True)
    with pytest.raises(RuntimeError, match="make the optimizer with capturable=True"):
        train(plain, [2])
    with pytest.raises(RuntimeError, match="the first step of a parameter cannot be captured"):
        train(new, [2])
    with pytest.raises(RuntimeError, match="asked for while it is captured: ask after the capture"):
        ours.metrics()
    train(ours, [2])
    weight_sum = ours.param_groups[0]["weight_sum"]
    ours.param_groups[0]["weight_sum"] = 1.0
    with pytest.raises(RuntimeError, match=r"weight_sum = 1\.0 is to be brought .*: make a step before the capture"):
        train(ours, [2])
    ours.param_groups[0]["weight_sum"] = weight_sum
    monkeypatch.undo()
    assert not device_math.is_capturing(torch.device("cpu"))
    train(plain, [2])
    assert_equal(ours, plain)


def test_a_group_without_parameters_loads() -> None:
    optimizer = SGDScheduleFree(make_params(), lr=torch.tensor(0.1), capturable=True)
    optimizer.add_param_group({"params": [], "lr": torch.tensor(0.2)})
    train(optimizer, range(2))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, [2])
    assert optimizer.metrics()["group1/lr"] == pytest.approx(0.2)


def test_a_group_that_is_added_in_a_capture_is_refused_and_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = SGDScheduleFree(make_params(), lr=0.1, capturable=True)
    train(optimizer, range(2))
    for module in ("state.param_groups", "state.device_math"):
        monkeypatch.setattr(f"unscheduled.{module}.is_capturing", lambda _: True)
    with pytest.raises(RuntimeError, match="while"):
        optimizer.add_param_group({"params": make_params()})
    assert len(optimizer.param_groups) == 1


def test_counters_that_were_set_by_hand_stay_apart_when_averaging_is_restarted() -> None:
    """A plain number in a group must not become the tensor of another counter."""
    ours, plain = pair(SGDScheduleFree, averaging=PolynomialAveraging(r=1.0))
    for optimizer in (ours, plain):
        train(optimizer, range(2))
        for group in optimizer.param_groups:
            group["averaging_start"] = 0
        optimizer.restart_averaging()
        train(optimizer, range(2, 5))
    assert_equal(ours, plain)
    assert [int(group["averaging_start"]) for group in ours.param_groups] == [2] * len(ours.param_groups)
