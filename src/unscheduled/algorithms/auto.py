"""Schedule-Free AdamW with the distance step: nothing has to be set."""

from typing import Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from unscheduled.algorithms.adamw import AdamWScheduleFree
from unscheduled.formulas.averaging import Averaging
from unscheduled.formulas.interpolation import Interpolation
from unscheduled.formulas.step_size import DistanceStep, StepSize
from unscheduled.kernels import Implementation
from unscheduled.state.buffers import StatePrecision


class AutoScheduleFree(AdamWScheduleFree):
    """Schedule-Free AdamW with the distance step: neither a schedule, a learning rate, a warmup nor the loss.

        z' = z - lr gamma (g / (sqrt(v' / (1 - beta2^t)) + eps) + lambda w)

    with gamma of :class:`DistanceStep`, and x, y and v as in :class:`AdamWScheduleFree`, of which this is a set of
    defaults. Memory: the gap z - x, v, the start z_0 and an average of the gradient: 16 bytes a parameter of float32.

    How far it is from a tuned learning rate, and where it fails, is in the documentation: "Without a learning rate".

    Args:
        params: parameters, named parameters or parameter groups.
        lr: a factor on gamma, a float or a tensor of one element, >= 0; groups may have different ones. None is 1, or
            0.0025 with a :class:`ConstantStep`.
        betas: (beta, beta2): the interpolation in [0, 1], and the average of the squared gradient in [0, 1).
        eps: epsilon, >= 1e-30, added to the root.
        weight_decay: lambda, >= 0.
        r: power of the step in the averaging weights, in (-1, 32]; None is 0.
        foreach: True is ``implementation="foreach"``, False is ``"loop"``.
        fused: True is ``implementation="fused"``, False is the fastest implementation beside it.
        step_size: the constants of the distance step. None is ``DistanceStep()``.
        averaging: the averaging weight c, instead of ``r``.
        interpolation: how beta changes with the steps; None keeps it constant.
        decay_at: the point that weight decay is proportional to, ``"y"`` or ``"z"``.
        maximize: follow the gradient upwards.
        implementation: ``"auto"``, ``"loop"``, ``"foreach"``, ``"compiled"`` or ``"fused"``, see
            :mod:`unscheduled.kernels`.
        state_precision: how the gap and v are stored: ``"float32"``, or ``"compact"``, which with z_0 and the average
            of the gradient is 11.1 bytes a parameter.
        capturable: whether a step may be captured in a CUDA graph and replayed: the numbers of the step are on the
            device then, see :mod:`unscheduled.optimizer.capture`.

    Raises:
        ValueError: if an argument is out of its range, or two of them exclude each other.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = unscheduled.AutoScheduleFree(model.parameters()).attach(model)
        >>> inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()
        ...     optimizer.step()
        >>> _ = model.eval()
        >>> (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().item() < 1e-3
        True

    Source: see :class:`DistanceStep`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        r: float | None = None,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
        step_size: StepSize | None = None,
        averaging: Averaging | None = None,
        interpolation: Interpolation | None = None,
        decay_at: Literal["y", "z"] = "y",
        maximize: bool = False,
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
            r=r,
            foreach=foreach,
            fused=fused,
            step_size=DistanceStep() if step_size is None else step_size,
            averaging=averaging,
            interpolation=interpolation,
            decay_at=decay_at,
            maximize=maximize,
            implementation=implementation,
            state_precision=state_precision,
            capturable=capturable,
        )
