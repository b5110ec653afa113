"""All that an algorithm states; the rest of a step is the same for every algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from unscheduled.formulas.averaging import NoAveraging
from unscheduled.formulas.rule import Rule
from unscheduled.formulas.step_size import DistanceStep, PolyakStep
from unscheduled.kernels import Implementation
from unscheduled.optimizer.plan import Plan
from unscheduled.state.buffers import StatePrecision
from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import State


class Mover(Protocol):
    """Another optimizer whose step moves z in place of a rule, as that of a wrapper does."""

    def check_groups(
        self, groups: list[Group], states: Mapping[Tensor, State], check: Callable[[Group, list[Tensor]], None]
    ) -> None:
        """Raise RuntimeError or ValueError unless it can make a step for these groups and states."""
        ...

    def factor(self, index: int) -> float:
        """Its own factor on the learning rate of a group; a RuntimeError refuses the step."""
        ...

    def moves(self, plans: list[Plan]) -> list[Plan]:
        """Make its step, and return the plans with its moves in place of the gradients."""
        ...

    def nest(self, state_dict: dict[str, Any]) -> None:
        """Put its state into a state dict."""
        ...

    def separated(self, state_dict: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A state dict without its state, and its state; a ValueError refuses one of another kind."""
        ...

    def load(self, its_state: dict[str, Any], params: list[Tensor]) -> None:
        """Load its state, of these parameters."""
        ...

    def reload(self, started: list[Tensor]) -> None:
        """Note that states were loaded, and which parameters have one."""
        ...


class Algorithm(ABC):
    """The contract of an algorithm: its rule, the numbers that the rule gets, and where its options have their ranges.

    An algorithm has no state of its own. It implements the four abstract methods, and replaces others where it differs
    from plain gradient descent.
    """

    implementation: Implementation
    """Which lowering of the update runs."""

    state_precision: StatePrecision
    """How the buffers are stored."""

    defaults: Group
    """The options of a group to which none is given."""

    capturable: bool = False
    """Whether the counters are on the device, so that a step may be captured in a CUDA graph."""

    _exports_to: ClassVar[frozenset[str]] = frozenset()
    """Where its state can be exported to, to go on there: ``"schedulefree"``, the package, or ``"AdamW"``."""

    _rules_differ: ClassVar[bool] = False
    """Whether parameters of one group may have different rules."""

    _written_as: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """The constructor's name of an option, where it differs from the name in a group."""

    _mover: Mover | None = None
    """What moves z in place of the rule, if anything does."""

    # The rule.

    @abstractmethod
    def _rule(self, group: Group, param: Tensor | None = None) -> Rule:
        """The rule of a group, or of a parameter in it, if they differ."""

    @abstractmethod
    def _rule_scalars(self, group: Group, rule: Rule, step: Any) -> dict[str, float]:
        """The rule's scalars for a parameter that has seen ``step`` gradients, this one included."""

    @abstractmethod
    def _beta(self, group: Group) -> float:
        """The interpolation beta that the group states."""

    @abstractmethod
    def _check_rule(self, group: Group) -> None:
        """Raise ValueError if one of the algorithm's own options is out of its range."""

    def _lr_factor(self, group: Group, step: Any) -> float:
        """The rule's own factor on the learning rate after ``step`` gradients."""
        return 1.0

    def _move_scalars(self, group: Group, lr: float) -> tuple[float, float]:
        """gamma and lambda of the move gamma (d + lambda w), at a step of the size ``lr``."""
        return lr, group["weight_decay"]

    # The step size.

    def _has_polyak_step(self, group: Group) -> bool:
        """Whether there is a Polyak step for the rule of a group."""
        return self._rule(group).size is not None

    def _check_step_size(self, group: Group) -> None:
        """Raise ValueError if a group is to have a step size that it cannot have."""
        if isinstance(group["step_size"], DistanceStep):
            self._check_distance_step(group)
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

    def _check_distance_step(self, group: Group) -> None:
        """Raise ValueError if a group has a distance step, but no norm or no average to measure the distance of."""
        if self._rules_differ or self._rule(group).norm is None:
            raise ValueError(
                f"step_size = {group['step_size']} is not there for {type(self).__name__}, whose direction is not "
                "g / h with the h of a norm: use AdamWScheduleFree, RAdamScheduleFree or SGDScheduleFree, or "
                "ConstantStep() and a learning rate"
            )
        if isinstance(group["averaging"], NoAveraging):
            raise ValueError(
                f"averaging = NoAveraging(), step_size = {group['step_size']} exclude each other, since that measures "
                "how far the average has come: use PolynomialAveraging(), or ConstantStep() and a learning rate"
            )

    # The end of a run.

    def _plain(self, gammas: list[float]) -> torch.optim.Optimizer:
        """The optimizer of torch that goes on, with the learning rates by which z moves.

        If it refuses, nothing is changed.

        Args:
            gammas: the last effective learning rate of each group.
        """
        raise ValueError(
            f"torch.optim has no counterpart of {type(self).__name__}: call eval() and detach(), and start another "
            "optimizer afresh from the average x"
        )
