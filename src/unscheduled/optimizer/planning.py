"""The plan of a step: what is to be moved and by how much. It may refuse the step, before anything is changed."""

from __future__ import annotations

from abc import abstractmethod
from itertools import repeat
from operator import attrgetter, contains, itemgetter
from typing import Any, NamedTuple, cast

from torch import Tensor, strided

from unscheduled.formulas.rule import Rule
from unscheduled.formulas.scalar_math import maximum, where
from unscheduled.formulas.step_size import NormAverage, PolyakStep
from unscheduled.formulas.validation import require_within
from unscheduled.kernels.batch import all_same, with_gradients
from unscheduled.optimizer import capture, collectives
from unscheduled.optimizer.polyak import Loss, Number, Part, polyak_step
from unscheduled.optimizer.saving import SavedOptimizer
from unscheduled.state import param_groups
from unscheduled.state.buffers import names_of_buffers, wide
from unscheduled.state.device_math import is_capturing
from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import State

LAYOUT, STEP = attrgetter("layout"), itemgetter("step")
NORM_AVERAGE = ("norm_average", "norm_weight")


class Plan(NamedTuple):
    """The next step of a group: its parameters with gradients, the numbers of the step, and the counters after it."""

    group: Group
    params: list[Tensor]
    grads: list[Tensor]
    contiguous: bool  # all gradients are
    states: list[State]
    seen: list[int]  # how many gradients each parameter has seen before; with capturable=True its state alone tells
    only_initialises: bool
    warm_lr: float = 0.0
    beta: float = 0.0  # that made the present y
    counters: Group = {}  # noqa: RUF012 (nobody writes to it)


def all_contiguous(grads: list[Tensor]) -> bool:
    """Whether all are, so that a kernel need not look."""
    return all(map(Tensor.is_contiguous, grads))


def _any_of_whole(grad: Tensor) -> bool:
    """Whether any number of a tensor, which may be sharded, is not 0: the same answer in all processes."""
    return bool(collectives.whole(grad.any()))


def _is_positive(lr: float | Tensor) -> bool:
    """Whether a learning rate is known to be, without asking a device."""
    return not isinstance(lr, Tensor) and lr > 0.0


def _where(condition: bool | Tensor, some: Group, others: Group) -> Group:
    """Some counters where a condition holds, else the others of the same names."""
    if condition is True:
        return some
    return {name: where(condition, number, others[name]) for name, number in some.items()}


class PlanningOptimizer(SavedOptimizer):
    """An optimizer that plans the steps of its rules, of which an algorithm says what it says below."""

    _tried: dict[int, list[Any]]
    """The formulas of each group, by its position, that were found not to branch, with ``capturable=True``."""

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
        if not isinstance(beta, Tensor) and not 0.0 <= beta <= 1.0:
            require_within("[0, 1]", f"beta of {group['interpolation']}", beta, "it has to stay between z and x")
        return cast(float, beta)

    def _divided(self, plan: Plan) -> list[tuple[Rule, Plan]]:
        """The rules of a group, each with the part of the plan that it is for."""
        return [(self._rule(plan.group), plan)]

    def _check_step_size(self, group: Group) -> None:
        """Raise ValueError if there is no Polyak step for the rule of a group that is to have it."""
        if not isinstance(group["step_size"], PolyakStep):
            return
        if self.capturable:
            raise ValueError(
                f"capturable = True, step_size = {group['step_size']} exclude each other, since that is computed on "
                "the host: use ConstantStep() and a learning rate"
            )
        if not self._has_polyak_step(group):
            raise ValueError(
                f"step_size = {group['step_size']} is not there for {type(self).__name__}: "
                "use AdamWScheduleFree or SGDScheduleFree, or ConstantStep() and a learning rate"
            )

    def _has_polyak_step(self, group: Group) -> bool:
        return self._rule(group).size is not None

    # The plan.

    def _nothing_to_learn(self, group: Group) -> bool:
        if self.capturable and (_is_positive(group["lr"]) or self._has_made_steps()):
            return False  # which is known without waiting for the device
        gradients = (param.grad for param in cast(list[Tensor], group["params"]) if param.grad is not None)
        return group["step"] == 0 and float(group["lr"]) == 0.0 and not any(map(_any_of_whole, gradients))

    def _has_made_steps(self) -> bool:
        """Whether a step was made since the buffers were initialised or loaded."""
        return any(state and "y" not in state for state in self.state.values())

    def _gathered(self, index: int, group: Group) -> Plan:
        """The gradients of a group, and the states beside them; sparse gradients are refused."""
        params, grads = with_gradients(group["params"])
        contiguous = all_contiguous(grads)  # which sparse tensors never are
        if not contiguous and set(map(LAYOUT, grads)) != {strided}:
            sparse = next(param for param, grad in zip(params, grads, strict=True) if grad.layout != strided)
            raise RuntimeError(
                f"the gradient of {self._find(sparse)[1]} is sparse, but every step averages every weight: "
                "make it dense, as with torch.nn.Embedding(sparse=False)"
            )
        found: list[Any] = self._known_states.of(index, params, self.state)
        states: list[State] = found if all(found) else [state or {} for state in found]  # which the step puts there
        if any(map(contains, states, repeat("kept"))):
            held = next(param for param, state in zip(params, states, strict=True) if "kept" in state)
            raise RuntimeError(
                f"{self._find(held)[1]} holds the average x, since it replaced another parameter, with its state, in "
                "eval mode: call train() of the optimizer before the forward pass of a training step"
            )
        if params and is_capturing(params[0].device):
            self._refuse_capture(states)
        if self.capturable:
            capture.bring_to_device(group, params, states)
            seen = [0] * len(states)
        else:
            seen = list(map(STEP, states)) if states is found else [state.get("step", 0) for state in states]
        return Plan(group, params, grads, contiguous, states, seen, self._nothing_to_learn(group))

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
                [wide(state, "gap") if state else None for state in plan.states],
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
        warm_lr, beta, counters = self._next_counters(index, plan.group, factor)
        return plan._replace(warm_lr=warm_lr, beta=beta, counters=counters | average)

    def _refuse_other_rules(self, index: int, plan: Plan) -> None:
        """Raise ValueError if the states are those of another rule than the group now has."""
        parts = self._divided(plan)
        for rule, some in parts:
            known = self._batches.get((index, 0)) if len(parts) == 1 else None
            if known is not None and known.rule is rule:
                continue
            for state in filter(None, some.states):
                kept = names_of_buffers(state) - {"step", "kept", "low", "y", "z"}
                if kept != {"gap", *rule.buffers}:
                    raise ValueError(
                        f"the state of a parameter has {sorted(kept)}, but the options of the group ask for "
                        f"{sorted({'gap', *rule.buffers})}: set them back, or make a new optimizer with them"
                    )

    def _next_counters(self, index: int, group: Group, factor: float) -> tuple[float, float, Group]:
        """The learning rate of the next step, with warmup and ``factor``, beta before it, and the counters after it."""
        try:
            self._refuse_unknown_entries(group)
            if self.capturable:
                self._refuse_branches(index, group)
            warm_lr, counters = self._counters_after(group, factor)
            return warm_lr, group["beta"], counters
        except ValueError as error:
            raise ValueError(f"parameter group {index}: {error}") from None

    _known_entries: frozenset[str] = frozenset()  # not yet looked at

    def _refuse_unknown_entries(self, group: Group) -> None:
        """Raise ValueError if a group has an entry that no step reads."""
        if not self._known_entries.issuperset(group):
            param_groups.refuse_unknown(group, self.defaults)
            self._known_entries = param_groups.known_entries(self.defaults)

    def _refuse_branches(self, index: int, group: Group) -> None:
        """Raise ValueError if new formulas of a group branch on numbers that the host does not know."""
        formulas = [group[axis] for axis in param_groups.AXES]
        if not all_same(formulas, self._tried.get(index, ())):
            capture.refuse_branches(group, self._counters_after)
            self._tried[index] = formulas

    def _counters_after(self, group: Group, factor: float) -> tuple[float, Group]:
        step = group["step"] + 1
        warm_lr = param_groups.warm_lr(group, step) * factor
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
            lr_max = maximum(group["lr_max"], effective_lr)
            others: Group = {"beta": self._next_beta(group, step), "lr_max": lr_max}
            averages = param_groups.averages(group["averaging_state"])
            if averages is not False:
                others |= _where(averages, self._averaged_counters(group, step, effective_lr, lr_max), counters)
            counters |= _where(moves, others, counters)
        return warm_lr, counters

    def _averaged_counters(self, group: Group, step: int, lr: float, lr_max: float) -> Group:
        """c, and the counters of the averaging after a step that enters the average."""
        c: Any
        c, weight_sum = group["averaging"](step - group["averaging_start"], lr, lr_max, group["weight_sum"])
        if not isinstance(c, Tensor) and not 0.0 <= c <= 1.0:  # else no time for the words
            require_within("[0, 1]", f"c of {group['averaging']}", c, "it is the weight of z in a mean")
        c, averaging_state = param_groups.averaged(group["averaging_state"], cast(float, c))
        return {"c": c, "weight_sum": weight_sum, "averaging_state": averaging_state}
