"""What is kept for one parameter, and how it moves between y and x.

| key | what it is |
|---|---|
| ``step`` | the number of gradients that the parameter has seen |
| ``gap`` | z - x |
| ``kept`` | the bits of y, kept aside while the parameter holds x |
| ``y`` | after loading until the first step: the bits of y that belong to the state |
| ``z`` | after loading from the ``schedulefree`` package until the first step: z, from which the gap is made |
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
    kept: list[Tensor] = []
    try:
        kept.extend(param.detach().clone() for param, _, _ in started)
        for param, state, beta in started:
            param.copy_(iterates.averaged(_widened(param, state["gap"]), state["gap"], beta))
        for (_, state, _), y in zip(started, kept, strict=True):
            state["kept"] = y
    except BaseException:  # out of memory, or interrupted
        for (param, state, _), y in zip(started, kept, strict=False):
            param.copy_(y)
            state.pop("kept", None)
        raise


def keep_gradient_points(started: list[Started]) -> None:
    """Keep the bits of y of parameters that hold it aside, since weights may be written over them."""
    for param, state, _ in started:
        state["kept"] = param.detach().clone()


def put_gradient_points(started: list[Started]) -> dict[Tensor, Tensor]:
    """Put y into parameters that hold x: the bits kept aside, or, if weights were written meanwhile, theirs.

    What was written is the new x, and is returned. Until all is done, it can be done again.
    """
    written: dict[Tensor, Tensor] = {}
    for param, state, beta in started:
        y = known_gradient_point(param, state, beta)
        if y is None:
            written[param] = param.detach().clone()
            y = _formed(param, state, beta)
        state["kept"] = y
    for param, state, _ in started:
        param.copy_(state["kept"])
    for _, state, _ in started:
        del state["kept"]
    return written


def gradient_point(param: Tensor, state: State, beta: float, training: bool) -> Tensor:
    """A copy of the bits of y of a parameter that holds y (``training``) or x."""
    if training:
        return param.detach().clone()
    known = known_gradient_point(param, state, beta)
    return _formed(param, state, beta) if known is None else known.clone()


def average(param: Tensor, state: State, beta: float, training: bool) -> Tensor:
    """A copy of the bits of x of a parameter that holds y (``training``; maybe not if y is kept aside) or x."""
    if not training or ("kept" in state and not _same_bits(param, state["kept"])):
        return param.detach().clone()
    return iterates.averaged(_widened(param.detach(), state["gap"]), state["gap"], beta).to(param.dtype)


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
    elif (known := known_gradient_point(param, state, beta)) is not None:
        y = known.to(here.dtype, copy=True)
        x = iterates.averaged(y, gap, beta)
    else:
        x, y = here, iterates.gradient_point(here, gap, beta)
    return Iterates(x, y, iterates.base(y, gap, beta))


def known_gradient_point(param: Tensor, state: State, beta: float) -> Tensor | None:
    """The y kept aside or loaded that belongs to what the parameter holds: to its x, or y itself, put there already."""
    for y in (cast(Tensor | None, state.get("kept")), cast(Tensor | None, state.get("y"))):
        if y is not None and (_holds_average(param, y, state, beta) or _same_bits(param, y)):
            return y
    return None


def settle(param: Tensor, state: State, beta: float, training: bool, loaded_training: bool) -> None:
    """Bring together a loaded state and the weights beside it, of which it is not known when they came.

    If the state has the bits of y, they tell whether the weights are its y or its x; the one that the mode asks for
    (y, if ``training``) is put in. If it has z, as from the ``schedulefree`` package, weights that came since are what
    the file says (y, if ``loaded_training``, or x), and make the gap.
    """
    if param.is_meta:  # not there yet
        return
    if "z" in state and known_gradient_point(param, state, beta) is None:
        weights, z = _widened(param, state["gap"]), cast(Tensor, state["z"])
        state["gap"].copy_(iterates.gap_between(weights, z, beta) if loaded_training else z - weights)
        state["y"] = param.detach().clone() if loaded_training else _formed(param, state, beta)
        if training:
            param.copy_(state["y"])
    if "y" in state and training != _same_bits(param, state["y"]):
        if training and _holds_average(param, state["y"], state, beta):
            param.copy_(state["y"])
        elif not training and not _holds_average(param, state["y"], state, beta):
            param.copy_(iterates.averaged(_widened(param, state["gap"]), state["gap"], beta))


def holds_loaded_average(param: Tensor, state: State, beta: float, loaded_training: bool) -> bool:
    """Whether a parameter that is to hold y holds the x that belongs to a loaded state."""
    if "y" not in state or _same_bits(param, state["y"]):
        return False
    return _holds_average(param, state["y"], state, beta) or ("z" in state and not loaded_training)


def was_written(param: Tensor, weights: Tensor, state: State, beta: float) -> bool:
    """Whether the parameter holds the y that was formed from these weights as x, or the x of that y."""
    y = _formed(weights, state, beta)
    return _same_bits(param, y) or _holds_average(param, y, state, beta)


def _holds_average(param: Tensor, y: Tensor, state: State, beta: float) -> bool:
    """Whether the parameter holds the x that belongs to y, bit for bit."""
    return _same_bits(param, iterates.averaged(_widened(y, state["gap"]), state["gap"], beta).to(param.dtype))


def _formed(param: Tensor, state: State, beta: float) -> Tensor:
    """The y of a parameter that holds x."""
    return iterates.gradient_point(_widened(param, state["gap"]), state["gap"], beta).to(param.dtype)


def _same_bits(some: Tensor, other: Tensor) -> bool:
    return bool(((some == other) | ((some != some) & (other != other))).all())  # NaN is the same as NaN


def _widened(param: Tensor, gap: Tensor) -> Tensor:
    """The parameter in the precision of the arithmetic."""
    return param.to(torch.promote_types(param.dtype, gap.dtype))


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
