"""The one shell round every Schedule-Free algorithm: groups, state, step, train and eval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from unscheduled import groups, kernels, loading
from unscheduled.groups import Group
from unscheduled.interval import require_within
from unscheduled.kernels import Implementation, Rule, Scalars
from unscheduled.state import (
    Iterates,
    batches,
    fresh_state,
    put_averages,
    put_gradient_points,
    put_reinterpolated,
    read,
)
from unscheduled.step_size import linear_warmup

if TYPE_CHECKING:
    from typing_extensions import Self

Loss = TypeVar("Loss")


class ScheduleFreeOptimizer(torch.optim.Optimizer, ABC):
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

    training: bool
    """Whether the parameters hold y (True, from birth) or x (False)."""

    implementation: Implementation
    """Which lowering of the update runs."""

    def __init__(
        self, params: ParamsT, *, implementation: Implementation, foreach: bool | None, options: dict[str, Any]
    ) -> None:
        if foreach is not None and implementation != "auto":
            raise ValueError(
                f"foreach = {foreach} and implementation = {implementation!r} exclude each other: give one of them"
            )
        self.training = True
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
        super().add_param_group(group | groups.fresh_counters(self._next_beta(group, 0), self.training))

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
                    "call optimizer.train() before the forward pass of a training step"
                )
            self._update()
            return None
        was_training = self.training
        self.train()
        try:
            with torch.enable_grad():
                loss = closure()
            self.train()  # should the closure have evaluated
            self._update()
        finally:
            self.train(was_training)
        return loss

    def _only_initialises(self) -> bool:
        """Whether this is how torch.distributed.checkpoint makes the buffers: a first step, all zero, at lr = 0."""
        return all(self._nothing_to_learn(group) for group in self.param_groups)

    def _nothing_to_learn(self, group: Group) -> bool:
        gradients = (param.grad for param in cast(list[Tensor], group["params"]) if param.grad is not None)
        return group["step"] == 0 and float(group["lr"]) == 0.0 and not any(bool(grad.any()) for grad in gradients)

    def _update(self) -> None:
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

    # The modes.

    @torch.no_grad()
    def train(self, mode: bool = True) -> Self:
        """Put y into the parameters (``mode=True``), where gradients are to be taken; or, False, do :meth:`eval`.

        The bits of y are those from before :meth:`eval`. But if weights were written meanwhile, as by loading a
        checkpoint, what was written is the new x, and y is formed from it and the gap.
        """
        if mode != self.training:
            put = put_gradient_points if mode else put_averages
            put(
                [
                    (param, state, group["beta"])
                    for group in self.param_groups
                    for param in cast(list[Tensor], group["params"])
                    if (state := self.state.get(param))
                ]
            )
            self.training = mode
            for group in self.param_groups:
                group["training"] = mode
            torch.clear_autocast_cache()  # it may hold casts of the weights of the other mode
        return self

    def eval(self) -> Self:
        """Put the average x into the parameters: what to evaluate, save and ship. y is kept aside, bit for bit."""
        return self.train(False)

    @contextmanager
    def averaged_parameters(self) -> Generator[Self, None, None]:
        """Within the ``with`` block the parameters hold the average x; afterwards the mode is what it was before.

        Not between a forward pass and its backward: autograd refuses weights that were written in between.

        Example:
            >>> import torch
            >>> import unscheduled
            >>> weight = torch.nn.Parameter(torch.ones(2))
            >>> optimizer = unscheduled.SGDScheduleFree([weight], lr=1.0)
            >>> with optimizer.averaged_parameters():
            ...     loss = weight.sum()
            >>> optimizer.training
            True
        """
        was_training = self.training
        try:
            yield self.eval()
        finally:
            self.train(was_training)

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
        return read(param, self.state.get(param), group["beta"], self.training)

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

    def _find(self, param: Tensor) -> tuple[Group, str]:
        """The group of a parameter, and what to call it."""
        for index, group in enumerate(self.param_groups):
            for position, candidate in enumerate(group["params"]):
                if candidate is param:
                    return group, loading.param_name(group, index, position)
        raise ValueError(f"a tensor of shape {tuple(param.shape)} is no parameter of this optimizer: see param_groups")

    # Saving and loading.

    def state_dict(self) -> dict[str, Any]:
        """The state, as numbers, strings and tensors: ``torch.load(weights_only=True)`` reads it.

        In eval mode it carries y beside the gap, so that training resumes bit for bit from a model saved at x.
        """

        def describe(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            for group in state_dict["param_groups"]:
                group.update(groups.described_axes(group))

        hook = self.register_state_dict_post_hook(describe, prepend=True)  # before the hooks of users
        try:
            return super().state_dict()
        finally:
            hook.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave: numbers of groups, buffers in their own precision, and the mode.

        The parameters are not touched; load the model before or after. The two files belong together: the weights
        beside the state of train mode are y, those beside the state of eval mode are x. From eval mode the next
        :meth:`train` restores the very bits of y if the parameters then hold the x that belongs to it; otherwise
        they are taken as the new x.

        Raises:
            ValueError: if it was made by another kind of optimizer, for other parameters (count or shape), with other
                axes, or holds a number out of its range; the message names it, and nothing is changed.
        """
        loaded: list[loading.Loaded] = []

        def check(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
            loaded.append(loading.checked(state_dict, self.param_groups, self.defaults, self._rule, self._check))
            return {"state": {}, "param_groups": loaded[0].param_groups}  # torch would cast the buffers

        def restore(_: torch.optim.Optimizer) -> None:
            self.state.update(loaded[0].state)
            self.training = loaded[0].training

        hooks = [
            self.register_load_state_dict_pre_hook(check),  # after the hooks of users, which may adapt the dict
            self.register_load_state_dict_post_hook(restore, prepend=True),  # before theirs
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"training": self.training, "implementation": self.implementation}
