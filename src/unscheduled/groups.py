"""The options that a parameter group of any algorithm has: their defaults, ranges and form in a checkpoint.

| option | what it is | range |
|---|---|---|
| ``lr`` | learning rate, a float or a tensor of one element | >= 0 |
| ``weight_decay`` | decoupled weight decay lambda | >= 0 |
| ``decay_at`` | whether weight decay looks at y or at z | ``"y"``, ``"z"`` |
| ``warmup_steps`` | steps of linear warmup | integer >= 0 |
| ``maximize`` | follow the gradient upwards | bool |
| ``averaging`` | the averaging weight c | see :mod:`unscheduled.averaging` |
| ``r``, ``weight_lr_power`` | short for ``averaging=PolynomialAveraging(r, weight_lr_power)`` | likewise |
| ``interpolation`` | how beta changes with the steps | see :mod:`unscheduled.interpolation` |
"""

import dataclasses
from collections.abc import Iterable, Set
from typing import Any, TypeAlias, cast

from torch import Tensor

from unscheduled.averaging import PolynomialAveraging
from unscheduled.interpolation import ConstantInterpolation
from unscheduled.interval import require_count, require_within

Group: TypeAlias = dict[str, Any]

AXES = ("averaging", "interpolation")
POWERS = ("r", "weight_lr_power")
LR_REMEDY = "a learning rate is a positive number, or 0 to stand still"


def resolved(options: Group, defaults: Group) -> Group:
    """The options completed by the defaults, with ``r`` and ``weight_lr_power`` made an averaging.

    Raises:
        ValueError: if ``averaging`` is given together with ``r`` or ``weight_lr_power``.
    """
    given = {name: value for name, value in options.items() if value is not None or name not in AXES + POWERS}
    powers = {name: given.pop(name) for name in POWERS if name in given}
    completed = {"averaging": PolynomialAveraging(), "interpolation": ConstantInterpolation()} | defaults | given
    if powers and "averaging" in given:
        both = [f"{name} = {value}" for name, value in powers.items()] + [f"averaging = {given['averaging']}"]
        raise ValueError(f"{', '.join(both)} exclude each other: give averaging alone")
    if powers:
        averaging = completed["averaging"]
        start = averaging if isinstance(averaging, PolynomialAveraging) else PolynomialAveraging()
        completed["averaging"] = dataclasses.replace(start, **powers)
    return completed


def distinct(params: Any) -> Any:
    """The parameters of a group as a list, unless torch is to refuse them.

    Raises:
        ValueError: if one stands in it twice: it would be stepped twice.
    """
    if isinstance(params, Tensor) or not isinstance(params, Iterable) or isinstance(params, Set):
        return cast(Any, params)
    entries = list(cast(Iterable[Tensor | tuple[str, Tensor]], params))
    tensors = {id(entry[1] if isinstance(entry, tuple) else entry) for entry in entries}
    if len(tensors) < len(entries):
        raise ValueError("a parameter stands in it twice: give each once")
    return entries


def fresh_counters(beta: float) -> Group:
    """The numbers that a group keeps from step to step, before the first one.

    ``step`` counts the calls of ``step()``; ``weight_sum`` and ``lr_max`` belong to the averaging; ``beta`` is the
    one that formed the present y; ``c`` and ``effective_lr`` are those of the last step.
    """
    return {"step": 0, "weight_sum": 0.0, "lr_max": 0.0, "beta": beta, "c": 0.0, "effective_lr": 0.0}


def check(group: Group) -> None:
    """Raise ValueError if an option is out of its range."""
    check_lr(group["lr"])
    require_within("[0, inf)", "weight_decay", group["weight_decay"], "use 0 for none, 0.1 for language models")
    require_count(0, "warmup_steps", group["warmup_steps"], "give a number of steps, not a fraction; 0 is no warmup")
    if group["decay_at"] not in ("y", "z"):
        raise ValueError(f"decay_at = {group['decay_at']!r} is neither 'y' nor 'z': use 'y', or 'z' for very long runs")
    for axis in AXES:
        if not (dataclasses.is_dataclass(group[axis]) and callable(group[axis])):
            raise ValueError(f"{axis} = {group[axis]!r} is none: use an object of unscheduled.{axis}, or one like them")


def check_lr(lr: float | Tensor, where: str = "") -> None:
    """Raise ValueError unless the learning rate is a finite number >= 0, or a tensor with one such element."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"{where}lr = a tensor of shape {tuple(lr.shape)}: it must have one element")
    require_within("[0, inf)", f"{where}lr", float(lr), LR_REMEDY)


def check_beta(group: Group, beta: float) -> None:
    """Raise ValueError if the interpolation does not take the group's beta into [0, 1]."""
    require_within("[0, 1]", f"beta of {group['interpolation']}", group["interpolation"](beta, 0), "correct it")


def described_axes(group: Group) -> Group:
    """The axes of a group as plain dictionaries, for a checkpoint."""
    return {axis: {"name": type(group[axis]).__name__, **dataclasses.asdict(group[axis])} for axis in AXES}


def restored_axes(saved: Group, group: Group) -> Group:
    """The axes described in a checkpoint; like every number of a group, those in the checkpoint hold.

    Raises:
        ValueError: if an axis is of another kind than the group's.
    """
    axes: Group = {}
    for axis in AXES:
        name, numbers = saved[axis]["name"], {key: value for key, value in saved[axis].items() if key != "name"}
        if name != type(group[axis]).__name__:
            raise ValueError(
                f"it was made with {axis} = {name}, this optimizer has {group[axis]}: "
                "construct it likewise, and change the axis in param_groups after loading"
            )
        axes[axis] = type(group[axis])(**numbers)
    return axes
