"""The one shell round every Schedule-Free algorithm: groups, state, step, train and eval."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from unscheduled import groups, kernels, precision
from unscheduled.batches import Batches
from unscheduled.groups import Group
from unscheduled.interval import require_within
from unscheduled.iterates import coefficients
from unscheduled.kernels import Implementation, Rule, Scalars, Work
from unscheduled.precision import StatePrecision
from unscheduled.saving import SavedOptimizer
from unscheduled.state import State, bits_of_y, fresh_state, put_reinterpolated
from unscheduled.step_size import linear_warmup

Loss = TypeVar("Loss")

LAYOUT = attrgetter("layout")


class Plan(NamedTuple):
    """The next step of a group: its parameters with gradients, the learning rate, and the counters after it."""

    group: Group
    params: list[Tensor]
    grads: list[Tensor]
    contiguous: bool  # all gradients are
    states: list[State]
    warm_lr: float
    counters: Group
    only_initialises: bool


class ScheduleFreeOptimizer(SavedOptimizer):
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
        implementation: ``"auto"`` (the fastest that there is), ``"loop"``, ``"foreach"``, ``"compiled"`` or
            ``"fused"``, for all groups: see :mod:`unscheduled.kernels`.
        state_precision: ``"float32"`` (or the parameters' own precision, if that is higher) or ``"compact"``, for all
            groups: see :mod:`unscheduled.precision`.
        foreach: True is ``implementation="foreach"``, False is ``"loop"``: for code written for ``schedulefree``.
        options: the defaults of the groups, see :mod:`unscheduled.groups`, and the algorithm's own.

    Raises:
        ValueError: if an option is out of its range, at construction or in :meth:`add_param_group`.

    Source: Defazio et al., "The Road Less Scheduled", arXiv 2405.15682.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        implementation: Implementation,
        foreach: bool | None,
        options: dict[str, Any],
        state_precision: StatePrecision = "float32",
    ) -> None:
        if foreach is not None and implementation != "auto":
            raise ValueError(
                f"foreach = {foreach} and implementation = {implementation!r} exclude each other: give one of them"
            )
        self._batches = {}
        self.state_precision = state_precision
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
            group["params"] = groups.listed(group["params"])
            self._check(group, groups.tensors(group["params"]))
        except ValueError as error:
            raise ValueError(f"parameter group {len(self.param_groups)}: {error}") from None
        training = self.training
        super().add_param_group(group | groups.fresh_counters(self._next_beta(group, 0), training))
        if not training:
            self._averaged.update(self.param_groups[-1]["params"])
            self._gradients.watch(self._averaged)
        for attached in self._attachments:  # the model may have new modules as well
            attached.hook()

    def _check(self, group: Group, params: Sequence[Tensor] = ()) -> None:
        groups.check(group)
        self._check_rule(group)
        kernels.check(self.implementation, self._rule(group), params)
        precision.check(self.state_precision, params, self._rule(group).compact is not None)
        self._next_beta(group, 0)

    def _next_beta(self, group: Group, step: int) -> float:
        beta = group["interpolation"](self._beta(group), step)
        if not 0.0 <= beta <= 1.0:
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
        plans = [self._plan(index, group) for index, group in enumerate(self.param_groups)]  # refuses before changing
        self._settle()
        self._forget_file()
        works: dict[Rule, list[Work]] = {}
        for index, plan in enumerate(plans):
            works.setdefault(self._rule(plan.group), []).extend(self._works(index, plan))
        for rule, work in works.items():
            kernels.update(self.implementation, rule, work)
        for plan in plans:
            self._count(plan)
        for index in [index for index in self._batches if index >= len(plans)]:  # of groups that are gone
            del self._batches[index]

    def _plan(self, index: int, group: Group) -> Plan:
        """The next step of a group: nothing is changed yet, and what cannot be is refused."""
        params = cast(list[Tensor], group["params"])
        grads = [grad for param in params if (grad := param.grad) is not None]
        if len(grads) < len(params):
            params = [param for param in params if param.grad is not None]
        contiguous = all(map(Tensor.is_contiguous, grads))  # which sparse tensors never are
        if not contiguous and set(map(LAYOUT, grads)) != {torch.strided}:
            sparse = next(param for param, grad in zip(params, grads, strict=True) if grad.layout != torch.strided)
            raise RuntimeError(
                f"the gradient of {self._find(sparse)[1]} is sparse, but every step averages every weight: "
                "make it dense, as with torch.nn.Embedding(sparse=False)"
            )
        try:
            warm_lr, counters = self._next_counters(group)
        except ValueError as error:
            raise ValueError(f"parameter group {index}: {error}") from None
        states = [self.state[param] for param in params]
        return Plan(group, params, grads, contiguous, states, warm_lr, counters, self._nothing_to_learn(group))

    def _next_counters(self, group: Group) -> tuple[float, Group]:
        """The learning rate of the next step, warmup included, and the counters after it."""
        step = group["step"] + 1
        warm_lr = groups.check_lr(group["lr"]) * linear_warmup(step, group["warmup_steps"])
        effective_lr = warm_lr * self._lr_factor(group, step)
        lr_max = max(group["lr_max"], effective_lr)
        c, weight_sum, next_beta = 0.0, group["weight_sum"], group["beta"]
        if effective_lr > 0.0:  # else z stays, and so do x and y
            c, weight_sum = group["averaging"](step, lr_max, weight_sum)
            if not 0.0 <= c <= 1.0:  # else no time for the words
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

    def _works(self, index: int, plan: Plan) -> list[Work]:
        """What there is to compute for a group. Buffers are made where there are none."""
        group, counters, rule = plan.group, plan.counters, self._rule(plan.group)
        if not all(plan.states):
            for param, state in zip(plan.params, plan.states, strict=True):
                if not state:
                    state.update(fresh_state(param, rule, self.state_precision == "compact"))
        if plan.only_initialises:
            for param, state in zip(plan.params, plan.states, strict=True):
                state["y"] = bits_of_y(param, state)  # a place for that of a file
            self._loaded_training = self.training
            return []
        beta, weight_decay = group["beta"], group["weight_decay"]
        shared: dict[str, Any] = {
            "weight_decay": weight_decay,
            "weight_decay_of_gap": weight_decay * beta if group["decay_at"] == "z" else 0.0,
            "coefficients": coefficients(counters["c"], beta, counters["beta"]),
            "maximize": group["maximize"],
        }
        works: list[Work] = []
        for seen, batch in self._batches.setdefault(index, Batches()).of(
            plan.params, plan.grads, plan.contiguous, plan.states, rule
        ):
            lr = plan.warm_lr * self._lr_factor(group, seen)
            works.append((batch, Scalars(seen, lr, direction=self._rule_scalars(group, seen), **shared)))
        return works

    def _count(self, plan: Plan) -> None:
        """Note that the step was made."""
        if plan.only_initialises:
            return
        for state in plan.states:
            state["step"] += 1
        group, beta, next_beta = plan.group, plan.group["beta"], plan.counters["beta"]
        if next_beta != beta:
            moved = set(plan.params)
            for param in cast(list[Tensor], group["params"]):
                if param not in moved and (state := self.state.get(param)):
                    put_reinterpolated(param, state, beta, next_beta)
        group.update(plan.counters)

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
            gaps = [precision.wide(state, "gap") for param in group["params"] if (state := self.state.get(param))]
            values = {
                "step": float(group["step"]),
                "lr": float(group["lr"]),
                "effective_lr": group["effective_lr"],
                "beta": group["beta"],
                "c": group["c"],
                "window": 1.0 / group["c"] if group["c"] > 0.0 else float("inf"),
                "gap_norm": math.hypot(*(float(cast(Any, gap).norm()) for gap in gaps)),
            }
            metrics.update((prefix + name, value) for name, value in values.items())
        return metrics
