"""Which weights belong to a state that was loaded, and which state to weights that were: they come in any order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unscheduled.state.interruption import Deferred
from unscheduled.state.parameter import (
    Entry,
    State,
    belongs,
    holds_loaded_average,
    keep_gradient_points,
    known_gradient_point,
    put_gradient_points,
    settle,
    written_average,
)
from unscheduled.state.split_weights import narrowed


class Reconciliation:
    """Knows which weights and states were loaded since the last step; the next step makes them belong together.

    Methods that move weights are given the entries of the optimizer, and the parameters that hold the average x.
    """

    def __init__(self) -> None:
        self.file_training: bool | None = None
        """The mode of a state that was loaded since the last step: whether its weights are y; None if none was."""
        self.written: dict[Tensor, Tensor] = {}
        """Weights that were taken as a new x since the last step."""
        self._loading: tuple[nn.Module, object] | None = None  # the module that weights are loaded into, and the call

    @property
    def is_open(self) -> bool:
        """Whether a state was loaded since the last step, or weights are being loaded."""
        return self.file_training is not None or self._loading is not None

    @property
    def is_loading(self) -> bool:
        """Whether weights are being loaded."""
        return self._loading is not None

    # Weights.

    def begin_load(self, module: nn.Module, call: object, entries: list[Entry], at_x: set[Tensor]) -> None:
        """Expect weights to be written into the parameters, in any mode.

        Args:
            module: the first module of the call of ``load_state_dict``.
            call: an object of this call alone.
            entries: those of the optimizer.
            at_x: the parameters that hold x.
        """
        with Deferred():
            keep_gradient_points([entry for entry in entries if entry.param not in at_x])
            self._loading = module, call

    def is_of(self, call: object) -> bool:
        """Whether this call is the one that loads weights."""
        return self._loading is not None and self._loading[1] is call

    def ends_with(self, module: nn.Module, call: object) -> bool:
        """Whether the loading of weights ends with this module of the call."""
        return self._loading is not None and self._loading[0] is module and self._loading[1] is call

    def settle(self, entries: list[Entry], at_x: set[Tensor]) -> list[Tensor]:
        """Bring a loaded state together with the weights, and end the loading of weights, also one that has failed.

        Returns:
            the parameters into which y was put, since weights were loaded.
        """
        self.settle_state(entries, at_x)
        if self._loading is None:
            return []
        at_y = [entry for entry in entries if entry.param not in at_x]
        put_gradient_points(at_y, self.written, loading=True)
        self._loading = None
        return [entry.param for entry in at_y]

    def settle_state(self, entries: list[Entry], at_x: set[Tensor]) -> None:
        """Bring a loaded state together with the weights; if weights are being loaded, that goes on."""
        if self.file_training is not None:
            for param, state, beta in entries:
                written = settle(param, state, beta, param not in at_x, self.file_training)
                if written is not None:
                    self.written[param] = written

    def average_written(self, entry: Entry, at_x: set[Tensor]) -> Tensor | None:
        """The weights of a parameter that were taken as x, if they still are."""
        param, state, beta = entry
        return written_average(param, self.written, state, beta, param not in at_x)

    # A state.

    @torch.no_grad()
    def weights_before_switches(self, entries: list[Entry], at_x: set[Tensor]) -> dict[Tensor, Tensor]:
        """Return the weights from before the switch to x; weights that were a new x are put back at once."""
        found: dict[Tensor, Tensor] = {}
        for entry in entries:
            param, state, beta = entry
            y = known_gradient_point(param, state, beta)
            written = self.average_written(entry, at_x)
            if written is not None:
                param.copy_(written)
            elif param in at_x and y is not None:
                found[param] = narrowed(y, param.dtype)
        self.written.clear()
        return found

    @torch.no_grad()
    def adopt(self, training: bool, entries: list[Entry], weights: dict[Tensor, Tensor], attached: bool) -> None:
        """Note that a state was loaded, and put the weights into the parameters again that belong to it.

        Args:
            training: whether the weights beside the file are y.
            entries: those of the optimizer, with the loaded states.
            weights: what :meth:`weights_before_switches` returned. To the state of no step belong those that were
                there, unless they had come to an attached model.
            attached: whether a model is attached.
        """
        known = {entry.param: entry for entry in entries}
        for param, before in weights.items():
            _, state, beta = known.get(param, (param, dict[str, Any](), 0.0))
            if "z" in state or (belongs(before, state, beta) if state else not attached):
                param.copy_(before)
        self.file_training = training

    def average_in_place_of_y(self, entries: list[Entry]) -> Tensor | None:
        """Return a parameter whose weights were loaded after the state and are x in place of y, or None."""
        if self.file_training is not None:
            for param, state, beta in entries:
                if holds_loaded_average(param, state, beta, self.file_training):
                    return param
        return None

    def close(self, states: Mapping[Tensor, State]) -> None:
        """A step is made: from here on the weights and the loaded states belong together."""
        self.written.clear()
        if self.file_training is not None:
            for state in states.values():
                state.pop("y", None)
                state.pop("z", None)
            self.file_training = None

    def of_copy(self) -> Reconciliation:
        """What a copy of the optimizer knows: weights that are being loaded are not loaded into the copy."""
        copied = Reconciliation()
        copied.file_training, copied.written = self.file_training, self.written.copy()
        return copied
