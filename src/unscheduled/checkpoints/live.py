"""State dicts that are live: their tensors are those of the optimizer, as in torch, so that saving needs no memory.

y is saved, too. While training it stands in the parameter, and while evaluating in what is kept aside. The dictionaries
that were given out follow it from one to the other. Once a step is made, their numbers are of another moment than their
tensors: then they are marked.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any, cast

from torch import Tensor

MOVED = "moved"
"""The key by which the saved state of a parameter is marked once a step was made."""


class LiveDicts:
    """The saved states of parameters that were given out since the last step of an optimizer."""

    def __init__(self) -> None:
        self._entries: list[tuple[Tensor, weakref.ref[OrderedDict[str, Any]]]] = []

    def give_out(self, states: dict[Tensor, dict[str, Any]]) -> dict[Tensor, OrderedDict[str, Any]]:
        """The states as dictionaries that follow y from now on; ordered ones, since they can be referred to weakly."""
        entries = {param: OrderedDict(state) for param, state in states.items()}
        self._entries = [(param, entry) for param, entry in self._entries if entry() is not None]
        self._entries += [(param, weakref.ref(entry)) for param, entry in entries.items()]
        return entries

    def has(self, states: Any) -> bool:
        """Whether some of these states are dictionaries that were given out since the last step."""
        given = {id(entry()) for _, entry in self._entries}
        return isinstance(states, dict) and any(id(state) in given for state in cast(dict[Any, Any], states).values())

    def are_out(self) -> bool:
        """Whether somebody still has one."""
        return any(entry() is not None for _, entry in self._entries)

    def put_y(self, ys: dict[Tensor, dict[str, Any]]) -> None:
        """Note that parameters were switched, so that y stands elsewhere."""
        for param, known in self._entries:
            entry = known()
            if entry is not None:
                entry.update(ys.get(param, {}))

    def outdate(self) -> None:
        """Note that a step was made, or that another state was loaded."""
        for _, known in self._entries:
            entry = known()
            if entry is not None:
                entry[MOVED] = True
        self._entries = []


def refuse_moved(states: dict[Any, Any]) -> None:
    """Raise ValueError if the states of a state dict were given out, and a step was made since."""
    for state in states.values():
        if isinstance(state, dict) and MOVED in cast(dict[str, Any], state):
            raise ValueError(
                "the state dict is of no one moment: a step was made since, and its tensors are the optimizer's own. "
                "To keep one while training goes on, copy it at once, with copy.deepcopy(optimizer.state_dict()); to "
                "save it from a thread, use torch.distributed.checkpoint.async_save"
            )
