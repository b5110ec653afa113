"""Checks of a group, and of the memory of all parameters, before anything is changed."""
# What an algorithm states is for the optimizer's parts alone, so its names begin with an underscore:
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from unscheduled import kernels
from unscheduled.kernels import Implementation
from unscheduled.optimizer import capture
from unscheduled.optimizer.algorithm import Algorithm
from unscheduled.optimizer.counters import next_beta, next_counters
from unscheduled.state import memory, param_groups
from unscheduled.state.buffers import check_precision
from unscheduled.state.param_groups import Group


def check_memory(own: list[Tensor], new: Sequence[Tensor], name: Callable[[Tensor], str]) -> None:
    """Raise ValueError if two parameters share memory.

    Args:
        own: the parameters of the optimizer.
        new: those to add.
        name: returns the name of one of the optimizer's own for the error.
    """
    every = [*own, *new]
    found = memory.overlapping(every)
    if found is not None:
        first, second = (
            name(every[at]) if at < len(own) else f"one to add (shape {tuple(every[at].shape)})" for at in found
        )
        raise ValueError(
            f"{first} and {second} share memory, so that each would be moved twice and have no average of its own: "
            "share the Parameter itself, as in head.weight = embedding.weight, and give it once"
        )


def check_group(
    algorithm: Algorithm, group: Group, params: Sequence[Tensor], chosen: tuple[Implementation, str]
) -> None:
    """Raise ValueError if an option of a group is out of its range, or the group cannot have these parameters.

    Args:
        algorithm: whose group it is.
        group: its options.
        params: its parameters, or some that are new in it.
        chosen: the implementation that the constructor's arguments select, and the argument that selects it.
    """
    param_groups.check(group, algorithm._written_as)
    algorithm._check_rule(group)
    rule = algorithm._rule(group)
    rule.ordered(algorithm._rule_scalars(group, rule, 1))
    implementation, written = chosen
    written = written if algorithm.implementation == implementation else ""
    kernels.check(algorithm.implementation, rule, params, written)
    algorithm._check_step_size(group)
    check_precision(algorithm.state_precision, params, rule.compact is not None)
    _check_beta(algorithm, group)
    if algorithm.capturable:
        kernels.check_capturable(algorithm.implementation, params, written)
        _check_capturable(algorithm, group, params)


def _check_beta(algorithm: Algorithm, group: Group) -> None:
    """Raise ValueError if the interpolation of a group does not take its beta."""
    try:
        next_beta(algorithm, group, 0)
    except ValueError as error:
        given = [f"{name} = {group[name]}" for name in ("momentum", "betas", "interpolation") if name in group]
        raise ValueError(f"{', '.join(given)}: {error}") from None


def _check_capturable(algorithm: Algorithm, group: Group, params: Sequence[Tensor]) -> None:
    """Raise ValueError if a step of a group cannot be captured."""
    if algorithm.state_precision == "compact":
        raise ValueError("capturable = True, state_precision = 'compact' exclude each other: use 'float32'")
    capture.check(group, params)
    capture.refuse_branches(group, lambda group, factor: next_counters(algorithm, group, factor))
