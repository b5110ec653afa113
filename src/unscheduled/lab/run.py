"""One training run of a race: from seeded weights to a dictionary of numbers."""
# torch leaves some of its arguments without types:
# pyright: reportUnknownMemberType=false

import copy
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from unscheduled.lab.contender import Contender
from unscheduled.lab.contenders import CONTENDERS
from unscheduled.lab.task import Task

BATCH_NORM_BATCHES = 20
BATCH_NORM_SEED = 2**31 - 1  # a seed that no run has
BLOWN_UP = 2.0
"""A run has diverged if its metric is above this many times its initial value (where lower is better)."""
COUNTED = ("lr", "initial_lr", "params", "param_names")
"""The entries of a parameter group that ``described`` leaves out: reported elsewhere, or no options."""


@dataclass(frozen=True)
class RunSettings:
    """Everything that one run depends on, except the task's file, its data, the code and the versions.

    Args:
        contender: the name of the contender.
        lr: the learning rate at the end of the warmup.
        options: the other keyword arguments of the optimizer.
        warmup_steps: steps of linear warmup.
        horizon: the length of the run in steps.
        evaluate_at: the steps after which the model is evaluated, ascending.
        seed: the seed of the initial weights, the batches and dropout.
        batch_norm: whether an evaluation re-estimates BatchNorm's running statistics at the evaluated weights.
    """

    contender: str
    lr: float
    options: dict[str, Any]
    warmup_steps: int
    horizon: int
    evaluate_at: tuple[int, ...]
    seed: int
    batch_norm: bool = True


def known_contenders(task: Task) -> dict[str, Contender]:
    """All contenders by name: those that every race knows, and those of the task."""
    return {**CONTENDERS, **task.contenders}


def train(task: Task, settings: RunSettings, report: Callable[[int], None]) -> dict[str, Any]:
    """Train a model once, evaluate it at the steps of the settings, and return the numbers.

    Args:
        task: the task.
        settings: the settings of the run.
        report: called after every step with the number of steps made.

    Returns:
        The settings; ``optimizer``, the class and the options of the optimizer; ``initial``, the metric before
        training; ``curve``, a list of [step, metric]; ``others``, the other numbers of the metric at these steps, by
        name; ``diverged_at``, the step at which the loss, a gradient or the metric was not finite and the run ended, or
        the evaluation from which on the metric stayed above twice its initial value, or None; the checksums of the
        initial weights and of the first batch; ``seconds``, the time of the run, and ``seconds_of_steps``.

    Raises:
        TypeError: if the loss is no tensor of one number.
        ValueError: if the batches end too early, or the metric returns no number.
    """
    contender = known_contenders(task)[settings.contender]
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    model = task.model()
    initial_weights = checksum(model.state_dict().values())
    initial = first_of(evaluate(task, model, settings.batch_norm))
    training = contender.prepare(model, settings.lr, settings.options, settings.warmup_steps, settings.horizon)
    batches = task.batches(torch.Generator().manual_seed(settings.seed))
    first_batch = next(batches)
    first_batch_checksum = checksum(tensors_in(first_batch))

    curve: list[tuple[int, float]] = []
    others: dict[str, list[float | None]] = {}
    diverged_at: int | None = None
    step, seconds_of_steps = 0, 0.0
    torch.manual_seed(settings.seed)
    for step, batch in enumerate(itertools.islice(itertools.chain([first_batch], batches), settings.horizon), start=1):
        step_started = time.perf_counter()
        loss = task.loss(model, batch)
        check_loss(loss)
        finite = math.isfinite(loss.item())
        if finite:
            training.optimizer.zero_grad()
            loss.backward()
            finite = gradients_are_finite(model)
        if finite:
            training.step(loss)
        seconds_of_steps += time.perf_counter() - step_started
        if finite and step in settings.evaluate_at:
            with training.judged(model) as judged:
                values = evaluate(task, judged, settings.batch_norm)
            finite = math.isfinite(first_of(values))
            if finite:
                curve.append((step, first_of(values)))
                for name, value in list(values.items())[1:]:
                    others.setdefault(name, []).append(value if math.isfinite(value) else None)
        if not finite:
            diverged_at = step
            break
        report(step)
    if step < settings.horizon and diverged_at is None:
        raise ValueError(f"batches ended after {step} of {settings.horizon} steps; they must be endless")
    if diverged_at is None and task.lower_is_better:
        diverged_at = blown_up_at(curve, initial)
    return {
        **asdict(settings),
        "optimizer": described(training.optimizer),
        "initial": initial if math.isfinite(initial) else None,
        "curve": curve,
        "others": others,
        "diverged_at": diverged_at,
        "initial_weights_sha256": initial_weights,
        "first_batch_sha256": first_batch_checksum,
        "seconds": time.perf_counter() - started,
        "seconds_of_steps": seconds_of_steps,
    }


def check_loss(loss: object) -> None:
    """Raise TypeError unless the loss is a tensor of one number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise TypeError(f"`loss` returned {found}: want a tensor of one number, such as the mean over the batch")


def blown_up_at(curve: Sequence[tuple[int, float]], initial: float) -> int | None:
    """The step of the evaluation from which on all values are blown up; None if the last value is not."""
    last = [step for step, value in curve if not is_blown_up(value, initial)]
    since = [step for step, _ in curve if step > (last[-1] if last else 0)]
    return since[0] if since else None


def is_blown_up(value: float, initial: float | None) -> bool:
    """Whether a value of a metric, of which lower is better, is above twice its initial value."""
    return initial is not None and 0.0 < initial < math.inf and value > BLOWN_UP * initial


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether all gradients are finite; some optimizers refuse others."""
    grads = [param.grad for param in model.parameters() if param.grad is not None]
    return all(bool(grad.isfinite().all()) for grad in map(values_of, grads))


def values_of(tensor: Tensor) -> Tensor:
    """The stored values of a sparse tensor, or the tensor itself."""
    return tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor


def evaluate(task: Task, model: nn.Module, batch_norm: bool = True) -> dict[str, float]:
    """The metrics of a copy of the model, at the average x if a schedule-free optimizer is attached.

    The model itself does not change. If ``batch_norm`` is True, the copy's running statistics of BatchNorm are
    re-estimated at these weights, for every contender alike.
    """
    judged = copy.deepcopy(model)
    with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
        if batch_norm:
            batches = task.batches(torch.Generator().manual_seed(BATCH_NORM_SEED))
            update_bn(itertools.islice(batches, BATCH_NORM_BATCHES), judged)  # does nothing without BatchNorm
        found = task.metric(judged.eval())
    if not isinstance(found, Mapping):
        return {task.metric_name: float(found)}
    if not found:
        raise ValueError("`metric` returned no number: want one, or several by name")
    return {name: float(value) for name, value in found.items()}


def first_of(values: Mapping[str, float]) -> float:
    """The first number of a metric, which the race compares."""
    return next(iter(values.values()))


def described(optimizer: Optimizer) -> dict[str, Any]:
    """The class of an optimizer and the options of its first parameter group."""
    defaults = optimizer.defaults
    options = {name: value for name, value in optimizer.param_groups[0].items() if name in defaults}
    return {
        "class": type(optimizer).__name__,
        "options": {
            name: value if _in_json(value) else repr(value)
            for name, value in options.items()
            if name not in COUNTED and value is not None
        },
    }


def _in_json(value: object) -> bool:
    """Whether JSON has this value of an option: not for infinity."""
    return isinstance(value, (int, str, tuple)) or (isinstance(value, float) and math.isfinite(value))


def tensors_in(batch: object) -> Iterable[Tensor]:
    """The tensors of a batch made of tuples, lists, dictionaries and objects with attributes, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in cast("Mapping[Any, object]", batch).values():
            yield from tensors_in(value)
    elif isinstance(batch, (tuple, list)):
        for value in cast("Sequence[object]", batch):
            yield from tensors_in(value)
    elif hasattr(batch, "__dict__"):
        yield from tensors_in(vars(batch))


def checksum(tensors: Iterable[Tensor]) -> str:
    """The SHA-256 of the values of tensors, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        parts = [tensor]
        if tensor.layout == torch.sparse_coo:
            parts = [tensor.coalesce().indices(), values_of(tensor)]
        elif tensor.layout != torch.strided:
            parts = [tensor.to_dense()]
        for part in parts:
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
