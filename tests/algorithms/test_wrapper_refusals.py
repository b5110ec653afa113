"""What the wrapper refuses, and what stays as it is if a step fails."""

from collections.abc import Callable
from typing import Any

import pytest
import schedulefree
import torch
from bases import dtypes, kept
from problems import copies, equal, make_params, same, set_gradients, train
from torch.nn import Parameter
from torch.optim import LBFGS, SGD, Adam, Optimizer, SparseAdam, lr_scheduler

from unscheduled import NoAveraging, PolyakStep, ScheduleFreeWrapper, SGDScheduleFree


class OnePass(Optimizer):
    """Has no learning rate."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})


UNFIT: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "LBFGS": (lambda: LBFGS(make_params()), ValueError, "^base = LBFGS cannot be wrapped: .* several points"),
    "SparseAdam": (lambda: SparseAdam(make_params()), ValueError, "^base = SparseAdam cannot be wrapped: .* sparse"),
    "class": (lambda: Adam, TypeError, r"^base = <class .*Adam'> is no torch.optim.Optimizer: give an optimizer"),
    "params": (lambda: make_params((1,)), TypeError, r"^base = \[Parameter"),
    "ours": (lambda: SGDScheduleFree(make_params()), ValueError, "^base = SGDScheduleFree is schedule-free already"),
    "itself": (
        lambda: ScheduleFreeWrapper(SGD(make_params())),
        ValueError,
        "^base = ScheduleFreeWrapper is schedule-free already",
    ),
    "theirs": (
        lambda: schedulefree.AdamWScheduleFree(make_params()),
        ValueError,
        "^base = AdamWScheduleFree is schedule-free already: use it as it is",
    ),
    "without lr": (lambda: OnePass(make_params()), ValueError, "^base = OnePass has no learning rate 'lr'"),
}


@pytest.mark.parametrize(("make", "error", "message"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_move_z_is_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ScheduleFreeWrapper(make())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"momentum": 1.5}, r"^momentum = 1\.5 is outside \[0, 1\]"),
    ({"momentum": -0.1}, r"^momentum = -0\.1 is outside \[0, 1\]"),
    ({"momentum": float("nan")}, r"^momentum = nan is outside"),
    ({"weight_decay_at_y": -0.1}, r"^weight_decay_at_y = -0\.1 is outside \[0, inf\): use 0 for none"),
    ({"weight_decay_at_y": "0.1"}, r"^weight_decay_at_y = '0\.1' is not a number"),
    ({"capturable": True}, r"^capturable = True, but the base \w+ keeps numbers of its step on the host: make it with"),
    ({"capturable": "yes"}, r"^capturable = 'yes' is neither True nor False"),
    (
        {"step_size": PolyakStep()},
        r"^step_size = PolyakStep\(.*\) is not there for ScheduleFreeWrapper, since only the",
    ),
    ({"foreach": True, "implementation": "loop"}, r"^foreach = True and implementation = 'loop' exclude each other"),
    ({"fused": True, "implementation": "loop"}, r"^fused = True and implementation = 'loop' exclude each other"),
    ({"fused": True, "foreach": True}, r"exclude each other"),
    ({"r": -1.0}, r"^r = -1\.0 is outside \(-1, 32\]"),
    ({"weight_lr_power": 9.0}, r"^weight_lr_power = 9\.0 is outside \[0, 8\]"),
    ({"warmup_steps": 0.5}, r"^warmup_steps = 0\.5 is no integer >= 0"),
    ({"r": 1.0, "averaging": NoAveraging()}, r"^r = 1\.0, averaging = NoAveraging\(\) exclude each other"),
    ({"implementation": "fast"}, "^implementation = 'fast' is unknown"),
    ({"state_precision": "int4"}, "^state_precision = 'int4'"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_arguments_out_of_their_range_are_refused_and_the_base_stays(arguments: dict[str, Any], message: str) -> None:
    params = make_params()
    base = Adam(params)
    before, group = copies(params), dict(base.param_groups[0])
    with pytest.raises(ValueError, match=message):
        ScheduleFreeWrapper(base, **arguments)
    assert equal(params, before)
    assert base.param_groups == [group]


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ({"base": {"betas": (2.0, 0.9)}, "lr": -1.0}, ValueError, r"lr = -1\.0 is outside"),
        ({"momentum": 2.0}, ValueError, r"^parameter group 1: momentum = 2\.0 is outside \[0, 1\]"),
        ({"weight_decay_at_y": -1.0}, ValueError, r"^parameter group 1: weight_decay_at_y = -1\.0 is outside"),
        ({"weight_decay": -1.0}, ValueError, r"^parameter group 1: weight_decay = -1\.0 is outside"),
        ({"step_size": PolyakStep()}, ValueError, r"^parameter group 1: step_size = PolyakStep"),
        ({"base": {"lr": 0.5}}, ValueError, r"^lr = 0\.5 in 'base': give it to the group itself"),
        ({"params": None}, TypeError, "not iterable"),
        ({"params": "first"}, ValueError, "more than one parameter group"),
        ({"params": "twice"}, ValueError, "a parameter stands in it twice"),
        ({"params": set()}, TypeError, "ordered collections"),
        ({"params": [torch.ones(2, requires_grad=True) * 2]}, ValueError, "non-leaf"),
    ],
)
def test_a_group_that_is_refused_is_in_neither_optimizer(
    group: dict[str, Any], error: type[Exception], message: str
) -> None:
    first, second = make_params()
    optimizer = ScheduleFreeWrapper(Adam([first]))
    train(optimizer, range(2))
    before = kept(optimizer)
    places = {"first": [first], "twice": [second, second]}
    params = group.get("params", [second])
    with pytest.raises(error, match=message):
        optimizer.add_param_group({**group, "params": places[params] if isinstance(params, str) else params})
    assert same(kept(optimizer), before)
    assert len(optimizer.base.param_groups) == 1
    train(optimizer, range(2, 4))
    optimizer.add_param_group({"params": [second]})
    train(optimizer, range(4, 6))


def test_an_option_that_the_base_refuses_leaves_both_as_they_are() -> None:
    first, second = make_params()

    class Strict(SGD):
        def add_param_group(self, param_group: dict[str, Any]) -> None:
            if param_group.get("momentum", 0.0) < 0.0:
                raise ValueError("momentum below 0")
            super().add_param_group(param_group)

    optimizer = ScheduleFreeWrapper(Strict([first], lr=0.1))
    before = kept(optimizer)
    with pytest.raises(ValueError, match="momentum below 0"):
        optimizer.add_param_group({"params": [second], "base": {"momentum": -1.0}})
    assert same(kept(optimizer), before)
    train(optimizer, range(2))


@pytest.mark.parametrize("early", [True, False])
def test_a_scheduler_of_the_base_is_refused_at_the_next_step(early: bool) -> None:
    params = make_params()
    base = Adam(params, lr=0.01)
    optimizer = ScheduleFreeWrapper(base)
    train(optimizer, range(3 * (not early)))
    scheduler = lr_scheduler.LambdaLR(base, lambda step: 0.5**step)
    train(optimizer, [3])  # the scheduler has not yet changed it
    scheduler.step()
    before = kept(optimizer)
    set_gradients(params, 4)
    with pytest.raises(
        RuntimeError,
        match=r"^the learning rate of group 0 of the wrapped Adam was changed from 0\.01 to 0\.005: "
        "change that of the ScheduleFreeWrapper, and give this to schedulers",
    ):
        optimizer.step()
    assert same(kept(optimizer), before)


def test_a_group_that_was_added_to_the_base_alone_is_refused_at_the_next_step() -> None:
    first, second = make_params()
    optimizer = ScheduleFreeWrapper(Adam([first]))
    train(optimizer, range(2))
    optimizer.base.add_param_group({"params": [second]})
    before = copies([first])
    set_gradients([first, second], 2)
    with pytest.raises(
        RuntimeError, match="the wrapped Adam has 2 parameter groups, this ScheduleFreeWrapper has 1: add"
    ):
        optimizer.step()
    assert equal([first], before)


def test_a_group_is_not_taken_for_one_that_was_added_to_the_base_alone() -> None:
    first, second, third = make_params((2,), (2,), (2,))
    optimizer = ScheduleFreeWrapper(Adam([first]))
    optimizer.base.add_param_group({"params": [second]})
    with pytest.raises(RuntimeError, match="has 2 parameter groups, this ScheduleFreeWrapper has 1: add groups to"):
        optimizer.add_param_group({"params": [third]})
    assert [len(each.param_groups) for each in (optimizer, optimizer.base)] == [1, 2]


class Failing(SGD):
    """Moves its parameters, and everything about them, and raises."""

    error: BaseException | None = None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for param in self.param_groups[0]["params"]:
            param.grad = None
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    "error", [MemoryError("none left"), KeyboardInterrupt()], ids=lambda error: type(error).__name__
)
@dtypes
def test_if_the_base_fails_the_parameters_are_y_again(error: BaseException, dtype: torch.dtype) -> None:
    params = [*make_params(dtype=dtype), Parameter(torch.randn(3, 4, dtype=dtype).t())]
    optimizer = ScheduleFreeWrapper(Failing(params, lr=0.1, momentum=0.9))
    train(optimizer, range(3))
    before, gaps = copies(params), copies(optimizer.state[param]["gap"] for param in params)
    places = [(param.data_ptr(), param.stride(), param.dtype) for param in params]
    set_gradients(params, 3)
    grads = [param.grad for param in params]
    bits = copies(grads)  # type: ignore[arg-type]
    optimizer.base.error = error  # type: ignore[attr-defined]
    with pytest.raises(type(error)):
        optimizer.step()
    assert equal(params, before)
    assert equal([optimizer.state[param]["gap"] for param in params], gaps)
    assert places == [(param.data_ptr(), param.stride(), param.dtype) for param in params]
    assert all(param.grad is grad for param, grad in zip(params, grads, strict=True))
    assert equal(grads, bits)  # type: ignore[arg-type]
    assert optimizer.base.param_groups[0]["params"] == params
    assert list(optimizer.base.state) == params
    assert optimizer.metrics()["step"] == 3
    optimizer.base.error = None  # type: ignore[attr-defined]
    train(optimizer, [3])
    assert optimizer.metrics()["step"] == 4


class Elsewhere(SGD):
    """Moves the parameters that it was given at first, whatever is in its groups."""

    def __init__(self, params: list[Parameter]) -> None:
        super().__init__(params, lr=0.1)
        self.first = params

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for param in self.first:
            with torch.no_grad():
                param.sub_(param.grad, alpha=0.1)  # type: ignore[arg-type]


def test_a_base_that_passes_by_those_that_stand_in_for_narrow_parameters_is_told_of() -> None:
    params = make_params(dtype=torch.bfloat16)
    set_gradients(params, 0)
    with pytest.raises(RuntimeError, match=r"^the base wrote to a parameter of torch\.bfloat16, for which one of"):
        ScheduleFreeWrapper(Elsewhere(params)).step()
    params = make_params()
    optimizer = ScheduleFreeWrapper(Elsewhere(params))
    train(optimizer, range(3))
    assert optimizer.metrics()["step"] == 3


@pytest.mark.parametrize("broken", [0, 1])
def test_if_z_cannot_be_formed_the_parameters_are_y(broken: int) -> None:
    params = make_params()
    optimizer = ScheduleFreeWrapper(Adam(params))
    train(optimizer, range(3))
    before = copies(params)
    set_gradients(params, 3)
    gap = optimizer.state[params[broken]].pop("gap")
    with pytest.raises(KeyError, match="gap"):
        optimizer.step()
    assert equal(params, before)
    optimizer.state[params[broken]]["gap"] = gap
    train(optimizer, [3])


def test_capturable_is_refused_by_a_base_on_the_cpu_and_nothing_moves() -> None:
    params = make_params()
    optimizer = ScheduleFreeWrapper(Adam(params, capturable=True))
    before = copies(params)
    with pytest.raises(AssertionError, match="capturable"):
        train(optimizer, [0])
    assert equal(params, before)
    assert optimizer.metrics()["step"] == 0
