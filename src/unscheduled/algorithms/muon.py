"""Schedule-Free Muon for matrices, with Schedule-Free AdamW for the rest."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from unscheduled.algorithms.adamw import ADAM, adam_scalars, check_adam
from unscheduled.formulas.averaging import Averaging
from unscheduled.formulas.interpolation import Interpolation
from unscheduled.formulas.rule import Rule
from unscheduled.formulas.step_size import StepSize
from unscheduled.formulas.validation import require_count, require_within
from unscheduled.kernels import Implementation
from unscheduled.optimizer.base import ScheduleFreeOptimizer
from unscheduled.optimizer.collectives import of_whole
from unscheduled.state import param_groups
from unscheduled.state.buffers import StatePrecision
from unscheduled.state.param_groups import Group

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""The coefficients of the quintic that pushes singular values towards 1, steepest at 0 (Jordan et al.)."""

RMS_OF_ADAMW = 0.2
"""The root mean square of a typical update of AdamW (Liu et al., arXiv 2502.16982)."""


def muon_direction(
    grad: Any, momentum_buffer: Any, inner_momentum: float, one_minus_inner_momentum: float, ns_steps: int, eps: float
) -> tuple[Any, Any]:
    """The direction of Muon: the momentum, with Nesterov's look ahead, made orthogonal, at the scale of AdamW's.

    m' = beta1 m + (1 - beta1) g,   d = 0.2 sqrt(max(rows, columns)) orthogonal(beta1 m' + (1 - beta1) g)
    """
    momentum_buffer = inner_momentum * momentum_buffer + one_minus_inner_momentum * grad
    update = inner_momentum * momentum_buffer + one_minus_inner_momentum * grad
    if 0 in update.shape:
        return update, momentum_buffer

    def orthogonal_step(update: Any) -> Any:
        matrix = update.reshape(update.shape[0], math.prod(update.shape[1:]))
        direction = RMS_OF_ADAMW * math.sqrt(max(matrix.shape)) * orthogonalized(matrix, ns_steps, eps)
        return direction.reshape(update.shape)

    return of_whole(orthogonal_step, update), momentum_buffer


def orthogonalized(matrix: Any, ns_steps: int, eps: float) -> Any:
    """A matrix with the same singular vectors and singular values near 1, by Newton-Schulz iterations.

    Example:
        >>> import torch
        >>> values = torch.linalg.svdvals(orthogonalized(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), ns_steps=5, eps=1e-7))
        >>> bool(((values > 0.6) & (values < 1.3)).all())
        True
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    largest = abs(x).max()  # whose square may be too large or too small for a number
    norm = largest * ((x / (largest + (largest == 0.0))) ** 2).sum() ** 0.5
    x = x / (norm + eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if is_tall else x


MUON = Rule(muon_direction, ("momentum_buffer",), compact=("int16",), elementwise=False)


class MuonScheduleFree(ScheduleFreeOptimizer):
    """Schedule-Free Muon: the steps of z are orthogonal matrices. Other parameters are trained by Schedule-Free AdamW.

        m' = beta1 m + (1 - beta1) g
        z' = z - gamma (0.2 sqrt(max(rows, columns)) orthogonal(beta1 m' + (1 - beta1) g) + lambda w)
        x' = (1 - c) x + c z',    c = w_t / sum w_i,    w_t = t^r (max gamma)^weight_lr_power
        y' = (1 - beta) z' + beta x'

    The factor gives the steps the size of AdamW's, so that one learning rate serves both. ``orthogonal`` is five
    Newton-Schulz iterations, in the precision of the state. Weight decay is at z unless told otherwise: at y,
    long runs can diverge. ``interpolation=GrowingInterpolation(power, start)`` with beta 0.4 to 0.6 is AMUSE's growing
    beta.

    Matrices are the real tensors of two or more dimensions (those of more are matrices of their first dimension by all
    others). Embeddings and the last layer are matrices in form only, and train better with AdamW: put them in a group
    of their own with ``"use_muon": False``. Memory: the gap z - x, and m or the second moments. A matrix that is
    sharded (a DTensor) is gathered for the iterations, which every process computes.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate, a float or a tensor of one element, >= 0.
        betas: (beta, beta2): the interpolation in [0, 1], and AdamW's average of the squared gradient in [0, 1).
        eps: epsilon, >= 1e-30: beside AdamW's root, and the norm of a matrix.
        weight_decay: lambda, >= 0.
        warmup_steps: steps of linear warmup, an integer >= 0.
        r: power of the step in the averaging weights, in (-1, 32]; None is 0.
        weight_lr_power: power of the learning rate's running maximum in the averaging weights, in [0, 8]; None is 2.
        foreach: True is ``implementation="foreach"``, False is ``"loop"``.
        fused: True is ``implementation="fused"``, False is the fastest implementation beside it.
        inner_momentum: beta1 of Muon, in [0, 1).
        ns_steps: Newton-Schulz iterations, an integer >= 1.
        use_muon: whether all parameters are trained by Muon (True) or AdamW (False); None: Muon for the matrices.
        averaging: the averaging weight c, instead of ``r`` and ``weight_lr_power``.
        interpolation: how beta changes with the steps; None keeps it constant.
        step_size: :class:`ConstantStep`, as None is; there is no Polyak or distance step for it.
        decay_at: the point that weight decay is proportional to, ``"z"`` or ``"y"``.
        maximize: follow the gradient upwards.
        implementation: of all but the orthogonal matrices: ``"auto"``, ``"loop"``, ``"foreach"``, ``"compiled"`` or
            ``"fused"``, see :mod:`unscheduled.kernels`.
        state_precision: how the buffers are stored: ``"float32"``, or ``"compact"`` in 4.1 bytes per parameter trained
            by Muon, 3.1 by AdamW.
        capturable: whether a step may be captured in a CUDA graph and replayed: the numbers of the step are on the
            device then, see :mod:`unscheduled.optimizer.capture`.

    Raises:
        ValueError: if an argument is out of its range, two of them exclude each other, or a parameter for Muon is
            complex or no matrix.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = unscheduled.MuonScheduleFree(model.parameters(), lr=0.01).attach(model)
        >>> model(torch.ones(4)).sum().backward()
        >>> optimizer.step()
        >>> [list(optimizer.state[param]) for param in (model.weight, model.bias)]
        [['step', 'gap', 'momentum_buffer'], ['step', 'gap', 'exp_avg_sq']]

    Source: "AMUSE", arXiv 2605.22432, and "SF-NorMuon", arXiv 2605.23061, for Schedule-Free learning over Muon; Jordan
    et al., "Muon: An optimizer for hidden layers", 2024; the scale is that of Liu et al., arXiv 2502.16982.
    """

    _rules_differ = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float | None = None,
        weight_lr_power: float | None = None,
        foreach: bool | None = None,
        *,
        fused: bool | None = None,
        inner_momentum: float = 0.95,
        ns_steps: int = 5,
        use_muon: bool | None = None,
        averaging: Averaging | None = None,
        interpolation: Interpolation | None = None,
        step_size: StepSize | None = None,
        decay_at: Literal["y", "z"] = "z",
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
            inner_momentum=inner_momentum,
            ns_steps=ns_steps,
            use_muon=use_muon,
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
        use_muon = group["use_muon"]
        return MUON if use_muon or (use_muon is None and (param is None or is_matrix(param))) else ADAM

    def _rule_scalars(self, group: Group, rule: Rule, step: int) -> dict[str, float]:
        if rule is ADAM:
            return adam_scalars(group, step)
        inner_momentum = group["inner_momentum"]
        return {
            "inner_momentum": inner_momentum,
            "one_minus_inner_momentum": 1.0 - inner_momentum,
            "ns_steps": group["ns_steps"],
            "eps": group["eps"],
        }

    def _beta(self, group: Group) -> float:
        return float(group["betas"][0])

    def _has_polyak_step(self, group: Group) -> bool:
        return False  # nor with use_muon=False, since other groups may have matrices

    def _check_rule(self, group: Group) -> None:
        check_adam(group)
        require_within("[0, 1)", "inner_momentum", group["inner_momentum"], "use 0.95")
        require_count(1, "ns_steps", group["ns_steps"], "use 5")
        if group["use_muon"] not in (True, False, None):
            raise ValueError(f"use_muon = {group['use_muon']!r} is neither True, False nor None")
        for param in param_groups.tensors(group.get("params", [])) if group["use_muon"] else []:
            if not is_matrix(param):
                raise ValueError(
                    f"use_muon = True, but a parameter of shape {tuple(param.shape)} and {param.dtype} is no real "
                    "matrix: give it in a group with use_muon=False"
                )


def is_matrix(param: Tensor) -> bool:
    """Whether a parameter can be Muon's."""
    return param.dim() >= 2 and not param.is_complex()
