"""Whether a wrapped optimizer has the parameters that its wrapper has, and how it comes to have them."""

from collections.abc import Collection
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from unscheduled.kernels import all_same
from unscheduled.state.param_groups import Group, params_of
from unscheduled.state.parameter import State


class Given(NamedTuple):
    """The parameters that a group of the base was given, and its learning rate in the last step."""

    params: list[Tensor]
    lr: float


def given(base: torch.optim.Optimizer) -> list[Given]:
    """The parameters and learning rates that the groups of the base have now."""
    return [Given(list(group["params"]), float(group["lr"])) for group in base.param_groups]


def realigned(base: torch.optim.Optimizer, before: list[Given]) -> list[Given]:
    """The same of the last step, where groups of both optimizers were removed or reordered since."""
    found: list[Given] = []
    for index, group in enumerate(base.param_groups):
        params = cast(list[Tensor], group["params"])
        at_its_place = before[index : index + 1] or [Given(params, float(group["lr"]))]
        lr = next((each for each in before if params and all_same(each.params, params)), at_its_place[0]).lr
        found.append(Given(list(params), lr))
    return found


def edited(wrapper: str, groups: list[Group], base: torch.optim.Optimizer, before: list[Given]) -> list[int]:
    """The positions of the groups of the wrapper whose parameters were edited, which the base does not have yet.

    Raises:
        RuntimeError: if groups are missing or in another order, or those of the base were edited.
        ValueError: if something in a group is no parameter, or stands there twice.
    """
    name = type(base).__name__
    if len(base.param_groups) != len(groups):
        raise RuntimeError(
            f"the wrapped {name} has {len(base.param_groups)} parameter groups, this {wrapper} has {len(groups)}: add "
            "groups to this by add_param_group(), which adds them to both, and remove them from both"
        )
    found: list[int] = []
    for index, (group, base_group) in enumerate(zip(groups, base.param_groups, strict=True)):
        ours, theirs = group["params"], base_group["params"]
        if not isinstance(ours, Tensor) and all_same(ours, theirs):
            continue
        if index >= len(before) or not all_same(theirs, before[index].params):
            raise RuntimeError(
                f"the parameters of group {index} of the wrapped {name} were edited, which the {wrapper} does not "
                f"train: edit those of the {wrapper}, which gives them to the {name}"
            )
        if isinstance(ours, Tensor) or not all(isinstance(param, Tensor) for param in ours):
            raise ValueError(f"parameter group {index}: its params are no list of tensors: give a list of parameters")
        if ours and any(all_same(ours, other.params) for other in before):
            raise RuntimeError(
                f"the parameter groups of the {wrapper} are in another order than those of the wrapped {name}, which "
                "have options of their own: reorder both alike"
            )
        found.append(index)
    if found:
        params = params_of(groups)
        if len(set(params)) < len(params):
            raise ValueError("a parameter stands twice in param_groups: remove it from one place")
    return found


def refuse_elsewhere(base: torch.optim.Optimizer, problem: str) -> None:
    """Raise RuntimeError if an optimizer steps on groups that another within it has, as ZeRO does."""
    for value in vars(base).values():
        if isinstance(value, torch.optim.Optimizer) and not all_same(value.param_groups, base.param_groups):
            raise RuntimeError(
                f"{problem}, but the wrapped {type(base).__name__} steps on groups of a {type(value).__name__} within "
                "it, which cannot be given them: make both optimizers anew"
            )


def give(base: torch.optim.Optimizer, groups: list[Group], begins_anew: Collection[Tensor]) -> None:
    """Give the base the parameters of these groups. Those that it does not know are new to it, and what begins anew.

    Its own ``add_param_group`` makes what it makes of new parameters, as Adagrad their state; the groups that this adds
    do not stay. If it fails, all is as before.
    """
    lists = [group["params"] for group in base.param_groups]
    names = [group.get("param_names") for group in base.param_groups]
    known = {param for params in lists for param in params}
    count = len(lists)
    dropped: dict[Tensor, State] = {param: base.state.pop(param) for param in begins_anew if param in base.state}
    try:
        for group in base.param_groups:
            group["params"] = []
        for index, group in enumerate(groups):
            params = cast(list[Tensor], group["params"])
            new = [param for param in params if param not in known or param in begins_anew]
            if new:
                entries: list[Any] = [(str(at), param) for at, param in enumerate(new)] if names[index] else new
                options = {
                    name: value for name, value in base.param_groups[index].items() if name not in _NAMES_AND_PARAMS
                }
                base.add_param_group({**options, "params": entries})
                del base.param_groups[count:]
        for group, base_group in zip(groups, base.param_groups, strict=True):
            base_group["params"] = list(group["params"])
            if "param_names" in base_group and "param_names" in group:
                base_group["param_names"] = list(group["param_names"])
    except BaseException:
        del base.param_groups[count:]
        for group, params in zip(base.param_groups, lists, strict=True):
            group["params"] = params
        for param in set(params_of(groups)) - known:
            base.state.pop(param, None)
        base.state.update(dropped)
        raise


_NAMES_AND_PARAMS = ("params", "param_names")
