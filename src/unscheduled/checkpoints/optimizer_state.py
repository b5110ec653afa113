"""Checks a state dict before it is loaded into an optimizer, and converts it to the optimizer's tensors."""

import inspect
from collections.abc import Callable, Collection, Iterator, Set
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from unscheduled.checkpoints.importing import KINDS
from unscheduled.checkpoints.live import refuse_moved
from unscheduled.formulas.rule import Rule
from unscheduled.state import param_groups
from unscheduled.state.buffers import StatePrecision, has_codes, restored, with_whole_y
from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import State, dtype_of_y, state_dtype, stored_dtypes
from unscheduled.state.quantization import problem_of_scales
from unscheduled.state.split_weights import is_split

VERSION = 1
"""The version of the format of state dicts. In version 0, which has no number, y of 16-bit parameters is float32."""

ESSENTIAL = ("averaging", "step", "lr", "weight_sum", "lr_max", "beta")
"""Entries that a group of a state dict must have, in every version."""


class Loaded(NamedTuple):
    """A checked state dict: the groups with axes, a copy of the state of each parameter, and the mode."""

    param_groups: list[Group]
    state: dict[Tensor, State]
    training: bool


def param_name(group: Group, index: int, position: int) -> str:
    """The name of a parameter for a message, or its position if the optimizer has no names; and its shape."""
    names = group.get("param_names")
    shape = tuple(group["params"][position].shape)
    return f"{names[position] if names else f'parameter {position} of group {index}'} (shape {shape})"


def plain_name(name: str) -> str:
    """The name of a parameter without the parts that ``torch.compile`` adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def saved_names(state_dict: dict[str, Any]) -> dict[Any, str]:
    """The names of the parameters by their keys in a state dict, as far as it has names.

    The groups have the names with which the optimizer was constructed; names of an attached model are in
    ``"param_names"`` beside the groups. In a state dict of torch's DCP the names are the keys.
    """
    names: dict[Any, str] = dict(state_dict.get("param_names", {}))
    for group in _groups_of(state_dict):
        names.update(zip(group["params"], group.get("param_names", []), strict=False))
        names.update((key, key) for key in group["params"] if isinstance(key, str))
    return {key: plain_name(name) for key, name in names.items()}


def counterparts(names: Collection[str], others: Set[str]) -> Iterator[dict[str, str]]:
    """Yield each mapping of all names to others: to equal names, or else by one prefix added to or removed from all.

    Data parallelism, wrappers and trainers put a prefix before all names of a model.
    """
    if others >= set(names):
        yield {name: name for name in names}
        return
    longest = max(names, key=len)
    for other in others:
        if other.endswith(f".{longest}"):
            prefix = other[: -len(longest)]
            found = {name: prefix + name for name in names}
        else:
            prefix = longest[: -len(other)] if longest.endswith(f".{other}") else None
            found = {name: name[len(prefix) :] for name in names if prefix and name.startswith(prefix)}
        if len(found) == len(names) and others >= set(found.values()):
            yield found


def check_form(state_dict: Any) -> None:
    """Raise ValueError if an object is no state dict of an optimizer, or its optimizer has made a step since."""
    _groups_of(state_dict)
    version = state_dict.get("version", 0)
    if not isinstance(version, int) or version < 0:
        raise ValueError(f"the state dict is damaged: its version is {version!r}")
    refuse_moved(state_dict["state"])


def class_defaults(cls: type, defaults: Group) -> Group:
    """The options of a group with the defaults of the class, for options that an older file does not have.

    An option without a default in the class has its value in ``defaults``, the options of this optimizer.
    """
    given = {name: each.default for name, each in inspect.signature(cls.__init__).parameters.items()}
    known = {name: given[name] for name in defaults if given.get(name, inspect.Parameter.empty) not in NO_DEFAULTS}
    found = defaults | param_groups.PLAIN_AXES | known
    of_torch = param_groups.OF_OTHERS
    return {name: value for name, value in found.items() if name not in of_torch}


NO_DEFAULTS = (None, inspect.Parameter.empty)


def regrouped(state_dict: dict[str, Any], param_groups: list[Group], names: dict[Tensor, str]) -> dict[str, Any]:
    """A state dict in the order and the groups of an optimizer, if both have names; else the same object.

    If the names give no one-to-one mapping, as where two models have the same names, they have to be in the same order,
    except for prefixes. If the names are keys and differ, torch's DCP has put them in order already.

    Raises:
        ValueError: if the names differ, or one group here has parameters of groups with different values there.
    """
    by_key = saved_names(state_dict)
    keys = [(saved, key) for saved in _groups_of(state_dict) for key in saved["params"]]
    groups_here = [[names[param] for param in group["params"]] for group in param_groups] if names else []
    if not groups_here or not all(groups_here) or any(key not in by_key for _, key in keys):
        return state_dict
    ours, theirs = [name for group in groups_here for name in group], [by_key[key] for _, key in keys]
    same = next(counterparts(ours, set(theirs)), dict[str, str]())
    if len(set(same.values())) == len(ours) == len(theirs):
        place = dict(zip(theirs, keys, strict=True))
        found = {name: place[same[name]] for name in ours}
        joined = [_joined(group, index, found) for index, group in enumerate(groups_here)]
        return {**state_dict, "param_groups": joined}
    agree = len(ours) == len(theirs) and all(map(_alike, ours, theirs))
    if agree or any(isinstance(key, str) for _, key in keys):
        return state_dict
    missing, surplus = [name for name in ours if name not in theirs], [name for name in theirs if name not in ours]
    if missing:
        problem = f"has no {missing[0]}, which this optimizer has"
    elif surplus:
        problem = f"has {surplus[0]}, which this optimizer does not have"
    else:
        problem = "has some names twice, and in another order than this optimizer"
    raise ValueError(
        f"the state dict is of other parameters: it {problem}: construct the optimizer with the same parameters, "
        "or rename them in the state dict's 'param_names'"
    )


def _alike(name: str, other: str) -> bool:
    return f".{name}".endswith(f".{other}") or other.endswith(f".{name}")


def _joined(group: list[str], index: int, found: dict[str, tuple[Group, Any]]) -> Group:
    """The saved values of these parameters as one group.

    Raises:
        ValueError: if the parameters have different values.
    """
    first = found[group[0]][0]
    for name in group:
        saved = found[name][0]
        for key in (set(first) | set(saved)) - {"params", "param_names"}:
            if saved is not first and saved.get(key) != first.get(key):
                raise ValueError(
                    f"the state dict does not fit: parameter group {index} has {group[0]} and {name}, which had "
                    f"{key} = {first.get(key)} and {saved.get(key)} there: leave them in different groups"
                )
    return {**first, "params": [found[name][1] for name in group], "param_names": group}


def _groups_of(state_dict: Any) -> list[Group]:
    """The groups of a state dict.

    Raises:
        ValueError: if it is not that of an optimizer.
    """
    if not isinstance(state_dict, dict):
        raise ValueError(f"the state dict is not that of an optimizer: it is a {type(state_dict).__name__}")
    entries = cast(dict[str, Any], state_dict)
    if not {"state", "param_groups"} <= set(entries):
        raise ValueError(f"the state dict is not that of an optimizer: it has {sorted(map(str, entries))}")
    found = entries["param_groups"]
    whole = isinstance(found, list) and all(
        isinstance(group, dict) and isinstance(cast(Group, group).get("params"), list)
        for group in cast(list[Any], found)
    )
    if not whole or not found or not isinstance(entries["state"], dict):
        raise ValueError("the state dict is damaged: it has no list of parameter groups, or no dictionary of states")
    return cast(list[Group], found)


def checked(
    state_dict: dict[str, Any],
    groups: list[Group],
    options: Group,
    rule: Callable[[Group, Tensor], Rule],
    check: Callable[[Group], None],
    state_precision: StatePrecision,
) -> Loaded:
    """Check a state dict against the groups of an optimizer.

    Args:
        state_dict: the state dict, as ``state_dict()`` returns it.
        groups: the groups of the optimizer.
        options: the options of a group with the defaults of the class.
        rule: returns the rule of a parameter in a group.
        check: raises ValueError if an option of a group is out of its range.
        state_precision: the precision in which the optimizer stores buffers, which may differ in the state dict.

    Returns:
        The checked groups, states and mode; ``state_dict`` and ``groups`` do not change.

    Raises:
        ValueError: if the state dict does not fit; the message names the parameter.
    """
    saved_groups = _groups_of(state_dict)
    if len(saved_groups) != len(groups):
        raise ValueError(
            f"the state dict has {len(saved_groups)} parameter groups, this optimizer has {len(groups)}: "
            "construct it with the same groups"
        )
    loaded = Loaded([], {}, bool(saved_groups[0].get("training", True)))
    if any(bool(saved.get("training", True)) != loaded.training for saved in saved_groups):
        raise ValueError("the state dict is damaged: some of its groups are in train mode and some in eval mode")
    for index, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        missing = [name for name in ESSENTIAL if name not in saved]
        if missing:
            raise ValueError(
                f"the state dict is of another kind of optimizer: parameter group {index} has no {missing[0]!r}"
            )
        _check_count(saved, group, index)
        described = options | param_groups.described_axes(options) | param_groups.fresh_counters(0.0, loaded.training)
        try:
            saved = described | _known(saved, options)
            param_groups.check_counters(saved)
            options_of_group = saved | param_groups.restored_axes(saved, group)
            check(options_of_group)
        except ValueError as error:
            raise ValueError(f"the state dict does not fit: parameter group {index}: {error}") from None
        options_of_group.pop("param_names", None)  # the optimizer's own names stay
        loaded.param_groups.append(options_of_group)
        compact = state_precision == "compact"
        for position, (key, param) in enumerate(zip(saved["params"], group["params"], strict=True)):
            state = state_dict["state"].get(key)
            if state:
                dtypes = stored_dtypes(param, rule(options_of_group, param), compact)
                name = param_name(group, index, position)
                _check_state(state, set(dtypes), param, name, is_new=options_of_group["step"] == 0)
                loaded.state[param] = _placed(state, dtypes, param)
    return loaded


def _known(saved: Group, options: Group) -> Group:
    """A saved group without entries that are unknown here and that do not change the run.

    Raises:
        ValueError: if an unknown entry may change the run.
    """
    unknown = param_groups.unknown_entries(saved, options)
    for name in unknown:
        if not param_groups.is_off(saved[name]) or name in KINDS:
            raise ValueError(
                f"{name} = {saved[name]!r} is unknown here: it was made by another kind of optimizer, or by a later "
                "version of this one"
            )
    return {name: value for name, value in saved.items() if name not in unknown}


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


def _check_state(state: State, buffers: set[str], param: Tensor, name: str, is_new: bool) -> None:
    """Raise ValueError unless a saved state has these buffers, and y if the run has made steps, in the right form."""
    codes = {buffer for buffer in buffers if has_codes(state, buffer)}
    kept = set(state) - {"kept", "y", "low", "z"} - {f"{buffer}_scale" for buffer in codes}
    if kept != {"step"} | buffers:
        raise ValueError(
            f"the state dict has {sorted(kept)} for {name}, this optimizer keeps {sorted({'step'} | buffers)}: "
            "it was made by another kind of optimizer"
        )
    if not float(state["step"]) >= 0.0:
        raise ValueError(f"the state dict is damaged: it has step = {state['step']} for {name}")
    for buffer, value in state.items():
        if buffer not in buffers | {"y", "low", "z"}:
            continue
        if not isinstance(value, Tensor) or value.shape != param.shape:
            found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"of {type(value)}"
            raise ValueError(
                f"the state dict has {buffer!r} {found} for {name}: "
                "it was made for other parameters, or for these in another order"
            )
    if "y" not in state and "z" not in state and not is_new:
        raise ValueError(
            f"the state dict has no 'y' for {name}: torch's DCP leaves it out where it unflattens a state dict into an "
            "optimizer that has made steps: load it into a new one, or without flatten_optimizer_state_dict"
        )
    if "low" in state and ("y" not in state or not is_split(state["y"].dtype) or state["low"].dtype != torch.int16):
        raise ValueError(f"the state dict is damaged: it has 'low' for {name}, but no 'y' of 16 bits beside it")
    for buffer in codes:
        problem = problem_of_scales(state[buffer], state.get(f"{buffer}_scale"))
        if problem:
            raise ValueError(f"the state dict is damaged: {problem} in '{buffer}_scale' for {name}")


def _placed(state: State, dtypes: dict[str, torch.dtype], param: Tensor) -> State:
    """A copy of a saved state on the parameter's device, with the buffers stored as these dtypes."""
    state = with_whole_y(state)
    placed: State = {"step": int(state["step"])}
    if is_split(param.dtype):  # zeros mean that y is the parameter, until y is loaded
        placed["low"] = torch.zeros_like(param, dtype=torch.int16, memory_format=torch.preserve_format)
    for name, dtype in dtypes.items():
        placed |= restored(state, name, dtype, param)
    for name in set(state) & {"y", "z"}:
        placed[name] = state[name].to(param.device, dtype_of_y(param) if name == "y" else state_dtype(param), copy=True)
    return placed
