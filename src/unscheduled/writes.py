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


def _noted(params: list[Tensor]) -> Noted:
    try:
        versions: list[int] = list(map(VERSION, params))
    except RuntimeError:  # tensors of inference mode do not count
        versions = [0 if param.is_inference() else param._version for param in params]
    return Noted(params, versions, list(map(Tensor.data_ptr, params)))


class WriteWatch:
    """Remembers how often the parameters of an optimizer had been written, and where they were, when it moved them.

    A write past the notice of autograd, as in place through ``.data``, is not seen.
    """

    def __init__(self) -> None:
        self._seen: dict[Tensor, tuple[int, int]] = {}
        self._step = Noted([], [], [])  # of the last step
        self.repeated = 0
        """How often that step was made once more, each time with one write."""

    def note_step(self, params: list[Tensor], all_params: Callable[[], list[Tensor]]) -> None:
        """Note that these were moved by a step, of all that the optimizer has."""
        if not all_same(params, self._step.params):
            self._fold()
            known = set(all_params())
            self._seen = {param: seen for param, seen in self._seen.items() if param in known}
        self._step, self.repeated = _noted(params), 0

    def note(self, params: list[Tensor]) -> None:
        """Note that these were moved between steps."""
        if all_same(params, self._step.params):
            self._step, self.repeated = _noted(params), 0
            return
        self._fold()
        self._seen.update(_by_param(_noted(params)))
        versions, places = [[self._seen[param][at] for param in self._step.params] for at in (0, 1)]
        self._step = Noted(self._step.params, versions, places)

    def were_written(self, param: Tensor) -> bool:
        """Whether somebody else has written to a parameter since it was moved; not before it was moved first."""
        self._fold()
        now = _by_param(_noted([param]))[param]
        return self._seen.get(param, now) != now

    def _fold(self) -> None:
        """Bring what is known of the last step to the rest."""
        params, versions, places = self._step
        self._step, self.repeated = Noted(params, [version + self.repeated for version in versions], places), 0
        self._seen.update(_by_param(self._step))


def _by_param(noted: Noted) -> dict[Tensor, tuple[int, int]]:
    return dict(zip(noted.params, zip(noted.versions, noted.places, strict=True), strict=True))
