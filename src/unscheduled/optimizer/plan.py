"""The plan of a step of a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import State


class Plan(NamedTuple):
    """The next step of a group: its parameters with gradients, the numbers of the step, and the counters after it."""

    group: Group
    params: list[Tensor]
    grads: list[Tensor]
    contiguous: bool  # all gradients are
    states: list[State]
    seen: list[int]  # how many gradients each parameter has seen before; with capturable=True its state alone tells
    only_initialises: bool
    warm_lr: float = 0.0
    beta: float = 0.0  # that made the present y
    counters: Group = {}  # noqa: RUF012 (nobody writes to it)


def all_contiguous(grads: Sequence[Tensor]) -> bool:
    """Whether all are, so that a kernel need not look."""
    return all(map(Tensor.is_contiguous, grads))
