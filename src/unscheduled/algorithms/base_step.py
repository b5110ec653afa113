"""The step of a wrapped optimizer, which moves z in place of a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from unscheduled.algorithms import agreement
from unscheduled.algorithms.loan import Loan, lent, widen
from unscheduled.checkpoints import nested
from unscheduled.kernels import all_same
from unscheduled.optimizer import takeover
from unscheduled.optimizer.plan import Plan, all_contiguous
from unscheduled.state import param_groups
from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import State

DISTANCE = ("d0", "d_max", "d_coef", "d_numerator", "growth_rate", "numerator_weighted")
"""Options of which an optimizer has some whose ``d`` is its estimate of a distance, a factor on its learning rate."""


class BaseStep:
    """Makes the steps of the base of a wrapper, and keeps its groups as those of the wrapper.

    Args:
        base: the optimizer that moves z.
        wrapper: the name of the wrapper's class, for errors.
        capturable: whether the counters of the wrapper are on the device.
        started: the parameters that have a state in the wrapper.
    """

    def __init__(self, base: torch.optim.Optimizer, wrapper: str, capturable: bool, started: Iterable[Tensor]) -> None:
        self._base, self._wrapper, self._capturable = base, wrapper, capturable
        self._given = agreement.given(base)
        self._started = set(started)  # those that have had a state in the wrapper
        self._initialised: set[Tensor] = set()  # those whose state of the base is only a form, see moves
        self._stand_ins: dict[Tensor, Parameter] = {}

    # The groups.

    def check_groups(
        self,
        groups: list[Group],
        states: Mapping[Tensor, State],
        check: Callable[[Group, list[Tensor]], None],
    ) -> None:
        """Give the base the parameters of the wrapper's groups, should these have been edited.

        What has lost its state in the wrapper, as by ``optimizer.state.clear()``, begins anew in the base too.

        Args:
            groups: those of the wrapper.
            states: its states.
            check: raises ValueError if there is something wrong with a group or its parameters.

        Raises:
            RuntimeError: if groups or their parameters differ in a way that the base cannot be given; nothing is
                changed.
            ValueError: likewise, if there is something wrong with a parameter.
        """
        edited = agreement.edited(self._wrapper, groups, self._base, self._given)
        for index in edited:
            _check_edited(groups[index], index, check)
        dropped = {param for param in self._started if not states.get(param)}
        if edited or dropped:
            problem = "parameters of param_groups were edited" if edited else "the state of parameters was dropped"
            agreement.refuse_elsewhere(self._base, problem)
            agreement.give(self._base, groups, dropped)
            self._started -= dropped
            widen(self._base, param_groups.params_of(groups))
        if edited or len(self._given) != len(groups) or not self._has_what_was_given():
            self.realign()

    def realign(self) -> None:
        """Note that the base has other groups, of which those that it had before keep their learning rates."""
        self._given = agreement.realigned(self._base, self._given)

    def _has_what_was_given(self) -> bool:
        pairs = zip(self._given, self._base.param_groups, strict=True)
        return all(all_same(given.params, group["params"]) for given, group in pairs)

    # The step.

    def factor(self, index: int) -> float:
        """The base's own factor on the learning rate of a group.

        Raises:
            RuntimeError: if the learning rate of the base was changed.
        """
        group = self._base.param_groups[index]
        if not self._capturable:  # else it stands on the device
            base_lr, given = float(group["lr"]), self._given[index].lr
            if base_lr != given:
                raise RuntimeError(
                    f"the learning rate of group {index} of the wrapped {type(self._base).__name__} was changed from "
                    f"{given} to {base_lr}: change that of the {self._wrapper}, and give this to schedulers"
                )
        return _distance(self._base, group)

    def moves(self, plans: list[Plan]) -> list[Plan]:
        """Let the base move z, and return the plans with these moves in place of the gradients.

        A step that only initialises is to make the base's buffers, but not to count: they are made anew afterwards.
        """
        for plan in plans:
            self._started.update(plan.params)
            if plan.only_initialises:
                self._initialised.update(param for param in plan.params if not self._base.state.get(param))
                continue
            for param in self._initialised.intersection(plan.params):
                self._base.state.pop(param, None)
                self._initialised.remove(param)
        loans: list[Loan] = []
        try:
            for plan in plans:
                for param, state in zip(plan.params, plan.states, strict=True):
                    loans.append(Loan(param, state, plan.group["beta"], self._stand_ins))
            with lent(self._base, {loan.param: loan.z for loan in loans if loan.z is not loan.param}):
                self._give_lrs(plans)
                with takeover.of_base():
                    self._base.step()
            moves = iter([loan.move() for loan in loans])
        finally:
            for loan in loans:
                loan.give_back()
        with_moves: list[Plan] = []
        for plan in plans:
            grads = [next(moves) for _ in plan.params]
            with_moves.append(plan._replace(grads=grads, contiguous=all_contiguous(grads)))
        return with_moves

    def _give_lrs(self, plans: list[Plan]) -> None:
        """Give the base the learning rates of this step."""
        for index, (plan, base_group) in enumerate(zip(plans, self._base.param_groups, strict=True)):
            if self._capturable:
                _make_tensor_of_lr(base_group)
            param_groups.put_lr(base_group, param_groups.warm_lr(plan.group, plan.counters["step"]))
            if not self._capturable:
                self._given[index] = self._given[index]._replace(lr=float(base_group["lr"]))

    # Saving and loading.

    def nest(self, state_dict: dict[str, Any]) -> None:
        """Put the state of the base into the state dict of the wrapper."""
        nested.nest(state_dict, self._base)

    def separated(self, state_dict: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A state dict of the wrapper without that of the base, and that.

        Raises:
            ValueError: if it was made over another kind of optimizer.
        """
        return nested.separated(state_dict, self._base)

    def load(self, its_state: dict[str, Any], params: list[Tensor]) -> None:
        """Load into the base what :meth:`separated` returned; ``params`` are those of the wrapper, in order."""
        nested.load(its_state, self._base, params)

    def reload(self, started: list[Tensor]) -> None:
        """Note what the base has after a load, and which parameters have a state in the wrapper.

        The stand-ins stay, since the base may know its parameters by what they are.
        """
        self._given = agreement.given(self._base)
        self._initialised.clear()
        self._started = set(started)


def _check_edited(group: Group, index: int, check: Callable[[Group, list[Tensor]], None]) -> None:
    try:
        check(group, group["params"])
    except ValueError as error:
        raise ValueError(f"parameter group {index}: {error}") from None


def _distance(base: torch.optim.Optimizer, base_group: Group) -> float:
    """The factor on the learning rate of a group that its optimizer has found.

    Others have another ``d``: Adafactor's is a threshold of clipping.
    """
    adapts = any(name in base_group for name in DISTANCE) or any(
        "DAdapt" in kind.__name__ for kind in type(base).__mro__
    )
    return float(base_group["d"]) if adapts and "d" in base_group else 1.0


def _make_tensor_of_lr(group: Group) -> None:
    """Let the learning rate of a group be a tensor where its parameters are: of float32, as torch's kernels take it."""
    for param in group["params"][:1]:
        lr = group["lr"]
        is_there = isinstance(lr, Tensor) and lr.device == param.device
        group["lr"] = lr if is_there else torch.full((), float(lr), dtype=torch.float32, device=param.device)
