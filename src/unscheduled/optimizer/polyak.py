"""The Polyak step, from the loss at y and from sums over the gradients of all parameters."""
# torch publishes its foreach operations under names with an underscore:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from unscheduled.formulas.step_size import PolyakStep, PolyakSums
from unscheduled.formulas.validation import require_number, require_within
from unscheduled.kernels import Tensors, real
from unscheduled.optimizer.collectives import Sharding, as_float, local, totals, whole

Number: TypeAlias = float | Tensor
Loss: TypeAlias = Number | list[float] | list[Tensor] | list[Number]


class Part(NamedTuple):
    """Some gradients, with the gaps of their parameters (None: still 0), the beta of their y, and how to size them."""

    grads: list[Tensor]
    gaps: list[Tensor | None]
    beta: float
    size: Callable[[list[Tensor]], Tensor]


def polyak_step(
    step_size: PolyakStep,
    parts: Sequence[Part],
    degree: int,
    loss: Loss | None,
    grad_norm: Number | None,
    before: PolyakSums,
) -> tuple[float, PolyakSums]:
    """The step s and the new sums.

    Args:
        step_size: the rule.
        parts: all gradients; they are left as they are.
        degree: that of the size of the gradients: a g has the size a^degree |g|.
        loss: the loss at y, or the losses whose gradients were accumulated.
        grad_norm: the 2-norm of the gradient before it was clipped; None if it was not.
        before: the sums after the step before.

    Raises:
        ValueError: if the loss is missing, no scalar, not finite or below f*, ``grad_norm`` is no norm, or the
            gradient is not finite.
    """
    here = _loss(step_size, loss)
    if grad_norm is not None:
        grad_norm = as_float(grad_norm)
    everywhere, correlation, norm, squares = totals(_sums(parts, grad_norm is not None), here, step_size.all_processes)
    if not math.isfinite(everywhere):
        raise ValueError(f"loss = {everywhere} is not finite: call zero_grad() and leave this step out")
    if everywhere < step_size.f_star:
        raise ValueError(
            f"loss = {everywhere} is below f_star = {step_size.f_star}, which must be a lower bound of the loss: "
            "give PolyakStep(f_star=...) a lower one"
        )
    if not (math.isfinite(correlation) and math.isfinite(norm)):
        raise ValueError(f"the gradient is not finite (its size is {norm}): call zero_grad() and leave this step out")
    if grad_norm is not None:
        require_within("[0, inf)", "grad_norm", grad_norm, "give what torch.nn.utils.clip_grad_norm_ returned")
    if grad_norm and squares > 0.0:
        clipped = min(1.0, math.sqrt(squares) / grad_norm)
        correlation, norm = correlation / clipped, norm / clipped**degree
    return step_size(everywhere, correlation, norm, before)


def _loss(step_size: PolyakStep, loss: Loss | None) -> float:
    """The loss as a number, not yet known to be finite."""
    if loss is None:
        raise ValueError(
            f"loss = None: step_size = {step_size} needs the loss at y: call step(loss=loss), or give step() a closure "
            "that returns it"
        )
    if isinstance(loss, tuple):  # a closure may return the loss with what goes with it
        raise ValueError(
            f"loss = a tuple of {len(loss)}: give the loss alone, or a list of losses that are to be added"
        )
    if isinstance(loss, list):
        if not loss:
            raise ValueError(f"loss = {loss}: give the losses whose gradients were accumulated")
        return sum(_loss(step_size, one) for one in cast("Sequence[Number]", loss))
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(f"loss = a tensor of shape {tuple(loss.shape)}: give the scalar that backward() was for")
        loss = whole(loss).item()
    require_number("loss", loss, "give the scalar that backward() was for")
    return float(cast(float, loss))


def _sums(parts: Sequence[Part], clipped: bool) -> dict[Sharding, Tensor]:
    """For each sharding: <g, z - y>, |g| and, if it was clipped, the square of the 2-norm, over what is here."""
    sums: dict[Sharding, Tensor] = {}
    for part in parts:
        kinds: dict[tuple[Sharding, torch.device, torch.dtype], list[tuple[Tensor, Tensor | None]]] = {}
        for grad, gap in zip(part.grads, part.gaps, strict=True):
            grad, sharding = local(real(grad))
            grad = grad.to(torch.promote_types(grad.dtype, torch.float32))
            kinds.setdefault((sharding, grad.device, grad.dtype), []).append((grad, gap))
        for (sharding, device, _), pairs in kinds.items():
            grads = [grad for grad, _ in pairs]
            dots = [
                torch.dot(grad.flatten(), local(real(gap))[0].flatten().to(grad.dtype))
                for grad, gap in pairs
                if gap is not None
            ]
            nothing = torch.zeros((), dtype=torch.float64, device=device)
            vector = torch.stack(
                [
                    part.beta * torch.stack(dots).sum(dtype=torch.float64) if dots else nothing,
                    part.size(grads),
                    squares(grads) if clipped else nothing,
                ]
            ).double()
            sums[sharding] = sums[sharding] + vector.to(sums[sharding].device) if sharding in sums else vector
    return sums or {Sharding(): torch.zeros(3, dtype=torch.float64, device="cpu")}


def squares(tensors: Tensors) -> Tensor:
    """The sum of all squares, in float64."""
    return torch.stack(list(torch._foreach_norm(tensors, dtype=torch.float64))).square().sum()
