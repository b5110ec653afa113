"""The counters of a group after a step: how far z moves, with which weight it enters x, and the beta of the new y."""
# What an algorithm states is for the optimizer's parts alone, so its names begin with an underscore:
# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from unscheduled.formulas.scalar_math import maximum, where
from unscheduled.formulas.validation import require_within
from unscheduled.optimizer.algorithm import Algorithm
from unscheduled.state import param_groups
from unscheduled.state.param_groups import Group


def next_beta(algorithm: Algorithm, group: Group, step: int) -> float:
    """The beta of the y that a step forms.

    Raises:
        ValueError: if it is out of its range.
    """
    beta: Any = group["interpolation"](algorithm._beta(group), step)
    if not isinstance(beta, Tensor) and not 0.0 <= beta <= 1.0:
        require_within("[0, 1]", f"beta of {group['interpolation']}", beta, "it has to stay between z and x")
    return cast(float, beta)


def next_counters(algorithm: Algorithm, group: Group, factor: float) -> tuple[float, Group]:
    """The learning rate of the next step, after warmup, and the counters after that step.

    Args:
        algorithm: whose step it is.
        group: its options, and its counters before the step.
        factor: on the learning rate, as of a Polyak step.

    Raises:
        ValueError: if the learning rate, the averaging weight or beta is out of its range.
    """
    step = group["step"] + 1
    warm_lr = param_groups.warm_lr(group, step) * factor
    effective_lr = warm_lr * algorithm._lr_factor(group, step)
    counters: Group = {
        "step": step,
        "c": 0.0,
        "effective_lr": effective_lr,
        "averaging_state": group["averaging_state"],
        "weight_sum": group["weight_sum"],
        "lr_max": group["lr_max"],
        "beta": group["beta"],
    }
    moves = effective_lr > 0.0  # else z stays, and so do x and y
    if moves is not False:
        lr_max = maximum(group["lr_max"], effective_lr)
        others: Group = {"beta": next_beta(algorithm, group, step), "lr_max": lr_max}
        averages = param_groups.averages(group["averaging_state"])
        if averages is not False:
            others |= _where(averages, _counters_of_averaging(group, step, effective_lr, lr_max), counters)
        counters |= _where(moves, others, counters)
    return warm_lr, counters


def _counters_of_averaging(group: Group, step: int, lr: float, lr_max: float) -> Group:
    """c, and the counters of the averaging after a step that enters the average."""
    c: Any
    c, weight_sum = group["averaging"](step - group["averaging_start"], lr, lr_max, group["weight_sum"])
    if not isinstance(c, Tensor) and not 0.0 <= c <= 1.0:  # else no time for the words
        require_within("[0, 1]", f"c of {group['averaging']}", c, "it is the weight of z in a mean")
    c, averaging_state = param_groups.next_averaging(group["averaging_state"], cast(float, c))
    return {"c": c, "weight_sum": weight_sum, "averaging_state": averaging_state}


def _where(condition: bool | Tensor, some: Group, others: Group) -> Group:
    """Some counters where a condition holds, else the others of the same names."""
    if condition is True:
        return some
    return {name: where(condition, number, others[name]) for name, number in some.items()}
