"""The state dict of a model at the average x."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor, nn


class HasAverages(Protocol):
    """The part of a :class:`unscheduled.ScheduleFreeOptimizer` that returns the averages."""

    def _averages(self, wanted: Iterable[Tensor] = ()) -> Callable[[Tensor], Tensor | None]: ...


def averaged_state_dict(model: nn.Module, optimizer: HasAverages) -> dict[str, Any]:
    """The state dict of a model with its parameters at the average x, in either mode, without touching them.

    It is a snapshot: later training does not change it. Tied weights are one tensor in it. Parameters that the
    optimizer does not hold, and buffers such as BatchNorm's statistics, are copied from the model.

    With an attached model it equals ``model.state_dict()``. To resume from it without ``attach``, load it before the
    optimizer's state, which shows whether weights are x or y; if it is loaded after a state of train mode, the next
    step raises an error.

    Args:
        model: the model, or a part or wrapper of it.
        optimizer: the schedule-free optimizer of its parameters.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = unscheduled.AdamWScheduleFree(model.parameters())
        >>> sorted(unscheduled.averaged_state_dict(model, optimizer))
        ['bias', 'weight']
    """
    average_of = optimizer._averages(model.parameters())  # pyright: ignore[reportPrivateUsage]  (of this package)
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
