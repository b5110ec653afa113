"""A step like the one before: what that was made of is compared, and not looked for again."""

from __future__ import annotations

from operator import is_, itemgetter
from typing import Any, NamedTuple, cast

from torch import Tensor

from unscheduled import kernels
from unscheduled.groups import Group
from unscheduled.kernels import Rule, Scalars, Work, all_same
from unscheduled.precision import scale_names
from unscheduled.state import State

STEP = itemgetter("step")


class Part(NamedTuple):
    """A group whose parameters were updated together."""

    group: Group
    all_params: list[Tensor]
    params: list[Tensor]  # those with gradients
    without: list[Tensor]  # the others
    states: list[State]
    kept: list[tuple[itemgetter[str], list[Any]]]  # what gives a buffer of a state, and those of all states


class Repetition:
    """All that a step was made of, where each group was one part, and one call of the fused kernel has made it."""

    def __init__(
        self, implementation: str, rule: Rule, parts: list[Part], state: dict[Tensor, State], call: Any
    ) -> None:
        self.implementation, self.rule = implementation, rule
        self._parts, self._groups = parts, [part.group for part in parts]
        self._params, self._states = list(state), list(state.values())
        self._call = call

    @classmethod
    def of(
        cls, implementation: str, rule: Rule, groups: list[Group], works: list[Work], state: dict[Tensor, State]
    ) -> Repetition | None:
        """What the step of these groups was made of; None if it was another kind of step."""
        call = kernels.repeatable(implementation, rule, works)
        if call is None:
            return None
        parts = [
            _part(group, rule, batch.params, batch.states) for group, (batch, _) in zip(groups, works, strict=True)
        ]
        return cls(implementation, rule, parts, state, call)

    def found(self, groups: list[Group], state: dict[Tensor, State]) -> list[tuple[Part, int]] | None:
        """All parts, each with how many gradients its parameters have seen; None if anything is not what it was."""
        if not (
            all_same(groups, self._groups) and all_same(state, self._params) and all_same(state.values(), self._states)
        ):
            return None
        found = [(part, _seen(part)) for part in self._parts]
        return None if any(seen is None for _, seen in found) or not self._call.fits() else cast(Any, found)

    def begin(self) -> None:
        """Note that the step was not made yet."""
        self._call.begin()

    def has_run(self) -> bool:
        """Whether it was made since."""
        return self._call.has_run()

    def run(self, scalars: list[Scalars]) -> None:
        """Make the step with what was found, and with the numbers of each part."""
        self._call.run(scalars)


def _part(group: Group, rule: Rule, params: list[Tensor], states: list[State]) -> Part:
    names = ("gap", *rule.buffers, *scale_names(states))
    kept = [(each := itemgetter(name), list(map(each, states))) for name in names]
    without = [param for param in group["params"] if param.grad is None]
    return Part(group, list(group["params"]), params, without, states, kept)


def _seen(part: Part) -> int | None:
    """How many gradients the parameters of a part have seen; None if it is not what it was, but for its gradients."""
    seen: list[int] = list(map(STEP, part.states))
    alike = (
        all_same(part.group["params"], part.all_params)
        and all(param.grad is None for param in part.without)
        and seen.count(seen[0]) == len(seen)
        and part.group["step"] > 0
        and all(all(map(is_, map(each, part.states), tensors)) for each, tensors in part.kept)
    )
    return seen[0] if alike else None
