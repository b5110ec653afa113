"""What the Polyak step is given: the loss and the norm before clipping, in their forms; what it must refuse."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import copies, equal, make_params, set_gradients
from registry import OPTIMIZERS
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

from unscheduled import (
    AdamWScheduleFree,
    PolyakStep,
    ScheduleFreePlus,
    SGDScheduleFree,
)

KINDS: list[type[Any]] = [AdamWScheduleFree, SGDScheduleFree, ScheduleFreePlus]
kinds = pytest.mark.parametrize("cls", KINDS)


def made(cls: type[Any], steps: int = 0, **arguments: Any) -> tuple[list[Parameter], Any]:
    """Parameters and their optimizer after some steps, with the gradients of the next one."""
    params = make_params(dtype=torch.float64)
    optimizer = cls(params, **{"step_size": PolyakStep(), "warmup_steps": 0} | arguments)
    for step in range(steps):
        set_gradients(params, step)
        optimizer.step(loss=3.0)
    set_gradients(params, steps)
    return params, optimizer


def snapshot(params: list[Parameter], optimizer: Any) -> Any:
    """All bits of a run."""
    return copy.deepcopy((copies(params), optimizer.state_dict(), optimizer.training, len(optimizer.state)))


def unchanged(some: Any, other: Any) -> bool:
    """Whether two snapshots are equal, bit for bit."""
    if isinstance(some, Tensor):
        return some.dtype == other.dtype and torch.equal(some, other)
    if isinstance(some, dict):
        return some.keys() == other.keys() and all(unchanged(some[key], other[key]) for key in some)
    if isinstance(some, (list, tuple)):
        return len(some) == len(other) and all(map(unchanged, some, other))
    return bool(some == other)


# Forms of the loss.


@pytest.mark.covering(1)
@kinds
@pytest.mark.parametrize(
    "loss",
    [
        torch.tensor(2.0),
        torch.tensor([2.0]),
        torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True),
        torch.tensor(2.0, dtype=torch.bfloat16),
        2,
        [0.5, 1.5],
        [torch.tensor(0.25), torch.tensor([1.5]), 0.25],
        [2.0],
        [0.5, [1.0, 0.5]],
    ],
)
def test_a_loss_is_a_number_a_tensor_of_one_element_or_a_list_of_them(cls: type[Any], loss: Any) -> None:
    (params, optimizer), (others, reference) = made(cls, 3), made(cls, 3)
    optimizer.step(loss=loss)
    reference.step(loss=2.0)
    assert equal(params, others)


@kinds
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_that_a_gradient_was_not_finite_before_it_was_clipped_is_said(cls: type[Any], value: float) -> None:
    params, optimizer = made(cls, 3)
    assert params[0].grad is not None
    params[0].grad.view(-1)[0] = value
    norm = clip_grad_norm_(params, 1.0)
    with pytest.raises(ValueError, match=r"^the gradient is not finite"):
        optimizer.step(loss=1.0, grad_norm=norm)


@kinds
def test_a_closure_that_returns_more_than_the_loss_is_refused(cls: type[Any]) -> None:
    params, optimizer = made(cls, 3)
    before = snapshot(params, optimizer)
    with pytest.raises(ValueError, match=r"^loss = a tuple of 2: give the loss alone, or a list of losses"):
        optimizer.step(lambda: (torch.tensor(2.0), 0.75))
    assert unchanged(snapshot(params, optimizer), before)


def test_accumulated_gradients_take_the_sum_of_their_losses() -> None:
    """Two halves of a batch, each with its part of the mean, make the step of the whole."""
    data = torch.randn(8, 3, dtype=torch.float64)
    ends: list[Tensor] = []
    for parts in (1, 2):
        weight = Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = SGDScheduleFree([weight], step_size=PolyakStep())
        for _ in range(3):
            optimizer.zero_grad()
            losses = [(part @ weight).square().mean() / parts for part in data.chunk(parts)]
            for loss in losses:
                loss.backward()
            optimizer.step(loss=losses)
        ends.append(weight.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=0)
    assert not torch.equal(ends[0], torch.ones(3, dtype=torch.float64))


def test_a_larger_loss_makes_a_larger_step() -> None:
    steps = []
    for loss in (1.0, 2.0):
        _, optimizer = made(SGDScheduleFree)
        optimizer.step(loss=loss)
        steps.append(optimizer.metrics()["effective_lr"])
    assert steps[1] == pytest.approx(2 * steps[0], rel=1e-9)


def test_a_constant_step_has_no_need_of_the_loss() -> None:
    (params, optimizer), (others, reference) = (
        made(SGDScheduleFree, step_size=None),
        made(SGDScheduleFree, step_size=None),
    )
    optimizer.step(loss=float("nan"), grad_norm=0.0)
    reference.step()
    assert equal(params, others)


# Clipping.


@kinds
@pytest.mark.parametrize("norm_beta", [0.0, 0.9, 1.0])
def test_clipping_that_is_told_leaves_the_step_size_alone(cls: type[Any], norm_beta: float) -> None:
    """Without telling, it is larger; a limit holds it. The sizes that follow are those of an unclipped run as well."""

    def step_sizes(bound: float, tell: bool, max_step: float = math.inf) -> tuple[float, float]:
        params, optimizer = made(cls, 5, step_size=PolyakStep(norm_beta=norm_beta, max_step=max_step))
        norm = clip_grad_norm_(params, bound)
        optimizer.step(loss=3.0, grad_norm=norm if tell else None)
        group = optimizer.param_groups[0]
        return group["effective_lr"], group["polyak_norm"]

    plain = step_sizes(1e9, tell=False)
    assert step_sizes(1e9, tell=True) == plain
    assert step_sizes(0.1, tell=True) == pytest.approx(plain, rel=1e-4)  # clip_grad_norm_ has an epsilon
    if norm_beta == 0.0:
        assert step_sizes(1e-3, tell=False)[0] > 5 * plain[0]
        assert step_sizes(1e-3, tell=False, max_step=0.03)[0] == 0.03


def test_the_norm_may_be_a_number_or_a_tensor() -> None:
    ends = []
    for norm in (100.0, torch.tensor(100.0), torch.tensor([100.0], dtype=torch.float64)):
        params, optimizer = made(AdamWScheduleFree, 3)
        optimizer.step(loss=3.0, grad_norm=norm)
        ends.append(copies(params))
    assert equal(ends[0], ends[1])
    assert equal(ends[0], ends[2])


# Closures.


@kinds
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_the_loss_is_what_a_closure_returns(cls: type[Any], training: bool, clip: bool) -> None:
    """Called at y, from either mode, which is given back."""
    (params, optimizer), (others, reference) = made(cls, 3), made(cls, 3)
    optimizer.train(training)

    def closure() -> Tensor:
        assert equal(params, others)
        assert torch.is_grad_enabled()
        set_gradients(params, 3)
        return torch.tensor(2.0, requires_grad=True)

    norm = 100.0 if clip else None
    assert float(optimizer.step(closure, grad_norm=norm).detach()) == 2.0
    reference.step(loss=2.0, grad_norm=norm)
    assert optimizer.training is training
    assert equal(params, copies(others) if training else [reference.iterates(other).x for other in others])
    assert equal(optimizer.train() and params, others)


# What is refused, before anything is changed.

LOSSES: list[tuple[Any, str]] = [
    (None, r"loss = None: step_size = PolyakStep\(.*\) needs the loss at y: call step\(loss=loss\), or give step\(\)"),
    (torch.ones(2), r"loss = a tensor of shape \(2,\): give the scalar that backward\(\) was for"),
    (torch.ones(0), r"loss = a tensor of shape \(0,\): give the scalar"),
    (float("nan"), r"loss = nan is not finite: call zero_grad\(\) and leave this step out"),
    (torch.tensor(float("inf")), r"loss = inf is not finite"),
    (float("-inf"), r"loss = -inf is not finite"),
    ([1.0, float("nan")], r"loss = nan is not finite"),
    (
        -0.5,
        r"loss = -0\.5 is below f_star = 0\.0, which must be a lower bound of the loss: give PolyakStep\(f_star=",
    ),
    ([1.0, -1.5], r"loss = -0\.5 is below f_star"),
    ("1.0", r"loss = '1\.0' is not a number: give the scalar"),
    ([1.0, "1.0"], r"loss = '1\.0' is not a number"),
    ([1.0, None], r"loss = None"),
    ([], r"loss = \[\]: give the losses whose gradients were accumulated"),
]
losses = pytest.mark.parametrize(("loss", "match"), LOSSES, ids=lambda value: repr(value)[:30])


@pytest.mark.covering(1)
@kinds
@pytest.mark.parametrize("steps", [0, 3])
@losses
def test_what_is_no_loss(cls: type[Any], steps: int, loss: Any, match: str) -> None:
    params, optimizer = made(cls, steps)
    before = snapshot(params, optimizer)
    with pytest.raises(ValueError, match=f"^{match}"):
        optimizer.step(loss=loss)
    assert unchanged(snapshot(params, optimizer), before)
    optimizer.step(loss=1.0)
    assert optimizer.metrics()["step"] == steps + 1


@pytest.mark.covering(1)
@kinds
@pytest.mark.parametrize("training", [True, False])
@losses
def test_what_a_closure_may_not_return(cls: type[Any], training: bool, loss: Any, match: str) -> None:
    params, optimizer = made(cls, 3)
    optimizer.train(training)
    before = snapshot(params, optimizer)
    with pytest.raises(ValueError, match=f"^{match}"):
        optimizer.step(lambda: loss)
    assert unchanged(snapshot(params, optimizer), before)


@kinds
@pytest.mark.parametrize("training", [True, False])
def test_a_closure_and_a_loss(cls: type[Any], training: bool) -> None:
    params, optimizer = made(cls, 3)
    optimizer.train(training)
    before = snapshot(params, optimizer)
    with pytest.raises(ValueError, match=r"^closure, loss = 2\.0 exclude each other: let the closure return the loss"):
        optimizer.step(lambda: 1.0, loss=2.0)
    assert unchanged(snapshot(params, optimizer), before)


@pytest.mark.covering(1)
@kinds
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(
    ("norm", "match"),
    [
        (-1.0, r"-1\.0"),
        (float("nan"), "nan"),
        (torch.tensor(float("nan")), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_what_is_no_norm(cls: type[Any], steps: int, norm: Any, match: str) -> None:
    params, optimizer = made(cls, steps)
    before = snapshot(params, optimizer)
    with pytest.raises(
        ValueError, match=rf"^grad_norm = {match} is outside \[0, inf\): give what torch\.nn\.utils\.clip_grad_norm_"
    ):
        optimizer.step(loss=1.0, grad_norm=norm)
    assert unchanged(snapshot(params, optimizer), before)


@kinds
def test_a_gradient_of_zero_may_be_clipped(cls: type[Any]) -> None:
    params, optimizer = made(cls, 3)
    before = copies(params)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step(loss=1.0, grad_norm=clip_grad_norm_(params, 1.0))
    assert equal(params, before)
    assert optimizer.param_groups[0]["effective_lr"] == 0.0


@pytest.mark.covering(2)
@kinds
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite(cls: type[Any], steps: int, value: float) -> None:
    params, optimizer = made(cls, steps)
    before = snapshot(params, optimizer)
    assert params[1].grad is not None
    params[1].grad[2] = value
    with pytest.raises(ValueError, match=r"^the gradient is not finite \(its size is (nan|inf)\): call zero_grad\(\)"):
        optimizer.step(loss=1.0)
    assert unchanged(snapshot(params, optimizer), before)


@kinds
def test_a_group_whose_learning_rate_went_wrong(cls: type[Any]) -> None:
    """The averages are not changed either."""
    params, optimizer = made(cls, 3, step_size=PolyakStep(norm_beta=0.9))
    before = snapshot(params, optimizer)
    optimizer.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="parameter group 0: lr = nan"):
        optimizer.step(loss=1.0)
    optimizer.param_groups[0]["lr"] = before[1]["param_groups"][0]["lr"]
    assert unchanged(snapshot(params, optimizer), before)


@pytest.mark.parametrize("cls", [AdamWScheduleFree, SGDScheduleFree])
def test_maximizing(cls: type[Any]) -> None:
    match = r"maximize = True, step_size = PolyakStep\(.*\) exclude each other: minimize the negative"
    with pytest.raises(ValueError, match=f"^{match}"):
        cls(make_params(), step_size=PolyakStep(), maximize=True)
    first, second = make_params()
    optimizer = cls([first], step_size=PolyakStep())
    with pytest.raises(ValueError, match=f"^parameter group 1: {match}"):
        optimizer.add_param_group({"params": [second], "maximize": True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("of_all", [None, PolyakStep(f_star=1.0)])
def test_a_step_size_of_one_group_alone(of_all: PolyakStep | None) -> None:
    first, second = make_params()
    group = {"params": [second], "step_size": PolyakStep()}
    match = (
        r"^parameter group 1: step_size = PolyakStep\(.*\) in a group: it is for all groups, so give it to the constr"
    )
    with pytest.raises(ValueError, match=match):
        AdamWScheduleFree([{"params": [first]}, dict(group)], step_size=of_all)
    optimizer = AdamWScheduleFree([first], step_size=of_all)
    with pytest.raises(ValueError, match=match):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    set_gradients([first], 0)
    optimizer.step(loss=2.0)


@pytest.mark.parametrize("cls", [info.cls for info in OPTIMIZERS if not info.polyak])
def test_an_optimizer_whose_direction_has_no_size(cls: type[Any]) -> None:
    match = rf"step_size = PolyakStep\(.*\) is not there for {cls.__name__}: use AdamWScheduleFree or SGDScheduleFree"
    with pytest.raises(ValueError, match=f"^parameter group 0: {match}"):
        cls([{"params": make_params(), "step_size": PolyakStep()}])
    with pytest.raises(ValueError, match=f"^{match}"):
        cls(make_params(), step_size=PolyakStep())


@kinds
def test_a_rule_that_is_none(cls: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"step_size = 1\.0 is no step_size: use an object of a class of"):
        cls(make_params(), step_size=1.0)
    with pytest.raises(ValueError, match=r"step_size = PolyakStep is a class: make an object of it, with parentheses"):
        cls(make_params(), step_size=PolyakStep)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PolyakStep(f_star=math.inf), r"f_star = inf is outside \(-inf, inf\)"),
        (lambda: PolyakStep(f_star=math.nan), r"f_star = nan is outside"),
        (lambda: PolyakStep(f_star="0"), r"f_star = '0' is not a number"),  # type: ignore[arg-type]
        (lambda: PolyakStep(norm_beta=1.1), r"norm_beta = 1\.1 is outside \[0, 1\]"),
        (lambda: PolyakStep(norm_beta=-0.1), r"norm_beta = -0\.1 is outside \[0, 1\]"),
        (lambda: PolyakStep(max_step=0.0), r"max_step = 0\.0 is outside \(0, inf\]"),
        (lambda: PolyakStep(max_step=math.nan), r"max_step = nan is outside \(0, inf\]"),
        (lambda: PolyakStep(eps=0.0), r"eps = 0\.0 is outside \(0, inf\): use 1e-30"),
        (lambda: PolyakStep(eps=math.inf), r"eps = inf is outside \(0, inf\)"),
    ],
)
def test_arguments_that_are_out_of_range(make: Callable[[], PolyakStep], match: str) -> None:
    with pytest.raises(ValueError, match=f"^{match}"):
        make()
