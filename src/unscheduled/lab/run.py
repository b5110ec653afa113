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
from torch.optim.swa_utils import update_bn

from unscheduled.lab.contenders import CONTENDERS
from unscheduled.lab.task import Task

BATCH_NORM_BATCHES = 20
BATCH_NORM_SEED = 2**31 - 1  # the batches of no run


@dataclass(frozen=True)
class RunSettings:
    """All that one run depends on, beside the task's file and the versions of the libraries."""

    contender: str
    lr: float
    options: dict[str, Any]
    warmup_steps: int
    horizon: int
    evaluate_at: tuple[int, ...]
    seed: int


def train(task: Task, settings: RunSettings, report: Callable[[int], None]) -> dict[str, Any]:
    """Train once and evaluate along the way.

    Args:
        task: what is trained.
        settings: how.
        report: called after every step with the number of steps done.

    Returns:
        The settings; ``curve``, a list of [step, metric]; ``diverged_at``, the step at which the loss, the gradient
        or the metric was no finite number and the run ended, or None; the checksums of what all contenders with one
        seed must share; and the seconds it took.
    """
    contender = CONTENDERS[settings.contender]
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    model = task.model()
    initial_weights = checksum(model.state_dict().values())
    training = contender.prepare(model, settings.lr, settings.options, settings.warmup_steps, settings.horizon)
    batches = task.batches(torch.Generator().manual_seed(settings.seed))
    first_batch = next(batches)
    first_batch_checksum = checksum(tensors_in(first_batch))

    curve: list[tuple[int, float]] = []
    diverged_at: int | None = None
    step = 0
    torch.manual_seed(settings.seed)
    for step, batch in enumerate(itertools.islice(itertools.chain([first_batch], batches), settings.horizon), start=1):
        loss = task.loss(model, batch)
        finite = math.isfinite(loss.item())
        if finite:
            training.optimizer.zero_grad()
            loss.backward()
            finite = gradients_are_finite(model)
        if finite:
            training.step(loss)
        if finite and step in settings.evaluate_at:
            value = evaluate(task, model)
            finite = math.isfinite(value)
            if finite:
                curve.append((step, value))
        if not finite:
            diverged_at = step
            break
        report(step)
    if step < settings.horizon and diverged_at is None:
        raise ValueError(f"batches ended after {step} of {settings.horizon} steps; they must be endless")
    return {
        **asdict(settings),
        "curve": curve,
        "diverged_at": diverged_at,
        "initial_weights_sha256": initial_weights,
        "first_batch_sha256": first_batch_checksum,
        "seconds": time.perf_counter() - started,
    }


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether all are; some optimizers refuse others."""
    grads = [param.grad for param in model.parameters() if param.grad is not None]
    return all(bool(grad.isfinite().all()) for grad in grads)


def evaluate(task: Task, model: nn.Module) -> float:
    """The metric of a copy of the model, at the average if a schedule-free optimizer is attached; nothing is changed.

    BatchNorm's running statistics are re-estimated at these weights, whoever the contender is.
    """
    judged = copy.deepcopy(model)
    with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
        batches = task.batches(torch.Generator().manual_seed(BATCH_NORM_SEED))
        update_bn(itertools.islice(batches, BATCH_NORM_BATCHES), judged)  # does nothing without BatchNorm
        return float(task.metric(judged.eval()))


def tensors_in(batch: object) -> Iterable[Tensor]:
    """The tensors of a batch made of tuples, lists and dictionaries, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in cast("Mapping[Any, object]", batch).values():
            yield from tensors_in(value)
    elif isinstance(batch, (tuple, list)):
        for value in cast("Sequence[object]", batch):
            yield from tensors_in(value)


def checksum(tensors: Iterable[Tensor]) -> str:
    """The sha256 of the values, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
