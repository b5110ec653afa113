"""The definition by hand in ``torch._foreach_*``: in place, a few launches for all tensors of a batch."""
# torch publishes its foreach operations under names with an underscore:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

import torch
from torch import Tensor

from unscheduled.formulas.rule import Rule
from unscheduled.kernels.batch import Batch, Scalars


def update(rule: Rule, batch: Batch, scalars: Scalars) -> None:
    """Make one step of every parameter of the batch, in the higher precision of gaps and parameters.

    The step needs one temporary of the batch's size, one more to maximize, and two more if parameters are narrower than
    their gaps.
    """
    assert rule.foreach is not None
    lr, gaps, coefficients = scalars.lr, batch.gaps, scalars.coefficients
    y, grads = _widened(batch.params, gaps), _widened(batch.grads, gaps)
    if scalars.maximize:
        grads = torch._foreach_neg(grads)
    direction = rule.foreach(grads, *batch.buffers, **scalars.direction)

    if scalars.weight_decay != 0.0:
        if direction is batch.grads:  # gradients are never overwritten
            direction = torch._foreach_add(direction, y, alpha=scalars.weight_decay)
        else:
            torch._foreach_add_(direction, y, alpha=scalars.weight_decay)
        if scalars.weight_decay_of_gap != 0.0:
            torch._foreach_add_(direction, gaps, alpha=scalars.weight_decay_of_gap)

    torch._foreach_add_(y, gaps, alpha=coefficients.gap_in_y)
    torch._foreach_add_(y, direction, alpha=-coefficients.move_in_y * lr)
    torch._foreach_add_(gaps, gaps, alpha=-coefficients.gap_in_gap)
    torch._foreach_add_(gaps, direction, alpha=-coefficients.move_in_gap * lr)
    if y is not batch.params:
        torch._foreach_copy_(batch.params, y)


def _widened(tensors: list[Tensor], gaps: list[Tensor]) -> list[Tensor]:
    """The tensors in the precision of the arithmetic; the same list if they have it."""
    dtype = torch.promote_types(tensors[0].dtype, gaps[0].dtype)
    return tensors if tensors[0].dtype == dtype else [tensor.to(dtype) for tensor in tensors]
