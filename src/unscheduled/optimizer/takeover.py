"""Optimizers that make a step on parameters that another one is attached to: that one must not decide what is saved."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from unscheduled.kernels import untraced
from unscheduled.model import attaching
from unscheduled.model.attachment import Clock
from unscheduled.state.param_groups import params_of

CALLER = 5
"""How many calls lie between the warning of a step and the line that made the step."""


class Watch:
    """Warns when an optimizer that is not schedule-free moves the parameters of one that is attached."""

    def __init__(self) -> None:
        self._time = 0
        self._seen = weakref.WeakKeyDictionary[torch.optim.Optimizer, int]()  # how many groups each had
        self.is_base = 0
        """How many steps of a wrapper are being made, whose base is to move the parameters."""

    def look(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the parameters of an optimizer at its first step, or its first after an optimizer was attached."""
        if self._time != Clock.time:
            self._time = Clock.time
            self._seen.clear()
        if self._seen.get(optimizer) == len(optimizer.param_groups):
            return
        self._seen[optimizer] = len(optimizer.param_groups)
        if self.is_base or hasattr(optimizer, "averaged_parameters"):
            return
        params = set(params_of(optimizer.param_groups))
        for other in attaching.owners_of(params):
            package, name = type(optimizer).__module__.partition(".")[0], type(optimizer).__name__
            its = type(other.optimizer).__name__
            warnings.warn(
                f"{package}'s {name} moves parameters that {its} is attached to, which goes on to put its y and x into "
                f"them: call eval() and detach() of {its} before {name} takes over",
                stacklevel=6,
            )


watching = Watch()


@untraced
def _look_outside_the_graph(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """The hook before the step of any optimizer, which is not to be compiled with it."""
    watching.look(optimizer)


@functools.cache
def watch() -> None:
    """Look at every optimizer that makes a step from now on."""
    register_optimizer_step_pre_hook(_look_outside_the_graph)


@contextmanager
def of_base() -> Generator[None, None, None]:
    """Within it the optimizer that makes a step is the base of a wrapper."""
    watching.is_base += 1
    try:
        yield
    finally:
        watching.is_base -= 1


def message(optimizer: object, other: object) -> str:
    """The warning that a schedule-free optimizer takes parameters of another."""
    name, its = type(optimizer).__name__, type(other).__name__
    return (
        f"{name} trains parameters that another {its} is attached to, which is detached from them now: call attach() "
        f"of the {name}, so that the model evaluates and saves its average, or detach() of the {its} before"
    )
