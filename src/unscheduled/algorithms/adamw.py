"""Schedule-Free AdamW."""
# torch publishes its foreach operations under names with an underscore:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

import math
from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from unscheduled.checkpoints.exporting import torch_adamw
from unscheduled.formulas.averaging import Averaging
from unscheduled.formulas.interpolation import Interpolation
from unscheduled.formulas.iterates import Array
from unscheduled.formulas.primitives import sqrt
from unscheduled.formulas.rule import Norm, Rule
from unscheduled.formulas.step_size import StepSize, default_lr
from unscheduled.formulas.validation import require_within
from unscheduled.kernels import Implementation, Tensors
from unscheduled.optimizer.base import ScheduleFreeOptimizer
from unscheduled.state import param_groups
from unscheduled.state.buffers import StatePrecision
from unscheduled.state.param_groups import Group


def second_moment(grad: Array, exp_avg_sq: Array, beta2: float, one_minus_beta2: float) -> Array:
    """The moving average of the squared gradient, v = beta2 v + (1 - beta2) g^2."""
    return beta2 * exp_avg_sq + one_minus_beta2 * (grad * grad)


def adam_denominator(exp_avg_sq: Array, inverse_bias_correction2: float, eps: float) -> Array:
    """The denominator of Adam, h = sqrt(v / (1 - beta2^t)) + eps."""
    return sqrt(inverse_bias_correction2 * exp_avg_sq) + eps


def adam_direction(
    grad: Array, exp_avg_sq: Array, beta2: float, one_minus_beta2: float, inverse_bias_correction2: float, eps: float
) -> tuple[Array, Array]:
    """The direction of Adam without momentum, d = g / (sqrt(v / (1 - beta2^t)) + eps)."""
    exp_avg_sq = second_moment(grad, exp_avg_sq, beta2, one_minus_beta2)
    return grad / adam_denominator(exp_avg_sq, inverse_bias_correction2, eps), exp_avg_sq


def direction_with_momentum(
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    beta2: float,
    one_minus_beta2: float,
    inverse_bias_correction2: float,
    eps: float,
    inner_momentum: float,
    one_minus_inner_momentum: float,
    inverse_bias_correction1: float,
) -> tuple[Array, Array, Array]:
    """The direction of Adam, d = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)."""
    exp_avg = inner_momentum * exp_avg + one_minus_inner_momentum * grad
    exp_avg_sq = second_moment(grad, exp_avg_sq, beta2, one_minus_beta2)
    denominator = adam_denominator(exp_avg_sq, inverse_bias_correction2, eps)
    return inverse_bias_correction1 * exp_avg / denominator, exp_avg, exp_avg_sq


def foreach_adam_direction(
    grads: Tensors,
    exp_avg_sqs: Tensors,
    beta2: float,
    one_minus_beta2: float,
    inverse_bias_correction2: float,
    eps: float,
) -> Tensors:
    """:func:`adam_direction` on lists of tensors."""
    directions = _reciprocal_denominators(grads, exp_avg_sqs, beta2, one_minus_beta2, inverse_bias_correction2, eps)
    torch._foreach_mul_(directions, grads)
    return directions


def foreach_direction_with_momentum(
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    beta2: float,
    one_minus_beta2: float,
    inverse_bias_correction2: float,
    eps: float,
    inner_momentum: float,
    one_minus_inner_momentum: float,
    inverse_bias_correction1: float,
) -> Tensors:
    """:func:`direction_with_momentum` on lists of tensors."""
    torch._foreach_mul_(exp_avgs, inner_momentum)
    torch._foreach_add_(exp_avgs, grads, alpha=one_minus_inner_momentum)
    directions = _reciprocal_denominators(grads, exp_avg_sqs, beta2, one_minus_beta2, inverse_bias_correction2, eps)
    torch._foreach_mul_(directions, exp_avgs)
    torch._foreach_mul_(directions, inverse_bias_correction1)
    return directions


def foreach_second_moment(grads: Tensors, exp_avg_sqs: Tensors, beta2: float, one_minus_beta2: float) -> None:
    """Average the squared gradients."""
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=one_minus_beta2)


def _reciprocal_denominators(
    grads: Tensors,
    exp_avg_sqs: Tensors,
    beta2: float,
    one_minus_beta2: float,
    inverse_bias_correction2: float,
    eps: float,
) -> Tensors:
    foreach_second_moment(grads, exp_avg_sqs, beta2, one_minus_beta2)
    denominators = torch._foreach_mul(exp_avg_sqs, inverse_bias_correction2)
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, eps)
    torch._foreach_reciprocal_(denominators)
    return denominators


def adam_scalars(group: Group, step: int) -> dict[str, float]:
    """What :func:`adam_direction` is given after ``step`` gradients."""
    beta2 = group["betas"][1]
    return {
        "beta2": beta2,
        "one_minus_beta2": 1.0 - beta2,
        "inverse_bias_correction2": 1.0 / (1.0 - beta2**step),
        "eps": group["eps"],
    }


def normal_size(grads: Tensors) -> Tensor:
    """<g, d> for d = g / sqrt(E g^2), if the gradients are normal with mean 0: sqrt(pi / 2) |g|_1."""
    return math.sqrt(math.pi / 2.0) * torch.stack(list(torch._foreach_norm(grads, 1, dtype=torch.float64))).sum()


ADAM_NORM = Norm("exp_avg_sq", second_moment, adam_denominator)
ADAM = Rule(adam_direction, ("exp_avg_sq",), foreach_adam_direction, ("uint8",), normal_size, norm=ADAM_NORM)
ADAM_WITH_MOMENTUM = Rule(
    direction_with_momentum,
    ("exp_avg", "exp_avg_sq"),
    foreach_direction_with_momentum,
    ("int16", "uint8"),
    normal_size,
    norm=ADAM_NORM,
)


def check_adam(group: Group) -> None:
    """Raise ValueError if ``betas`` or ``eps`` is out of its range."""
    param_groups.check_betas(group, "it averages the squared gradient: use 0.999, or 0.99")
    require_within("[1e-30, inf)", "eps", group["eps"], "use 1e-8")


class AdamWScheduleFree(ScheduleFreeOptimizer):
    """Schedule-Free AdamW: Adam's direction, decoupled weight decay, and no schedule.

        v' = beta2 v + (1 - beta2) g^2
        z' = z - gamma (g / (sqrt(v' / (1 - beta2^t)) + eps) + lambda w)
        x' = (1 - c) x + c z',    c = w_t / sum w_i,    w_t = t^r (max gamma)^weight_lr_power
        y' = (1 - beta) z' + beta x'

    with gamma = lr min(1, t / warmup_steps). The interpolation takes the place of momentum, so it needs the memory
    of AdamW: v and the gap z - x. With ``inner_momentum`` = beta1 > 0, g in z' is replaced by the moving average of
    the gradients, m' = beta1 m + (1 - beta1) g over 1 - beta1^t, at the price of a third buffer; with
    ``averaging=NoAveraging()`` that is ``torch.optim.AdamW``.

    Bias corrections count the gradients that a parameter has seen. Complex parameters are pairs of real ones.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate, a float or a tensor of one element, >= 0. Start at 2 to 4 times AdamW's tuned rate. None is
            0.0025, or 1 with a :class:`PolyakStep` or :class:`DistanceStep`, on which it is a factor.
        betas: (beta, beta2): the interpolation in [0, 1], and the average of the squared gradient in [0, 1).
        eps: epsilon, >= 1e-30, added to the root.
        weight_decay: lambda, >= 0.
        warmup_steps: steps of linear warmup, an integer >= 0; 2 to 5% of the steps that may be run.
        r: power of the step in the averaging weights, in (-1, 32]; None is 0.
        weight_lr_power: power of the learning rate's running maximum in the averaging weights, in [0, 8]; None is 2.
        foreach: True is ``implementation="foreach"``, False is ``"loop"``.
        fused: True is ``implementation="fused"``, False is the fastest implementation beside it.
        inner_momentum: beta1, in [0, 1), Adam's own momentum; 0 keeps no buffer for it. For very large batches.
        averaging: the averaging weight c, instead of ``r`` and ``weight_lr_power``.
        interpolation: how beta changes with the steps; None keeps it constant.
        step_size: :class:`PolyakStep` for a step size from the loss, which ``step(loss=loss)`` is given, or
            :class:`DistanceStep` for one from the distance that x has come. None is the learning rate itself.
        corrected_decay: make the weight decay AdamC's, gamma lambda in place of lambda, so that z loses gamma^2 lambda
            w a step. For step sizes that vary; lambda is 5 to 50 with a Polyak step.
        decay_at: the point that weight decay is proportional to, ``"y"`` or ``"z"``.
        maximize: follow the gradient upwards.
        implementation: ``"auto"``, ``"loop"``, ``"foreach"``, ``"compiled"`` or ``"fused"``, see
            :mod:`unscheduled.kernels`.
        state_precision: how the buffers are stored: ``"float32"``, or ``"compact"`` in 3.1 bytes a parameter.
        capturable: whether a step may be captured in a CUDA graph and replayed: the numbers of the step are on the
            device then, see :mod:`unscheduled.optimizer.capture`.

    Raises:
        ValueError: if an argument is out of its range, or two of them exclude each other.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = unscheduled.AdamWScheduleFree([weight], lr=0.1, warmup_steps=5)
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     (weight**2).sum().backward()
        ...     optimizer.step()
        >>> with optimizer.averaged_parameters():
        ...     abs(weight.item()) < 0.01
        True

    Source: "The Road Less Scheduled", arXiv 2405.15682, Algorithm 1, with the bias correction of the authors'
    released code: v is divided by 1 - beta2^t, and the step size has no factor sqrt(1 - beta2^t).
    """

    _exports_to = frozenset({"schedulefree", "AdamW"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
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
        corrected_decay: bool = False,
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
            inner_momentum=inner_momentum,
            averaging=averaging,
            interpolation=interpolation,
            step_size=step_size,
            corrected_decay=corrected_decay,
            decay_at=decay_at,
            maximize=maximize,
            implementation=implementation,
            state_precision=state_precision,
            capturable=capturable,
            foreach=foreach,
            fused=fused,
        )

    def _rule(self, group: Group, param: Tensor | None = None) -> Rule:
        return ADAM_WITH_MOMENTUM if group["inner_momentum"] > 0.0 else ADAM

    def _rule_scalars(self, group: Group, rule: Rule, step: int) -> dict[str, float]:
        scalars, inner_momentum = adam_scalars(group, step), group["inner_momentum"]
        if inner_momentum > 0.0:
            scalars |= {
                "inner_momentum": inner_momentum,
                "one_minus_inner_momentum": 1.0 - inner_momentum,
                "inverse_bias_correction1": 1.0 / (1.0 - inner_momentum**step),
            }
        return scalars

    def _move_scalars(self, group: Group, lr: float) -> tuple[float, float]:
        return lr, group["weight_decay"] * (lr if group["corrected_decay"] else 1.0)

    def _plain(self, gammas: list[float]) -> torch.optim.Optimizer:
        return torch_adamw(self, gammas)

    def _beta(self, group: Group) -> float:
        return float(group["betas"][0])

    def _check_rule(self, group: Group) -> None:
        check_adam(group)
        require_within("[0, 1)", "inner_momentum", group["inner_momentum"], "use 0, or 0.9 for very large batches")
        if not isinstance(group["corrected_decay"], bool):
            raise ValueError(f"corrected_decay = {group['corrected_decay']!r} is neither True nor False")
