"""Rules whose direction is no matter of single elements: computed tensor by tensor, and then given to a kernel."""

from torch import Tensor

from unscheduled.kernels.rule import Rule, Work


def directed(rule: Rule, work: Work) -> Work:
    """The work that is left for the rule ``GIVEN``: the directions stand in place of the gradients."""
    batch, scalars = work
    directions: list[Tensor] = []
    for grad, gap, *buffers in zip(batch.grads, batch.gaps, *batch.buffers, strict=True):
        grad = grad.to(gap.dtype)
        direction, *next_buffers = rule.direction(-grad if scalars.maximize else grad, *buffers, **scalars.direction)
        directions.append(direction)
        for buffer, next_buffer in zip(buffers, next_buffers, strict=True):
            buffer.copy_(next_buffer)
    contiguous = all(map(Tensor.is_contiguous, directions))
    return (
        batch._replace(grads=directions, buffers=[], contiguous=contiguous),
        scalars._replace(direction={}, maximize=False),
    )
