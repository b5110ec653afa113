"""What a plan is made of: whether a step only makes the buffers, the rules of a group, and the step size."""
# What an algorithm states is for the optimizer's parts alone, so its names begin with an underscore:
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor

from unscheduled.formulas.rule import Rule
from unscheduled.formulas.step_size import ConstantStep, DistanceStep, PolyakSums
from unscheduled.optimizer import collectives
from unscheduled.optimizer.algorithm import Algorithm
from unscheduled.optimizer.distance import distance_factor
from unscheduled.optimizer.plan import Plan
from unscheduled.optimizer.polyak import Loss, Number, Part, polyak_step
from unscheduled.state.buffers import wide
from unscheduled.state.param_groups import POLYAK, Group
from unscheduled.state.parameter import State


def was_stepped(states: Mapping[Tensor, State]) -> bool:
    """Whether a step was made since the buffers were made or loaded, which the states tell without a device."""
    return any(state and "y" not in state for state in states.values())


def only_initialises(group: Group, capturable: bool, stepped: bool) -> bool:
    """Whether a step makes the buffers alone: a first step, all zero, at lr = 0, as torch's DCP makes it.

    Args:
        group: of parameters, perhaps with gradients.
        capturable: whether its counters are on the device.
        stepped: whether a step was made since, see :func:`was_stepped`.
    """
    if capturable and (_is_positive(group["lr"]) or stepped):
        return False  # which is known without waiting for the device
    gradients = (param.grad for param in cast(list[Tensor], group["params"]) if param.grad is not None)
    return group["step"] == 0 and float(group["lr"]) == 0.0 and not any(map(_any_of_whole, gradients))


def _is_positive(lr: float | Tensor) -> bool:
    """Whether a learning rate is known to be, without asking a device."""
    return not isinstance(lr, Tensor) and lr > 0.0


def _any_of_whole(grad: Tensor) -> bool:
    """Whether any number of a tensor, which may be sharded, is not 0: the same answer in all processes."""
    return bool(collectives.whole(grad.any()))


def divided(algorithm: Algorithm, plan: Plan) -> list[tuple[Rule, Plan]]:
    """The rules of a group, each with the part of the plan that it is for."""
    if not algorithm._rules_differ:
        return [(algorithm._rule(plan.group), plan)]
    rules = [algorithm._rule(plan.group, param) for param in plan.params]
    parts: list[tuple[Rule, Plan]] = []
    for rule in dict.fromkeys(rules):
        here = [position for position, its_rule in enumerate(rules) if its_rule is rule]
        parts.append(
            (
                rule,
                plan._replace(
                    params=[plan.params[position] for position in here],
                    grads=[plan.grads[position] for position in here],
                    states=[plan.states[position] for position in here],
                    seen=[plan.seen[position] for position in here],
                ),
            )
        )
    return parts


def step_factor(
    algorithm: Algorithm,
    plans: list[Plan],
    states: Mapping[Tensor, State],
    loss: Loss | None,
    grad_norm: Number | None,
) -> tuple[float, list[Group]]:
    """The step size's factor on every learning rate, and what each group keeps of it.

    Raises:
        ValueError: if the groups have different step sizes, or the step cannot be computed.
    """
    first = plans[0].group
    step_size = first["step_size"]
    if any(plan.group["step_size"] is not step_size and plan.group["step_size"] != step_size for plan in plans):
        raise ValueError(f"step_size = {step_size} in group 0, but another in some group: give all the same")
    if isinstance(step_size, ConstantStep) or all(plan.only_initialises for plan in plans):
        return 1.0, [{}] * len(plans)
    algorithm._check_step_size(first)
    if isinstance(step_size, DistanceStep):
        factor, estimates = distance_factor(step_size, algorithm, plans, states)
        return factor, [estimates] * len(plans)
    parts = [
        Part(
            plan.grads,
            [wide(state, "gap") if state else None for state in plan.states],
            plan.group["beta"],
            size,
        )
        for plan in plans
        if plan.grads and (size := algorithm._rule(plan.group).size) is not None
    ]
    before = PolyakSums(*(first.get(name, 0.0) for name in POLYAK))
    factor, sums = polyak_step(step_size, parts, algorithm._rule(first).degree, loss, grad_norm, before)
    return factor, [dict(zip(POLYAK, sums, strict=True))] * len(plans)
