"""A task: everything a race needs to know about a training problem, and how to find one by name or by path."""

import functools
import hashlib
import importlib.util
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

BUILT_IN_FOLDER = Path(__file__).parent / "tasks"


class RaceError(Exception):
    """A mistake of the user, told in one line: the command prints it and exits with 2."""


@dataclass(frozen=True)
class OptimizerSettings:
    """What a task asks of one optimizer class.

    Args:
        learning_rates: the grid that tuning searches, ascending; every optimizer of a task has one of the same size.
        options: the other keyword arguments of the optimizer, such as ``betas`` and ``weight_decay``.

    Example:
        >>> OptimizerSettings([0.001, 0.003, 0.01], {"weight_decay": 0.1}).options
        {'weight_decay': 0.1}
    """

    learning_rates: Sequence[float]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Task:
    """A training problem: model, data, loss, metric and budget.

    A task is one Python file that defines ``task = Task(...)``; ``unscheduled race path/to/file.py`` races on it.
    Whatever is random must come from torch's global generator, which the race seeds (in ``model``, ``loss`` and the
    layers), or from the generator given (in ``batches``): then every contender starts from the same weights and sees
    the same batches. The file is loaded once in every worker process, so load data in a function under
    ``functools.cache``. Put the model and the batches on the device of your choice there.

    Args:
        summary: one line that says what is trained on what.
        model: makes the model, freshly initialised.
        batches: given a generator, yields training batches without end. A batch may be anything that ``loss``
            takes; for a model with BatchNorm it is ``(inputs, targets)``, because the running statistics are
            re-estimated at the averaged weights by calling the model on the inputs.
        loss: given the model and a batch, the training loss.
        metric: given the model, in eval mode and with the weights to be judged, a number; lower is better. It is
            called without gradients.
        metric_name: what the number is, with its unit.
        steps: the budget, in optimizer steps.
        warmup_steps: steps of linear warmup, the same for every contender. With another number of steps than
            ``steps`` it is scaled in proportion; a schedule that ends before twice the warmup warms up over the
            first half of its steps.
        optimizers: for each optimizer class name (``AdamW``, ``AdamWScheduleFree``), its ``OptimizerSettings``.
        evaluations: how many times the longest run is evaluated besides at the horizons, at steps in geometric
            progression.
        seeds: how many seeds are raced unless the user asks for another number.
        facts: what to record about the data, such as its size and checksum.
        data: the names of the data sets that ``unscheduled data fetch`` gets for the task.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> def batches(generator):
        ...     while True:
        ...         inputs = torch.randn(8, 2, generator=generator)
        ...         yield inputs, inputs.sum(1, keepdim=True)
        >>> def loss(model, batch):
        ...     return nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> def metric(model):
        ...     return loss(model, next(batches(torch.Generator().manual_seed(12345)))).item()
        >>> task = Task(
        ...     summary="a linear model learns to add",
        ...     model=lambda: nn.Linear(2, 1),
        ...     batches=batches,
        ...     loss=loss,
        ...     metric=metric,
        ...     metric_name="mean squared error",
        ...     steps=800,
        ...     warmup_steps=40,
        ...     optimizers={
        ...         "AdamW": OptimizerSettings([0.01, 0.03, 0.1, 0.3, 1.0], {"weight_decay": 0.0}),
        ...         "AdamWScheduleFree": OptimizerSettings([0.01, 0.03, 0.1, 0.3, 1.0]),
        ...     },
        ... )
    """

    summary: str
    model: Callable[[], nn.Module]
    batches: Callable[[torch.Generator], Iterator[Any]]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    metric: Callable[[nn.Module], float]
    metric_name: str
    steps: int
    warmup_steps: int
    optimizers: Mapping[str, OptimizerSettings]
    evaluations: int = 24
    seeds: int = 3
    facts: Callable[[], Mapping[str, Any]] = dict[str, Any]
    data: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"steps = {self.steps}, warmup_steps = {self.warmup_steps}: want 0 <= warmup_steps < steps"
            )
        if self.evaluations < 1 or self.seeds < 1:
            raise ValueError(f"evaluations = {self.evaluations}, seeds = {self.seeds}: both must be at least 1")
        for name, settings in self.optimizers.items():
            rates = list(settings.learning_rates)
            if len(set(rates)) < len(rates) or not all(0.0 < rate < math.inf for rate in rates):
                raise ValueError(f"learning_rates of {name} = {rates}: want different numbers above 0")
        sizes = {name: len(settings.learning_rates) for name, settings in self.optimizers.items()}
        if not sizes or len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise ValueError(f"learning_rates: every optimizer needs a grid of the same size, got {sizes}")


@dataclass(frozen=True)
class LoadedTask:
    """A task with its name and the file it came from."""

    reference: str
    name: str
    path: Path
    source_sha256: str
    task: Task

    def tuning_files(self) -> list[Path]:
        """The tuned learning rates shipped beside the task: of the default race, and of the whole family."""
        return [self.path.with_suffix(suffix) for suffix in (".tuning.json", ".family.tuning.json")]


def built_in_tasks() -> dict[str, Path]:
    """The tasks that come with the library: every file in ``lab/tasks`` is one."""
    files = sorted(BUILT_IN_FOLDER.glob("*.py"))
    return {file.stem.replace("_", "-"): file for file in files if file.stem != "__init__"}


@functools.cache
def load_task(reference: str) -> LoadedTask:
    """The task with this name, or the one that the file at this path defines as ``task``.

    Raises:
        RaceError: if there is no such task or file, or the file fails to import or defines no task.
    """
    built_in = built_in_tasks()
    if reference in built_in:
        name, path = reference, built_in[reference]
    elif reference.endswith(".py") or Path(reference).exists():
        path = Path(reference).absolute()
        name = path.stem.replace("_", "-")
        if not path.is_file():
            raise RaceError(f"no such task file: {reference}")
    else:
        raise RaceError(
            f"unknown task {reference!r}: the tasks are {', '.join(built_in)}, or give the path of a file of your own"
        )
    module = _import_file(path)
    task = getattr(module, "task", None)
    if not isinstance(task, Task):
        raise RaceError(f"{reference} defines no `task = Task(...)` (from unscheduled.lab.task import Task)")
    return LoadedTask(reference, name, path, hashlib.sha256(path.read_bytes()).hexdigest(), task)


def _import_file(path: Path) -> ModuleType:
    """Run the file as a module, which may import its neighbours like a script."""
    module_name = "unscheduled_task_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise RaceError(f"{path.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # and left there, for functions that import when they are called
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise RaceError(f"{path.name} failed to import: {describe_error(error, path)}") from error
    return module


def describe_error(error: BaseException, path: Path) -> str:
    """An exception in one line: its type, its message and the last line of the task's file on its way."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{message} ({path.name}, line {lines[-1]})" if lines else message
