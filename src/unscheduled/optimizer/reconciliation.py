"""The weights and the state beside them: what they say together, and how they find each other after loading."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from unscheduled.checkpoints import optimizer_state
from unscheduled.optimizer.writes import WriteWatch
from unscheduled.state.device_math import on_host
from unscheduled.state.interruption import Deferred
from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import (
    Iterates,
    Started,
    State,
    average,
    belongs,
    gradient_point,
    holds_loaded_average,
    keep_gradient_points,
    known_gradient_point,
    makes,
    put_gradient_points,
    read,
    settle,
    without_y,
    written_average,
)
from unscheduled.state.split_weights import narrowed


class PairedState(torch.optim.Optimizer):
    """An optimizer whose parameters hold y or x, of which states and weights may be loaded, in any order."""

    _averaged: set[Tensor]  # the parameters that hold x
    _loaded_training: bool | None  # the mode of a loaded file, until the first step after it
    _loading: tuple[nn.Module, object] | None  # the module that weights are loaded into, and the call
    _written: dict[Tensor, Tensor]  # weights that were taken as a new x, until the first step after it
    _writes: WriteWatch

    capturable: bool = False
    """Whether the numbers of the step are on the device, so that it may be captured in a CUDA graph."""

    # Looking at it.

    @torch.no_grad()
    def iterates(self, param: Tensor) -> Iterates:
        """The three sequences of a parameter, as new tensors in the precision of its state, from either mode.

        Args:
            param: one of the optimizer's parameters.

        Raises:
            ValueError: if ``param`` is none of them.
        """
        group, _ = self._find(param)
        self._settle()
        self._notice_replaced([param])
        state, beta = self.state.get(param), on_host(group["beta"])
        found = read(param, state, beta, param not in self._averaged)
        written = self._written_average(param, state, beta) if state else None
        if state and written is not None and makes(written, found.y, state, beta):
            return found._replace(x=written.to(found.x.dtype, copy=True))
        return found

    @torch.no_grad()
    def _averages(self) -> Callable[[Tensor], Tensor | None]:
        """A function that gives a snapshot of the average x of a parameter, each time the same; None if it needs none.

        To be used before anything is changed. A parameter that has seen no gradient, or is another's, needs none. It
        may be asked in the middle of loading, as by a hook of the user.
        """
        self._settle_state()
        self._notice_replaced(self._params())
        started = {param: (param, state, beta) for param, state, beta in self._started(set(self._params()))}
        found: dict[Tensor, Tensor] = {}

        @torch.no_grad()
        def average_of(param: Tensor) -> Tensor | None:
            if param in started and param not in found:
                _, state, beta = started[param]
                training, written = param not in self._averaged, self._written_average(param, state, beta)
                found[param] = average(param, state, beta, training) if written is None else written.clone()
            return found.get(param)

        return average_of

    def _written_average(self, param: Tensor, state: State, beta: float) -> Tensor | None:
        """The weights that were taken as x, if they still are."""
        return written_average(param, self._written, state, beta, param not in self._averaged)

    @torch.no_grad()
    def _with_gradient_point(self, param: Tensor, state: State, beta: float) -> State:
        """The state with a copy of y, so that it goes with weights at x as well as at y."""
        return without_y(state) | {"y": gradient_point(param, state, beta, param not in self._averaged)}

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in cast(list[Tensor], group["params"])]

    def _started(self, params: set[Tensor]) -> list[Started]:
        started: list[Started] = []
        for group in self.param_groups:
            here = [(param, self.state.get(param)) for param in cast(list[Tensor], group["params"]) if param in params]
            if any(state for _, state in here):
                beta = on_host(group["beta"])
                started.extend((param, state, beta) for param, state in here if state)
        return started

    def _find(self, param: Tensor) -> tuple[Group, str]:
        """The group of a parameter, and what to call it."""
        for index, group in enumerate(self.param_groups):
            for position, candidate in enumerate(group["params"]):
                if candidate is param:
                    return group, optimizer_state.param_name(group, index, position)
        raise ValueError(f"a tensor of shape {tuple(param.shape)} is no parameter of this optimizer: see param_groups")

    # Loading, of the weights or the state first.

    @torch.inference_mode(False)
    @torch.no_grad()
    def _before_load(self, module: nn.Module, call: object) -> None:
        """Expect weights to be written into the parameters, in any mode: the first module of a call, and the call."""
        if self._loading is None or self._loading[1] is not call:
            self._settle()
            started = self._started(set(self._params()) - self._averaged)
            with Deferred():
                keep_gradient_points(started)
                self._loading = module, call

    def _after_load(self, module: nn.Module, call: object) -> None:
        """Take the weights that were written as x, if this module is the first of the call."""
        if self._loading is not None and self._loading[0] is module and self._loading[1] is call:
            self._settle()

    @torch.no_grad()
    def _weights_before_switches(self) -> dict[Tensor, Tensor]:
        """What was in the parameters before they were switched to x; where it was a new x, that is put back at once."""
        self._settle()
        found: dict[Tensor, Tensor] = {}
        for param, state, beta in self._started(set(self._params())):
            y = known_gradient_point(param, state, beta)
            written = self._written_average(param, state, beta)
            if written is not None:
                param.copy_(written)
            elif param in self._averaged and y is not None:
                found[param] = narrowed(y, param.dtype)
        self._written.clear()
        return found

    @torch.no_grad()
    def _take_back(self, weights: dict[Tensor, Tensor], attached: bool) -> None:
        """Put weights into the parameters again that belong to a state that came after them.

        To the state of no step belong those that were there, unless they had come to an attached model: see above.
        """
        started = {param: (state, beta) for param, state, beta in self._started(set(weights))}
        for param, before in weights.items():
            state, beta = started.get(param, ({}, 0.0))
            if "z" in state or (belongs(before, state, beta) if state else not attached):
                param.copy_(before)

    def _is_unsettled(self) -> bool:
        """Whether a state or weights were loaded since the last step."""
        return self._loaded_training is not None or self._loading is not None

    @torch.inference_mode(False)
    @torch.no_grad()
    def _settle(self) -> None:
        """Bring a loaded state together with the weights, and end the loading of weights, also one that has failed."""
        self._settle_state()
        if self._loading is not None:
            started = self._started(set(self._params()) - self._averaged)
            put_gradient_points(started, self._written, loading=True)
            self._writes.note([param for param, _, _ in started])
            self._loading = None

    def _settle_state(self) -> None:
        if self._loaded_training is not None:
            for param, state, beta in self._started(set(self._params())):
                written = settle(param, state, beta, param not in self._averaged, self._loaded_training)
                if written is not None:
                    self._written[param] = written

    def _notice_replaced(self, params: list[Tensor]) -> None:
        """Note that those parameters hold x that took the place of others which held x, with their states.

        Their states say so: y is kept aside in them, unless weights are being loaded.
        """
        if self._loading is not None:
            return
        found = {param for param in params if param not in self._averaged and "kept" in self.state.get(param, ())}
        if found:
            self._averaged.intersection_update(self._params())
            self._averaged.update(found)
            for group in self.param_groups:
                group["training"] = False

    def _refuse_average_for_gradient_point(self) -> None:
        """Raise RuntimeError if the weights that were loaded after the state are x, where y was to be trained."""
        if self._loaded_training is not None:
            for param, state, beta in self._started(set(self._params())):
                if holds_loaded_average(param, state, beta, self._loaded_training):
                    raise RuntimeError(
                        f"the weights of {self._find(param)[1]} are the average x, but were trained on as y: load the "
                        "model's weights before the optimizer's state, or attach() the optimizer to the model"
                    )

    def _forget_file(self) -> None:
        """The weights and the loaded state belong together from here on."""
        self._written.clear()
        if self._loaded_training is not None:
            for state in self.state.values():
                state.pop("y", None)
                state.pop("z", None)
            self._loaded_training = None
