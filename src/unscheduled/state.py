"""What is kept for one parameter, and how it moves between y and x.

| key | what it is |
|---|---|
| ``step`` | the number of gradients that the parameter has seen |
| ``gap`` | z - x |
| ``y`` | the bits of y, kept aside while the parameter holds x |
| others | the buffers of the rule |

A parameter without state has seen no gradient: x = y = z.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from unscheduled import iterates
from unscheduled.kernels import Batch, Rule

State: TypeAlias = dict[str, Any]
Started: TypeAlias = tuple[Tensor, State, float]  # a parameter that has seen a gradient, its state, the beta of its y


class Iterates(NamedTuple):
    """The three sequences of one parameter, each of its shape: average x, gradient point y, base iterate z."""

    x: Tensor
    y: Tensor
    z: Tensor


def state_dtype(param: Tensor) -> torch.dtype:
    """The precision of a parameter's gap and buffers: its own, but at least float32."""
    return torch.promote_types(param.dtype, torch.float32)


def fresh_state(param: Tensor, rule: Rule) -> State:
    """The state before the first gradient: everything is 0."""
    dtype = state_dtype(param)
    zeros = (torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format) for _ in (0, *rule.buffers))
    return {"step": 0, **dict(zip(("gap", *rule.buffers), zeros, strict=True))}


def batches(params_and_states: list[tuple[Tensor, State]], rule: Rule) -> Iterator[tuple[int, Batch]]:
    """Count a gradient for each parameter, and group what one call of a kernel can update, with that count.

    Complex tensors are pairs of real numbers, as in ``torch.optim``.
    """
    found: dict[tuple[Any, ...], Batch] = {}
    for param, state in params_and_states:
        state["step"] += 1
        grad = cast(Tensor, param.grad).resolve_conj()
        key = (state["step"], param.device, param.dtype, grad.dtype, state["gap"].dtype)
        batch = found.setdefault(key, Batch([], [], [], [[] for _ in rule.buffers]))
        batch.params.append(_real(param))
        batch.grads.append(_real(grad))
        batch.gaps.append(_real(state["gap"]))
        for buffers, name in zip(batch.buffers, rule.buffers, strict=True):
            buffers.append(_real(state[name]))
    for (seen, *_), batch in found.items():
        yield seen, batch


def put_averages(started: list[Started]) -> None:
    """Put x into parameters that hold y, and keep the bits of y aside: into all or, if it fails, into none."""
    try:
        for param, state, _ in started:
            state["y"] = param.detach().clone()
        for param, state, beta in started:
            param.copy_(iterates.averaged(_widened(param, state["gap"]), state["gap"], beta))
    except BaseException:  # out of memory, or interrupted
        for param, state, _ in started:
            if "y" in state:
                param.copy_(state.pop("y"))
        raise


def put_gradient_points(started: list[Started]) -> None:
    """Put y into parameters that hold x: the bits kept aside, or, if weights were written meanwhile, theirs.

    What was written is the new x. Until all is done, it can be done again.
    """
    for param, state, beta in started:
        if not _keeps_its_gradient_point(param, state, beta):
            gap = cast(Tensor, state["gap"])
            state["y"] = iterates.gradient_point(_widened(param, gap), gap, beta).to(param.dtype)
    for param, state, _ in started:
        param.copy_(state["y"])
    for _, state, _ in started:
        del state["y"]


def put_reinterpolated(param: Tensor, state: State, beta: float, next_beta: float) -> None:
    """Form the y of a parameter anew with another beta: x and z stay."""
    gap = cast(Tensor, state["gap"])
    param.copy_(iterates.reinterpolated(_widened(param, gap), gap, beta, next_beta))


def read(param: Tensor, state: State | None, beta: float, training: bool) -> Iterates:
    """The three sequences of a parameter that holds y (``training``) or x, as new tensors of the state's precision."""
    here = param.detach().to(state_dtype(param), copy=True)
    if not state:
        return Iterates(here, here.clone(), here.clone())
    gap = cast(Tensor, state["gap"])
    if training:
        x, y = iterates.averaged(here, gap, beta), here
    elif _keeps_its_gradient_point(param, state, beta):
        y = cast(Tensor, state["y"]).to(here.dtype, copy=True)
        x = iterates.averaged(y, gap, beta)
    else:
        x, y = here, iterates.gradient_point(here, gap, beta)
    return Iterates(x, y, iterates.base(y, gap, beta))


def _keeps_its_gradient_point(param: Tensor, state: State, beta: float) -> bool:
    """Whether the y kept aside belongs to what the parameter holds: to its x, or y itself, put there already."""
    y = cast(Tensor | None, state.get("y"))
    if y is None:
        return False
    x = iterates.averaged(_widened(y, state["gap"]), state["gap"], beta).to(param.dtype)
    return _same_bits(param, x) or _same_bits(param, y)


def _same_bits(some: Tensor, other: Tensor) -> bool:
    return bool(((some == other) | ((some != some) & (other != other))).all())  # NaN is the same as NaN


def _widened(param: Tensor, gap: Tensor) -> Tensor:
    """The parameter in the precision of the arithmetic."""
    return param.to(torch.promote_types(param.dtype, gap.dtype))


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
