"""ScheduleFree+: Schedule-Free AdamW without a learning rate."""

from typing import Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from unscheduled.algorithms.adamw import AdamWScheduleFree
from unscheduled.formulas.averaging import Averaging
from unscheduled.formulas.interpolation import Interpolation
from unscheduled.formulas.step_size import PolyakStep, StepSize
from unscheduled.kernels import Implementation
from unscheduled.state.buffers import StatePrecision


class ScheduleFreePlus(AdamWScheduleFree):
    """Schedule-Free AdamW with the Polyak step: neither a schedule nor a learning rate.

        s = max(0, mean of f(y) - f* + <g, z - y>) / (mean of sqrt(pi / 2) |g|_1)
        gamma = lr s min(1, t / warmup_steps)
        z' = z - gamma g / (sqrt(v' / (1 - beta2^t)) + eps) - gamma^2 lambda w

    with the means over all steps so far, and x, y and v as in :class:`AdamWScheduleFree`, of which this is a set of
    defaults. ``step`` needs the loss: ``optimizer.step(loss=loss)``, or a closure that returns it. Memory: the gap
    z - x and v. In the paper both means are those of the present step: ``PolyakStep(norm_beta=0)``.

    The step is as good as the bound of convexity and f*. Where the loss comes near f* = 0, it gets smaller and smaller;
    where the gradients are noisy, or were made smaller on the way, it gets too large. The results of the race, in the
    documentation, tell how far it is from a tuned learning rate.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: a factor on the Polyak step, a float or a tensor of one element, >= 0; groups may have different ones. None
            is 1, or 0.0025 with a :class:`ConstantStep`.
        betas: (beta, beta2): the interpolation in [0, 1], and the average of the squared gradient in [0, 1), for which
            the paper has 0.95.
        eps: epsilon, >= 1e-30, added to the root.
        weight_decay: lambda of AdamC, >= 0; 5 to 50.
        warmup_steps: steps of linear warmup of the factor, an integer >= 0.
        r: power of the step in the averaging weights, in (-1, 32]; None is 0. 1 for long runs.
        foreach: True is ``implementation="foreach"``, False is ``"loop"``.
        fused: True is ``implementation="fused"``, False is the fastest implementation beside it.
        step_size: f*, the means and the limit of the Polyak step. None is ``PolyakStep()``. With a
            :class:`ConstantStep` the learning rate is the step size.
        inner_momentum: beta1, in [0, 1), Adam's own momentum; 0.75 to 0.9 for batches of millions of tokens, and 0 for
            others, which it ruins.
        averaging: the averaging weight c, instead of ``r``.
        interpolation: how beta changes with the steps; None keeps it constant. The paper anneals it from 0.9 to 0.965.
        decay_at: the point that weight decay is proportional to, ``"y"`` or ``"z"``.
        implementation: ``"auto"``, ``"loop"``, ``"foreach"``, ``"compiled"`` or ``"fused"``, see
            :mod:`unscheduled.kernels`.
        state_precision: how the buffers are stored: ``"float32"``, or ``"compact"`` in 3.1 bytes a parameter.
        capturable: whether a step may be captured in a CUDA graph and replayed, see
            :mod:`unscheduled.optimizer.capture`; only with a :class:`ConstantStep`, since the Polyak step is computed
            on the host.

    Raises:
        ValueError: if an argument is out of its range, or two of them exclude each other.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = unscheduled.ScheduleFreePlus([weight], warmup_steps=0)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = (weight**2).sum()
        ...     loss.backward()
        ...     optimizer.step(loss=loss)
        >>> with optimizer.averaged_parameters():
        ...     abs(weight.item()) < 0.1
        True

    Source: Defazio, "ScheduleFree+", arXiv 2605.19095.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 200,
        r: float | None = None,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
        step_size: StepSize | None = None,
        inner_momentum: float = 0.0,
        averaging: Averaging | None = None,
        interpolation: Interpolation | None = None,
        decay_at: Literal["y", "z"] = "y",
        implementation: Implementation = "auto",
        state_precision: StatePrecision = "float32",
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            warmup_steps,
            r,
            foreach=foreach,
            fused=fused,
            step_size=PolyakStep() if step_size is None else step_size,
            corrected_decay=True,
            inner_momentum=inner_momentum,
            averaging=averaging,
            interpolation=interpolation,
            decay_at=decay_at,
            implementation=implementation,
            state_precision=state_precision,
            capturable=capturable,
        )
