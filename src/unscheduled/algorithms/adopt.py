"""Schedule-Free ADOPT."""

from typing import Literal, cast

from torch import Tensor
from torch.optim.optimizer import ParamsT

from unscheduled.formulas import scalar_math
from unscheduled.formulas.averaging import Averaging
from unscheduled.formulas.interpolation import Interpolation
from unscheduled.formulas.iterates import Array
from unscheduled.formulas.primitives import clip, maximum, sqrt
from unscheduled.formulas.rule import Rule
from unscheduled.formulas.step_size import StepSize
from unscheduled.formulas.validation import require_within
from unscheduled.kernels import Implementation
from unscheduled.kernels.foreach import on_lists
from unscheduled.optimizer.base import ScheduleFreeOptimizer
from unscheduled.state.buffers import StatePrecision
from unscheduled.state.param_groups import Group, check_betas


def adopt_direction(
    grad: Array, square_avg: Array, one_minus_beta2: float, eps: float, lowest: float, highest: float
) -> tuple[Array, Array]:
    """The direction of ADOPT, d = clip(g / max(sqrt(v), eps)), from the average v before it takes up g.

    v moves by a small number: beta2 itself would be rounded to float32, and 1 - beta2 = 0.0001 be wrong in the fourth
    digit.
    """
    direction = clip(grad / maximum(sqrt(square_avg), eps), lowest, highest)
    return direction, square_avg + one_minus_beta2 * (grad * grad - square_avg)


ADOPT = Rule(adopt_direction, ("square_avg",), on_lists(adopt_direction))


class ADOPTScheduleFree(ScheduleFreeOptimizer):
    """Schedule-Free ADOPT: a gradient is divided by the average of the squares before it, for which any beta2 will do.

        z' = z - gamma (clip(g / max(sqrt(v), eps), -c_t, c_t) + lambda w),    c_t = (t - 1)^(1/4)
        v' = beta2 v + (1 - beta2) g^2
        x' = (1 - c) x + c z',    c = w_t / sum w_i,    w_t = t^r (max gamma)^weight_lr_power
        y' = (1 - beta) z' + beta x'

    with gamma = lr min(1, t / warmup_steps). The first step only sets v' = g^2: it moves nothing and has no weight in
    the average. The interpolation takes the place of momentum, so it needs the memory of AdamW: v, which has no bias
    correction (``square_avg``), and the gap z - x.

    The t of v and of c_t counts the gradients that a parameter has seen, so also one that gets its first gradient later
    does not move in that step. Complex parameters are pairs of real ones.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate, a float or a tensor of one element, >= 0.
        betas: (beta, beta2): the interpolation in [0, 1], and the average of the squared gradient in [0, 1).
        eps: epsilon, >= 1e-30, the least that a gradient is divided by.
        weight_decay: lambda, >= 0.
        warmup_steps: steps of linear warmup, an integer >= 0.
        r: power of the step in the averaging weights, in (-1, 32]; None is 0.
        weight_lr_power: power of the learning rate's running maximum in the averaging weights, in [0, 8]; None is 2.
        foreach: True is ``implementation="foreach"``, False is ``"loop"``.
        fused: True is ``implementation="fused"``, False is the fastest implementation beside it.
        averaging: the averaging weight c, instead of ``r`` and ``weight_lr_power``.
        interpolation: how beta changes with the steps; None keeps it constant.
        step_size: :class:`ConstantStep`, as None is; there is no Polyak or distance step for it.
        decay_at: the point that weight decay is proportional to, ``"y"`` or ``"z"``.
        maximize: follow the gradient upwards.
        implementation: ``"auto"``, ``"loop"``, ``"foreach"``, ``"compiled"`` or ``"fused"``, see
            :mod:`unscheduled.kernels`.
        state_precision: ``"float32"``. ``"compact"`` is refused: v begins at single squares and changes slowly, so the
            codes of other second moments would move x by some percent.
        capturable: whether a step may be captured in a CUDA graph and replayed: the numbers of the step are on the
            device then, see :mod:`unscheduled.optimizer.capture`.

    Raises:
        ValueError: if an argument is out of its range, or two of them exclude each other.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = unscheduled.ADOPTScheduleFree([weight], lr=0.1)
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     (weight**2).sum().backward()
        ...     optimizer.step()
        >>> with optimizer.averaged_parameters():
        ...     abs(weight.item()) < 0.1
        True

    Source: Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate", arXiv
    2411.02853, with the clipping of its later versions, as the step of z in "The Road Less Scheduled", arXiv
    2405.15682. There, too, the first gradient only sets v_0 = g_0^2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
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
            betas=betas,
            eps=eps,
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
        return ADOPT

    def _rule_scalars(self, group: Group, rule: Rule, step: int) -> dict[str, float]:
        share, bound = scalar_math.where(step > 1, 1.0 - group["betas"][1], 1.0), (step - 1) ** 0.25
        return {"one_minus_beta2": share, "eps": group["eps"], "lowest": -bound, "highest": bound}

    def _lr_factor(self, group: Group, step: int) -> float:
        return cast(float, scalar_math.where(step > 1, 1.0, 0.0))

    def _beta(self, group: Group) -> float:
        return float(group["betas"][0])

    def _check_rule(self, group: Group) -> None:
        check_betas(group, "it averages the squared gradient: use 0.9999")
        require_within("[1e-30, inf)", "eps", group["eps"], "use 1e-6")
