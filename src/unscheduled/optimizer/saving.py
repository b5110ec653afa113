"""The state of an optimizer as a dictionary: what is saved, and how it is taken back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from unscheduled.checkpoints import importing, optimizer_state
from unscheduled.formulas.rule import Rule
from unscheduled.kernels import Implementation
from unscheduled.kernels.batch import Batches, KnownStates
from unscheduled.optimizer import capture
from unscheduled.optimizer.weights import TwoModes
from unscheduled.state import param_groups
from unscheduled.state.buffers import StatePrecision
from unscheduled.state.device_math import on_host
from unscheduled.state.interruption import Deferred
from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import without_y
from unscheduled.state.split_weights import shard


class SavedOptimizer(TwoModes, ABC):
    """An optimizer whose state is saved, loaded and copied."""

    implementation: Implementation
    """Which lowering of the update runs."""

    state_precision: StatePrecision
    """How the buffers are stored."""

    _batches: dict[tuple[int, int], Batches]  # of each group, by its position, and of each of its rules
    _known_states: KnownStates

    @abstractmethod
    def _rule(self, group: Group, param: Tensor | None = None) -> Rule:
        """The rule of a group, or of a parameter in it, if they differ."""

    @abstractmethod
    def _check(self, group: Group) -> None:
        """Raise ValueError if an option of a group is out of its range."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as numbers, strings and tensors: ``torch.load(weights_only=True)`` reads it.

        Beside the gap and the buffers it has the bits of y, so that training resumes bit for bit whether the model's
        file holds x or y: ``training`` in its groups tells which (x where a model is attached). The names of the
        parameters are in it if the optimizer was given names or the models that hold them are attached, and so is the
        ``version`` of its format.

        As in torch, its tensors are the optimizer's own (y is the parameter's, or what is kept aside while it holds x;
        of 16 bits it is ``y`` and ``low``), so that it needs no memory. To keep it while training goes on, copy it at
        once, with ``copy.deepcopy``; to save it from a thread, use ``torch.distributed.checkpoint.async_save``.
        """

        def describe(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            self._settle()
            self._notice_replaced(self._params())
            state_dict["version"] = optimizer_state.VERSION
            names = self._names()
            if names:  # beside the groups: in them, DCP would look for them in the files of unattached optimizers
                state_dict["param_names"] = dict(enumerate(names[param] for param in self._params()))
            ys = self._live_ys()
            states = {param: without_y(self.state[param]) | ys[param] for param in ys}
            for state in states.values() if self.capturable else ():
                state["step"] = int(on_host(state["step"]))
            entries = self._live.give_out(states)
            for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
                saved.update(param_groups.described_axes(group), **param_groups.counters_on_host(group))
                saved["training"] = self.training and not self._attachments
                for param, key in zip(group["params"], saved["params"], strict=True):
                    if param in entries:
                        state_dict["state"][key] = entries[param]
            self._nest(state_dict)

        hook = self.register_state_dict_post_hook(describe, prepend=True)  # before the hooks of users
        try:
            return super().state_dict()
        finally:
            hook.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave: the numbers of the groups, buffers in their own precision, and the mode.

        Load the model before or after, and switch modes in between as you like: weights and state are matched until the
        first step. If the weights are, bit for bit, the y or the x of the state, the parameters get y or x, as the mode
        asks; otherwise they are taken as the new x, or, in a state of train mode, as y. The mode is that of the
        attached models, if there are any, else that of the file. What a file of an older version lacks takes its
        default. Parameters are found by their names, in whatever order
        and groups, if both sides have names (on one side all may have a further prefix). They are found by their order
        if a side has no names, or has one for two parameters; then the order of the names has to be the same.

        It also takes state dicts of other optimizers: those of the ``schedulefree`` package, whose run continues, and
        those of ``torch.optim.Adam`` and ``AdamW``, whose second moments and their counts are kept: a new run starts
        from x = y = z at the weights, with this optimizer's options.

        Raises:
            ValueError: if it was made by another kind of optimizer, for other parameters (names, count or shape), with
                other axes or options that are unknown here, holds a number out of its range, or is one of an optimizer
                that has made a step since; the message names it, and nothing is changed.
        """
        loaded: list[optimizer_state.Loaded] = []
        own: list[bool] = []  # whether it is one of this optimizer's that is not out of date
        weights: dict[Tensor, Tensor] = {}

        def check(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
            try:
                optimizer_state.check_form(state_dict)
                own.append(self._live.has(state_dict["state"]))
                state_dict = optimizer_state.regrouped(state_dict, self.param_groups, self._names())
                state_dict, base_state = self._without_nested(state_dict)
                state_dict = importing.recognised(state_dict, self.param_groups, self._rule)
                loaded.append(
                    optimizer_state.checked(
                        state_dict,
                        self.param_groups,
                        optimizer_state.class_defaults(type(self), self.defaults),
                        self._rule,
                        self._check,
                        self.state_precision,
                    )
                )
                self._refuse_one_memory(state_dict, loaded[0].training)
                self._load_nested(base_state)
            except torch.OutOfMemoryError:
                raise
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:  # of another form
                raise ValueError(f"the state dict is damaged: {type(error).__name__}: {error}") from error
            weights.update(self._weights_before_switches())
            return {"state": {}, "param_groups": loaded[0].param_groups}  # torch would cast the buffers

        def restore(_: torch.optim.Optimizer) -> None:
            with Deferred():
                if not own[0]:
                    self._live.outdate()
                self.state.update(loaded[0].state)
                self._batches.clear()
                for group in self.param_groups if self.capturable else ():
                    if isinstance(group["lr"], Tensor):  # as of a file that was read on the CPU
                        group["lr"] = group["lr"].to(group["params"][0].device)
                    started = [param for param in group["params"] if param in self.state]
                    capture.bring_to_device(group, started, [self.state[param] for param in started])
                self._loaded(loaded[0].training, weights)

        hooks = [
            self.register_load_state_dict_pre_hook(check),  # after the hooks of users, which may adapt the dict
            self.register_load_state_dict_post_hook(restore, prepend=True),  # before theirs
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _refuse_one_memory(self, state_dict: dict[str, Any], training: bool) -> None:
        """Raise ValueError if DCP has read x and y of a file into the memory of a parameter, one over the other."""
        if self._attachments or training or not self.training:
            return
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=False):
            for key, param in zip(saved["params"], group["params"], strict=False):
                y = state_dict["state"].get(key, {}).get("y")
                if isinstance(y, Tensor) and y.numel() and shard(y).data_ptr() == shard(param).data_ptr() != 0:
                    raise ValueError(
                        "x and y of a file were read into one memory, that of the parameters, which hold "
                        "y: call eval() of the optimizer before its state_dict() is read into, or attach() it, or load "
                        "into a new one"
                    )

    def _nest(self, state_dict: dict[str, Any]) -> None:
        """Put the state of a wrapped optimizer into a state dict."""

    def _without_nested(self, state_dict: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A state dict without the state of a wrapped optimizer, and that, in the order of the parameters."""
        return state_dict, {}

    def _load_nested(self, base_state: dict[str, Any]) -> None:
        """Load the state of a wrapped optimizer."""

    def _names(self) -> dict[Tensor, str]:
        """What the parameters are called: the names given at construction, or those in the attached models.

        Two models may have the same names. Unless every parameter has one, there are none.
        """
        names: dict[Tensor, str] = {}
        for attached in self._attachments:
            for name, param in attached.model.named_parameters():
                names.setdefault(param, optimizer_state.plain_name(name))
        for group in self.param_groups:
            given = [optimizer_state.plain_name(name) for name in group.get("param_names", [])]
            names.update(zip(group["params"], given, strict=False))
        return names if all(param in names for param in self._params()) else {}

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which are attached to nothing; the weights beside them may be x or y."""
        copied = super().__getstate__() | self._fresh_modes()
        copied |= {"implementation": self.implementation, "state_precision": self.state_precision, "_batches": {}}
        copied |= {"_known_states": KnownStates(), "capturable": self.capturable, "_tried": {}}
        copied |= {"_averaged": set(self._averaged), "_written": self._written.copy()}
        copied["_loaded_training"] = self._loaded_training
        copied["_copied"] = self._copied or bool(self._attachments)
        if self._attachments:
            copied["_loaded_training"] = self.training
            copied["state"] = self.state.copy()
            for param, state, beta in self._started(set(self._params())):
                copied["state"][param] = self._with_gradient_point(param, state, beta)
        return copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._gradients.watch(self._averaged)
