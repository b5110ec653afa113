"""A contender: a way to train that a race compares; and the two usual kinds of contender."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol, cast

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from unscheduled import ScheduleFreeOptimizer
from unscheduled.lab.schedules import Decay, warmup_then

Options = Mapping[str, Any]
Prepare = Callable[[nn.Module, float, Options, int, int], "Training"]
Make = Callable[[nn.Module, float, Options], Optimizer]
MakeScheduleFree = Callable[[nn.Module, float, Options, int], ScheduleFreeOptimizer]


class Stepped(Protocol):
    """A learning-rate schedule, or an average of the weights."""

    def step(self) -> None: ...


@dataclass(frozen=True)
class Training:
    """The optimizer and the schedule of one run.

    Args:
        optimizer: stepped once a batch.
        schedule: stepped after the optimizer, if there is one.
        averaged: gives the model at the average, for an evaluation, where the optimizer is none of this project's.
    """

    optimizer: Optimizer
    schedule: Stepped | None = None
    averaged: Callable[[], AbstractContextManager[nn.Module]] | None = None

    def step(self, loss: Tensor) -> None:
        """Make one step with the gradients of this loss."""
        if isinstance(self.optimizer, ScheduleFreeOptimizer):
            self.optimizer.step(loss=loss)
        else:
            self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()

    def judged(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """The model as it is evaluated."""
        return nullcontext(model) if self.averaged is None else self.averaged()


@dataclass(frozen=True)
class Contender:
    """A way to train that a race compares.

    A task file adds its own contenders with ``Task(contenders={"name": Contender(...)})``; `scheduled` and
    `schedule_free` make the two usual kinds.

    Args:
        theory: one line that describes it.
        settings_of: the key of ``Task.optimizers`` that has its learning rates and options.
        anytime: whether one run is compared at every horizon; otherwise each horizon has its own run.
        prepare: given the model, the learning rate, the other options, the steps of warmup and the horizon, returns
            the ``Training``.
        lr: the learning rate of a contender that is not tuned; None if it is tuned.
        library: the name of the package that has its optimizer, if that is neither this project nor torch.

    Example:
        >>> import torch
        >>> from unscheduled.lab.schedules import cosine
        >>> def rmsprop(model, lr, options):
        ...     return torch.optim.RMSprop(model.parameters(), lr=lr, alpha=0.99)
        >>> contender = scheduled("RMSprop, linear warmup, then cosine decay", "AdamW", rmsprop, cosine)
        >>> contender.anytime
        False
    """

    theory: str
    settings_of: str
    anytime: bool
    prepare: Prepare
    lr: float | None = None
    library: str | None = None

    @property
    def library_version(self) -> str | None:
        """The version of that package, on which its runs depend.

        Raises:
            PackageNotFoundError: if it is not installed.
        """
        return None if self.library is None else version(self.library)


def scheduled(theory: str, settings_of: str, make: Make, decay: Decay) -> Contender:
    """A contender with linear warmup and a decay that ends at the horizon: it has a run for each horizon.

    Args:
        theory: one line that describes it.
        settings_of: the key of ``Task.optimizers`` that has its learning rates and options.
        make: given the model, the peak learning rate and the task's options, returns the optimizer.
        decay: the share of the peak rate, given the progress from 0 (end of the warmup) to 1 (horizon).
    """

    def prepare(model: nn.Module, lr: float, options: Options, warmup_steps: int, horizon: int) -> Training:
        optimizer = make(model, lr, options)
        return Training(optimizer, LambdaLR(optimizer, warmup_then(decay, warmup_steps, horizon)))

    return Contender(theory, settings_of, False, prepare)


def schedule_free(
    theory: str, make: MakeScheduleFree, settings_of: str = "AdamWScheduleFree", lr: float | None = None
) -> Contender:
    """A contender with a schedule-free optimizer, evaluated at the average x: it has one run for all horizons.

    Args:
        theory: one line that describes it.
        make: given the model, the learning rate, the task's options and the steps of warmup, returns the optimizer.
        settings_of: the key of ``Task.optimizers`` that has its learning rates and options.
        lr: the learning rate of a contender that is not tuned; None if it is tuned.
    """

    def prepare(model: nn.Module, lr: float, options: Options, warmup_steps: int, horizon: int) -> Training:
        return Training(make(model, lr, options, warmup_steps).attach(model))

    return Contender(theory, settings_of, True, prepare, lr)


def with_beta(beta: float, options: Options) -> dict[str, Any]:
    """The options with this interpolation beta as ``betas[0]``."""
    return {**options, "betas": (beta, options["betas"][1] if "betas" in options else 0.999)}


def of(
    cls: type[ScheduleFreeOptimizer],
    beta: float | None = None,
    params: Callable[[nn.Module], Any] = nn.Module.parameters,
    **choices: Any,
) -> MakeScheduleFree:
    """A function that makes an optimizer of this class; ``beta`` and ``choices`` replace the task's options."""

    def make(model: nn.Module, lr: float, options: Options, warmup_steps: int) -> ScheduleFreeOptimizer:
        own = options if beta is None else with_beta(beta, options)
        return cast(Any, cls)(params(model), lr=lr, **{"warmup_steps": warmup_steps, **own, **choices})

    return make
