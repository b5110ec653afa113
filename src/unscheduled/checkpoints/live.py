"""Live state dicts: their tensors are the optimizer's own, as in torch, so that ``state_dict()`` needs no memory.

A state dict contains y. In train mode y is the parameter, in eval mode it is a tensor of its own. After each switch the
live dictionaries are changed to refer to the tensor that holds y. After a step, the numbers in a live dictionary are
older than its tensors: then it is marked.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any, cast

from torch import Tensor

MOVED = "moved"
"""The key that marks the saved state of a parameter after a step."""


class LiveDicts:
    """The live states of parameters: those that ``state_dict()`` returned since the last step of an optimizer."""

    def __init__(self) -> None:
        self._entries: list[tuple[Tensor, weakref.ref[OrderedDict[str, Any]]]] = []

    def give_out(self, states: dict[Tensor, dict[str, Any]]) -> dict[Tensor, OrderedDict[str, Any]]:
        """Return the states as live dictionaries, ordered ones, since weak references to them are possible."""
        entries = {param: OrderedDict(state) for param, state in states.items()}
        self._entries = [(param, entry) for param, entry in self._entries if entry() is not None]
        self._entries += [(param, weakref.ref(entry)) for param, entry in entries.items()]
        return entries

    def has(self, states: Any) -> bool:
        """Whether some of these states are live dictionaries."""
        given = {id(entry()) for _, entry in self._entries}
        return isinstance(states, dict) and any(id(state) in given for state in cast(dict[Any, Any], states).values())

    def are_out(self) -> bool:
        """Whether a live dictionary is still in use."""
        return any(entry() is not None for _, entry in self._entries)

    def put_y(self, ys: dict[Tensor, dict[str, Any]]) -> None:
        """Put the present y of switched parameters into the live dictionaries."""
        for param, known in self._entries:
            entry = known()
            if entry is not None:
                entry.update(ys.get(param, {}))

    def outdate(self) -> None:
        """Mark all live dictionaries, after a step or after another state was loaded."""
        for _, known in self._entries:
            entry = known()
            if entry is not None:
                entry[MOVED] = True
        self._entries = []


def refuse_moved(states: dict[Any, Any]) -> None:
    """Raise ValueError if the optimizer has made a step since the state dict with these states was made."""
    for state in states.values():
        if isinstance(state, dict) and MOVED in cast(dict[str, Any], state):
            raise ValueError(
                "the state dict mixes two steps: its tensors are the optimizer's own, and a step was made since. To "
                "keep one while training continues, copy it at once, with copy.deepcopy(optimizer.state_dict()); to "
                "save it from a thread, use torch.distributed.checkpoint.async_save"
            )
