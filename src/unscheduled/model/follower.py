"""An optimizer, as the models to which it is attached use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from unscheduled.model.attached_module import AverageReader
from unscheduled.model.batchnorm import RecentBatches


@dataclass(frozen=True, eq=False)
class Follower:
    """An optimizer, as the models to which it is attached use it."""

    optimizer: Any
    params: Callable[[], list[Tensor]]
    """Returns its parameters, except those that another optimizer has taken."""

    follow: Callable[[], None]
    """Switches the parameters to the mode of the attached models' flags."""

    averages: Callable[[], AverageReader]
    """Returns a function that returns the average x of a parameter, or None if the parameter needs none."""

    steps: Callable[[], int]
    """Returns the number of steps, or 0 if no step was made after a state was loaded."""

    before_load: Callable[[nn.Module, object], None]
    """Prepares for weights to be written into the parameters, given the first module of a call and the call."""

    after_load: Callable[[nn.Module, object], None]
    """Makes the written weights the new x, if this module was the first of the call."""

    end_load: Callable[[], None]
    """Notes that loading has ended, with or without success."""

    give_up: Callable[[set[Tensor], bool], None]
    """Gives parameters up to another optimizer: at x if the second argument is True, else as they are."""


@dataclass
class Notes:
    """The record that a model has of an attached optimizer."""

    steps: int
    recent: RecentBatches | None = None
    params: dict[Tensor, str] = field(default_factory=dict[Tensor, str])
    """The parameters of the optimizer that were in the model when it was last looked at, and their names there."""
