"""The sums of the distance step, over all parameters: before a step, since it needs them."""
# torch publishes its foreach operations under names with an underscore, and so are the names that an algorithm states:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from unscheduled.formulas.distance import DistanceStep, Estimates, Sums, from_start, inverse_of_squared_weights
from unscheduled.formulas.rule import Norm, Rule
from unscheduled.formulas.scalar_math import maximum, where
from unscheduled.kernels import real
from unscheduled.optimizer.algorithm import Algorithm
from unscheduled.optimizer.collectives import WHOLE, Sharding, added_up, local
from unscheduled.optimizer.plan import Plan
from unscheduled.state import param_groups
from unscheduled.state.buffers import wide
from unscheduled.state.device_math import as_tensor, on_host
from unscheduled.state.lists import Lists
from unscheduled.state.param_groups import DISTANCE, Group
from unscheduled.state.parameter import State, fresh_state, state_dtype, whole_y
from unscheduled.state.split_weights import shard

PIECE = 1 << 22
"""The numbers of parameters whose sums are formed together: there are temporaries of some times their size."""


class Known(NamedTuple):
    """A parameter of a group with a state, or with a gradient that is its first, on this process."""

    grad: Tensor | None
    param: Tensor
    state: State
    sharding: Sharding


def distance_factor(
    step_size: DistanceStep, algorithm: Algorithm, plans: list[Plan], states: Mapping[Tensor, State]
) -> tuple[float, Group]:
    """The step gamma, and the counters of all groups after it.

    Raises:
        ValueError: if a gradient is not finite, which is not looked at with ``capturable=True``.
    """
    sums: dict[Sharding, Tensor] = {}
    for plan in plans:
        if not plan.only_initialises:
            if algorithm.capturable and plan.group["step"].device != plans[0].group["step"].device:
                raise ValueError(
                    f"capturable = True, step_size = {step_size}, but the groups are on several devices: put all "
                    "parameters on one, or use capturable=False"
                )
            rule = algorithm._rule(plan.group)
            for sharding, vector in _sums_of_group(step_size, algorithm, plan, rule, states):
                sums[sharding] = sums[sharding] + vector.to(sums[sharding].device) if sharding in sums else vector
    if not sums:
        device = plans[0].group["step"].device if algorithm.capturable else "cpu"
        sums[WHOLE] = torch.zeros(len(Sums._fields), dtype=torch.float64, device=device)
    total = added_up(sums, step_size.partitioned)
    if algorithm.capturable:
        total = where(total.isfinite().all(), total, 0.0)  # nothing is known then, as without gradients
        numbers = cast("list[float]", list(total.unbind()))
    else:
        numbers = cast("list[float]", cast(Any, total).tolist())
        if not all(map(math.isfinite, numbers)):
            raise ValueError("the gradient or a weight is not finite: call zero_grad() and leave this step out")
    counters, first = plans[0].group, step_size.begin()
    before = Estimates(*(counters.get(name, number) for name, number in zip(DISTANCE, first, strict=True)))
    factor, after = step_size(Sums(*numbers), before)
    return factor, dict(zip(DISTANCE, after, strict=True))


def average_gradients(step_size: DistanceStep, plan: Plan) -> None:
    """Take the gradients up into m."""
    if step_size.noise_beta is None or not plan.grads:
        return
    averages = [real(shard(state["grad_avg"])) for state in plan.states]
    grads = [local(real(grad))[0].to(average.dtype) for grad, average in zip(plan.grads, averages, strict=True)]
    torch._foreach_mul_(averages, step_size.noise_beta)
    torch._foreach_add_(averages, grads, alpha=1.0 - step_size.noise_beta)


def _sums_of_group(
    step_size: DistanceStep, algorithm: Algorithm, plan: Plan, rule: Rule, states: Mapping[Tensor, State]
) -> Iterator[tuple[Sharding, Tensor]]:
    """Vectors of the :class:`Sums` over some parameters of a group, each of one sharding."""
    compact = algorithm.state_precision == "compact"
    kinds: dict[tuple[Sharding, torch.device, bool], list[Known]] = {}
    moved = set(plan.params)
    entries = [*zip(plan.grads, plan.params, plan.states, strict=True)]
    entries += [
        (None, param, states[param]) for param in plan.group["params"] if param not in moved and states.get(param)
    ]
    for grad, param, state in entries:
        if "y" in state and on_host(state["step"]) == 0:  # a run that starts at weights that were loaded since
            state["z0"].copy_(param)
        grad, sharding = (None, local(param.detach())[1]) if grad is None else local(real(grad))
        if not state:
            state = fresh_state(param, rule, compact, step_size.buffers)
            state["step"] = as_tensor(0, param.device) if algorithm.capturable else 0
        kinds.setdefault((sharding, param.device, grad is None), []).append(Known(grad, param, state, sharding))
    for (sharding, _, _), known in kinds.items():
        for piece in _pieces(known):
            yield sharding, _sums(step_size, algorithm, plan, rule, piece)


def _pieces(known: list[Known]) -> Iterator[list[Known]]:
    """The same in lists of not too many numbers, so that there is no copy of all parameters at once."""
    piece: list[Known] = []
    numbers = 0
    for each in known:
        if piece and numbers + each.param.numel() > PIECE:
            yield piece
            piece, numbers = [], 0
        piece.append(each)
        numbers += each.param.numel()
    yield piece


def _sums(step_size: DistanceStep, algorithm: Algorithm, plan: Plan, rule: Rule, known: list[Known]) -> Tensor:
    """The vector of some parameters, all with a gradient or all without one."""

    def lists(tensor: Callable[[Known], Tensor]) -> Lists:
        return Lists([real(shard(tensor(each))).to(state_dtype(real(shard(each.param)))) for each in known])

    beta = plan.group["beta"]
    y = lists(lambda each: whole_y(each.state, each.param.detach()))
    start, gap = lists(lambda each: each.state["z0"]), lists(lambda each: wide(each.state, "gap"))
    grads = lists(lambda each: cast(Tensor, each.grad)) if known[0].grad is not None else None
    seen = [each.state["step"] for each in known]

    norm = rule.norm
    if not isinstance(norm, Norm):
        previous = h = Lists([torch.ones_like(tensor) for tensor in gap.tensors])
    else:
        before, now = (_scalars(algorithm, plan.group, rule, seen, new) for new in (False, True))
        buffer = lists(lambda each: wide(each.state, norm.buffer))
        previous = h = _called(norm.denominator, before, buffer)
        if grads is not None:
            h = _called(norm.denominator, now, _called(norm.average, now, grads, buffer))

    away = from_start(y, start, gap, beta - 1.0)
    vector = {"square": _sizes(previous * away * away), "previous_scale": _sizes(previous)}
    if grads is not None:
        vector["scale"] = _sizes(h)
        vector["energy"] = vector["scale"] if isinstance(norm, Norm) else _sizes(grads * grads)
        decay = _decay(algorithm, plan.group)
        vector["decay"] = [scale * decay for scale in vector["scale"]]
        if step_size.noise_beta is not None:
            b = step_size.noise_beta
            average = b * lists(lambda each: each.state["grad_avg"]) + (1.0 - b) * grads
            weight = [inverse_of_squared_weights(b, count + 1) for count in seen]
            vector["noise"] = _sizes(average * average / h * weight)
    return _vector(vector, gap)


def _sizes(tensors: Lists) -> list[Tensor]:
    """The sums of the absolute values of the elements, in float64: float32 loses percents of a large tensor."""
    return list(torch._foreach_norm(tensors.tensors, 1, dtype=torch.float64))


def _vector(sums: Mapping[str, list[Tensor]], like: Lists) -> Tensor:
    """The totals of these sums, in order and in float64; those that are not there are 0."""
    nothing = torch.zeros((), dtype=torch.float64, device=like.tensors[0].device)
    return torch.stack([torch.stack(sums[name]).sum() if name in sums else nothing for name in Sums._fields])


def _decay(algorithm: Algorithm, group: Group) -> float:
    """The weight decay of a step, as a factor on gamma; that of AdamC has the step before in it."""
    step = group["step"] + 1
    lr = param_groups.warm_lr(group, step) * algorithm._lr_factor(group, step)
    return lr * group["weight_decay"] * (group["effective_lr"] if group.get("corrected_decay") else 1.0)


@cache
def _arguments(definition: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(definition).parameters)


def _called(definition: Callable[..., Any], scalars: Mapping[str, Any], *arrays: Lists) -> Any:
    """What a definition makes of arrays and of its scalars, which follow them."""
    return definition(*arrays, *(scalars[name] for name in _arguments(definition)[len(arrays) :]))


def _scalars(algorithm: Algorithm, group: Group, rule: Rule, seen: list[Any], new: bool) -> dict[str, Any]:
    """The scalars of a rule for parameters that have seen so many gradients, and (``new``) one more.

    One that depends on that is a list with a number for each. Before the first gradient, it is that after it.
    """
    if isinstance(seen[0], Tensor):
        counts = torch.stack(seen)
        found = algorithm._rule_scalars(group, rule, counts + 1.0 if new else maximum(counts, 1.0))
        return {
            name: list(number.unbind()) if isinstance(number, Tensor) and number.dim() else number
            for name, number in found.items()
        }
    counts = [count + 1 if new else max(count, 1) for count in seen]
    each = {count: algorithm._rule_scalars(group, rule, count) for count in set(counts)}
    if len(each) == 1:
        return each[counts[0]]
    return {name: [each[count][name] for count in counts] for name in each[counts[0]]}
