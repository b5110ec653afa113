"""The steps of an algorithm: each is planned, which may refuse it, made by a kernel for each rule, and counted."""
# What an algorithm states is for the optimizer's parts alone, so its names begin with an underscore, as do torch's
# foreach operations:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import repeat
from operator import attrgetter, contains, itemgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, strided

from unscheduled import kernels
from unscheduled.formulas.iterates import coefficients
from unscheduled.formulas.rule import Rule
from unscheduled.formulas.step_size import DistanceStep
from unscheduled.kernels import Scalars, Traceable, Work
from unscheduled.kernels.batch import Batches, KnownStates, all_same, with_gradients
from unscheduled.optimizer import capture
from unscheduled.optimizer.algorithm import Algorithm
from unscheduled.optimizer.counters import next_counters
from unscheduled.optimizer.distance import average_gradients
from unscheduled.optimizer.plan import Plan, all_contiguous
from unscheduled.optimizer.planning import divided, only_initialises, step_factor, was_stepped
from unscheduled.optimizer.polyak import Loss, Number
from unscheduled.state import param_groups
from unscheduled.state.buffers import names_of_buffers
from unscheduled.state.device_math import as_tensor, is_capturing
from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import State, bits_of_y, fresh_state, put_reinterpolated

LAYOUT, STEP = attrgetter("layout"), itemgetter("step")


class Begun(NamedTuple):
    """A step that is made, but for the loop whose arguments are here if it is compiled."""

    plans: list[Plan]
    traceable: list[Traceable]
    widths: ExitStack  # to be closed when that is made


class Stepper:
    """Plans the steps of an algorithm, makes them and counts them; it keeps what a step can use of the one before."""

    def __init__(self) -> None:
        self._batches: dict[tuple[int, int], Batches] = {}  # of each group, by its position, and of each of its rules
        self._known_states = KnownStates()
        self._known_entries: frozenset[str] = frozenset()  # of groups
        self._tried: dict[int, list[Any]] = {}  # formulas of each group that do not branch, with capturable=True

    # The plan.

    def gather(
        self, algorithm: Algorithm, groups: list[Group], states: dict[Tensor, State], name: Callable[[Tensor], str]
    ) -> list[Plan]:
        """The gradients of all groups, and the states beside them.

        Args:
            algorithm: whose step it is.
            groups: its groups.
            states: the state of each parameter that has one.
            name: what to call a parameter in an error.

        With ``capturable=True`` the counters are brought to the device here; no value is changed.

        Raises:
            RuntimeError: if a gradient is sparse, a parameter holds x, or the step cannot be captured.
            ValueError: if, with ``capturable=True``, the learning rate is a tensor elsewhere.
        """
        self._known_states.refresh(states)
        stepped = algorithm.capturable and was_stepped(states)
        return [self._gathered(algorithm, index, group, states, name, stepped) for index, group in enumerate(groups)]

    def _gathered(
        self,
        algorithm: Algorithm,
        index: int,
        group: Group,
        states: dict[Tensor, State],
        name: Callable[[Tensor], str],
        stepped: bool,
    ) -> Plan:
        params, grads = with_gradients(group["params"])
        contiguous = all_contiguous(grads)  # which sparse tensors never are
        if not contiguous and set(map(LAYOUT, grads)) != {strided}:
            sparse = next(param for param, grad in zip(params, grads, strict=True) if grad.layout != strided)
            raise RuntimeError(
                f"the gradient of {name(sparse)} is sparse, but every step averages every weight: "
                "make it dense, as with torch.nn.Embedding(sparse=False)"
            )
        found: list[Any] = self._known_states.of(index, params, states)
        here: list[State] = found if all(found) else [state or {} for state in found]  # which the step puts there
        if any(map(contains, here, repeat("kept"))):
            held = next(param for param, state in zip(params, here, strict=True) if "kept" in state)
            raise RuntimeError(
                f"{name(held)} holds the average x, since it replaced another parameter, with its state, in "
                "eval mode: call train() of the optimizer before the forward pass of a training step"
            )
        if params and is_capturing(params[0].device):
            _refuse_capture(algorithm, here)
        if algorithm.capturable:
            capture.bring_to_device(group, params, here)
            seen = [0] * len(here)
        else:
            seen = list(map(STEP, here)) if here is found else [state.get("step", 0) for state in here]
        initial = only_initialises(group, algorithm.capturable, stepped)
        return Plan(group, params, grads, contiguous, here, seen, initial)

    def plan(
        self,
        algorithm: Algorithm,
        gathered: list[Plan],
        states: Mapping[Tensor, State],
        loss: Loss | None,
        grad_norm: Number | None,
    ) -> list[Plan]:
        """The plans with the numbers of the step.

        Raises:
            ValueError: if a group has an entry that is no option, a number is out of its range, or a state is that of
                another rule.
            RuntimeError: if somebody else changed the learning rate of what moves z. Nothing is changed.
        """
        for index, plan in enumerate(gathered):
            self._refuse_other_rules(algorithm, index, plan)
        factor, of_step = step_factor(algorithm, gathered, states, loss, grad_norm)
        plans: list[Plan] = []
        for index, plan in enumerate(gathered):
            own_factor = factor if algorithm._mover is None else factor * algorithm._mover.factor(index)
            try:
                self._refuse_unknown_entries(plan.group, algorithm)
                if algorithm.capturable:
                    self._refuse_branches(algorithm, index, plan.group)
                warm_lr, counters = next_counters(algorithm, plan.group, own_factor)
            except ValueError as error:
                raise ValueError(f"parameter group {index}: {error}") from None
            plans.append(plan._replace(warm_lr=warm_lr, beta=plan.group["beta"], counters=counters | of_step[index]))
        return plans

    def _refuse_other_rules(self, algorithm: Algorithm, index: int, plan: Plan) -> None:
        """Raise ValueError if the states are those of another rule than the group now has."""
        parts = divided(algorithm, plan)
        for rule, some in parts:
            known = self._batches.get((index, 0)) if len(parts) == 1 else None
            of_step = plan.group["step_size"].buffers
            has_all = all(name in state for state in some.states[:1] for name in of_step)
            if known is not None and known.rule is rule and has_all:
                continue
            for state in filter(None, some.states):
                kept = names_of_buffers(state) - {"step", "kept", "low", "y", "z"}
                asked = {"gap", *rule.buffers, *of_step}
                if kept != asked:
                    raise ValueError(
                        f"parameter group {index}: the state of a parameter has {sorted(kept)}, but the options of the "
                        f"group ask for {sorted(asked)}: set them back, or make a new optimizer with them"
                    )

    def _refuse_unknown_entries(self, group: Group, algorithm: Algorithm) -> None:
        """Raise ValueError if a group has an entry that no step reads."""
        if not self._known_entries.issuperset(group):
            param_groups.refuse_unknown(group, algorithm.defaults)
            self._known_entries = param_groups.known_entries(algorithm.defaults)

    def _refuse_branches(self, algorithm: Algorithm, index: int, group: Group) -> None:
        """Raise ValueError if new formulas of a group branch on numbers that the host does not know."""
        formulas = [group[axis] for axis in param_groups.AXES]
        if not all_same(formulas, self._tried.get(index, ())):
            capture.refuse_branches(group, lambda group, factor: next_counters(algorithm, group, factor))
            self._tried[index] = formulas

    # The step.

    def run(self, algorithm: Algorithm, plans: list[Plan], states: dict[Tensor, State], compiling: bool) -> Begun:
        """Make a planned step, and the buffers that are missing.

        Within ``torch.compile``, return the arguments of the loop, which the caller runs in the graph.
        """
        works: dict[Rule, list[Work]] = {}
        for index, plan in enumerate(plans if algorithm._mover is None else algorithm._mover.moves(plans)):
            for part, (rule, some) in enumerate(divided(algorithm, plan)):
                works.setdefault(rule, []).extend(self._works(algorithm, (index, part), rule, some, states))
            if isinstance(plan.group["step_size"], DistanceStep) and not plan.only_initialises:
                average_gradients(plan.group["step_size"], plan)
        begun = Begun(plans, [], ExitStack())
        for rule, work in works.items():
            implementation = algorithm.implementation
            if algorithm.capturable:
                implementation = kernels.of_capturable(implementation, work)
            if compiling:
                begun.traceable.extend(kernels.traceable(implementation, rule, work, begun.widths))
            else:
                kernels.update(implementation, rule, work)
        return begun

    def _works(
        self, algorithm: Algorithm, place: tuple[int, int], rule: Rule, plan: Plan, states: dict[Tensor, State]
    ) -> list[Work]:
        """What there is to compute for a rule of a group."""
        if not all(plan.states):
            for param, state in zip(plan.params, plan.states, strict=True):
                if not state:
                    of_step = plan.group["step_size"].buffers
                    state.update(fresh_state(param, rule, algorithm.state_precision == "compact", of_step))
                    if algorithm.capturable:
                        state["step"] = as_tensor(state["step"], param.device)
                    states[param] = state
        if plan.only_initialises:
            for param, state in zip(plan.params, plan.states, strict=True):
                state["y"] = bits_of_y(param, state)  # a place for that of a file
            return []
        batches = self._batches.setdefault(place, Batches())
        found = batches.of(plan.params, plan.grads, plan.contiguous, plan.states, rule, plan.seen)
        if algorithm.capturable:
            return [
                (batch, _scalars(algorithm, plan, rule, torch.stack(_counts(batch.states)) + 1.0)) for _, batch in found
            ]
        return [(batch, _scalars(algorithm, plan, rule, here + 1)) for here, batch in found]

    def count(self, begun: Begun, states: dict[Tensor, State]) -> None:
        """Note that the step was made: the counters of the groups and of their parameters after it."""
        begun.widths.close()
        for plan in begun.plans:
            if not plan.only_initialises:
                _count(plan, states)
            else:
                shared = [name for name in param_groups.OF_STEP_SIZE if name in plan.counters]
                param_groups.put(plan.group, {name: plan.counters[name] for name in shared})
        for place in [place for place in self._batches if place[0] >= len(begun.plans)]:  # of groups that are gone
            del self._batches[place]


def _refuse_capture(algorithm: Algorithm, states: list[State]) -> None:
    """Raise RuntimeError if a step that is captured in a CUDA graph could not be replayed."""
    if not algorithm.capturable:
        raise RuntimeError(
            "step() is captured in a CUDA graph, but its numbers are on the host, so that every replay would be "
            "the same step: make the optimizer with capturable=True"
        )
    if not all(states):
        raise RuntimeError(
            "the first step of a parameter cannot be captured, since every replay would make its buffers anew: "
            "make a step with these gradients before the capture"
        )


def _scalars(algorithm: Algorithm, plan: Plan, rule: Rule, seen: Any) -> Scalars:
    """The numbers of the step, for parameters that have seen so many gradients, these included.

    That may be a tensor with a number for each.
    """
    group, beta = plan.group, plan.beta
    lr, weight_decay = algorithm._move_scalars(group, plan.warm_lr * algorithm._lr_factor(group, seen))
    return Scalars(
        step=seen,
        lr=lr,
        weight_decay=weight_decay,
        weight_decay_of_gap=weight_decay * beta if group["decay_at"] == "z" else 0.0,
        coefficients=coefficients(plan.counters["c"], beta, plan.counters["beta"]),
        maximize=group["maximize"],
        direction=algorithm._rule_scalars(group, rule, seen),
    )


def _count(plan: Plan, states: dict[Tensor, State]) -> None:
    group, beta, next_beta = plan.group, plan.beta, plan.counters["beta"]
    on_device = isinstance(group["step"], Tensor)
    if plan.states and on_device:
        torch._foreach_add_(_counts(plan.states), 1.0)
    elif plan.states:
        _put_counts(plan.states, plan.seen)
    if len(plan.params) < len(group["params"]) and (on_device or next_beta != beta):
        moved = set(plan.params)
        for param in cast(list[Tensor], group["params"]):
            if param not in moved and (state := states.get(param)):
                put_reinterpolated(param, state, beta, next_beta)
    if on_device:
        param_groups.put(group, plan.counters)
    else:
        group.update(plan.counters)


def _put_counts(states: list[State], seen: list[int]) -> None:
    """Note that parameters have seen one more gradient: mostly one number serves all."""
    if seen.count(seen[0]) == len(seen):
        number = seen[0] + 1
        for state in states:
            state["step"] = number
    else:
        for state, before in zip(states, seen, strict=True):
            state["step"] = before + 1


def _counts(states: list[State]) -> list[Tensor]:
    """How many gradients parameters have seen, as tensors."""
    return [state["step"] for state in states]
