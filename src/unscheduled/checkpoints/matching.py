"""Which parameters of an optimizer are which of a state dict: by their names, else by their order."""

from collections.abc import Collection, Iterator, Set
from typing import Any, cast

from torch import Tensor

from unscheduled.state.param_groups import Group


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
    for group in groups_of(state_dict):
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


def groups_of(state_dict: Any) -> list[Group]:
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


def regrouped(state_dict: dict[str, Any], param_groups: list[Group], names: dict[Tensor, str]) -> dict[str, Any]:
    """A state dict in the order and the groups of an optimizer, if both have names; else the same object.

    If the names give no one-to-one mapping, as where two models have the same names, they have to be in the same order,
    except for prefixes. If the names are keys and differ, torch's DCP has put them in order already.

    Raises:
        ValueError: if the names differ, or one group here has parameters of groups with different values there.
    """
    by_key = saved_names(state_dict)
    keys = [(saved, key) for saved in groups_of(state_dict) for key in saved["params"]]
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
