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
    found: dict[tuple[torch.device, torch.dtype, int], Batch] = {}
    for param, state in params_and_states:
        state["step"] += 1
        key = (param.device, param.dtype, state["step"])
        batch = found.setdefault(key, Batch([], [], [], [[] for _ in rule.buffers]))
        batch.params.append(_real(param))
        batch.grads.append(_real(cast(Tensor, param.grad)))
        batch.gaps.append(_real(state["gap"]))
        for buffers, name in zip(batch.buffers, rule.buffers, strict=True):
            buffers.append(_real(state[name]))
    for (_, _, seen), batch in found.items():
        yield seen, batch


def put_average(param: Tensor, state: State, beta: float) -> None:
    """Put x into a parameter that holds y, and keep the bits of y aside."""
    state["y"] = param.detach().clone()
    param.copy_(iterates.averaged(param.to(state["gap"].dtype), state["gap"], beta))


def put_gradient_point(param: Tensor, state: State, beta: float) -> None:
    """Put y into a parameter that holds x: the bits kept aside, or, if weights were written meanwhile, theirs."""
    y = _kept(param, state, beta)
    gap = cast(Tensor, state["gap"])
    param.copy_(iterates.gradient_point(param.to(gap.dtype), gap, beta) if y is None else y)
    state.pop("y", None)


def read(param: Tensor, state: State | None, beta: float, training: bool) -> Iterates:
    """The three sequences of a parameter that holds y (``training``) or x, as new tensors of the state's precision."""
    here = param.detach().to(state_dtype(param), copy=True)
    if not state:
        return Iterates(here, here.clone(), here.clone())
    gap = cast(Tensor, state["gap"])
    if training:
        x, y = iterates.averaged(here, gap, beta), here
    elif (kept := _kept(param, state, beta)) is not None:
        y = kept.to(here.dtype, copy=True)
        x = iterates.averaged(y, gap, beta)
    else:
        x, y = here, iterates.gradient_point(here, gap, beta)
    return Iterates(x, y, iterates.base(y, gap, beta))


def _kept(param: Tensor, state: State, beta: float) -> Tensor | None:
    """The y kept aside for a parameter that holds x, unless it holds another x than the one that belongs to it."""
    y = cast(Tensor | None, state.get("y"))
    if y is None:
        return None
    x = iterates.averaged(y.to(state["gap"].dtype), state["gap"], beta).to(param.dtype)
    same = (param == x) | ((param != param) & (x != x))  # NaN is the same as NaN
    return y if bool(same.all()) else None


def put_reinterpolated(param: Tensor, state: State, beta: float, next_beta: float) -> None:
    """Form the y of a parameter anew with another beta: x and z stay."""
    gap = cast(Tensor, state["gap"])
    param.copy_(iterates.reinterpolated(param.to(gap.dtype), gap, beta, next_beta))


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
