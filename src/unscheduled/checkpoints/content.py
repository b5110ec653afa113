"""Finds the weights and the optimizers' state dicts in a checkpoint, at any depth, and checks them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from unscheduled.checkpoints.safe_loading import CheckpointError
from unscheduled.state.buffers import has_codes
from unscheduled.state.quantization import problem_of_scales
from unscheduled.state.split_weights import is_split

REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ITERATES = {"unscheduled": ("gap", "y"), "schedulefree": ("z",), "other": ()}
"""The tensors in the state of a parameter that the commands read, by the kind of the optimizer."""

Weights = dict[str, Tensor]
State = dict[str, Any]
Optimizer = dict[str, Any]


def weights_in(tree: Any) -> list[Weights]:
    """Every dictionary of named tensors in a tree that belongs to no optimizer."""
    found = [
        {
            name: value
            for name, value in entry.items()
            if isinstance(name, str) and isinstance(value, Tensor) and not name.startswith("state.")
        }
        for entry in _walk(tree)
        if not _is_optimizer(entry)
    ]
    return [tensors for tensors in found if tensors]


def optimizers_in(tree: Any) -> list[Optimizer]:
    """The state dicts of all optimizers in a tree.

    Raises:
        CheckpointError: if one is damaged.
    """
    found: list[Optimizer] = []
    for entry in _walk(tree):
        optimizer = entry if _is_optimizer(entry) else _unflattened(entry)
        if optimizer is not None:
            _check(optimizer)
            found.append(optimizer)
    return found


def kind(optimizer: Optimizer) -> str:
    """The package that made an optimizer's state dict: ``unscheduled``, ``schedulefree`` or ``other``."""
    if all("averaging" in group for group in optimizer["param_groups"]):
        return "unscheduled"
    return "schedulefree" if all("train_mode" in group for group in optimizer["param_groups"]) else "other"


def is_dense(tensor: Any) -> bool:
    """Whether an object is a tensor with a number in memory for each element: not sparse, quantized or sharded."""
    if not isinstance(tensor, Tensor) or tensor.is_nested or tensor.layout != torch.strided:
        return False
    return tensor.device.type == "cpu" and not tensor.is_quantized and not hasattr(tensor, "to_local")


def is_number(value: Any) -> bool:
    """Whether an object can be converted to a float, exactly or not."""
    if isinstance(value, Tensor):
        return is_dense(value) and value.numel() == 1 and not value.is_complex()
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _walk(tree: Any) -> Iterator[dict[Any, Any]]:
    """Yield all dictionaries within dictionaries and lists, each once, from the outside to the inside.

    An optimizer's state dict is yielded without the dictionaries in it. There is no recursion, since a file may nest
    deeply, and one object may be in many places, even in itself.
    """
    pending, seen = [tree], set[int]()
    while pending:
        entry = pending.pop()
        if id(entry) in seen:
            continue
        seen.add(id(entry))
        if isinstance(entry, dict):
            branch = cast(dict[Any, Any], entry)
            yield branch
            pending += [] if _is_optimizer(branch) else reversed(branch.values())
        elif isinstance(entry, list):
            pending += reversed(cast(list[Any], entry))


def _is_optimizer(entries: dict[Any, Any]) -> bool:
    groups = entries.get("param_groups")
    is_empty = isinstance(groups, list) and not cast(list[Any], groups)
    return "state" in entries and groups is not None and not is_empty


def _unflattened(entries: dict[Any, Any]) -> Optimizer | None:
    """The optimizer's state dict that DCP flattened into ``state.NAME.KEY`` and ``param_groups.NAME.KEY``, or None."""
    states: dict[str, State] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        section, _, rest = str(key).partition(".")
        name, _, option = rest.rpartition(".")
        if name and section in ("state", "param_groups"):
            (states if section == "state" else groups).setdefault(name, {})[option] = value
    if not groups:
        return None
    return {"state": states, "param_groups": [{**group, "params": [name]} for name, group in groups.items()]}


# Checks.


def _check(optimizer: Optimizer) -> None:
    """Raise CheckpointError unless the entries that the commands read have the form in which optimizers save them."""
    states = _dictionary(optimizer["state"], "its state")
    groups = [_dictionary(group, "a parameter group") for group in _list(optimizer["param_groups"], "its param_groups")]
    for group in groups:
        keys = _list(group.get("params"), "the params of a group")
        _require(all(isinstance(key, int | str) for key in keys), "a parameter has neither a number nor a name")
        _check_names(_list(group.get("param_names", []), "the param_names of a group"))
    _check_names(list(_dictionary(optimizer.get("param_names", {}), "its param_names").values()))
    whose = kind(optimizer)
    for group in groups if whose != "other" else []:
        (_check_ours if whose == "unscheduled" else _check_schedulefree)(group)
        for key in group["params"]:
            if states.get(key) is not None:
                state = _dictionary(states[key], f"the state of parameter {key}")
                _check_tensors(state, ITERATES[whose] if state else (), f"of parameter {key}")


def _check_ours(group: dict[str, Any]) -> None:
    _check_numbers(group, "beta", "c", "step", "training")
    averaging = _dictionary(group["averaging"], "the averaging of a group")
    _check_names([averaging.get("name")])


def _check_schedulefree(group: dict[str, Any]) -> None:
    _check_numbers(group, "k", "train_mode")
    if "momentum" in group:
        _check_numbers(group, "momentum")
    else:
        betas: Any = group.get("betas")
        _require(
            isinstance(betas, list | tuple) and is_number(next(iter(cast(Any, betas)), None)),
            "the betas of a group have no number",
        )


def _check_numbers(group: dict[str, Any], *names: str) -> None:
    for name in (*names, *{"lr"} & set(group)):
        _require(is_number(group.get(name)), f"the {name} of a group is no number")


def _check_tensors(state: State, names: tuple[str, ...], where: str) -> None:
    for name in names:
        tensor = state.get(name)
        _require(is_dense(tensor), f"{name} {where} is no tensor of numbers")
        if has_codes(state, name):
            problem = problem_of_scales(cast(Tensor, tensor), state.get(f"{name}_scale"))
            _require(not problem, f"in '{name}_scale' {where} {problem}")
        else:
            _require(cast(Tensor, tensor).dtype in REAL, f"{name} {where} has the dtype {cast(Tensor, tensor).dtype}")
        _require(cast(Tensor, tensor).shape == state[names[0]].shape, f"{name} {where} has another shape than its gap")
    low = state.get("low")
    if low is not None:  # beside parameters of 16 bits, y is saved as two tensors
        fits = is_dense(low) and low.dtype == torch.int16 and "y" in names and low.shape == state["y"].shape
        _require(fits and is_split(state["y"].dtype), f"low {where} does not belong to a y of 16 bits")


def _check_names(names: list[Any]) -> None:
    _require(all(isinstance(name, str) for name in names), "a name in it is no string")


def _dictionary(value: Any, what: str) -> dict[Any, Any]:
    _require(isinstance(value, dict), f"{what} is no dictionary")
    return cast(dict[Any, Any], value)


def _list(value: Any, what: str) -> list[Any]:
    _require(isinstance(value, list), f"{what} is no list")
    return cast(list[Any], value)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise CheckpointError(f"the state of an optimizer is damaged: {problem}")
