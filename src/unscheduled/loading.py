"""What may be loaded into an optimizer: everything is checked before anything is changed."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from unscheduled import groups
from unscheduled.groups import Group
from unscheduled.kernels import Rule
from unscheduled.state import State, state_dtype


class Loaded(NamedTuple):
    """A checked state dict, ready to be put in: groups with axes, state by parameter in its own memory, the mode."""

    param_groups: list[Group]
    state: dict[Tensor, State]
    training: bool


def param_name(group: Group, index: int, position: int) -> str:
    """What to call a parameter in a message: its name if the optimizer was given names."""
    names = group.get("param_names")
    shape = tuple(group["params"][position].shape)
    return f"{names[position] if names else f'parameter {position} of group {index}'} (shape {shape})"


def checked(
    state_dict: dict[str, Any],
    param_groups: list[Group],
    options: Group,
    rule: Callable[[Group], Rule],
    check: Callable[[Group], None],
) -> Loaded:
    """Check a state dict against the groups of an optimizer.

    Args:
        state_dict: what ``state_dict()`` gave.
        param_groups: the groups to load it into.
        options: what each group must have, by name.
        rule: the rule of a group.
        check: raises ValueError if an option of a group is out of its range.

    Raises:
        ValueError: if they do not fit; the message names the parameter.
    """
    if not {"state", "param_groups"} <= set(state_dict):
        raise ValueError(f"the state dict is not that of an optimizer: it has {sorted(state_dict)}")
    saved_groups: list[Group] = state_dict["param_groups"]
    if len(saved_groups) != len(param_groups):
        raise ValueError(
            f"the state dict has {len(saved_groups)} parameter groups, this optimizer has {len(param_groups)}: "
            "construct it with the same groups"
        )
    loaded = Loaded([], {}, saved_groups[0].get("training", True))
    for index, (saved, group) in enumerate(zip(saved_groups, param_groups, strict=True)):
        expected = {*options, *groups.fresh_counters(0.0, True)} - {"differentiable"}  # which is torch's
        missing = sorted(expected - set(saved))
        if missing:
            raise ValueError(
                f"the state dict is of another kind of optimizer: parameter group {index} has no {missing[0]!r}"
            )
        _check_count(saved, group, index)
        _check_order(saved, group)
        try:
            groups.check_counters(saved)
            restored = saved | groups.restored_axes(saved, group)
            check(restored)
        except ValueError as error:
            raise ValueError(f"the state dict does not fit: parameter group {index}: {error}") from None
        restored.pop("param_names", None)  # ours stay
        loaded.param_groups.append(restored)
        names = {"step", "gap", *rule(restored).buffers}
        for position, (key, param) in enumerate(zip(saved["params"], group["params"], strict=True)):
            state = state_dict["state"].get(key)
            if state:
                _check_state(state, names, param, param_name(group, index, position))
                loaded.state[param] = {name: _placed(name, value, param) for name, value in state.items()}
    return loaded


def _check_count(saved: Group, group: Group, index: int) -> None:
    theirs, ours = len(saved["params"]), len(group["params"])
    if theirs != ours:
        if ours > theirs:
            name = param_name(group, index, theirs)
        else:
            name = saved["param_names"][ours] if "param_names" in saved else f"its parameter {ours}"
        raise ValueError(
            f"group {index} of the state dict has {theirs} parameters, this optimizer's has {ours}: "
            f"the first without a counterpart is {name}"
        )


def _check_order(saved: Group, group: Group) -> None:
    theirs, ours = saved.get("param_names"), group.get("param_names")
    if theirs and ours and theirs != ours and sorted(theirs) == sorted(ours):
        name, other = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
        raise ValueError(
            f"the state dict has its parameters in another order: {other} where this optimizer has {name}: "
            "construct it with the parameters in the order in which they were saved"
        )


def _check_state(state: State, names: set[str], param: Tensor, name: str) -> None:
    if set(state) - {"y"} != names:
        raise ValueError(
            f"the state dict has {sorted(set(state) - {'y'})} for {name}, this optimizer keeps {sorted(names)}: "
            "it was made by another kind of optimizer"
        )
    for buffer, value in state.items():
        if buffer != "step" and value.shape != param.shape:
            raise ValueError(
                f"the state dict has {buffer!r} of shape {tuple(value.shape)} for {name}: "
                "it was made for other parameters, or for these in another order"
            )


def _placed(name: str, value: Any, param: Tensor) -> Any:
    """A copy on the parameter's device, in the precision of its state (y in the parameter's own)."""
    if name == "step":
        return int(value)
    return value.to(device=param.device, dtype=param.dtype if name == "y" else state_dtype(param), copy=True)
