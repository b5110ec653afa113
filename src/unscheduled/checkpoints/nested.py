"""The state of a wrapped optimizer within the state dict of its wrapper."""

import copy
from typing import Any, cast

import torch
from torch import Tensor

from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import State, state_dtype


def nest(state_dict: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Put the state of a wrapped optimizer into the state dict of its wrapper.

    The key ``"base"`` of a parameter's state has its state in the wrapped optimizer, and ``"base"`` of a group has that
    optimizer's options, so that parameters can be found by name and resharded. ``"base"`` of the state dict has the
    entries that belong to no parameter.
    """
    base = optimizer.state_dict()
    states, base_groups = dict(base.pop("state")), base.pop("param_groups")
    for group, base_group in zip(state_dict["param_groups"], base_groups, strict=True):
        group["base"] = {name: value for name, value in base_group.items() if name not in ("params", "param_names")}
        group["base"]["optimizer"] = type(optimizer).__name__
        for key, base_key in zip(group["params"], base_group["params"], strict=True):
            if base_key in states:
                state_dict["state"].setdefault(key, {})["base"] = states.pop(base_key)
    if states or base:  # entries that belong to no parameter
        state_dict["base"] = {**base, "state": states}


def separated(state_dict: dict[str, Any], optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two state dicts, of the wrapper alone and of the wrapped optimizer, from the state dict of the wrapper.

    Raises:
        ValueError: if the state dict was made over another class of optimizer.
    """
    own_groups, base_groups = list[Group](), list[Group]()
    of_no_parameter = state_dict.get("base", {})
    own_states, base_states = dict(state_dict["state"]), dict[Any, State](of_no_parameter.get("state", {}))
    position = 0
    for index, (saved, base_group) in enumerate(zip(state_dict["param_groups"], optimizer.param_groups, strict=False)):
        made_over, ours = saved.get("base", {}).get("optimizer", "no optimizer"), type(optimizer).__name__
        if made_over != ours:
            raise ValueError(
                f"the state dict does not fit: parameter group {index} was made over {made_over}, and not over "
                f"{ours}: wrap an optimizer of the same kind"
            )
        positions = range(position, position + len(base_group["params"]))
        own_groups.append({name: value for name, value in saved.items() if name != "base"})
        of_base = {name: value for name, value in saved["base"].items() if name != "optimizer"}
        base_groups.append({**base_group, **of_base, "params": list(positions)})
        for key, at in zip(saved["params"], positions, strict=False):
            if "base" in (state := own_states.get(key, {})):
                base_states[at] = dict(state["base"])
                own_states[key] = {name: value for name, value in state.items() if name != "base"}
        position = positions.stop
    own = {
        **state_dict,
        "state": own_states,
        "param_groups": own_groups + state_dict["param_groups"][len(own_groups) :],
    }
    return own, {**of_no_parameter, "state": base_states, "param_groups": base_groups}


def load(nested: dict[str, Any], optimizer: torch.optim.Optimizer, params: list[Tensor]) -> None:
    """Load the second state dict of :func:`separated` into the wrapped optimizer."""
    states: dict[Any, State] = copy.deepcopy(nested["state"])  # torch would use the tensors of the file
    optimizer.load_state_dict({**nested, "state": states})
    for position, param in enumerate(params):
        loaded: State = optimizer.state.get(param) or {}  # ZeRO has the states of its own part only
        for name in loaded.keys() & (states.get(position) or {}).keys():  # torch may have added new entries
            loaded[name] = _uncast(states[position][name], loaded[name], param)


def _uncast(value: Any, loaded: Any, param: Tensor) -> Any:
    """The loaded value in its precision in the file, or in that of z, since torch casts it to the weights' dtype."""
    if isinstance(value, dict):
        return {name: _uncast(each, loaded[name], param) for name, each in cast(dict[Any, Any], value).items()}
    if isinstance(value, (list, tuple)):
        pairs = zip(cast(list[Any], value), cast(list[Any], loaded), strict=True)
        return type(cast(Any, value))([_uncast(each, its_loaded, param) for each, its_loaded in pairs])
    if not isinstance(value, Tensor) or loaded.dtype == value.dtype:
        return loaded
    is_wide = value.dtype in (torch.float32, torch.float64) and (value.dim() or value.shape == param.shape)
    return value.to(loaded.device, state_dtype(param) if is_wide else value.dtype)
