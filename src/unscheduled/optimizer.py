"""The one shell round every Schedule-Free algorithm: groups, state, step, train and eval."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from unscheduled import groups, kernels, loading, migration
from unscheduled.groups import Group
from unscheduled.interval import require_within
from unscheduled.kernels import Implementation, Rule, Scalars
from unscheduled.modes import TwoModes
from unscheduled.state import batches, fresh_state, put_reinterpolated
from unscheduled.step_size import linear_warmup

Loss = TypeVar("Loss")


class ScheduleFreeOptimizer(TwoModes, ABC):
    """Schedule-Free learning: gradients are taken at y, between a base iterate z and its running average x.

        z' = z - gamma (d(g) + lambda w),    w = y or z
        x' = (1 - c) x + c z'
        y' = (1 - beta') z' + beta' x'

    While training the parameters hold y. After :meth:`eval` they hold x, which is good at every step: no schedule,
    no stopping time. The state of a parameter is the gap z - x and the buffers of the rule.

    An algorithm derives from this class once and states its rule (how a gradient becomes d), where its beta stands
    and the ranges of its own arguments; all else is here, and nothing derives from an algorithm.

    Args:
        params: parameters, named parameters or parameter groups, as for every ``torch.optim.Optimizer``.
        implementation: ``"auto"`` (the fastest that the rule has), ``"loop"`` or ``"foreach"``, for all groups.
        foreach: True is ``implementation="foreach"``, False is ``"loop"``: for code written for ``schedulefree``.
        options: the defaults of the groups, see :mod:`unscheduled.groups`, and the algorithm's own.

    Raises:
        ValueError: if an option is out of its range, at construction or in :meth:`add_param_group`.

    Source: Defazio et al., "The Road Less Scheduled", arXiv 2405.15682.
    """

    implementation: Implementation
    """Which lowering of the update runs."""

    def __init__(
        self, params: ParamsT, *, implementation: Implementation, foreach: bool | None, options: dict[str, Any]
    ) -> None:
        if foreach is not None and implementation != "auto":
            raise ValueError(
                f"foreach = {foreach} and implementation = {implementation!r} exclude each other: give one of them"
            )
        self.implementation = implementation if foreach is None else "foreach" if foreach else "loop"
        defaults = groups.resolved(options, defaults={})
        self._check(defaults)
        super().__init__(params, defaults)

    # What an algorithm states.

    @abstractmethod
    def _rule(self, group: Group) -> Rule:
        """The rule of a group."""

    @abstractmethod
    def _rule_scalars(self, group: Group, step: int) -> dict[str, float]:
        """The rule's scalars for a parameter that has seen ``step`` gradients, this one included."""

    @abstractmethod
    def _beta(self, group: Group) -> float:
        """The interpolation beta that the group states."""

    @abstractmethod
    def _check_rule(self, group: Group) -> None:
        """Raise ValueError if one of the algorithm's own options is out of its range."""

    def _lr_factor(self, group: Group, step: int) -> float:
        """The rule's own factor on the learning rate after ``step`` gradients."""
        return 1.0

    # Groups.

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, at any time and in either mode. Its averaging starts afresh.

        Args:
            param_group: its ``params``, and the options that differ from the constructor's.

        Raises:
            TypeError: if it is no dictionary, or its ``params`` are no tensors.
            ValueError: if an option is out of its range or a parameter is in a group already; nothing is changed.
        """
        if not isinstance(param_group, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"param_group must be a dict with the key 'params', but got {type(param_group)}")
        try:
            group = groups.resolved(param_group, self.defaults)
            self._check(group)
            group["params"] = groups.listed(group["params"])
        except ValueError as error:
            raise ValueError(f"parameter group {len(self.param_groups)}: {error}") from None
        training = self.training
        super().add_param_group(group | groups.fresh_counters(self._next_beta(group, 0), training))
        if not training:
            self._averaged.update(self.param_groups[-1]["params"])
            self._gradients.watch(self._averaged)
        for attached in self._attachments:  # the model may have new modules as well
            attached.hook()

    def _check(self, group: Group) -> None:
        groups.check(group)
        self._check_rule(group)
        kernels.choose(self.implementation, self._rule(group))
        self._next_beta(group, 0)

    def _next_beta(self, group: Group, step: int) -> float:
        beta = group["interpolation"](self._beta(group), step)
        require_within("[0, 1]", f"beta of {group['interpolation']}", beta, "it has to stay between z and x")
        return beta

    # The step.

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        """One optimization step from the gradients at y.

        Args:
            closure: evaluates the model anew, calls backward and returns the loss. It runs at y, from either mode;
                in eval mode the parameters are back at the (new) average afterwards.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: in eval mode without a closure, or if a gradient is sparse; nothing is changed.
            ValueError: if the learning rate or the beta of a group has left its range; nothing is changed.
        """
        if closure is None:
            if not self.training and not self._only_initialises():
                raise RuntimeError(
                    "step() in eval mode, where the parameters hold the average x and not y: "
                    f"call {self._switch_name()}.train() before the forward pass of a training step"
                )
            if self.training and not all(attached.model.training for attached in self._attachments):
                warnings.warn(
                    "step() in train mode while the attached model is in eval mode, with its dropout and BatchNorm: "
                    "call model.train(), which moves the parameters too, and not optimizer.train()",
                    stacklevel=3,
                )
            self._update()
            return None
        with self._mode_given_back():
            self.train()
            with torch.enable_grad():
                loss = closure()
            self.train()  # should the closure have evaluated
            self._update()
        return loss

    def _switch_name(self) -> str:
        return "model" if False in self._flags() else "optimizer"

    def _only_initialises(self) -> bool:
        """Whether this is how torch.distributed.checkpoint makes the buffers: a first step, all zero, at lr = 0."""
        return all(self._nothing_to_learn(group) for group in self.param_groups)

    def _nothing_to_learn(self, group: Group) -> bool:
        gradients = (param.grad for param in cast(list[Tensor], group["params"]) if param.grad is not None)
        return group["step"] == 0 and float(group["lr"]) == 0.0 and not any(bool(grad.any()) for grad in gradients)

    def _update(self) -> None:
        self._refuse_gradients_at_average()
        self._refuse_average_for_gradient_point()
        plans: list[tuple[float, Group]] = []
        for index, group in enumerate(self.param_groups):  # refuse all before any is changed
            try:
                plans.append(self._plan(group))
            except ValueError as error:
                raise ValueError(f"parameter group {index}: {error}") from None
            for param in cast(list[Tensor], group["params"]):
                if param.grad is not None and param.grad.layout != torch.strided:
                    raise RuntimeError(
                        f"the gradient of {self._find(param)[1]} is sparse, but every step averages every weight: "
                        "make it dense, as with torch.nn.Embedding(sparse=False)"
                    )
        self._settle()
        self._forget_file()
        for group, (warm_lr, counters) in zip(self.param_groups, plans, strict=True):
            self._update_group(group, warm_lr, counters)

    def _plan(self, group: Group) -> tuple[float, Group]:
        """The learning rate of the next step, warmup included, and the counters after it."""
        step = group["step"] + 1
        warm_lr = groups.check_lr(group["lr"]) * linear_warmup(step, group["warmup_steps"])
        effective_lr = warm_lr * self._lr_factor(group, step)
        lr_max = max(group["lr_max"], effective_lr)
        c, weight_sum, next_beta = 0.0, group["weight_sum"], group["beta"]
        if effective_lr > 0.0:  # else z stays, and so do x and y
            c, weight_sum = group["averaging"](step, lr_max, weight_sum)
            require_within("[0, 1]", f"c of {group['averaging']}", c, "it is the weight of z in a mean")
            next_beta = self._next_beta(group, step)
        return warm_lr, {
            "step": step,
            "weight_sum": weight_sum,
            "lr_max": lr_max,
            "beta": next_beta,
            "c": c,
            "effective_lr": effective_lr,
        }

    def _update_group(self, group: Group, warm_lr: float, counters: Group) -> None:
        rule = self._rule(group)
        params = cast(list[Tensor], group["params"])
        active = [(param, self.state[param]) for param in params if param.grad is not None]
        for param, state in active:
            if not state:
                state.update(fresh_state(param, rule))
        if self._nothing_to_learn(group):
            for param, state in active:
                state["y"] = param.detach().clone()  # a place for that of a file
            self._loaded_training = self.training
            return
        beta, next_beta = group["beta"], counters["beta"]
        update = kernels.choose(self.implementation, rule)
        for seen, batch in batches(active, rule):
            scalars = Scalars(
                lr=warm_lr * self._lr_factor(group, seen),
                c=counters["c"],
                beta=beta,
                next_beta=next_beta,
                weight_decay=group["weight_decay"],
                decay_at_z=group["decay_at"] == "z",
                maximize=group["maximize"],
                direction=self._rule_scalars(group, seen),
            )
            update(rule, batch, scalars)
        if next_beta != beta:
            for param in params:
                if param.grad is None and (state := self.state.get(param)):
                    put_reinterpolated(param, state, beta, next_beta)
        group.update(counters)

    # Looking at it.

    def metrics(self) -> dict[str, float]:
        """Numbers to log, of the last step; with several groups each name is preceded by ``group0/``, ``group1/``, …

        ``step``; ``lr``, as set; ``effective_lr``, the step size gamma after warmup and rectification; ``beta``;
        ``c``, the weight of the newest z in the average; ``window`` = 1/c, the steps that the average spans;
        ``gap_norm``, the Euclidean norm of z - x, which is not finite once a gradient was not.
        """
        metrics: dict[str, float] = {}
        for index, group in enumerate(self.param_groups):
            prefix = f"group{index}/" if len(self.param_groups) > 1 else ""
            gaps = [self.state[param]["gap"] for param in group["params"] if self.state.get(param)]
            values = {
                "step": float(group["step"]),
                "lr": float(group["lr"]),
                "effective_lr": group["effective_lr"],
                "beta": group["beta"],
                "c": group["c"],
                "window": 1.0 / group["c"] if group["c"] > 0.0 else float("inf"),
                "gap_norm": math.hypot(*(float(gap.norm()) for gap in gaps)),
            }
            metrics.update((prefix + name, value) for name, value in values.items())
        return metrics

    # Saving and loading.

    def state_dict(self) -> dict[str, Any]:
        """The state, as numbers, strings and tensors: ``torch.load(weights_only=True)`` reads it.

        Beside the gap and the buffers it has the bits of y, so that training resumes bit for bit whether the model's
        file holds x or y: ``training`` in its groups tells which (x where a model is attached). The names of the
        parameters are in it if the optimizer was given names or the models that hold them are attached.
        """

        def describe(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            self._settle()
            names = self._names()
            if names:  # beside the groups: in them, DCP would look for them in the files of unattached optimizers
                state_dict["param_names"] = dict(enumerate(names[param] for param in self._params()))
            for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
                saved.update(groups.described_axes(group), training=self.training and not self._attachments)
                for param, key in zip(group["params"], saved["params"], strict=True):
                    if state := self.state.get(param):
                        state_dict["state"][key] = self._with_gradient_point(param, state, group["beta"])

        hook = self.register_state_dict_post_hook(describe, prepend=True)  # before the hooks of users
        try:
            return super().state_dict()
        finally:
            hook.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave: numbers of groups, buffers in their own precision, and the mode.

        Load the model before or after, and switch as you like in between; until the first step they find each other.
        If its weights are, bit for bit, the y or the x of the state, the parameters get y or x, as the mode asks;
        otherwise they are taken as the new x, or, in a state of train mode, as y. The mode is that of the attached
        models, if there are any, else that of the file. Parameters are found by their names, in whatever order and
        groups, if both sides have names, and by their order otherwise.

        It takes the files of other optimizers too: the ``schedulefree`` package's, whose run goes on, and those of
        ``torch.optim.Adam`` and ``AdamW``, of which the second moments and their counts are kept: a new run starts from
        x = y = z at the weights, with this optimizer's options.

        Raises:
            ValueError: if it was made by another kind of optimizer, for other parameters (names, count or shape), with
                other axes, or holds a number out of its range; the message names it, and nothing is changed.
        """
        loaded: list[loading.Loaded] = []
        weights: dict[Tensor, Tensor] = {}

        def check(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
            try:
                state_dict = loading.regrouped(state_dict, self.param_groups, self._names())
                state_dict = migration.recognised(state_dict, self.param_groups, self._rule)
                loaded.append(loading.checked(state_dict, self.param_groups, self.defaults, self._rule, self._check))
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:  # of another form
                raise ValueError(f"the state dict is damaged: {type(error).__name__}: {error}") from error
            weights.update(self._weights_before_switches())
            return {"state": {}, "param_groups": loaded[0].param_groups}  # torch would cast the buffers

        def restore(_: torch.optim.Optimizer) -> None:
            self.state.update(loaded[0].state)
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

    def _names(self) -> dict[Tensor, str]:
        """What the parameters are called: the names given at construction, or those in the attached models."""
        names: dict[Tensor, str] = {}
        for index, attached in enumerate(self._attachments):
            prefix = f"{index}." if len(self._attachments) > 1 else ""
            for name, param in attached.model.named_parameters():
                names.setdefault(param, prefix + loading.plain_name(name))
        for group in self.param_groups:
            names.update(zip(group["params"], group.get("param_names", []), strict=False))
        return names if all(param in names for param in self._params()) else {}

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which are attached to nothing; the weights beside them may be x or y."""
        copied = super().__getstate__() | {"implementation": self.implementation} | self._fresh_modes()
        copied |= {"_averaged": set(self._averaged), "_loaded_training": self._loaded_training}
        if self._attachments:
            copied["_loaded_training"] = self.training
            copied["state"] = self.state.copy()
            for param, state, beta in self._started(set(self._params())):
                copied["state"][param] = self._with_gradient_point(param, state, beta)
        return copied
