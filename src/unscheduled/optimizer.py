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
from unscheduled.polyak import Loss, Number, Part, polyak_step
from unscheduled.precision import StatePrecision
from unscheduled.saving import SavedOptimizer
from unscheduled.state import State, bits_of_y, fresh_state, put_reinterpolated
from unscheduled.step_size import NormAverage, PolyakStep, linear_warmup

Value = TypeVar("Value")

LAYOUT = attrgetter("layout")
NORM_AVERAGE = ("norm_average", "norm_weight")


class Plan(NamedTuple):
    """The next step of a group: its parameters with gradients, the learning rate, and the counters after it."""

    group: Group
    params: list[Tensor]
    grads: list[Tensor]
    contiguous: bool  # all gradients are
    states: list[State]
    only_initialises: bool
    warm_lr: float = 0.0
    counters: Group = {}  # noqa: RUF012 (nobody writes to it)


def all_contiguous(grads: list[Tensor]) -> bool:
    """Whether all are, so that a kernel need not look."""
    return all(map(Tensor.is_contiguous, grads))


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
    def _rule(self, group: Group, param: Tensor | None = None) -> Rule:
        """The rule of a group, or of a parameter in it, if they differ."""

    @abstractmethod
    def _rule_scalars(self, group: Group, rule: Rule, step: int) -> dict[str, float]:
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

    def _move_scalars(self, group: Group, lr: float) -> tuple[float, float]:
        """gamma and lambda of the move gamma (d + lambda w), at a step of the size ``lr``."""
        return lr, group["weight_decay"]

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
            if group["step_size"] != self.defaults["step_size"]:
                raise ValueError(
                    f"step_size = {group['step_size']} in a group: it is for all groups, so give it to the constructor"
                )
        except ValueError as error:
            raise ValueError(f"parameter group {len(self.param_groups)}: {error}") from None
        training = self.training
        counters = groups.fresh_counters(self._next_beta(group, 0), training)
        for name in NORM_AVERAGE if self.param_groups else ():  # which all groups share
            counters[name] = self.param_groups[0][name]
        super().add_param_group(group | counters)
        if not training:
            self._averaged.update(self.param_groups[-1]["params"])
            self._gradients.watch(self._averaged)
        for attached in self._attachments:  # the model may have new modules as well
            attached.hook()

    def _check(self, group: Group, params: Sequence[Tensor] = ()) -> None:
        groups.check(group)
        self._check_rule(group)
        kernels.check(self.implementation, self._rule(group), params)
        if isinstance(group["step_size"], PolyakStep) and self._rule(group).size is None:
            raise ValueError(
                f"step_size = {group['step_size']} is not there for {type(self).__name__}: "
                "use AdamWScheduleFree or SGDScheduleFree, or give a learning rate"
            )
        precision.check(self.state_precision, params, self._rule(group).compact is not None)
        self._next_beta(group, 0)

    def _next_beta(self, group: Group, step: int) -> float:
        beta = group["interpolation"](self._beta(group), step)
        if not 0.0 <= beta <= 1.0:
            require_within("[0, 1]", f"beta of {group['interpolation']}", beta, "it has to stay between z and x")
        return beta

    # The step.

    @overload
    def step(self, closure: None = None, *, loss: Loss | None = None, grad_norm: Number | None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Value], *, grad_norm: Number | None = None) -> Value: ...

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Value] | None = None,
        *,
        loss: Loss | None = None,
        grad_norm: Number | None = None,
    ) -> Value | None:
        """One optimization step from the gradients at y.

        Args:
            closure: evaluates the model anew, calls backward and returns the loss. It runs at y, from either mode;
                in eval mode the parameters are back at the (new) average afterwards.
            loss: the loss at y, of which :class:`PolyakStep` makes the step size; others have no need of it. A scalar,
                the one that ``backward`` was for: or a list of such, if the gradients of several were accumulated. What
                the closure returns takes its place.
            grad_norm: the 2-norm of the gradient before it was clipped, as ``torch.nn.utils.clip_grad_norm_`` returns
                it. :class:`PolyakStep` would take a clipped gradient for a flat loss, and make a larger step.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: in eval mode without a closure, or if a gradient is sparse; nothing is changed.
            ValueError: if the learning rate or the beta of a group has left its range, or, with :class:`PolyakStep`, if
                the loss is missing, no scalar, not finite or below f*, or the gradient is not finite; nothing is
                changed.
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
            self._update(loss, grad_norm)
            return None
        if loss is not None:
            raise ValueError(f"closure, loss = {loss} exclude each other: let the closure return the loss")
        with self._mode_given_back():
            self.train()
            with torch.enable_grad():
                value = closure()
            self.train()  # should the closure have evaluated
            self._update(cast(Any, value), grad_norm)
        return value

    def _switch_name(self) -> str:
        return "model" if False in self._flags() else "optimizer"

    def _only_initialises(self) -> bool:
        """Whether this is how torch.distributed.checkpoint makes the buffers: a first step, all zero, at lr = 0."""
        return all(self._nothing_to_learn(group) for group in self.param_groups)

    def _nothing_to_learn(self, group: Group) -> bool:
        gradients = (param.grad for param in cast(list[Tensor], group["params"]) if param.grad is not None)
        return group["step"] == 0 and float(group["lr"]) == 0.0 and not any(bool(grad.any()) for grad in gradients)

    def _update(self, loss: Loss | None, grad_norm: Number | None) -> None:
        self._refuse_gradients_at_average()
        self._refuse_average_for_gradient_point()
        plans = [self._gathered(group) for group in self.param_groups]  # refuses before changing, as what follows does
        self._settle()
        factor, average = self._polyak_factor(plans, loss, grad_norm)
        plans = [self._planned(index, plan, factor, average) for index, plan in enumerate(plans)]
        self._forget_file()
        works: dict[Rule, list[Work]] = {}
        for index, plan in enumerate(self._moves(plans)):
            for part, (rule, some) in enumerate(self._divided(plan)):
                works.setdefault(rule, []).extend(self._works((index, part), rule, some))
        for rule, work in works.items():
            kernels.update(self.implementation, rule, work)
        for plan in plans:
            self._count(plan)
        for place in [place for place in self._batches if place[0] >= len(plans)]:  # of groups that are gone
            del self._batches[place]

    def _gathered(self, group: Group) -> Plan:
        """The gradients of a group; sparse ones are refused."""
        params = cast(list[Tensor], group["params"])
        grads = [grad for param in params if (grad := param.grad) is not None]
        if len(grads) < len(params):
            params = [param for param in params if param.grad is not None]
        contiguous = all_contiguous(grads)  # which sparse tensors never are
        if not contiguous and set(map(LAYOUT, grads)) != {torch.strided}:
            sparse = next(param for param, grad in zip(params, grads, strict=True) if grad.layout != torch.strided)
            raise RuntimeError(
                f"the gradient of {self._find(sparse)[1]} is sparse, but every step averages every weight: "
                "make it dense, as with torch.nn.Embedding(sparse=False)"
            )
        states = [self.state.get(param, {}) for param in params]  # an empty one is put there by the step
        return Plan(group, params, grads, contiguous, states, self._nothing_to_learn(group))

    def _polyak_factor(self, plans: list[Plan], loss: Loss | None, grad_norm: Number | None) -> tuple[float, Group]:
        """The step size's factor on every learning rate, and what the groups keep of it."""
        first = self.param_groups[0]
        if not isinstance(first["step_size"], PolyakStep) or all(plan.only_initialises for plan in plans):
            return 1.0, {}
        parts = [
            Part(
                plan.grads,
                [precision.wide(state, "gap") if state else None for state in plan.states],
                plan.group["beta"],
                cast(Any, self._rule(plan.group).size),
            )
            for plan in plans
            if plan.grads
        ]
        before = NormAverage(*(first[name] for name in NORM_AVERAGE))
        factor, average = polyak_step(first["step_size"], parts, self._rule(first).degree, loss, grad_norm, before)
        return factor, dict(zip(NORM_AVERAGE, average, strict=True))

    def _planned(self, index: int, plan: Plan, factor: float, average: Group) -> Plan:
        """The plan with its learning rate and the counters after the step: nothing is changed yet."""
        try:
            warm_lr, counters = self._next_counters(plan.group, factor)
        except ValueError as error:
            raise ValueError(f"parameter group {index}: {error}") from None
        return plan._replace(warm_lr=warm_lr, counters=counters | average)

    def _next_counters(self, group: Group, factor: float) -> tuple[float, Group]:
        """The learning rate of the next step, warmup and ``factor`` included, and the counters after it."""
        step = group["step"] + 1
        warm_lr = groups.check_lr(group["lr"]) * linear_warmup(step, group["warmup_steps"]) * factor
        effective_lr = warm_lr * self._lr_factor(group, step)
        counters: Group = {"step": step, "c": 0.0, "effective_lr": effective_lr, "beta": group["beta"]}
        if effective_lr > 0.0:  # else z stays, and so do x and y
            counters |= {"beta": self._next_beta(group, step), "lr_max": max(group["lr_max"], effective_lr)}
            if group["averaging_state"] not in groups.THAWED:
                counters |= self._averaged_counters(group, step, effective_lr, counters["lr_max"])
        return warm_lr, counters

    def _averaged_counters(self, group: Group, step: int, lr: float, lr_max: float) -> Group:
        """c, and the counters of the averaging after a step that enters the average."""
        c, weight_sum = group["averaging"](step - group["averaging_start"], lr, lr_max, group["weight_sum"])
        if not 0.0 <= c <= 1.0:  # else no time for the words
            require_within("[0, 1]", f"c of {group['averaging']}", c, "it is the weight of z in a mean")
        return {
            "c": 1.0 if group["averaging_state"] == "restarting" else c,
            "weight_sum": weight_sum,
            "averaging_state": "running",
        }

    def _moves(self, plans: list[Plan]) -> list[Plan]:
        """The plans with what the rule is to be given in place of the gradients."""
        return plans

    def _divided(self, plan: Plan) -> list[tuple[Rule, Plan]]:
        """The rules of a group, each with the part of the plan that it is for."""
        return [(self._rule(plan.group), plan)]

    def _works(self, place: tuple[int, int], rule: Rule, plan: Plan) -> list[Work]:
        """What there is to compute for a rule of a group. Buffers are made where there are none."""
        group, counters = plan.group, plan.counters
        if not all(plan.states):
            for param, state in zip(plan.params, plan.states, strict=True):
                if not state:
                    state.update(fresh_state(param, rule, self.state_precision == "compact"))
                    self.state[param] = state
        if plan.only_initialises:
            for param, state in zip(plan.params, plan.states, strict=True):
                state["y"] = bits_of_y(param, state)  # a place for that of a file
            self._loaded_training = self.training
            return []
        beta = group["beta"]
        beta_of_decay = beta if group["decay_at"] == "z" else 0.0
        step_coefficients = coefficients(counters["c"], beta, counters["beta"])
        works: list[Work] = []
        for seen, batch in self._batches.setdefault(place, Batches()).of(
            plan.params, plan.grads, plan.contiguous, plan.states, rule
        ):
            lr, weight_decay = self._move_scalars(group, plan.warm_lr * self._lr_factor(group, seen))
            direction = self._rule_scalars(group, rule, seen)
            decay_of_gap = weight_decay * beta_of_decay
            works.append(
                (
                    batch,
                    Scalars(seen, lr, weight_decay, decay_of_gap, step_coefficients, group["maximize"], direction),
                )
            )
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

    # The end-game.

    def restart_averaging(self) -> None:
        """Forget the average: from the next step on it is that of the new z alone, as in a run that starts there.

        Neither x nor y changes now. The next step has c = 1, which puts x at the new z, the one after it r = 0's 1/2 …;
        the steps of the averaging (t in its weights, and its own warmup) count from here, the warmup of the learning
        rate does not. It ends :meth:`freeze_averaging`.

        For a cool-down: after a restart x is the mean over the last stretch of the run alone.
        """
        for group in self.param_groups:
            group.update(averaging_start=group["step"], averaging_state="restarting", weight_sum=0.0, lr_max=0.0)

    def freeze_averaging(self, frozen: bool = True) -> None:
        """Leave x where it is from now on (c = 0), while z and y go on; or, False, go on to average.

        Steps that are made while it is frozen have no weight: they never enter x, though t in the weights goes on with
        them. y stays between z and the frozen x.
        A restart that no step has followed yet is made when the averaging goes on.
        """
        changes = groups.FROZEN if frozen else groups.THAWED
        for group in self.param_groups:
            state = group["averaging_state"]
            group["averaging_state"] = changes.get(state, state)

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
