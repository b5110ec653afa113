"""A task: everything a race needs to know about a training problem, and how to find one by name or by path."""

import ast
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

from unscheduled.lab.contender import Contender

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
        loss: given the model and a batch, the training loss, a scalar.
        metric: given the model, in eval mode and with the weights to be judged, a number, or several by name, such
            as ``{"loss": 0.41, "accuracy": 0.87}``. The first is compared, the others are reported beside it. It is
            called without gradients.
        metric_name: what the first number is, with its unit.
        steps: the budget, in optimizer steps, an integer >= 1.
        warmup_steps: steps of linear warmup of a run of ``steps`` steps. A run of another length, such as a
            scheduled run for an earlier horizon, warms up for the same share of its steps.
        optimizers: for each optimizer class name (``AdamW``, ``AdamWScheduleFree``), its ``OptimizerSettings``.
        lower_is_better: the direction of the first number; False for an accuracy.
        contenders: contenders of the task's own, by name, beside those that every race knows.
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
    metric: Callable[[nn.Module], float | Mapping[str, float]]
    metric_name: str
    steps: int
    warmup_steps: int
    optimizers: Mapping[str, OptimizerSettings]
    lower_is_better: bool = True
    contenders: Mapping[str, Contender] = field(default_factory=dict[str, Contender])
    evaluations: int = 24
    seeds: int = 3
    facts: Callable[[], Mapping[str, Any]] = dict[str, Any]
    data: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "warmup_steps", "evaluations", "seeds"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"{name} = {getattr(self, name)!r}: want an integer")
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


@dataclass(frozen=True, eq=False)
class LoadedTask:
    """A task with its name and the file it came from."""

    reference: str
    name: str
    path: Path
    source_sha256: str
    task: Task

    @property
    def tuning_file(self) -> Path:
        """The tuned learning rates that are shipped beside the task."""
        return self.path.with_suffix(".tuning.json")


def built_in_tasks() -> dict[str, Path]:
    """The tasks that come with the library: every file in ``lab/tasks`` whose name begins with no underscore."""
    files = sorted(BUILT_IN_FOLDER.glob("[!_]*.py"))
    return {file.stem.replace("_", "-"): file for file in files}


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
        reference, name = str(path), path.stem.replace("_", "-")
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
    return LoadedTask(reference, name, path, source_sha256(path), task)


def source_sha256(path: Path) -> str:
    """The checksum of a task's file, and of the files in its folder that it imports, directly or through others."""
    digest = hashlib.sha256()
    for file in [path, *sorted(imported_neighbours(path) - {path})]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def imported_neighbours(path: Path) -> set[Path]:
    """The files in the folder of a Python file that it imports, also in its functions, and those that they import."""
    folder, found, unread = path.parent, set[Path](), [path]
    while unread:
        for name in imported_names(unread.pop()):
            own_name = name.removeprefix(f"unscheduled.lab.{folder.name}.").lstrip(".")
            if not own_name:
                continue
            module = folder.joinpath(*own_name.split("."))
            for file in (module.with_suffix(".py"), module / "__init__.py"):
                if file.is_file() and file not in found:
                    found.add(file)
                    unread.append(file)
    return found


def imported_names(path: Path) -> set[str]:
    """The dotted names that a Python file may import, with a dot before those that are relative."""
    names = set[str]()
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # told when it is imported
        return names
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


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


def describe_error(error: BaseException, path: Path, task: Task | None = None) -> str:
    """An exception in one line: its type, its message and the last line of the task's file on its way.

    If there is no such line, it is the one where a function of the task begins: the function that the message begins
    with, as in "`loss` returned ...", or ``model`` if a layer failed.
    """
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    if not lines:
        named = re.match(r"`?(\w+)`? ", str(error))
        names = [named[1]] if named is not None else []
        names += ["model" for frame in frames if Path(frame.filename).parts[-4:-1] == ("torch", "nn", "modules")]
        codes = [getattr(getattr(task, name, None), "__code__", None) for name in names]
        lines = [code.co_firstlineno for code in codes if code is not None and Path(code.co_filename) == path]
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{message} ({path.name}, line {lines[-1]})" if lines else message
