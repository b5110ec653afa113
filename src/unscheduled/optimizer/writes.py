"""Whether parameters were written since an optimizer moved them last."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

from torch import Tensor

from unscheduled.kernels import all_same

VERSION = attrgetter("_version")


class Noted(NamedTuple):
    """Parameters, how often each had been written, and where each was."""

    params: list[Tensor]
    versions: list[int]
    places: list[int]


def _versions(params: list[Tensor]) -> list[int]:
    try:
        return list(map(VERSION, params))
    except RuntimeError:  # tensors of inference mode do not count
        return [0 if param.is_inference() else param._version for param in params]


def _noted(params: list[Tensor]) -> Noted:
    return Noted(params, _versions(params), list(map(Tensor.data_ptr, params)))


class WriteWatch:
    """Remembers how often the parameters of an optimizer had been written, and where they were, when it moved them.

    A write past the notice of autograd, as in place through ``.data``, is not seen.
    """

    def __init__(self) -> None:
        self.is_on = False
        """Whether anything is noted: while a model is attached, since otherwise nobody asks."""
        self._seen: dict[Tensor, tuple[int, int]] = {}
        self._step = Noted([], [], [])  # of the last step

    def start(self, params: list[Tensor]) -> None:
        """Begin to note, with these parameters as they are."""
        self.is_on, self._seen, self._step = True, {}, _noted(params)

    def stop(self) -> None:
        """Note nothing any more."""
        self.is_on, self._seen, self._step = False, {}, Noted([], [], [])

    def note_step(self, params: list[Tensor], all_params: Callable[[], list[Tensor]]) -> None:
        """Note that these were moved by a step, of all that the optimizer has."""
        if not all_same(params, self._step.params):
            self._seen |= _by_param(self._step)
            known = set(all_params())
            self._seen = {param: seen for param, seen in self._seen.items() if param in known}
        self._step = _noted(params)

    def note(self, params: list[Tensor]) -> None:
        """Note that these were moved between steps."""
        if not self.is_on:
            return
        if all_same(params, self._step.params):
            self._step = _noted(params)
            return
        self._seen |= _by_param(self._step) | _by_param(_noted(params))
        versions, places = [[self._seen[param][at] for param in self._step.params] for at in (0, 1)]
        self._step = Noted(self._step.params, versions, places)

    def were_written(self, params: set[Tensor]) -> set[Tensor]:
        """The parameters among these that somebody else has written to since the optimizer moved them."""
        seen, now = self._seen | _by_param(self._step), _by_param(_noted(list(params)))
        return {param for param in params if seen.get(param, now[param]) != now[param]}


def _by_param(noted: Noted) -> dict[Tensor, tuple[int, int]]:
    return dict(zip(noted.params, zip(noted.versions, noted.places, strict=True), strict=True))
