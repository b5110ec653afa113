"""Which parameters hold y, where gradients are taken, and which hold the average x; and how they are switched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from unscheduled.checkpoints.live import LiveDicts
from unscheduled.optimizer.gradient_origin import GradientWatch
from unscheduled.optimizer.reconciliation import Reconciliation
from unscheduled.optimizer.writes import WriteWatch
from unscheduled.state.device_math import on_host
from unscheduled.state.parameter import (
    Entry,
    Iterates,
    State,
    average,
    averages_together,
    gradient_point,
    known_gradient_point,
    live_y,
    makes,
    put_averages,
    put_gradient_points,
    read,
    without_y,
)


class Weights:
    """The modes of the parameters of an optimizer, and what is known of the weights in them.

    Methods that move weights are given the entries of the optimizer: its parameters that have a state, the states, and
    the betas.
    """

    def __init__(self) -> None:
        self.at_x: set[Tensor] = set()
        """The parameters that hold x."""
        self.given_up: set[Tensor] = set()
        """The parameters that another optimizer has taken; they count as holding x."""
        self.reconciliation = Reconciliation()
        self.writes = WriteWatch()
        self.live = LiveDicts()
        self._gradients = GradientWatch()

    @property
    def training(self) -> bool:
        """Whether all parameters hold y."""
        return not self.at_x

    # Switching.

    def are_at(self, at_x: set[Tensor]) -> bool:
        """Whether these parameters hold x and the others y."""
        return at_x | self.given_up == self.at_x

    def switch(self, at_x: set[Tensor], entries: list[Entry]) -> None:
        """Put x into these parameters and y into the others; if it fails, nothing is changed."""
        at_x = at_x | self.given_up
        written = self.reconciliation.written
        to_x = [entry for entry in entries if entry.param in at_x and entry.param not in self.at_x]
        to_y = [entry for entry in entries if entry.param in self.at_x and entry.param not in at_x]
        put_averages(to_x, written)
        try:
            put_gradient_points(to_y, written)
        except BaseException:
            put_gradient_points(to_x, written)
            raise
        self.note(at_x)
        self.writes.note([entry.param for entry in to_y])
        if self.live.are_out():
            self.live.put_y(self.live_ys(entries))

    def note(self, at_x: Iterable[Tensor]) -> None:
        """Note that these parameters hold x, and the others y."""
        self.at_x = set(at_x)
        self._gradients.watch(self.at_x - self.given_up)

    def notice_replaced(
        self, some: Iterable[Tensor], states: Mapping[Tensor, State], params: Callable[[], list[Tensor]]
    ) -> bool:
        """Note the parameters that took the place of others which held x, with their states; return whether any did.

        Their states say so: y is kept aside in them, unless weights are being loaded.

        Args:
            some: the parameters to look at.
            states: the state of each parameter that has one.
            params: returns all parameters of the optimizer.
        """
        if self.reconciliation.is_loading:
            return False
        found = {param for param in some if param not in self.at_x and "kept" in states.get(param, ())}
        if found:
            self.at_x = self.at_x.intersection(params()) | found
        return bool(found)

    def settle(self, entries: list[Entry]) -> None:
        """Bring a loaded state together with the weights, and end the loading of weights."""
        if moved := self.reconciliation.settle(entries, self.at_x):
            self.writes.note(moved)

    def written_since(self, params: set[Tensor], entries: list[Entry]) -> set[Tensor]:
        """Which of these parameters, which are to hold y, somebody else has written to since the last step."""
        if self.reconciliation.file_training is None:
            return self.writes.were_written(params)
        return {entry.param for entry in entries if entry.param in params and known_gradient_point(*entry) is None}

    # Looking at it.

    def iterates(self, param: Tensor, state: State | None, beta: float) -> Iterates:
        """x, y and z of a parameter, as new tensors in the precision of its state."""
        found = read(param, state, beta, param not in self.at_x)
        if not state:
            return found
        written = self.reconciliation.average_written(Entry(param, state, beta), self.at_x)
        if written is not None and makes(written, found.y, state, beta):
            return found._replace(x=written.to(found.x.dtype, copy=True))
        return found

    def average_reader(self, entries: list[Entry], wanted: Iterable[Tensor] = ()) -> Callable[[Tensor], Tensor | None]:
        """A function that returns a snapshot of x of a parameter, each time the same tensor; None if it has no state.

        Those of the ``wanted`` parameters are computed now, where a few launches compute many of them. Call
        this after the state was settled and before anything is changed. The function may be called while
        weights are loaded, as by a user's hook.
        """
        known = {entry.param: entry for entry in entries}
        at_y = set(wanted) - self.at_x - set(self.reconciliation.written)
        found = averages_together(known[param] for param in at_y & known.keys())

        @torch.no_grad()
        def average_of(param: Tensor) -> Tensor | None:
            if param in known and param not in found:
                written = self.reconciliation.average_written(known[param], self.at_x)
                training = param not in self.at_x
                found[param] = average(*known[param], training) if written is None else written.clone()
            return found.get(param)

        return average_of

    @torch.no_grad()
    def live_ys(self, entries: list[Entry]) -> dict[Tensor, State]:
        """y of each parameter as it is saved, in the memory where it stands."""
        return {entry.param: live_y(*entry, entry.param not in self.at_x) for entry in entries}

    def given_out(self, entries: list[Entry]) -> Mapping[Tensor, Mapping[str, Any]]:
        """Return the saved state of each parameter: its tensors are the optimizer's own, and follow y from now on."""
        ys = self.live_ys(entries)
        states = {param: without_y(state) | ys[param] for param, state, _ in entries}
        for state in states.values():
            state["step"] = int(on_host(state["step"]))
        return self.live.give_out(states)

    @torch.no_grad()
    def with_gradient_point(self, entry: Entry) -> State:
        """The state with a copy of y, so that it goes with weights at x as well as at y."""
        return without_y(entry.state) | {"y": gradient_point(*entry, entry.param not in self.at_x)}

    # The step.

    def check_before_step(self, entries: Callable[[], list[Entry]], name: Callable[[Tensor], str]) -> None:
        """Raise RuntimeError if a gradient was taken at x, or the weights that were loaded after the state are x."""
        if self._gradients.at_average:
            for param in self._gradients.taken_at_average():
                raise RuntimeError(
                    f"the gradient of {name(param)} was taken in eval mode, at the average x and not at y: "
                    "call zero_grad(), and put the model or the optimizer into train mode before the forward pass"
                )
            self._gradients.forget()
        if self.reconciliation.file_training is not None:
            held = self.reconciliation.average_in_place_of_y(entries())
            if held is not None:
                raise RuntimeError(
                    f"the weights of {name(held)} are the average x, but were trained on as y: load the "
                    "model's weights before the optimizer's state, or attach() the optimizer to the model"
                )

    # Copies.

    def of_copy(self) -> Weights:
        """What a copy of the optimizer knows, which watches nothing yet: see :meth:`watch`."""
        copied = Weights()
        copied.at_x, copied.reconciliation = set(self.at_x), self.reconciliation.of_copy()
        return copied

    def watch(self) -> None:
        """Watch the gradients of the parameters that hold x."""
        self._gradients.watch(self.at_x - self.given_up)
