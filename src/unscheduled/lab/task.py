"""A task: the training problem of a race; and loading a task by its name or its path."""

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
    """A mistake of the user: the command prints its message, one line, and exits with code 2."""


@dataclass(frozen=True)
class OptimizerSettings:
    """The learning rates and options of a task for one optimizer class.

    Args:
        learning_rates: the grid with which tuning begins, ascending; all optimizers of a task have grids of one size.
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
    Random numbers come from torch's global generator, which the race seeds (in ``model``, ``loss`` and the layers), or
    from the generator that ``batches`` is given: then every contender starts from the same weights and sees the same
    batches. Every worker process imports the file, so load data in a function under ``functools.cache``. The model and
    the batches may be on any device: ``model`` and ``batches`` put them there.

    Args:
        summary: one line that names the model and the data.
        model: returns a newly initialised model.
        batches: given a generator, yields training batches without end. A batch may be any object that ``loss``
            takes; for a model with BatchNorm it is ``(inputs, targets)``, since the running statistics are
            re-estimated at the average x by calling the model on the inputs.
        loss: given the model and a batch, returns the training loss, a tensor of one number.
        metric: given the model in eval mode at the weights to evaluate, returns a number, or several by name, such
            as ``{"loss": 0.41, "accuracy": 0.87}``. The race compares the first number and reports the others. It is
            called under ``torch.no_grad()``.
        metric_name: the name of the first number, with its unit.
        steps: the budget, in optimizer steps, an integer >= 1.
        warmup_steps: steps of linear warmup of a run of ``steps`` steps. A run of another length, such as a
            scheduled run for an earlier horizon, warms up for the same share of its steps.
        optimizers: the ``OptimizerSettings`` by the name of the optimizer class (``AdamW``, ``AdamWScheduleFree``).
        lower_is_better: whether a lower first number is better; False for an accuracy.
        contenders: further contenders by name, beside those that every race knows.
        evaluations: how many times the longest run is evaluated, at steps in geometric progression, beside the
            evaluations at the horizons.
        seeds: the number of seeds, unless the user gives another.
        facts: returns facts about the data to record, such as its size and checksum.
        data: the names of the data sets that ``unscheduled data fetch`` downloads for the task.

    Raises:
        TypeError: if ``steps``, ``warmup_steps``, ``evaluations`` or ``seeds`` is no integer.
        ValueError: if a number is out of its range, or the grids of learning rates differ in size.

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
        """The file of tuned learning rates beside the task, which the library ships for its own tasks."""
        return self.path.with_suffix(".tuning.json")


def built_in_tasks() -> dict[str, Path]:
    """The files of the library's own tasks by name: those in ``lab/tasks`` whose name begins with no underscore."""
    files = sorted(BUILT_IN_FOLDER.glob("[!_]*.py"))
    return {file.stem.replace("_", "-"): file for file in files}


@functools.cache
def load_task(reference: str) -> LoadedTask:
    """The task with this name, or the ``task`` that the file at this path defines.

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
    """The SHA-256 of a task's file and of the files in its folder that it imports, directly or through others."""
    digest = hashlib.sha256()
    for file in [path, *sorted(imported_neighbours(path) - {path})]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def imported_neighbours(path: Path) -> set[Path]:
    """The files in the folder of a Python file that it imports, directly or through others, also within functions."""
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
    """The dotted names of all imports in a Python file; those of relative imports begin with a dot."""
    names = set[str]()
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # raised again when the file is imported
        return names
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def _import_file(path: Path) -> ModuleType:
    """Import a file as a module; it can import the files in its folder, as a script can."""
    module_name = "unscheduled_task_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise RaceError(f"{path.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # it stays there, since functions may import when they are called
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise RaceError(f"{path.name} failed to import: {describe_error(error, path)}") from error
    return module


def describe_error(error: BaseException, path: Path, task: Task | None = None) -> str:
    """An exception in one line: its type, its message and the last line of the task's file in its traceback.

    If the traceback has no line of the file, it is the first line of a function of the task: of the function that the
    message names first, as in "`loss` returned ...", or of ``model`` if a layer failed.
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
