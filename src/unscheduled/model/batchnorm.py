"""Re-estimates BatchNorm's running statistics at the average x, since training passes gather them at y."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_map_only  # pyright: ignore[reportUnknownVariableType]
from torch.utils.hooks import RemovableHandle

RECENT = "_unscheduled_recent_batches"  # the attribute of a module with its RecentBatches


class Switching(Protocol):
    """An optimizer that can put the average x into the parameters."""

    def averaged_parameters(self) -> AbstractContextManager[Any]:
        """A context in which the parameters hold x."""
        ...


class Moments:
    """The count, mean and sum of squared deviations of each channel, in float64."""

    def __init__(self) -> None:
        self.batches = 0
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def merge(self, inputs: Tensor) -> None:
        """Add a batch whose dimension 1 has the channels (Chan, Golub and LeVeque, 1979)."""
        if not inputs.numel():
            return
        flat = inputs.detach().to(torch.float64).transpose(0, 1).flatten(1)
        count, mean = flat.shape[1], flat.mean(1)
        total = self.count + count
        shift = mean - self.mean
        self.squares = self.squares + (flat - mean[:, None]).square().sum(1) + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total
        self.batches += 1


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm modules of a model that have running statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def trained(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms whose statistics training updates: not the frozen ones, in eval mode while the model trains.

    If the model is in eval mode, the frozen ones are known only from ``RecentBatches`` that watched training.
    """
    frozen = {norm for recent in recent_batches(model) for norm in recent.frozen}
    training = without_wrappers(model).training
    return [norm for norm in batch_norms(model) if (norm.training if training else norm not in frozen)]


def without_wrappers(model: nn.Module) -> nn.Module:
    """The first module inside that has not exactly one child: wrappers may have another mode than their module."""
    children = list(model.children())
    return without_wrappers(children[0]) if len(children) == 1 and not isinstance(children[0], _BatchNorm) else model


def reestimate(model: nn.Module, passes: Iterable[Callable[[], Any]]) -> None:
    """Put the pooled statistics of these forward passes into every trained BatchNorm, at the present weights.

    Nothing else changes, also if a pass fails. Compiled models run eagerly, since the hooks would recompile them.
    """
    norms = trained(model)
    moments = {norm: Moments() for norm in norms}
    recents = recent_batches(model)
    flags = [(module, module.training) for module in model.modules()]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]

    def gather(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (inputs,) = (*args, *kwargs.values())
        moments[cast(_BatchNorm, norm)].merge(inputs)

    hooks = [norm.register_forward_pre_hook(gather, with_kwargs=True) for norm in norms]
    try:
        for recent in recents:
            recent.paused = True
        for module, _ in flags:
            vars(module)["training"] = module in moments  # no dropout, and an attached model does not switch
        gpus = {param.device for param in model.parameters() if param.is_cuda}
        with cast(Any, torch.random).fork_rng(gpus), torch.compiler.set_stance("force_eager"), torch.no_grad():
            for forward in passes:
                forward()
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, kept in before:
            buffer.copy_(kept)
        for module, flag in flags:
            vars(module)["training"] = flag
        for recent in recents:
            recent.paused = False
    for norm, found in moments.items():
        if found.count > 1:
            cast(Tensor, norm.running_mean).copy_(cast(Tensor, found.mean))
            cast(Tensor, norm.running_var).copy_(cast(Tensor, found.squares) / (found.count - 1))
            cast(Tensor, norm.num_batches_tracked).fill_(found.batches)
    for recent in recents:
        recent.stale = False


def update_bn(
    loader: Iterable[Any],
    model: nn.Module,
    optimizer: Switching,
    device: torch.device | str | int | None = None,
) -> None:
    """Re-estimate the running statistics of every BatchNorm at the average x, in either mode of the optimizer.

    Frozen BatchNorms, which are in eval mode while the model is in train mode, keep their statistics. If the model is
    in eval mode, they are known only if ``attach`` stores batches and so has seen the training passes; otherwise all
    BatchNorms are re-estimated.

    Training updates the statistics at y. This function sets them to the mean and the unbiased variance over all batches
    together, computed in float64, whatever the module's ``momentum``; ``num_batches_tracked`` becomes the number of
    batches. Dropout is off. Parameters, modes, random numbers and gradients do not change, and nothing changes if a
    forward pass fails.

    Args:
        loader: the batches: tensors; tuples or lists, whose first element is the input; or mappings of keyword
            arguments. With data parallelism each process has its own loader.
        model: the model, attached or not. Batches that ``attach`` stores are not used until training continues.
        optimizer: the schedule-free optimizer of its parameters.
        device: the device of the inputs; None is the device of the model's parameters.

    Raises:
        TypeError: if the loader gives no batches, ``model`` is no module or ``optimizer`` no schedule-free optimizer;
            ``torch.optim.swa_utils.update_bn`` has the device in its place.
        ValueError: if the loader has no batch.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> model = torch.nn.BatchNorm1d(1)
        >>> optimizer = unscheduled.SGDScheduleFree(model.parameters())
        >>> unscheduled.update_bn([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [6.0]])], model, optimizer)
        >>> model.running_mean
        tensor([3.])

    Source: the need is noted in the README of the authors' ``schedulefree`` package.
    """
    _check(loader, model, optimizer)
    if not trained(model):
        return
    device = next(chain(model.parameters(), model.buffers())).device if device is None else torch.device(device)
    found = 0

    def passes() -> Generator[Callable[[], Any], None, None]:
        nonlocal found
        for batch in loader:
            found += 1
            yield partial(call, model, batch, device)
        if not found:
            raise ValueError("the loader has no batch: BatchNorm's statistics need at least one")

    with optimizer.averaged_parameters():
        reestimate(model, passes())


def _check(loader: Any, model: Any, optimizer: Any) -> None:
    """Raise TypeError unless the arguments of :func:`update_bn` have the right types."""
    if not isinstance(model, nn.Module):
        swapped = ": the order is update_bn(loader, model, optimizer)" if isinstance(loader, nn.Module) else ""
        raise TypeError(f"model = {type(model).__name__}(...) is no torch.nn.Module{swapped or ': give the model'}")
    if not hasattr(optimizer, "averaged_parameters"):
        is_device = optimizer is None or isinstance(optimizer, (str, int, torch.device))
        given = repr(optimizer) if is_device else f"{type(optimizer).__name__}(...)"
        raise TypeError(
            f"optimizer = {given} is no schedule-free optimizer: give the one of the model's parameters; "
            "a device comes after it, as in update_bn(loader, model, optimizer, device)"
        )
    is_iterable = hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")
    if not is_iterable or issubclass(type(loader), (nn.Module, Mapping, str)):
        raise TypeError(
            f"loader = {type(loader).__name__}(...) gives no batches: give a DataLoader, or a list of batches"
        )


def call(model: nn.Module, batch: Any, device: torch.device) -> Any:
    """Run a forward pass on a batch of a loader, moved to a device."""

    def moved(inputs: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)

    if isinstance(batch, Mapping):
        return model(**moved(dict(cast(Mapping[str, Any], batch))))
    return model(moved(batch[0] if isinstance(batch, (tuple, list)) else batch))


class RecentBatches:
    """The inputs of the last training passes of a model, to re-estimate its statistics before it evaluates.

    For a model without BatchNorm no inputs are stored.

    Args:
        model: the module whose forward passes are watched.
        count: how many inputs are stored, by reference.
        optimizer: the schedule-free optimizer of its parameters.
    """

    def __init__(self, model: nn.Module, count: int, optimizer: Switching) -> None:
        self.stale = False
        """Whether there was a training pass after the last re-estimation."""
        self.paused = False
        """Whether a re-estimation is running, during which forward passes are ignored."""
        self.frozen: list[nn.Module] = []
        """The BatchNorms that were in eval mode in the last training pass."""
        self._model = model
        self._norms: list[_BatchNorm] = []
        self._optimizer = optimizer
        self._inputs: deque[tuple[tuple[Any, ...], dict[str, Any]]] = deque(maxlen=count)
        self._hook: RemovableHandle | None = None

    def watch(self) -> None:
        """Register the hook that runs before every forward pass, if the model has BatchNorm."""
        self._norms = batch_norms(self._model)
        if self._hook is None and self._norms:
            hook = cast(Any, torch.compiler).disable(self._before_forward)  # torch.compile would only trace it
            self._hook = self._model.register_forward_pre_hook(hook, with_kwargs=True)
            vars(self._model)[RECENT] = (*vars(self._model).get(RECENT, ()), self)

    def ignore(self) -> None:
        """Remove the hook."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            others = tuple(recent for recent in vars(self._model).pop(RECENT) if recent is not self)
            if others:
                vars(self._model)[RECENT] = others

    def _before_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass, store its input in train mode, or re-estimate the statistics in eval mode."""
        if not self._model.training:
            self.refresh()
        elif torch.is_grad_enabled() and not self.paused:
            self._inputs.append(tree_map_only(Tensor, Tensor.detach, (args, kwargs)))
            self.frozen = [norm for norm in self._norms if not norm.training]
            self.stale = True

    @property
    def blind(self) -> bool:
        """Whether the model has BatchNorm but no training pass was seen."""
        return bool(self._norms) and not self._inputs

    def refresh(self) -> None:
        """Re-estimate the statistics at x, if there was a training pass after the last re-estimation."""
        if self.stale and not self.paused:
            with self._optimizer.averaged_parameters():
                reestimate(self._model, [partial(self._model, *args, **kwargs) for args, kwargs in self._inputs])


def recent_batches(model: nn.Module) -> list[RecentBatches]:
    """The ``RecentBatches`` that watch the model or a part of it."""
    return [recent for module in model.modules() for recent in vars(module).get(RECENT, ())]
