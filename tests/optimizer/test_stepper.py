"""The part that makes steps, with an algorithm of four lines and no optimizer round it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from unscheduled.formulas.rule import Rule
from unscheduled.optimizer.algorithm import Algorithm
from unscheduled.optimizer.plan import Plan
from unscheduled.optimizer.stepper import Stepper
from unscheduled.state import param_groups
from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import State

OPTIONS: Group = {
    "lr": 0.5,
    "momentum": 0.5,
    "weight_decay": 0.0,
    "decay_at": "y",
    "warmup_steps": 0,
    "maximize": False,
}


def along(grad: Any) -> Any:
    return (grad,)


def against(grad: Any) -> Any:
    return (-grad,)


ALONG, AGAINST = Rule(along), Rule(against)


class Plain(Algorithm):
    """Gradient descent."""

    implementation = "loop"
    state_precision = "float32"
    defaults = OPTIONS | param_groups.PLAIN_AXES

    def _rule(self, group: Group, param: Tensor | None = None) -> Rule:
        return ALONG

    def _rule_scalars(self, group: Group, rule: Rule, step: Any) -> dict[str, float]:
        return {}

    def _beta(self, group: Group) -> float:
        return group["momentum"]

    def _check_rule(self, group: Group) -> None:
        pass


class TwoRules(Plain):
    """Scalars go the other way."""

    _rules_differ = True

    def _rule(self, group: Group, param: Tensor | None = None) -> Rule:
        return AGAINST if param is not None and param.dim() == 0 else ALONG


class Doubling:
    """Something that moves z, by twice the gradient and a factor of 3 on the learning rate."""

    def check_groups(
        self, groups: list[Group], states: Mapping[Tensor, State], check: Callable[[Group, list[Tensor]], None]
    ) -> None:
        pass

    def factor(self, index: int) -> float:
        return 3.0

    def moves(self, plans: list[Plan]) -> list[Plan]:
        return [plan._replace(grads=[2.0 * grad for grad in plan.grads]) for plan in plans]


def group_of(*params: Tensor, **options: Any) -> Group:
    fresh = param_groups.fresh_counters(OPTIONS["momentum"], training=True)
    return {"params": list(params)} | OPTIONS | param_groups.PLAIN_AXES | fresh | options


def with_gradient(value: float = 4.0, grad: float | None = 1.0) -> Parameter:
    param = Parameter(torch.tensor([value]))
    param.grad = None if grad is None else torch.tensor([grad])
    return param


@torch.no_grad()
def step(stepper: Stepper, algorithm: Algorithm, groups: list[Group], states: dict[Tensor, State]) -> None:
    gathered = stepper.gather(algorithm, groups, states, lambda _: "the weight")
    stepper.count(stepper.run(algorithm, stepper.plan(algorithm, gathered, states, None, None), states, False), states)


def test_two_steps_by_hand() -> None:
    """z goes 4, 3.5, 3; x = 3.5 and then 3.25; y = (x + z) / 2."""
    param, stepper, states = with_gradient(), Stepper(), dict[Tensor, State]()
    groups = [group_of(param)]
    step(stepper, Plain(), groups, states)
    assert param.item() == 3.5
    assert states[param]["gap"].item() == 0.0
    step(stepper, Plain(), groups, states)
    assert param.item() == 3.125
    assert states[param]["gap"].item() == -0.25
    assert (groups[0]["step"], groups[0]["c"], states[param]["step"]) == (2, 0.5, 2)


def test_a_parameter_without_a_gradient_neither_moves_nor_counts() -> None:
    first, second, stepper, states = with_gradient(), with_gradient(grad=None), Stepper(), dict[Tensor, State]()
    groups = [group_of(first, second)]
    step(stepper, Plain(), groups, states)
    assert second.item() == 4.0
    assert second not in states
    second.grad = torch.tensor([1.0])
    step(stepper, Plain(), groups, states)
    assert (states[first]["step"], states[second]["step"]) == (2, 1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"lr": -1.0}, r"parameter group 1: lr = -1\.0 is outside"),
        ({"rho": 1.0}, r"parameter group 1: rho = 1\.0 is no option"),
        ({"momentum": 2.0}, r"parameter group 1: beta .* = 2\.0 is outside"),
    ],
)
def test_a_plan_that_is_refused_changes_nothing(change: dict[str, float], error: str) -> None:
    first, second, stepper, states = with_gradient(), with_gradient(), Stepper(), dict[Tensor, State]()
    groups = [group_of(first), group_of(second, **change)]
    before = copy.deepcopy([{**group, "params": []} for group in groups])
    with pytest.raises(ValueError, match=error):
        step(stepper, Plain(), groups, states)
    assert [{**group, "params": []} for group in groups] == before
    assert (first.item(), second.item(), states) == (4.0, 4.0, {})


def test_sparse_gradients_and_parameters_at_x_are_refused_by_name() -> None:
    param, stepper, states = with_gradient(), Stepper(), dict[Tensor, State]()
    groups = [group_of(param)]
    step(stepper, Plain(), groups, states)
    param.grad = torch.tensor([1.0]).to_sparse()
    with pytest.raises(RuntimeError, match="the gradient of the weight is sparse"):
        step(stepper, Plain(), groups, states)
    param.grad = torch.tensor([1.0])
    states[param]["kept"] = torch.tensor([0.0])
    with pytest.raises(RuntimeError, match="the weight holds the average x"):
        step(stepper, Plain(), groups, states)


def test_a_step_that_only_initialises_makes_the_buffers_and_counts_nothing() -> None:
    param, stepper, states = with_gradient(grad=0.0), Stepper(), dict[Tensor, State]()
    groups = [group_of(param, lr=0.0)]
    step(stepper, Plain(), groups, states)
    assert (groups[0]["step"], states[param]["step"]) == (0, 0)
    assert states[param]["y"].item() == 4.0


def test_parameters_of_one_group_may_have_different_rules() -> None:
    param, scalar, stepper = with_gradient(), Parameter(torch.tensor(4.0)), Stepper()
    scalar.grad = torch.tensor(1.0)
    step(stepper, TwoRules(), [group_of(param, scalar)], {})
    assert (param.item(), scalar.item()) == (3.5, 4.5)


def test_the_states_of_another_rule_are_refused() -> None:
    param, stepper = with_gradient(), Stepper()
    states: dict[Tensor, State] = {param: {"step": 1, "gap": torch.zeros(1), "exp_avg": torch.zeros(1)}}
    with pytest.raises(ValueError, match=r"has \['exp_avg', 'gap'\], but the options of the group ask for \['gap'\]"):
        step(stepper, Plain(), [group_of(param)], states)


def test_what_moves_z_in_place_of_the_rule_has_a_factor_and_gives_the_moves() -> None:
    param, stepper, algorithm = with_gradient(), Stepper(), Plain()
    algorithm._mover = Doubling()
    groups = [group_of(param)]
    step(stepper, algorithm, groups, {})
    assert groups[0]["effective_lr"] == 1.5
    assert param.item() == 4.0 - 1.5 * 2.0


def test_a_new_stepper_goes_on_from_the_states() -> None:
    param, stepper, states = with_gradient(), Stepper(), dict[Tensor, State]()
    groups = [group_of(param)]
    step(stepper, Plain(), groups, states)
    states[param] = {"step": 7, "gap": torch.tensor([2.0])}
    step(Stepper(), Plain(), groups, states)
    assert states[param]["step"] == 8
