"""An optimizer, as the models that it is attached to know it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from unscheduled.model.attached_module import AverageReader
from unscheduled.model.batchnorm import RecentBatches


@dataclass(frozen=True, eq=False)
class Follower:
    """An optimizer, as the models that it is attached to know it."""

    optimizer: Any
    params: Callable[[], list[Tensor]]
    """Its parameters, but for those that another optimizer has taken."""

    follow: Callable[[], None]
    """Puts into the parameters what the flags of the attached models ask for."""

    averages: Callable[[], AverageReader]
    """Gives a function that gives the average x of a parameter, each time the same; None if it needs none."""

    steps: Callable[[], int]
    """How many steps were made, or 0 if none was since a state was loaded."""

    before_load: Callable[[nn.Module, object], None]
    """Expects weights to be written into the parameters: the first module of a call, and the call."""

    after_load: Callable[[nn.Module, object], None]
    """Takes the weights that were written, if this module was the first of the call."""

    end_load: Callable[[], None]
    """Notes that loading has ended, in whatever way."""

    give_up: Callable[[set[Tensor], bool], None]
    """Leaves parameters to another optimizer: at x if the second argument is True, else as they are."""


@dataclass
class Entry:
    """The notes of a model on an optimizer that is attached to it."""

    steps: int
    recent: RecentBatches | None = None
    params: dict[Tensor, str] = field(default_factory=dict[Tensor, str])
    """The parameters of the optimizer that were in the model when it was last looked at, and their names there."""
