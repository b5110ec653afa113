"""The averaged weights, for evaluating and saving."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn


class HasAverages(Protocol):
    """The part of a :class:`unscheduled.ScheduleFreeOptimizer` that gives the averages."""

    def _averages(self) -> Callable[[Tensor], Tensor | None]: ...


def averaged_state_dict(model: nn.Module, optimizer: HasAverages) -> dict[str, Any]:
    """The state dict of a model with its parameters at the average x, in either mode, without touching them.

    It is a snapshot: later training does not change it. Tensors that the model shares (tied weights) are shared in
    it. Parameters that the optimizer does not hold, and buffers such as BatchNorm's statistics, are as in the model.

    With an attached model it is what ``model.state_dict()`` gives. To resume from it without ``attach``, load it
    before the optimizer's state, which tells x from y; loaded after a state of train mode, it is refused at the step.

    Args:
        model: the model, or a part or wrapper of it.
        optimizer: the optimizer of its parameters.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = unscheduled.AdamWScheduleFree(model.parameters())
        >>> sorted(unscheduled.averaged_state_dict(model, optimizer))
        ['bias', 'weight']
    """
    average_of = optimizer._averages()  # pyright: ignore[reportPrivateUsage]  (of this package)
    snapshots: dict[int, Tensor] = {}

    def snapshot(entry: Any) -> Any:
        if not isinstance(entry, Tensor):
            return entry
        if id(entry) not in snapshots:
            average = average_of(entry)
            snapshots[id(entry)] = entry.detach().clone() if average is None else average
        return snapshots[id(entry)]

    state_dict = model.state_dict(keep_vars=True)
    for name, entry in state_dict.items():
        state_dict[name] = snapshot(entry)
    return state_dict
