"""Schedule-Free Lion."""
# torch publishes its foreach operations under names with an underscore:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from unscheduled.formulas.averaging import Averaging
from unscheduled.formulas.interpolation import Interpolation
from unscheduled.formulas.iterates import Array
from unscheduled.formulas.primitives import sign
from unscheduled.formulas.rule import Rule
from unscheduled.formulas.step_size import StepSize
from unscheduled.formulas.validation import require_within
from unscheduled.kernels import Implementation, Tensors
from unscheduled.optimizer.base import ScheduleFreeOptimizer
from unscheduled.state.buffers import StatePrecision
from unscheduled.state.param_groups import Group, check_betas


def lion_direction(
    grad: Array,
    exp_avg: Array,
    inner_momentum: float,
    one_minus_inner_momentum: float,
    beta2: float,
    one_minus_beta2: float,
) -> tuple[Array, Array]:
    """The direction of Lion, d = sign(beta1 m + (1 - beta1) g), from the average before it takes up g."""
    direction = sign(inner_momentum * exp_avg + one_minus_inner_momentum * grad)
    return direction, beta2 * exp_avg + one_minus_beta2 * grad


def foreach_lion_direction(
    grads: Tensors,
    exp_avgs: Tensors,
    inner_momentum: float,
    one_minus_inner_momentum: float,
    beta2: float,
    one_minus_beta2: float,
) -> Tensors:
    """:func:`lion_direction` on lists of tensors."""
    directions = torch._foreach_mul(exp_avgs, inner_momentum)
    torch._foreach_add_(directions, grads, alpha=one_minus_inner_momentum)
    torch._foreach_mul_(exp_avgs, beta2)
    torch._foreach_add_(exp_avgs, grads, alpha=one_minus_beta2)
    return foreach_sign_direction(directions)


def sign_direction(grad: Array) -> tuple[Array]:
    """The direction of Lion without momentum, d = sign(g)."""
    return (sign(grad),)


def foreach_sign_direction(grads: Tensors) -> Tensors:
    """:func:`sign_direction` on lists of tensors."""
    signs = torch._foreach_sub(grads, grads)  # 0, or NaN where there is no sign
    torch._foreach_add_(signs, torch._foreach_sign(grads))
    return signs


LION = Rule(lion_direction, ("exp_avg",), foreach_lion_direction, ("int16",))
SIGN = Rule(sign_direction, (), foreach_sign_direction, ())


class LionScheduleFree(ScheduleFreeOptimizer):
    """Schedule-Free Lion: every weight moves by the same amount, in the direction of a sign.

        z' = z - gamma (sign(g) + lambda w)
        x' = (1 - c) x + c z',    c = w_t / sum w_i,    w_t = t^r (max gamma)^weight_lr_power
        y' = (1 - beta) z' + beta x'

    with gamma = lr min(1, t / warmup_steps). The interpolation takes the place of momentum, so the gap z - x is the
    only state. With ``inner_momentum`` = beta1 > 0, g in z' is replaced by beta1 m + (1 - beta1) g, and a second
    buffer is kept, m' = beta2 m + (1 - beta2) g; with ``averaging=NoAveraging()`` that is Lion.

    Complex parameters are pairs of real ones.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate, a float or a tensor of one element, >= 0. Lion's own rates are 3 to 10 times smaller than
            Adam's.
        betas: (beta, beta2): the interpolation in [0, 1], and the average of the gradient in [0, 1).
        weight_decay: lambda, >= 0; 3 to 10 times Adam's, since the learning rate is that much smaller.
        warmup_steps: steps of linear warmup, an integer >= 0.
        r: power of the step in the averaging weights, in (-1, 32]; None is 0.
        weight_lr_power: power of the learning rate's running maximum in the averaging weights, in [0, 8]; None is 2.
        foreach: True is ``implementation="foreach"``, False is ``"loop"``.
        fused: True is ``implementation="fused"``, False is the fastest implementation beside it.
        inner_momentum: beta1, in [0, 1), how much of m is in the sign; 0 keeps no m. Lion has 0.9.
        averaging: the averaging weight c, instead of ``r`` and ``weight_lr_power``.
        interpolation: how beta changes with the steps; None keeps it constant.
        step_size: :class:`ConstantStep`, as None is; there is no Polyak or distance step for it.
        decay_at: the point that weight decay is proportional to, ``"y"`` or ``"z"``.
        maximize: follow the gradient upwards.
        implementation: ``"auto"``, ``"loop"``, ``"foreach"``, ``"compiled"`` or ``"fused"``, see
            :mod:`unscheduled.kernels`.
        state_precision: how the buffers are stored: ``"float32"``, or ``"compact"`` in 2.03 bytes a parameter, 4.1 with
            an inner momentum.
        capturable: whether a step may be captured in a CUDA graph and replayed: the numbers of the step are on the
            device then, see :mod:`unscheduled.optimizer.capture`.

    Raises:
        ValueError: if an argument is out of its range, or two of them exclude each other.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = unscheduled.LionScheduleFree([weight], lr=0.02)
        >>> for _ in range(1000):
        ...     optimizer.zero_grad()
        ...     (weight**2).sum().backward()
        ...     optimizer.step()
        >>> with optimizer.averaged_parameters():
        ...     abs(weight.item()) < 0.2
        True

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675, Algorithm 2, as the step of
    z in "The Road Less Scheduled", arXiv 2405.15682.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float | None = None,
        weight_lr_power: float | None = None,
        foreach: bool | None = None,
        *,
        fused: bool | None = None,
        inner_momentum: float = 0.0,
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
            betas=betas,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            inner_momentum=inner_momentum,
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
        return LION if group["inner_momentum"] > 0.0 else SIGN

    def _rule_scalars(self, group: Group, rule: Rule, step: int) -> dict[str, float]:
        inner_momentum, beta2 = group["inner_momentum"], group["betas"][1]
        if inner_momentum == 0.0:
            return {}
        return {
            "inner_momentum": inner_momentum,
            "one_minus_inner_momentum": 1.0 - inner_momentum,
            "beta2": beta2,
            "one_minus_beta2": 1.0 - beta2,
        }

    def _beta(self, group: Group) -> float:
        return float(group["betas"][0])

    def _check_rule(self, group: Group) -> None:
        check_betas(group, "it averages the gradient: use 0.99")
        require_within("[0, 1)", "inner_momentum", group["inner_momentum"], "use 0, or 0.9 as Lion has it")
