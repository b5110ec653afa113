"""The step of an optimizer: it is planned, which may refuse it, and then made by a kernel for each rule."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack
from operator import attrgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from unscheduled import distributed, groups, kernels, precision
from unscheduled.arithmetic import chosen, greatest
from unscheduled.batches import Batches, with_gradients
from unscheduled.device_counters import is_capturing
from unscheduled.device_number import DeviceNumber, as_tensor
from unscheduled.groups import Group
from unscheduled.interval import require_within
from unscheduled.iterates import coefficients
from unscheduled.kernels import Rule, Scalars, Traceable, Work, loop, untraced
from unscheduled.polyak import Loss, Number, Part, polyak_step
from unscheduled.repetition import Repetition
from unscheduled.saving import SavedOptimizer
from unscheduled.state import State, bits_of_y, fresh_state, put_reinterpolated
from unscheduled.step_size import ConstantStep, NormAverage, PolyakStep

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


class Begun(NamedTuple):
    """A step that is planned, and made but for what is to be compiled."""

    plans: list[Plan]
    traceable: list[Traceable]
    widths: ExitStack  # to be closed when that is made


def all_contiguous(grads: list[Tensor]) -> bool:
    """Whether all are, so that a kernel need not look."""
    return all(map(Tensor.is_contiguous, grads))


def _any_of_whole(grad: Tensor) -> bool:
    """Whether any number of a tensor, which may be sharded, is not 0: the same answer in all processes."""
    return bool(distributed.whole(grad.any()))


class SteppingOptimizer(SavedOptimizer):
    """An optimizer that makes the steps of its rules, of which an algorithm says what it says below."""

    _made_of: tuple[object, ...] = ()  # what stands for the batches of the last step
    _repetition: Repetition | None = None
    _is_new: bool = True  # what it was made of: not yet looked at

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

    def _next_beta(self, group: Group, step: int) -> float:
        beta: Any = group["interpolation"](self._beta(group), step)
        if not isinstance(beta, DeviceNumber) and not 0.0 <= beta <= 1.0:
            require_within("[0, 1]", f"beta of {group['interpolation']}", beta, "it has to stay between z and x")
        return cast(float, beta)

    def _check_step_size(self, group: Group) -> None:
        """Raise ValueError if there is no Polyak step for the rule of a group that is to have it."""
        if not isinstance(group["step_size"], PolyakStep):
            return
        if self.capturable:
            raise ValueError(
                f"capturable = True, step_size = {group['step_size']} exclude each other, since that is computed on "
                "the host: use ConstantStep() and a learning rate"
            )
        if self._rule(group).size is None:
            raise ValueError(
                f"step_size = {group['step_size']} is not there for {type(self).__name__}: "
                "use AdamWScheduleFree or SGDScheduleFree, or ConstantStep() and a learning rate"
            )

    # The step.

    def _nothing_to_learn(self, group: Group) -> bool:
        counters = self._counters_of(group)
        if counters is not None and counters.steps_were_made:
            return False
        gradients = (param.grad for param in cast(list[Tensor], group["params"]) if param.grad is not None)
        return group["step"] == 0 and float(group["lr"]) == 0.0 and not any(map(_any_of_whole, gradients))

    def _update(self, loss: Loss | None, grad_norm: Number | None) -> None:
        """Make a step. Within ``torch.compile``, the graph is what stands between the two other parts."""
        compiling = torch.compiler.is_compiling()
        if not compiling and self._repeated():
            return
        with torch.no_grad():
            if compiling:
                begun = self._begin_outside_the_graph(loss, grad_norm, compiling=True)
                for work in begun.traceable:
                    loop.update(*work)
                self._end_outside_the_graph(begun)
            else:
                self._end(self._begin(loss, grad_norm, compiling=False))

    def _begin(self, loss: Loss | None, grad_norm: Number | None, compiling: bool) -> Begun:
        """Plan the step, and make it, but for what is to be compiled."""
        self._refuse_gradients_at_average()
        self._refuse_average_for_gradient_point()
        plans = [self._gathered(group) for group in self.param_groups]  # refuses before changing, as what follows does
        if not any(plan.grads for plan in plans):
            self._look_for_other_parameters()
        self._copied = False
        if self._loaded_training is not None or self._loading is not None:
            self._settle()
        factor, average = self._polyak_factor(plans, loss, grad_norm)
        plans = [self._planned(index, plan, factor, average) for index, plan in enumerate(plans)]
        self._forget_file()
        works: dict[Rule, list[Work]] = {}
        for index, plan in enumerate(self._moves(plans)):
            for part, (rule, some) in enumerate(self._divided(plan)):
                works.setdefault(rule, []).extend(self._works((index, part), rule, some))
        begun = Begun(plans, [], ExitStack())
        for rule, work in works.items():
            implementation = self.implementation
            if self.capturable:
                implementation = kernels.of_capturable(implementation, work)
            if compiling:
                begun.traceable.extend(kernels.traceable(implementation, rule, work, begun.widths))
            else:
                kernels.update(implementation, rule, work)
        self._remember(plans, works)
        return begun

    def _end(self, begun: Begun) -> None:
        """Note that the step was made."""
        begun.widths.close()
        for plan in begun.plans:
            self._count(plan)
        for place in [place for place in self._batches if place[0] >= len(begun.plans)]:  # of groups that are gone
            del self._batches[place]

    _begin_outside_the_graph, _end_outside_the_graph = untraced(_begin), untraced(_end)

    def _repeated(self) -> bool:
        """Make the step, if it is like the one before in all but its numbers."""
        repetition = self._repetition
        if repetition is None or self._loaded_training is not None or self._loading is not None:
            return False
        self._refuse_gradients_at_average()
        if repetition.implementation != self.implementation or not self._has_one_part_each(repetition.rule):
            return False
        found = repetition.found(self.param_groups, self.state)
        if found is None:
            return False
        plans = [
            Plan(part.group, part.params, [], True, part.states, False, *self._next_counters(index, part.group, 1.0))
            for index, (part, _) in enumerate(found)
        ]
        self._forget_file()
        repetition.run(
            [self._scalars(plan, repetition.rule, seen + 1) for plan, (_, seen) in zip(plans, found, strict=True)]
        )
        for plan, (_, seen) in zip(plans, found, strict=True):
            count = seen + 1  # one number for all, where each state's own would be as many to look up
            for state in plan.states:
                state["step"] = count
            self._note(plan)
        return True

    def _remember(self, plans: list[Plan], works: dict[Rule, list[Work]]) -> None:
        """Note what the step is made of, if that was the same in the step before: it may be so in the next."""
        made_of = tuple(batch.kept.token for work in works.values() for batch, _ in work)
        if made_of != self._made_of:
            self._made_of, self._is_new, self._repetition = made_of, True, None
        elif self._is_new:
            self._is_new, rules = False, list(works)
            if (
                not self.capturable
                and len(rules) == 1
                and len(made_of) == len(plans)
                and self._has_one_part_each(rules[0])
            ):
                groups, work = [plan.group for plan in plans], works[rules[0]]
                self._repetition = Repetition.of(self.implementation, rules[0], groups, work, self.state)

    def _has_one_part_each(self, rule: Rule) -> bool:
        """Whether that is the rule of all groups, and no loss is needed."""
        return all(
            self._rule(group) is rule and type(group["step_size"]) is ConstantStep for group in self.param_groups
        )

    def _gathered(self, group: Group) -> Plan:
        """The gradients of a group; sparse ones are refused."""
        params, grads = with_gradients(group["params"])
        contiguous = all_contiguous(grads)  # which sparse tensors never are
        if not contiguous and set(map(LAYOUT, grads)) != {torch.strided}:
            sparse = next(param for param, grad in zip(params, grads, strict=True) if grad.layout != torch.strided)
            raise RuntimeError(
                f"the gradient of {self._find(sparse)[1]} is sparse, but every step averages every weight: "
                "make it dense, as with torch.nn.Embedding(sparse=False)"
            )
        found: list[Any] = list(map(self.state.get, params))
        states: list[State] = found if all(found) else [state or {} for state in found]  # which the step puts there
        if params and is_capturing(params[0].device):
            self._refuse_capture(states)
        return Plan(group, params, grads, contiguous, states, self._nothing_to_learn(group))

    def _refuse_capture(self, states: list[State]) -> None:
        """Raise RuntimeError if a step that is captured in a CUDA graph could not be replayed."""
        if not self.capturable:
            raise RuntimeError(
                "step() is captured in a CUDA graph, but its numbers are on the host, so that every replay would be "
                "the same step: make the optimizer with capturable=True"
            )
        if not all(states):
            raise RuntimeError(
                "the first step of a parameter cannot be captured, since every replay would make its buffers anew: "
                "make a step with these gradients before the capture"
            )

    def _polyak_factor(self, plans: list[Plan], loss: Loss | None, grad_norm: Number | None) -> tuple[float, Group]:
        """The step size's factor on every learning rate, and what the groups keep of it."""
        first = self.param_groups[0]
        step_size = first["step_size"]
        if any(group["step_size"] is not step_size and group["step_size"] != step_size for group in self.param_groups):
            raise ValueError(f"step_size = {step_size} in group 0, but another in some group: give all the same")
        if not isinstance(step_size, PolyakStep) or all(plan.only_initialises for plan in plans):
            return 1.0, {}
        self._check_step_size(first)
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
        factor, average = polyak_step(step_size, parts, self._rule(first).degree, loss, grad_norm, before)
        return factor, dict(zip(NORM_AVERAGE, average, strict=True))

    def _planned(self, index: int, plan: Plan, factor: float, average: Group) -> Plan:
        """The plan with its learning rate and the counters after the step: nothing is changed yet."""
        try:
            self._refuse_other_rules(index, plan)
        except ValueError as error:
            raise ValueError(f"parameter group {index}: {error}") from None
        warm_lr, counters = self._next_counters(index, plan.group, factor)
        return plan._replace(warm_lr=warm_lr, counters=counters | average)

    def _refuse_other_rules(self, index: int, plan: Plan) -> None:
        """Raise ValueError if the states are those of another rule than the group now has."""
        parts = self._divided(plan)
        for rule, some in parts:
            known = self._batches.get((index, 0)) if len(parts) == 1 else None
            if known is not None and known.rule is rule:
                continue
            for state in filter(None, some.states):
                kept = precision.buffers(state) - {"step", "kept", "low", "y", "z"}
                if kept != {"gap", *rule.buffers}:
                    raise ValueError(
                        f"the state of a parameter has {sorted(kept)}, but the options of the group ask for "
                        f"{sorted({'gap', *rule.buffers})}: set them back, or make a new optimizer with them"
                    )

    def _next_counters(self, index: int, group: Group, factor: float) -> tuple[float, Group]:
        """The learning rate of the next step, warmup and ``factor`` included, and the counters after it."""
        try:
            return self._counters_after(self._with_counters(group), factor)
        except ValueError as error:
            raise ValueError(f"parameter group {index}: {error}") from None

    def _counters_after(self, group: Group, factor: float) -> tuple[float, Group]:
        step = group["step"] + 1
        warm_lr = groups.warm_lr(group, step) * factor
        effective_lr = warm_lr * self._lr_factor(group, step)
        counters: Group = {
            "step": step,
            "c": 0.0,
            "effective_lr": effective_lr,
            "averaging_state": group["averaging_state"],
            "weight_sum": group["weight_sum"],
            "lr_max": group["lr_max"],
            "beta": group["beta"],
        }
        moves = effective_lr > 0.0  # else z stays, and so do x and y
        if moves is not False:
            lr_max = greatest(group["lr_max"], effective_lr)
            others: Group = {"beta": self._next_beta(group, step), "lr_max": lr_max}
            averages = groups.averages(group["averaging_state"])
            if averages is not False:
                others |= chosen(averages, self._averaged_counters(group, step, effective_lr, lr_max), counters)
            counters |= chosen(moves, others, counters)
        return warm_lr, counters

    def _averaged_counters(self, group: Group, step: int, lr: float, lr_max: float) -> Group:
        """c, and the counters of the averaging after a step that enters the average."""
        c: Any
        c, weight_sum = group["averaging"](step - group["averaging_start"], lr, lr_max, group["weight_sum"])
        if not isinstance(c, DeviceNumber) and not 0.0 <= c <= 1.0:  # else no time for the words
            require_within("[0, 1]", f"c of {group['averaging']}", c, "it is the weight of z in a mean")
        c, averaging_state = groups.averaged(group["averaging_state"], cast(float, c))
        return {"c": c, "weight_sum": weight_sum, "averaging_state": averaging_state}

    def _moves(self, plans: list[Plan]) -> list[Plan]:
        """The plans with what the rule is to be given in place of the gradients."""
        return plans

    def _divided(self, plan: Plan) -> list[tuple[Rule, Plan]]:
        """The rules of a group, each with the part of the plan that it is for."""
        return [(self._rule(plan.group), plan)]

    def _works(self, place: tuple[int, int], rule: Rule, plan: Plan) -> list[Work]:
        """What there is to compute for a rule of a group. Buffers are made where there are none."""
        counters = self._counters_of(plan.group)
        if not all(plan.states):
            new = [(param, state) for param, state in zip(plan.params, plan.states, strict=True) if not state]
            for param, state in new:
                state.update(fresh_state(param, rule, self.state_precision == "compact"))
                self.state[param] = state
            if counters:
                counters.start(param for param, _ in new)
        if plan.only_initialises:
            for param, state in zip(plan.params, plan.states, strict=True):
                state["y"] = bits_of_y(param, state)  # a place for that of a file
            self._loaded_training = self.training
            return []
        seen = counters.kinds(plan.params) if counters else [state["step"] + 1 for state in plan.states]
        batches = self._batches.setdefault(place, Batches())
        found = batches.of(plan.params, plan.grads, plan.contiguous, plan.states, rule, seen)
        return [
            (batch, self._scalars(plan, rule, counters.seen(here) + 1.0 if counters else here)) for here, batch in found
        ]

    def _scalars(self, plan: Plan, rule: Rule, seen: Any) -> Scalars:
        """The numbers of the step, for parameters that have seen so many gradients, these included."""
        group = self._with_counters(plan.group)
        beta = group["beta"]
        lr, weight_decay = self._move_scalars(group, plan.warm_lr * self._lr_factor(group, seen))
        return Scalars(
            step=seen,
            lr=lr,
            weight_decay=weight_decay,
            weight_decay_of_gap=weight_decay * beta if group["decay_at"] == "z" else 0.0,
            coefficients=coefficients(plan.counters["c"], beta, plan.counters["beta"]),
            maximize=group["maximize"],
            direction=self._rule_scalars(group, rule, seen),
        )

    def _count(self, plan: Plan) -> None:
        """Note that the step was made."""
        if plan.only_initialises:
            return
        if self._counters_of(plan.group) is None:
            for state in plan.states:
                state["step"] += 1
        self._note(plan)

    def _note(self, plan: Plan) -> None:
        """Note the numbers of the group after the step."""
        group, counters = plan.group, self._counters_of(plan.group)
        beta, next_beta = self._with_counters(group)["beta"], plan.counters["beta"]
        if counters is not None:  # then nobody knows whether they differ
            beta, next_beta = as_tensor(beta, counters.device), as_tensor(next_beta, counters.device)
        if (counters is not None or next_beta != beta) and len(plan.params) < len(group["params"]):
            moved = set(plan.params)
            with torch.no_grad():  # which a repeated step is not made in
                for param in cast(list[Tensor], group["params"]):
                    if param not in moved and (state := self.state.get(param)):
                        put_reinterpolated(param, state, cast(float, beta), cast(float, next_beta))
        if counters is not None:
            counters.advance(plan.params, plan.counters)
        else:
            group.update(plan.counters)
