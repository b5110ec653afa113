"""The tests' registry has every optimizer that the library exports, and its flags are true."""

import inspect

import pytest
import torch
from problems import copies, equal, make_params, train
from registry import ALL, DEFAULTS_OF, GRADIENTS, OptimizerInfo, implementations, optimizers
from torch import Tensor

import unscheduled
from unscheduled import DistanceStep, PolyakStep, ScheduleFreeOptimizer, to_torch

EXPORTED = {
    value
    for value in vars(unscheduled).values()
    if inspect.isclass(value) and issubclass(value, ScheduleFreeOptimizer) and value is not ScheduleFreeOptimizer
}


def test_every_optimizer_is_in_the_registry() -> None:
    assert len(EXPORTED) > 6
    assert {info.cls for info in ALL} | DEFAULTS_OF.keys() == EXPORTED
    assert len({info.cls for info in ALL}) == len(ALL)


@pytest.mark.parametrize("cls", DEFAULTS_OF)
def test_a_class_of_other_defaults_has_nothing_of_its_own(cls: type[ScheduleFreeOptimizer]) -> None:
    assert cls.__bases__ == (DEFAULTS_OF[cls],)
    own = {name for name, value in vars(cls).items() if inspect.isfunction(value)}
    assert own - {"step"} == {"__init__"}  # torch puts its wrapper of step() into the class of an optimizer


@optimizers
def test_whether_it_is_capturable(info: OptimizerInfo) -> None:
    if info.capturable:
        assert info.make(make_params(), capturable=True).capturable
    else:
        with pytest.raises(ValueError, match="capturable = True"):
            info.make(make_params(), capturable=True)


@optimizers
def test_whether_it_has_a_polyak_step(info: OptimizerInfo) -> None:
    if info.polyak:
        optimizer = info.make(make_params(), step_size=PolyakStep())
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        optimizer.step(loss=2.0)
        assert optimizer.metrics()["effective_lr"] > 0.0
    else:
        with pytest.raises(ValueError, match=r"step_size = PolyakStep\(.*\) is not there for"):
            info.make(make_params(), step_size=PolyakStep())


@optimizers
def test_whether_it_has_a_distance_step(info: OptimizerInfo) -> None:
    if info.distance:
        optimizer = info.make(make_params(), lr=1.0, step_size=DistanceStep())
        train(optimizer, range(8))
        assert optimizer.metrics()["effective_lr"] > 0.0
    else:
        with pytest.raises(ValueError, match=r"step_size = DistanceStep\(.*\) is not there for"):
            info.make(make_params(), step_size=DistanceStep())


@optimizers
def test_whether_it_has_a_compact_state(info: OptimizerInfo) -> None:
    if info.compact is not None:
        info.make(make_params(), state_precision="compact")
    else:
        with pytest.raises(ValueError, match="state_precision = 'compact' is not there for this rule: use 'float32'"):
            info.make(make_params(), state_precision="compact")


@optimizers
def test_what_takes_over(info: OptimizerInfo) -> None:
    optimizer = info.make(make_params())
    train(optimizer, range(8))
    if info.counterpart is None:
        with pytest.raises(ValueError, match=info.cls.__name__):
            to_torch(optimizer)
    else:
        assert type(to_torch(optimizer)) is info.counterpart


@optimizers
def test_the_first_steps_that_move_nothing(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params, weight_decay=0.1)
    start = copies(params)
    for step in range(info.silent_steps + 1):
        assert equal(params, start)
        train(optimizer, [step])
    assert not equal(params, start)


@pytest.mark.covering(1)
@optimizers
@implementations
def test_the_first_moves_of_z_are_those_computed_by_hand(info: OptimizerInfo, implementation: str) -> None:
    number = torch.nn.Parameter(torch.full((1,), 2.0))
    optimizer = info.make([number], lr=1.0, implementation=implementation)
    moves: list[float] = []
    for gradient in GRADIENTS:
        before = optimizer.iterates(number).z
        number.grad = torch.full((1,), gradient)
        optimizer.step()
        moves.append((before - optimizer.iterates(number).z).item())
    assert moves == pytest.approx(info.by_hand, abs=1e-5)


@optimizers
def test_the_buffers(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params)
    train(optimizer, range(2))
    for param in params:
        kept = {name for name, value in optimizer.state[param].items() if isinstance(value, Tensor)}
        assert kept - {"step", "y"} == info.buffers_of(param)
    most = info.make(params, **info.with_all_buffers)
    train(most, range(2))
    assert set(most.state[params[0]]) >= set(optimizer.state[params[0]])
