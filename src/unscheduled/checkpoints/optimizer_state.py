"""Checks a state dict before it is loaded into an optimizer, and converts it to the optimizer's tensors."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unscheduled.checkpoints.importing import KINDS, recognised
from unscheduled.checkpoints.live import refuse_moved
from unscheduled.checkpoints.matching import groups_of, param_name
from unscheduled.formulas.rule import Rule
from unscheduled.state import param_groups
from unscheduled.state.buffers import StatePrecision, has_codes, restored, with_whole_y
from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import State, dtype_of_y, state_dtype, stored_dtypes
from unscheduled.state.quantization import problem_of_scales
from unscheduled.state.split_weights import is_split, shard

VERSION = 2
"""The version of the format of state dicts.

In version 0, which has no number, y of 16-bit parameters is float32; up to 1 all groups have the counters ``FORMER``.
"""

FORMER = ("norm_average", "norm_weight")
"""Counters of groups in files of earlier versions: the mean of the Polyak step, which starts anew."""

ESSENTIAL = ("averaging", "step", "lr", "weight_sum", "lr_max", "beta")
"""Entries that a group of a state dict must have, in every version."""


class Loaded(NamedTuple):
    """A checked state dict: the groups with axes, a copy of the state of each parameter, and the mode."""

    param_groups: list[Group]
    state: dict[Tensor, State]
    training: bool


def encode(
    state_dict: dict[str, Any],
    groups: list[Group],
    states: Mapping[Tensor, Mapping[str, Any]],
    names: Mapping[Tensor, str],
    training: bool,
) -> None:
    """Complete torch's state dict of an optimizer, so that it has plain numbers, strings and tensors alone.

    Args:
        state_dict: what ``torch.optim.Optimizer.state_dict`` gives; it is changed.
        groups: those of the optimizer.
        states: what is saved of each parameter that has a state.
        names: of all parameters, or of none.
        training: whether the weights beside the file are y.
    """
    state_dict["version"] = VERSION
    if names:  # beside the groups: in them, DCP would look for them in the files of unattached optimizers
        state_dict["param_names"] = dict(enumerate(names[param] for param in param_groups.params_of(groups)))
    for group, saved in zip(groups, state_dict["param_groups"], strict=True):
        saved.update(param_groups.described_axes(group), **param_groups.counters_on_host(group))
        saved["training"] = training
        for param, key in zip(group["params"], saved["params"], strict=True):
            if param in states:
                state_dict["state"][key] = states[param]


def refuse_one_memory(state_dict: dict[str, Any], groups: list[Group]) -> None:
    """Raise ValueError if DCP has read x and y of a file into the memory of a parameter, one over the other."""
    for saved, group in zip(state_dict["param_groups"], groups, strict=False):
        for key, param in zip(saved["params"], group["params"], strict=False):
            y = state_dict["state"].get(key, {}).get("y")
            if isinstance(y, Tensor) and y.numel() and shard(y).data_ptr() == shard(param).data_ptr() != 0:
                raise ValueError(
                    "x and y of a file were read into one memory, that of the parameters, which hold "
                    "y: call eval() of the optimizer before its state_dict() is read into, or attach() it, or load "
                    "into a new one"
                )


def check_form(state_dict: Any) -> None:
    """Raise ValueError if an object is no state dict of an optimizer, or its optimizer has made a step since."""
    groups_of(state_dict)
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


def decode(
    state_dict: dict[str, Any],
    groups: list[Group],
    options: Group,
    rule: Callable[..., Rule],
    check: Callable[[Group], None],
    state_precision: StatePrecision,
) -> Loaded:
    """What a state dict of this optimizer, or of one that is recognised, has for these groups.

    Args:
        state_dict: in the order and the groups of the optimizer.
        groups: those to load it into.
        options: what each group has, with the defaults of the class.
        rule: returns the rule of a group, or of a parameter in a group.
        check: raises ValueError if an option of a group is out of its range.
        state_precision: how the optimizer stores its buffers; the state dict may store them otherwise.

    Raises:
        ValueError: if they do not fit; the message names the parameter.
    """
    state_dict = recognised(state_dict, groups, rule)
    saved_groups = groups_of(state_dict)
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
        fresh = param_groups.fresh_counters(0.0, loaded.training, group["step_size"])
        for names in (param_groups.DISTANCE, param_groups.POLYAK):
            if any(name in saved for name in names):  # then a missing one is damage
                fresh = {name: number for name, number in fresh.items() if name not in names}
        described = options | param_groups.described_axes(options) | fresh
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
                of_step = options_of_group["step_size"].buffers
                dtypes = stored_dtypes(param, rule(options_of_group, param), compact, of_step)
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
        if name in KINDS or (name not in FORMER and not param_groups.is_off(saved[name])):
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
