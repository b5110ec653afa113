"""Schedule-Free RAdam."""

from typing import Literal, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from unscheduled.algorithms.adamw import (
    ADAM_NORM,
    adam_direction,
    adam_scalars,
    check_adam,
    foreach_adam_direction,
    foreach_second_moment,
)
from unscheduled.checkpoints.exporting import torch_adamw
from unscheduled.formulas.averaging import Averaging
from unscheduled.formulas.interpolation import Interpolation
from unscheduled.formulas.iterates import Array
from unscheduled.formulas.primitives import where
from unscheduled.formulas.rule import Rule
from unscheduled.formulas.step_size import (
    TOO_SHORT,
    DistanceStep,
    StepSize,
    default_lr,
    is_rectified,
    largest_moving_average,
    rectification,
)
from unscheduled.kernels import Implementation, Tensors
from unscheduled.optimizer.base import ScheduleFreeOptimizer
from unscheduled.state.buffers import StatePrecision
from unscheduled.state.param_groups import Group


def radam_direction(
    grad: Array,
    exp_avg_sq: Array,
    beta2: float,
    one_minus_beta2: float,
    inverse_bias_correction2: float,
    eps: float,
    rectified: bool,
) -> tuple[Array, Array]:
    """The direction of RAdam: Adam's once its step size can be rectified, SGD's d = g until then."""
    adaptive, exp_avg_sq = adam_direction(grad, exp_avg_sq, beta2, one_minus_beta2, inverse_bias_correction2, eps)
    return where(rectified > 0.0, adaptive, grad), exp_avg_sq


def foreach_radam_direction(
    grads: Tensors,
    exp_avg_sqs: Tensors,
    beta2: float,
    one_minus_beta2: float,
    inverse_bias_correction2: float,
    eps: float,
    rectified: bool,
) -> Tensors:
    """:func:`radam_direction` on lists of tensors."""
    if rectified:
        return foreach_adam_direction(grads, exp_avg_sqs, beta2, one_minus_beta2, inverse_bias_correction2, eps)
    foreach_second_moment(grads, exp_avg_sqs, beta2, one_minus_beta2)
    return grads


RADAM = Rule(radam_direction, ("exp_avg_sq",), foreach_radam_direction, ("uint8",), norm=ADAM_NORM)


class RAdamScheduleFree(ScheduleFreeOptimizer):
    """Schedule-Free RAdam: the rectified step size takes the place of a warmup.

        v' = beta2 v + (1 - beta2) g^2
        z' = z - gamma (g / (sqrt(v' / (1 - beta2^t)) + eps) + lambda w),    gamma = lr r_t
        x' = (1 - c) x + c z',    c = w_t / sum w_i,    w_t = t^r (max gamma)^weight_lr_power
        y' = (1 - beta) z' + beta x'

    r_t is RAdam's rectification, :func:`unscheduled.formulas.step_size.rectification`. During the first steps (4 at
    beta2 = 0.999) it does not exist: then nothing moves, and only v is gathered, or, with
    ``silent_sgd_phase=False``, the steps are those of SGD, gamma = lr and d = g.

    Rectification and bias correction count the gradients that a parameter has seen. Complex parameters are pairs of
    real ones. Memory: v and the gap z - x.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate, a float or a tensor of one element, >= 0. None is 0.0025, or 1 with a :class:`DistanceStep`,
            on which it is a factor.
        betas: (beta, beta2): the interpolation in [0, 1], and the average of the squared gradient in [0, 1), above
            0.6 if ``silent_sgd_phase``.
        eps: epsilon, >= 1e-30, added to the root.
        weight_decay: lambda, >= 0.
        r: power of the step in the averaging weights, in (-1, 32]; None is 0.
        weight_lr_power: power of the learning rate's running maximum in the averaging weights, in [0, 8]; None is 2.
        foreach: True is ``implementation="foreach"``, False is ``"loop"``.
        silent_sgd_phase: whether to stand still, rather than to make steps of SGD, until r_t exists.
        fused: True is ``implementation="fused"``, False is the fastest implementation beside it.
        warmup_steps: steps of linear warmup besides, an integer >= 0.
        averaging: the averaging weight c, instead of ``r`` and ``weight_lr_power``.
        interpolation: how beta changes with the steps; None keeps it constant.
        step_size: :class:`DistanceStep` for a step size from the distance that x has come; it needs
            ``silent_sgd_phase``. None is the learning rate itself. There is no Polyak step for this rule.
        decay_at: the point that weight decay is proportional to, ``"y"`` or ``"z"``.
        maximize: follow the gradient upwards.
        implementation: ``"auto"``, ``"loop"``, ``"foreach"``, ``"compiled"`` or ``"fused"``, see
            :mod:`unscheduled.kernels`.
        state_precision: how the buffers are stored: ``"float32"``, or ``"compact"`` in 3.1 bytes a parameter.
        capturable: whether a step may be captured in a CUDA graph and replayed: the numbers of the step are on the
            device then, see :mod:`unscheduled.optimizer.capture`.

    Raises:
        ValueError: if an argument is out of its range, two of them exclude each other, or beta2 is so small that
            r_t never exists and nothing would ever move.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = unscheduled.RAdamScheduleFree([weight], lr=0.1)
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     (weight**2).sum().backward()
        ...     optimizer.step()
        >>> with optimizer.averaged_parameters():
        ...     abs(weight.item()) < 0.1
        True

    Source: "The Road Less Scheduled", arXiv 2405.15682; Liu et al., arXiv 1908.03265, Algorithm 2.
    """

    _exports_to = frozenset({"schedulefree", "AdamW"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        r: float | None = None,
        weight_lr_power: float | None = None,
        foreach: bool | None = None,
        silent_sgd_phase: bool = True,
        *,
        fused: bool | None = None,
        warmup_steps: int = 0,
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
            lr=default_lr(step_size, 0.0025) if lr is None else lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            silent_sgd_phase=silent_sgd_phase,
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
        return RADAM

    def _rule_scalars(self, group: Group, rule: Rule, step: int) -> dict[str, float]:
        return adam_scalars(group, step) | {"rectified": is_rectified(step, group["betas"][1])}

    def _lr_factor(self, group: Group, step: int) -> float:
        return cast(float, rectification(step, group["betas"][1], float(not group["silent_sgd_phase"])))

    def _plain(self, gammas: list[float]) -> torch.optim.Optimizer:
        return torch_adamw(self, gammas)

    def _beta(self, group: Group) -> float:
        return float(group["betas"][0])

    def _check_rule(self, group: Group) -> None:
        check_adam(group)
        beta2 = group["betas"][1]
        if isinstance(group["step_size"], DistanceStep) and not group["silent_sgd_phase"]:
            raise ValueError(
                f"silent_sgd_phase = False, step_size = {group['step_size']} exclude each other, since the norm of "
                "the first steps d = g is not that of the others: use silent_sgd_phase=True"
            )
        if group["silent_sgd_phase"] and largest_moving_average(beta2) <= TOO_SHORT:
            raise ValueError(
                f"betas[1] = {beta2} is outside (0.6, 1): its moving average is too short to be rectified, so nothing "
                "would ever move: use 0.999, or silent_sgd_phase=False"
            )
