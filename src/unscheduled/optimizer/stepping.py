"""The step of an optimizer: it is planned, which may refuse it, and then made by a kernel for each rule.

It is made as a whole: if it is interrupted, as by Ctrl-C, tensors and numbers are of the same step afterwards. Only
within ``torch.compile(optimizer.step)``, which cannot look into that, it may stop between the two.
"""

# torch publishes its foreach operations under names with an underscore:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from unscheduled import kernels
from unscheduled.formulas.iterates import coefficients
from unscheduled.formulas.rule import Rule
from unscheduled.kernels import Scalars, Traceable, Work, loop, untraced
from unscheduled.kernels.batch import Batches
from unscheduled.model.attachment import Clock
from unscheduled.optimizer.planning import Plan, PlanningOptimizer
from unscheduled.optimizer.polyak import Loss, Number
from unscheduled.state import param_groups
from unscheduled.state.device_math import as_tensor
from unscheduled.state.interruption import Deferred
from unscheduled.state.parameter import State, bits_of_y, fresh_state, put_reinterpolated


class Begun(NamedTuple):
    """A step that is planned, and made but for what is to be compiled."""

    plans: list[Plan]
    traceable: list[Traceable]
    widths: ExitStack  # to be closed when that is made


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


class SteppingOptimizer(PlanningOptimizer):
    """An optimizer that makes the steps that are planned."""

    def _update(self, loss: Loss | None, grad_norm: Number | None) -> None:
        """Make a step. Within ``torch.compile``, the graph is what stands between the two other parts."""
        compiling = torch.compiler.is_compiling()
        if not compiling and self._looked_at != Clock.time:
            self._take_over()
        with torch.no_grad():
            if compiling:
                begun = self._begin_outside_the_graph(loss, grad_norm, compiling=True)
                loop.update_all(begun.traceable)
                self._end_outside_the_graph(begun)
            else:
                plans = self._planned_step(loss, grad_norm)
                with Deferred():
                    self._end(self._made(plans, compiling=False))

    def _begin(self, loss: Loss | None, grad_norm: Number | None, compiling: bool) -> Begun:
        """Plan the step, and make it, but for what is to be compiled."""
        if self._looked_at != Clock.time:
            self._take_over()
        return self._made(self._planned_step(loss, grad_norm), compiling)

    def _planned_step(self, loss: Loss | None, grad_norm: Number | None) -> list[Plan]:
        """The plans of all groups. Until they are there, the step may be refused."""
        self._check_groups()
        self._refuse_gradients_at_average()
        self._refuse_average_for_gradient_point()
        self._known_states.refresh(self.state)
        # Each of these refuses before anything is changed, and so does what follows.
        plans = [self._gathered(index, group) for index, group in enumerate(self.param_groups)]
        if not any(plan.grads for plan in plans):
            self._look_for_other_parameters()
        self._copied = False
        if self._is_unsettled():
            self._settle()
        factor, average = self._polyak_factor(plans, loss, grad_norm)
        return [self._planned(index, plan, factor, average) for index, plan in enumerate(plans)]

    def _made(self, plans: list[Plan], compiling: bool) -> Begun:
        """Make a planned step, but for what is to be compiled."""
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
        return begun

    def _end(self, begun: Begun) -> None:
        """Note that the step was made."""
        begun.widths.close()
        for plan in begun.plans:
            self._count(plan)
        self._live.outdate()
        if self._attachments:
            self._writes.note_step([param for plan in begun.plans for param in plan.params], self._params)
        for place in [place for place in self._batches if place[0] >= len(begun.plans)]:  # of groups that are gone
            del self._batches[place]

    _begin_outside_the_graph, _end_outside_the_graph = untraced(_begin), untraced(_end)

    def _check_groups(self) -> None:
        """Raise unless a step can be planned for the groups as they are."""

    def _moves(self, plans: list[Plan]) -> list[Plan]:
        """The plans with what the rule is to be given in place of the gradients."""
        return plans

    def _works(self, place: tuple[int, int], rule: Rule, plan: Plan) -> list[Work]:
        """What there is to compute for a rule of a group. Buffers are made where there are none."""
        if not all(plan.states):
            new = [(param, state) for param, state in zip(plan.params, plan.states, strict=True) if not state]
            for param, state in new:
                state.update(fresh_state(param, rule, self.state_precision == "compact"))
                if self.capturable:
                    state["step"] = as_tensor(state["step"], param.device)
                self.state[param] = state
        if plan.only_initialises:
            for param, state in zip(plan.params, plan.states, strict=True):
                state["y"] = bits_of_y(param, state)  # a place for that of a file
            self._loaded_training = self.training
            return []
        batches = self._batches.setdefault(place, Batches())
        found = batches.of(plan.params, plan.grads, plan.contiguous, plan.states, rule, plan.seen)
        if self.capturable:
            return [(batch, self._scalars(plan, rule, torch.stack(_counts(batch.states)) + 1.0)) for _, batch in found]
        return [(batch, self._scalars(plan, rule, here + 1)) for here, batch in found]

    def _scalars(self, plan: Plan, rule: Rule, seen: Any) -> Scalars:
        """The numbers of the step, for parameters that have seen so many gradients, these included.

        That may be a tensor with a number for each.
        """
        group, beta = plan.group, plan.beta
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
        """Note that the step was made: the numbers of the group and of its parameters after it."""
        if plan.only_initialises:
            return
        group, beta, next_beta = plan.group, plan.beta, plan.counters["beta"]
        if plan.states and self.capturable:
            torch._foreach_add_(_counts(plan.states), 1.0)
        elif plan.states:
            _put_counts(plan.states, plan.seen)
        if len(plan.params) < len(group["params"]) and (self.capturable or next_beta != beta):
            moved = set(plan.params)
            for param in cast(list[Tensor], group["params"]):
                if param not in moved and (state := self.state.get(param)):
                    put_reinterpolated(param, state, beta, next_beta)
        if self.capturable:
            param_groups.put(group, plan.counters)
        else:
            group.update(plan.counters)
