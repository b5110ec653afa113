"""The options that a parameter group of any algorithm has: their defaults, ranges and form in a checkpoint.

| option | what it is | range |
|---|---|---|
| ``lr`` | learning rate, a float or a tensor of one element | >= 0 |
| ``weight_decay`` | decoupled weight decay lambda | >= 0 |
| ``decay_at`` | whether weight decay looks at y or at z | ``"y"``, ``"z"`` |
| ``warmup_steps`` | steps of linear warmup | integer >= 0 |
| ``maximize`` | follow the gradient upwards | bool |
| ``averaging`` | the averaging weight c | see :mod:`unscheduled.formulas.averaging` |
| ``r``, ``weight_lr_power`` | short for ``averaging=PolynomialAveraging(r, weight_lr_power)`` | likewise |
| ``interpolation`` | how beta changes with the steps | see :mod:`unscheduled.formulas.interpolation` |
| ``step_size`` | how the step size comes about, the same in all groups | see :mod:`unscheduled.formulas.step_size` |
"""

import dataclasses
import difflib
import reprlib
from collections.abc import Collection, Iterable, Mapping, Set
from math import inf
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from unscheduled.formulas.averaging import PolynomialAveraging
from unscheduled.formulas.distance import DistanceStep, Estimates
from unscheduled.formulas.interpolation import ConstantInterpolation
from unscheduled.formulas.scalar_math import where
from unscheduled.formulas.step_size import ConstantStep, PolyakStep, PolyakSums, StepSize, linear_warmup
from unscheduled.formulas.validation import require_count, require_within
from unscheduled.state.device_math import as_tensor, is_capturing, on_host

Group: TypeAlias = dict[str, Any]

AXES = ("averaging", "interpolation", "step_size")
PLAIN_AXES: Group = {
    "averaging": PolynomialAveraging(),
    "interpolation": ConstantInterpolation(),
    "step_size": ConstantStep(),
}
"""The axes of Schedule-Free learning without more."""

FROZEN = {"running": "frozen", "restarting": "frozen restarting"}
"""What a state of the averaging becomes when it is frozen, and is again afterwards."""

THAWED = {frozen: state for state, frozen in FROZEN.items()}
AVERAGING_STATES = (*FROZEN, *THAWED)
"""Their names on the host; on a device a state is the number of its place here."""

POWERS = ("r", "weight_lr_power")

FOR_ALL_GROUPS = ("capturable", "foreach", "fused", "implementation", "state_precision")
"""Arguments of constructors that no group has."""

OF_OTHERS = frozenset(
    (
        *("params", "param_names", "differentiable"),  # torch.optim.Optimizer
        *("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr"),  # torch's schedulers
        "name",  # a label, which Lightning's LearningRateMonitor shows
    )
)
"""Entries of a group beside the options and the counters, which no step reads."""


def resolved(options: Group, defaults: Group) -> Group:
    """The options completed by the defaults, with ``r`` and ``weight_lr_power`` made an averaging.

    Raises:
        ValueError: if ``averaging`` is given together with ``r`` or ``weight_lr_power``.
    """
    given = {name: value for name, value in options.items() if value is not None or name not in AXES + POWERS}
    powers = {name: given.pop(name) for name in POWERS if name in given}
    completed = PLAIN_AXES | defaults | given
    if powers and "averaging" in given:
        both = [f"{name} = {value}" for name, value in powers.items()] + [f"averaging = {given['averaging']}"]
        raise ValueError(f"{', '.join(both)} exclude each other: give averaging alone")
    if powers:
        averaging = completed["averaging"]
        start = averaging if isinstance(averaging, PolynomialAveraging) else PolynomialAveraging()
        completed["averaging"] = dataclasses.replace(start, **powers)
    return completed


def listed(params: Any) -> Any:
    """The parameters of a group as a list, unless torch is to refuse them.

    Raises:
        ValueError: if one stands in it twice, or is a view to be conjugated, which cannot be written to in place.
    """
    if isinstance(params, Tensor) or not isinstance(params, Iterable) or isinstance(params, Set):
        return cast(Any, params)
    entries = list(cast(Iterable[Tensor | tuple[str, Tensor]], params))
    found = tensors(entries)
    if len({id(tensor) for tensor in found}) < len(found):
        raise ValueError("a parameter stands in it twice: give each once")
    if any(tensor.is_conj() for tensor in found):
        raise ValueError("a parameter is a conjugated view: make it of tensor.resolve_conj()")
    return entries


def tensors(params: Any) -> list[Tensor]:
    """The tensors among the parameters of a group, which may be a tensor, tensors, or pairs of a name and a tensor."""
    entries = [params] if isinstance(params, Tensor) else cast(Iterable[Any], params)
    found = (cast(Any, entry[1] if isinstance(entry, tuple) else entry) for entry in entries)
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def params_of(groups: Iterable[Group]) -> list[Tensor]:
    """All parameters of these groups, in order."""
    return [param for group in groups for param in cast(list[Tensor], group["params"])]


DISTANCE = tuple(f"distance_{name}" for name in Estimates._fields)
"""The counters of a :class:`DistanceStep`, which all groups have alike, in the order of its :class:`Estimates`."""

POLYAK = tuple(f"polyak_{name}" for name in PolyakSums._fields)
"""Those of a :class:`PolyakStep`, in the order of its :class:`PolyakSums`."""

OF_STEP_SIZE = (*DISTANCE, *POLYAK)
RANGES = {"distance_gamma": "(0, inf)", "distance_reached": "(0, inf)", "polyak_excess": "(-inf, inf)"}
"""Those of their values, where they are not [0, inf)."""


def fresh_counters(beta: float, training: bool, step_size: StepSize | None = None) -> Group:
    """The numbers that a group keeps from step to step, before the first one.

    ``step`` counts the calls of ``step()``; ``weight_sum``, ``lr_max``, ``averaging_state`` and ``averaging_start``,
    the step before the first one that the averaging counts, belong to the averaging; ``beta`` is the one that formed
    the present y; ``c`` and ``effective_lr`` are those of the last step. ``training`` is a copy of the optimizer's
    mode, for checkpoints. With ``capturable=True`` the numbers are tensors, see :func:`put_on_device`. Groups with a
    :class:`DistanceStep` or :class:`PolyakStep` have its numbers, too.
    """
    of_step: Group = {}
    if isinstance(step_size, DistanceStep):
        of_step = dict(zip(DISTANCE, step_size.begin(), strict=True))
    elif isinstance(step_size, PolyakStep):
        of_step = dict(zip(POLYAK, step_size.begin(), strict=True))
    return {
        "step": 0,
        "weight_sum": 0.0,
        "lr_max": 0.0,
        "averaging_state": "running",
        "averaging_start": 0,
        "beta": beta,
        "c": 0.0,
        "effective_lr": 0.0,
        "training": training,
        **of_step,
    }


COUNTERS = frozenset((*fresh_counters(0.0, training=True), *OF_STEP_SIZE))
NUMBERS = tuple(name for name in fresh_counters(0.0, training=True) if name != "training")
"""The counters that are on the device with ``capturable=True``: float64 tensors of no dimensions."""

COUNTS = ("step", "averaging_start")
"""Those that are integers on the host."""


def numbers_of(group: Group) -> list[str]:
    """The counters of a group that are on the device with ``capturable=True``."""
    return [name for name in (*NUMBERS, *OF_STEP_SIZE) if name in group]


def put_on_device(numbers: dict[str, Any], names: Iterable[str], device: torch.device) -> None:
    """Make numbers of a group, or of the state of a parameter, tensors on a device; those that are stay the very ones.

    Raises:
        RuntimeError: if there is something to do while a step is captured, whose replays would do it again.
    """
    for name in names:
        number = numbers[name]
        if not isinstance(number, Tensor) or number.dtype != torch.float64 or number.device != device:
            if is_capturing(device):
                raise RuntimeError(
                    f"{name} = {number} is to be brought to the device while a step is captured: make a step before "
                    "the capture"
                )
            number = AVERAGING_STATES.index(number) if isinstance(number, str) else float(number)
            numbers[name] = as_tensor(number, device)


def put(group: Group, counters: Group) -> None:
    """Set counters of a group; one on a device stays the tensor that it is."""
    for name, number in counters.items():
        if isinstance(group.get(name), Tensor):
            group[name].fill_(AVERAGING_STATES.index(number) if isinstance(number, str) else number)
        else:  # a tensor of another counter would be changed with it
            group[name] = number.clone() if isinstance(number, Tensor) else number


def counters_on_host(group: Group) -> Group:
    """The counters of a group as plain numbers, as they stand in files."""
    return {
        name: _on_host(name, group[name]) if isinstance(group[name], Tensor) else group[name]
        for name in numbers_of(group)
    }


def _on_host(name: str, number: Tensor) -> float | str:
    value = on_host(number)
    if name == "averaging_state":
        return AVERAGING_STATES[int(value)]
    return int(value) if name in COUNTS else value


def known_entries(defaults: Collection[str]) -> frozenset[str]:
    """The keys that a group may have, for an optimizer with these options."""
    return frozenset(defaults) | COUNTERS | OF_OTHERS


def unknown_entries(group: Group, defaults: Collection[str]) -> list[str]:
    """The keys of a group that no step reads: none of these options, no counter, nothing of torch's.

    Example:
        >>> unknown_entries({"lr": 0.1, "step": 7, "initial_lr": 0.1, "name": "head", "rho": 0.5}, {"lr": 0.0025})
        ['rho']
    """
    known = known_entries(defaults)
    return [name for name in group if name not in known]


def refuse_unknown(group: Group, defaults: Collection[str]) -> None:
    """Raise ValueError if a group has an entry that would be ignored."""
    for name in unknown_entries(group, defaults):
        value = reprlib.repr(group[name])
        closest = difflib.get_close_matches(str(name), defaults, n=1, cutoff=0.75)
        if name in FOR_ALL_GROUPS:
            raise ValueError(f"{name} = {value} in a group: it is for all groups, so give it to the constructor")
        if name in POWERS:
            remedy = f"set group['averaging'] = dataclasses.replace(group['averaging'], {name}={value}) instead"
        elif name in ("lr_scale", "lr_mult"):
            remedy = "multiply group['lr'] by it"
        elif closest:
            remedy = f"use {closest[0]!r}"
        else:
            remedy = f"the options are {', '.join(defaults)}; a label can stand under 'name'"
        raise ValueError(f"{name} = {value} is no option of a group: {remedy}, and remove {name!r}")


def check(group: Group, written_as: Mapping[str, str] = MappingProxyType({})) -> None:
    """Raise ValueError if an option is out of its range.

    Args:
        group: the options of a group.
        written_as: what the constructor calls an option, where that is not its name in the group.
    """
    check_lr(group["lr"])
    weight_decay = written_as.get("weight_decay", "weight_decay")
    require_within("[0, inf)", weight_decay, group["weight_decay"], "use 0 for none, 0.1 for language models")
    require_count(0, "warmup_steps", group["warmup_steps"], "give a number of steps, not a fraction; 0 is no warmup")
    if group["decay_at"] not in ("y", "z"):
        raise ValueError(f"decay_at = {group['decay_at']!r} is neither 'y' nor 'z': use 'y', or 'z' for very long runs")
    if not isinstance(group["maximize"], bool):
        raise ValueError(f"maximize = {group['maximize']!r} is neither True nor False")
    for axis in AXES:
        if isinstance(group[axis], type):
            raise ValueError(f"{axis} = {group[axis].__name__} is a class: make an object of it, with parentheses")
        known = isinstance(group[axis], StepSize) if axis == "step_size" else callable(group[axis])
        if not (dataclasses.is_dataclass(group[axis]) and known):
            raise ValueError(
                f"{axis} = {group[axis]!r} is no {axis}: use an object of a class of unscheduled.formulas.{axis}"
            )
    if isinstance(group["step_size"], PolyakStep) and group["maximize"]:
        raise ValueError(f"maximize = True, step_size = {group['step_size']} exclude each other: minimize the negative")


def check_betas(group: Group, remedy: str) -> None:
    """Raise ValueError unless ``betas`` is (beta, beta2): the interpolation, and the rate of an average."""
    try:
        beta, beta2 = group["betas"]
    except (TypeError, ValueError):
        raise ValueError(f"betas = {group['betas']} is no pair: give (beta, beta2), such as (0.9, 0.999)") from None
    require_within("[0, 1]", "betas[0]", beta, "it is the interpolation beta: use 0.9")
    require_within("[0, 1)", "betas[1]", beta2, remedy)


def check_lr(lr: float | Tensor) -> float:
    """The learning rate as a float.

    Raises:
        ValueError: if it is not a finite number >= 0, or a tensor with one such element.
    """
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"lr = a tensor of shape {tuple(lr.shape)}: it must have one element")
        lr = float(lr)
    if type(lr) is not float or not 0.0 <= lr < inf:  # else no time for the words
        require_within("[0, inf)", "lr", lr, "a learning rate is a positive number, or 0 to stand still")
    return float(lr)


def warm_lr(group: Group, step: int | Tensor) -> Any:
    """The learning rate of a step, after warmup. A tensor is not checked if the step is one as well.

    Raises:
        ValueError: if it is out of its range.
    """
    lr: Any = group["lr"]
    if isinstance(step, Tensor) and isinstance(lr, Tensor):
        lr = lr.detach().reshape(()).to(torch.float64)
    else:
        lr = check_lr(lr)
    return lr * linear_warmup(cast(int, step), group["warmup_steps"])


def averages(state: str | Tensor) -> bool | Tensor:
    """Whether a step in which z moves enters the average, in this state of the averaging: it is not frozen."""
    return state not in THAWED if isinstance(state, str) else state < len(FROZEN)


def next_averaging(state: str | Tensor, c: float) -> tuple[float, Any]:
    """The weight c of such a step, and the state of the averaging after it."""
    if isinstance(state, str):
        return 1.0 if state == "restarting" else c, "running"
    return where(state == AVERAGING_STATES.index("restarting"), 1.0, c), AVERAGING_STATES.index("running")


def put_lr(group: Group, lr: float) -> None:
    """Set the learning rate of a group, of any optimizer; a tensor stays the one that it is."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def named(group: Group) -> list[Any]:
    """The parameters of a group, of any optimizer, as a new one is given them: with their names, if they have some."""
    names = group.get("param_names")
    return list(zip(names, group["params"], strict=True)) if names else list(group["params"])


def check_counters(group: Group) -> None:
    """Raise ValueError if a number that the group keeps from step to step cannot be."""
    remedy = "the state dict is damaged"
    require_count(0, "step", group["step"], remedy)
    require_within("[0, inf)", "weight_sum", group["weight_sum"], remedy)
    require_within("[0, inf)", "lr_max", group["lr_max"], remedy)
    require_count(0, "averaging_start", group["averaging_start"], remedy)
    if group["averaging_start"] > group["step"]:
        raise ValueError(f"averaging_start = {group['averaging_start']} lies after step = {group['step']}: {remedy}")
    if group["averaging_state"] not in AVERAGING_STATES:
        raise ValueError(f"averaging_state = {group['averaging_state']!r} is not one of {AVERAGING_STATES}: {remedy}")
    require_within("[0, 1]", "beta", group["beta"], remedy)
    require_within("[0, 1]", "c", group["c"], remedy)
    require_within("[0, inf)", "effective_lr", group["effective_lr"], remedy)
    for names in (DISTANCE, POLYAK):
        missing = [name for name in names if name not in group]
        if 0 < len(missing) < len(names):
            raise ValueError(f"{missing[0]} is missing: {remedy}")
        for name in names if not missing else ():
            require_within(RANGES.get(name, "[0, inf)"), name, group[name], remedy)
    if POLYAK[0] in group and (group["polyak_norm"] > 0.0) != (group["polyak_weight"] > 0.0):
        raise ValueError(
            f"polyak_norm = {group['polyak_norm']} and polyak_weight = {group['polyak_weight']} are not both 0 or "
            f"both above 0: {remedy}"
        )


def described_axes(group: Group) -> Group:
    """The axes of a group as plain dictionaries, for a checkpoint."""
    return {axis: {"name": type(group[axis]).__name__, "arguments": dataclasses.asdict(group[axis])} for axis in AXES}


def restored_axes(saved: Group, group: Group) -> Group:
    """The axes described in a checkpoint; like every number of a group, those in the checkpoint hold.

    A field that the checkpoint lacks, since its version did not have it, has its default.

    Raises:
        ValueError: if an axis is of another kind than the group's, lacks a field without a default, or has an unknown
            one that may change the run.
    """
    axes: Group = {}
    for axis in AXES:
        name, arguments = saved[axis]["name"], saved[axis].get("arguments", {})  # torch's DCP drops empty ones
        cls = cast(Any, type(group[axis]))
        fields = {field.name: field for field in dataclasses.fields(group[axis]) if field.init}
        needed = {name for name, field in fields.items() if _has_no_default(field)}
        surplus = [field for field in arguments if field not in fields and not is_off(arguments[field])]
        if name != cls.__name__ or not needed <= set(arguments):
            raise ValueError(
                f"it was made with {axis} = {name}({', '.join(arguments)}), this optimizer has {group[axis]}: "
                "construct it likewise, and change the axis in param_groups after loading"
            )
        if surplus:
            raise ValueError(
                f"it was made with {axis} = {name}({surplus[0]}={arguments[surplus[0]]!r}), of which this version has "
                f"no {surplus[0]!r}: load it with the version that it was made by, or a later one"
            )
        axes[axis] = cls(**{field: value for field, value in arguments.items() if field in fields})
    return axes


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def is_off(value: Any) -> bool:
    """Whether an option that is unknown has a value at which it has no effect, as options are added: None or False."""
    return value is None or value is False
