"""Schedule-Free learning over any optimizer of torch or for it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from unscheduled.algorithms.base_step import BaseStep
from unscheduled.algorithms.loan import narrow, widen
from unscheduled.formulas.averaging import Averaging
from unscheduled.formulas.interpolation import Interpolation
from unscheduled.formulas.rule import GIVEN, Rule
from unscheduled.formulas.step_size import ConstantStep, StepSize
from unscheduled.formulas.validation import require_within
from unscheduled.kernels import Implementation
from unscheduled.optimizer.base import ScheduleFreeOptimizer
from unscheduled.state import param_groups
from unscheduled.state.buffers import StatePrecision
from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import fresh_state

REFUSED = {
    "LBFGS": "it evaluates the model at several points of its own in one step",
    "SparseAdam": "it is for sparse gradients, but every step averages every weight",
}
"""Optimizers that cannot move z."""


class ScheduleFreeWrapper(ScheduleFreeOptimizer):
    """Schedule-Free learning over an optimizer, which moves z: any ``torch.optim.Optimizer``.

        z' = base(z, gradient at y) - gamma lambda y
        x' = (1 - c) x + c z',    c = w_t / sum w_i,    w_t = t^r (max gamma)^weight_lr_power
        y' = (1 - beta) z' + beta x'

    During the step of the base optimizer the parameters hold z, so its own weight decay is decay at z. Its state is its
    own, made when the base makes it. If the base has momentum, that is an inner momentum; without it, the memory is
    that of the built-in optimizers. The state is that of the base, and the gap z - x; during a step there is one more
    copy of the weights, in float32 if they have 16 bits, and then one of the gradients as well.

    The learning rate is that of this optimizer's groups, which schedulers, trainers and :meth:`metrics` see; the base
    is given it, after warmup, before each of its steps. What else the base has stays in ``base.param_groups``. If a
    group of the base has a ``d`` that estimates a distance, as in Prodigy and D-Adaptation, its step size is lr d; it
    is recognised by what stands beside it (``d0``, ``d_max``, ``d_coef``, ``growth_rate``, …).

    Args:
        base: the optimizer that moves z; each of its groups becomes a group here.
        weight_decay_at_y: lambda, >= 0: decoupled weight decay at y, beside the base's own.
        momentum: the interpolation beta, in [0, 1].
        weight_lr_power: power of the learning rate's running maximum in the averaging weights, in [0, 8]; None is 2.
        r: power of the step in the averaging weights, in (-1, 32]; None is 0.
        warmup_steps: steps of linear warmup, an integer >= 0.
        averaging: the averaging weight c, instead of ``r`` and ``weight_lr_power``.
        interpolation: how beta changes with the steps; None keeps it constant.
        step_size: :class:`ConstantStep` or None: the learning rate. Others are refused, since only the base knows its
            direction.
        implementation: of what is added to the base: ``"auto"``, ``"loop"``, ``"foreach"``, ``"compiled"`` or
            ``"fused"``, see :mod:`unscheduled.kernels`.
        state_precision: how the gap is stored: ``"float32"``, or ``"compact"`` in 2.03 bytes a parameter.
        foreach: True is ``implementation="foreach"``, False is ``"loop"``.
        fused: True is ``implementation="fused"``, False is ``"foreach"``.
        capturable: whether a step may be captured in a CUDA graph and replayed, see
            :mod:`unscheduled.optimizer.capture`; only over a base that was made with ``capturable=True`` itself. Its
            learning rate becomes a tensor, of float32 unless it is one already, and is given to it without being read:
            what somebody else writes to it is overwritten, and not refused as it is without ``capturable``.

    Groups may differ in ``lr``, ``momentum``, ``weight_decay`` (``weight_decay_at_y`` for one that is added),
    ``warmup_steps``, ``averaging`` and ``interpolation``. A group that is added later may have the base's own options
    under the key ``"base"``.

    Raises:
        TypeError: if ``base`` is no ``torch.optim.Optimizer``.
        ValueError: if it cannot move z (LBFGS, SparseAdam), has no learning rate, is schedule-free already, or an
            argument is out of its range.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = unscheduled.ScheduleFreeWrapper(torch.optim.RMSprop([weight], lr=0.05))
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     (weight**2).sum().backward()
        ...     optimizer.step()
        >>> with optimizer.averaged_parameters():
        ...     abs(weight.item()) < 0.02
        True

    Source: "The Road Less Scheduled", arXiv 2405.15682, equations (2)-(4), with the base's step as that of z.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        weight_decay_at_y: float = 0.0,
        momentum: float = 0.9,
        weight_lr_power: float | None = None,
        r: float | None = None,
        *,
        warmup_steps: int = 0,
        averaging: Averaging | None = None,
        interpolation: Interpolation | None = None,
        step_size: StepSize | None = None,
        implementation: Implementation = "auto",
        state_precision: StatePrecision = "float32",
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        _check_base(base)
        _check_decay(weight_decay_at_y)
        if capturable is True:
            for group in base.param_groups:
                _check_capturable(base, group)
        self.base = base
        for group in base.param_groups:  # one tensor may be that of several groups, and of the defaults
            group["lr"] = _copied(group["lr"])
        params = [_shared_with_base(group) for group in base.param_groups]
        super().__init__(
            params,
            lr=_copied(base.defaults["lr"]),
            momentum=momentum,
            weight_decay=weight_decay_at_y,
            decay_at="y",
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            averaging=averaging,
            interpolation=interpolation,
            step_size=step_size,
            maximize=False,
            implementation=implementation,
            state_precision=state_precision,
            foreach=foreach,
            fused=fused,
            capturable=capturable,
        )
        started = [param for param in self._params() if base.state.get(param)]  # should it have made steps already
        for param in started:
            self.state[param].update(fresh_state(param, GIVEN, state_precision == "compact"))
        self._base_step = self._mover = BaseStep(base, type(self).__name__, capturable, started)
        widen(base, self._params())

    # Groups.

    def add_param_group(self, param_group: Group) -> None:
        """Add a group to this optimizer and to the base, see :meth:`ScheduleFreeOptimizer.add_param_group`.

        Args:
            param_group: its ``params``, the options that differ from the constructor's, and under ``"base"`` a
                dictionary of the base's options that differ from its defaults.

        Raises:
            RuntimeError: if groups were added to the base alone.
        """
        if not isinstance(param_group, dict) or not self._is_made:  # pyright: ignore[reportUnnecessaryIsInstance]
            return super().add_param_group(param_group)  # which refuses it, or has it from the base at construction
        self._check_mover()
        group = {name: value for name, value in param_group.items() if name != "base"}
        params, of_base = group["params"], cast(Group, param_group.get("base", {}))
        if "weight_decay_at_y" in group:
            try:
                _check_decay(group["weight_decay_at_y"])
            except ValueError as error:
                raise ValueError(f"parameter group {len(self.param_groups)}: {error}") from None
            group["weight_decay"] = group.pop("weight_decay_at_y")
        if "lr" in of_base:
            raise ValueError(f"lr = {of_base['lr']} in 'base': give it to the group itself, which the base has it from")
        group["params"] = [params] if isinstance(params, Tensor) else param_groups.listed(params)
        self.base.add_param_group({**of_base, "params": group["params"]})
        base_group = self.base.param_groups[-1]
        base_group["lr"] = _copied(base_group["lr"])
        ours = _shared_with_base(base_group) | {"lr": group.get("lr", _copied(self.defaults["lr"]))}
        try:
            if self.capturable:
                _check_capturable(self.base, base_group)
            super().add_param_group({**group, **ours})
        except BaseException:
            del self.base.param_groups[-1]
            raise
        self._base_step.realign()
        return None

    # What an algorithm states.

    def _rule(self, group: Group, param: Tensor | None = None) -> Rule:
        return GIVEN

    def _rule_scalars(self, group: Group, rule: Rule, step: int) -> dict[str, float]:
        return {}

    def _beta(self, group: Group) -> float:
        return float(group["momentum"])

    def _check_rule(self, group: Group) -> None:
        require_within("[0, 1]", "momentum", group["momentum"], "it is the interpolation beta: use 0.9")

    def _check_step_size(self, group: Group) -> None:
        if not isinstance(group["step_size"], ConstantStep):
            raise ValueError(
                f"step_size = {group['step_size']} is not there for {type(self).__name__}, since only the base knows "
                "its direction, which that is computed from: use ConstantStep() and the learning rate of the base, or "
                "AdamWScheduleFree or SGDScheduleFree"
            )

    def _move_scalars(self, group: Group, lr: float) -> tuple[float, float]:
        return 1.0, lr * group["weight_decay"]  # the base's move has its learning rate in it

    # The end of a run.

    def _plain(self, gammas: list[float]) -> torch.optim.Optimizer:
        for index, group in enumerate(self.param_groups):
            if group["weight_decay"] > 0.0:
                raise ValueError(
                    f"parameter group {index}: weight_decay = {group['weight_decay']} at y is none of the base's: make "
                    "it 0, and give the base a decay of its own"
                )
        self._check_mover()  # the base has all parameters then
        self.eval().detach()
        narrow(self.base, self._params())
        for group, base_group in zip(self.param_groups, self.base.param_groups, strict=True):
            if group["step"] == 0:  # else it has the one of the last step, without the distance that it estimates
                param_groups.put_lr(base_group, float(group["lr"]))
        return self.base

    # Copies.

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {
            "base": self.base,
            "_base_step": self._base_step,
            "_mover": self._base_step,
        }


def _check_base(base: Any) -> None:
    """Raise unless it can move z."""
    if not isinstance(base, torch.optim.Optimizer):
        raise TypeError(
            f"base = {base!r} is no torch.optim.Optimizer: give an optimizer, such as torch.optim.AdamW(params)"
        )
    kinds = type(base).__mro__
    name = type(base).__name__
    for kind in kinds:
        if kind.__name__ in REFUSED and kind.__module__.startswith("torch."):
            raise ValueError(f"base = {name} cannot be wrapped: {REFUSED[kind.__name__]}: use torch.optim.AdamW or SGD")
    if getattr(base, "parameters_as_bucket_view", False) or getattr(base, "_overlap_with_ddp", False):
        raise ValueError(
            f"base = {name} keeps the memory or the step of its parameters elsewhere, and would not move z: "
            "use parameters_as_bucket_view=False and overlap_with_ddp=False"
        )
    packages = {kind.__module__.partition(".")[0] for kind in kinds}
    if isinstance(base, ScheduleFreeOptimizer) or "schedulefree" in packages or "train_mode" in base.param_groups[0]:
        raise ValueError(f"base = {name} is schedule-free already: use it as it is, or wrap a plain optimizer")
    if "lr" not in base.defaults or any("lr" not in group for group in base.param_groups):
        raise ValueError(f"base = {name} has no learning rate 'lr' in its groups, by which z's are weighted")


def _check_capturable(base: torch.optim.Optimizer, base_group: Group) -> None:
    """Raise ValueError if the base keeps numbers of a group's step on the host."""
    if base_group.get("capturable") is not True:
        raise ValueError(
            f"capturable = True, but the base {type(base).__name__} keeps numbers of its step on the host: make it "
            "with capturable=True, if it has that, or use capturable=False"
        )


def _check_decay(weight_decay_at_y: Any) -> None:
    require_within("[0, inf)", "weight_decay_at_y", weight_decay_at_y, "use 0 for none, or give the base a decay")


def _copied(lr: float | Tensor) -> float | Tensor:
    return lr.clone() if isinstance(lr, Tensor) else lr


def _shared_with_base(group: Group) -> Group:
    """What a group has in common with the base's."""
    return {"params": param_groups.named(group), "lr": _copied(group["lr"])}
