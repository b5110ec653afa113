"""Schedule-Free SGD."""

import dataclasses
from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from unscheduled.formulas.averaging import Averaging
from unscheduled.formulas.interpolation import Interpolation
from unscheduled.formulas.rule import GIVEN, Rule
from unscheduled.formulas.step_size import StepSize
from unscheduled.formulas.validation import require_within
from unscheduled.kernels import Implementation
from unscheduled.optimizer.base import ScheduleFreeOptimizer
from unscheduled.optimizer.polyak import squares
from unscheduled.state import param_groups
from unscheduled.state.buffers import StatePrecision
from unscheduled.state.param_groups import Group

SGD = dataclasses.replace(GIVEN, size=squares, degree=2, norm="euclidean")
"""The direction of SGD is the gradient, d = g, so <g, d> is the square of its norm."""


class SGDScheduleFree(ScheduleFreeOptimizer):
    """Schedule-Free SGD: gradient descent whose gradients are taken between z and its running average x.

        z' = z - gamma (g + lambda w)
        x' = (1 - c) x + c z',    c = w_t / sum w_i,    w_t = t^r (max gamma)^weight_lr_power
        y' = (1 - beta) z' + beta x'

    with gamma = lr min(1, t / warmup_steps). With ``averaging=NoAveraging()`` it is ``torch.optim.SGD`` without
    momentum. Memory: one buffer of the parameters' size, the gap z - x.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate, a float or a tensor of one element, >= 0. Start at 10 to 50 times the tuned rate of SGD
            with momentum.
        momentum: the interpolation beta, in [0, 1]: 0 is Polyak-Ruppert averaging, 1 is primal averaging.
        weight_decay: lambda, >= 0.
        warmup_steps: steps of linear warmup, an integer >= 0.
        r: power of the step in the averaging weights, in (-1, 32]; None is 0.
        weight_lr_power: power of the learning rate's running maximum in the averaging weights, in [0, 8]; None is 2.
        foreach: True is ``implementation="foreach"``, False is ``"loop"``.
        fused: True is ``implementation="fused"``, False is the fastest implementation beside it.
        averaging: the averaging weight c, instead of ``r`` and ``weight_lr_power``.
        interpolation: how beta changes with the steps; None keeps it constant.
        step_size: :class:`PolyakStep` for a step size from the loss, which ``step(loss=loss)`` is given, or
            :class:`DistanceStep` for one from the distance that x has come: ``lr`` is a factor on it then. None is the
            learning rate itself.
        decay_at: the point that weight decay is proportional to, ``"y"`` or ``"z"``.
        maximize: follow the gradient upwards.
        implementation: ``"auto"``, ``"loop"``, ``"foreach"``, ``"compiled"`` or ``"fused"``, see
            :mod:`unscheduled.kernels`.
        state_precision: how the buffers are stored: ``"float32"``, or ``"compact"`` in 2.03 bytes a parameter.
        capturable: whether a step may be captured in a CUDA graph and replayed: the numbers of the step are on the
            device then, see :mod:`unscheduled.optimizer.capture`.

    Raises:
        ValueError: if an argument is out of its range, or two of them exclude each other.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = unscheduled.SGDScheduleFree([weight], lr=0.5)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     (weight**2).sum().backward()
        ...     optimizer.step()
        >>> optimizer.eval()  # doctest: +ELLIPSIS
        SGDScheduleFree (...
        >>> abs(weight.item()) < 1e-3
        True

    Source: "The Road Less Scheduled", arXiv 2405.15682, equations (2)-(4).
    """

    _exports_to = frozenset({"schedulefree"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float | None = None,
        weight_lr_power: float | None = None,
        foreach: bool | None = None,
        *,
        fused: bool | None = None,
        averaging: Averaging | None = None,
        interpolation: Interpolation | None = None,
        step_size: StepSize | None = None,
        decay_at: Literal["y", "z"] = "y",
        maximize: bool = False,
        implementation: Implementation = "auto",
        state_precision: StatePrecision = "float32",
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            averaging=averaging,
            interpolation=interpolation,
            step_size=step_size,
            decay_at=decay_at,
            maximize=maximize,
            implementation=implementation,
            state_precision=state_precision,
            capturable=capturable,
            foreach=foreach,
            fused=fused,
        )

    def _rule(self, group: Group, param: Tensor | None = None) -> Rule:
        return SGD

    def _rule_scalars(self, group: Group, rule: Rule, step: int) -> dict[str, float]:
        return {}

    def _plain(self, gammas: list[float]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [
                {"params": param_groups.named(group), "lr": gamma}
                | {name: group[name] for name in ("weight_decay", "maximize")}
                for group, gamma in zip(self.param_groups, gammas, strict=True)
            ]
        )

    def _beta(self, group: Group) -> float:
        return float(group["momentum"])

    def _check_rule(self, group: Group) -> None:
        require_within("[0, 1]", "momentum", group["momentum"], "it is the interpolation beta: use 0.9")
