"""Copies of parameters that hold x, and copies of saved tensors."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from unscheduled.state.split_weights import shard


def memory_of(tensor: Tensor) -> int | None:
    """The address of a tensor's memory; None if it has no memory of its own."""
    local = shard(tensor)
    return local.untyped_storage().data_ptr() if local.layout is torch.strided and not local.is_meta else None


def kept_apart(found: Any, memories: set[int | None]) -> Any:
    """The saved entries, with a copy of each tensor in the memory of a parameter, since the parameter returns to y."""
    if isinstance(found, dict):
        branch = cast(dict[Any, Any], found)
        for key, value in branch.items():
            branch[key] = kept_apart(value, memories)
    elif isinstance(found, (list, tuple)):
        kind = cast(Any, type(cast(Any, found)))
        entries = [kept_apart(each, memories) for each in cast(list[Any], found)]
        return kind(*entries) if hasattr(kind, "_fields") else kind(entries)
    elif isinstance(found, Tensor) and memory_of(found) in memories:
        copied = found.detach().clone()
        return _copy_of(found, copied) if isinstance(found, nn.Parameter) else copied
    return cast(Any, found)


@torch.no_grad()
def put_copy(param: Tensor, average: Tensor, memo: dict[int, Any]) -> None:
    """Put x into the copy of a parameter in ``memo``; the parameter may have been copied, at y, before the model."""
    copied = memo.get(id(param))
    if copied is None:
        memo[id(param)] = _copy_of(param, average)
    elif copied is not param and isinstance(copied, Tensor) and torch.equal(shard(copied), shard(param)):
        copied.copy_(average)


@torch.no_grad()
def _copy_of(param: Tensor, average: Tensor) -> Tensor:
    """A copy of a parameter, of the same class, that holds x."""
    if type(param) is nn.Parameter or hasattr(param, "to_local"):
        return nn.Parameter(average, param.requires_grad)
    copied = copy.deepcopy(param)
    copied.copy_(average)
    return copied


def copy_notes(param: Tensor, memo: dict[int, Any]) -> None:
    """Copy the Python attributes of a parameter to its copy, since torch does not."""
    copied = memo.get(id(param))
    for name, value in vars(param).items() if copied is not None else ():
        if name not in vars(copied):
            try:
                vars(copied)[name] = copy.deepcopy(value, memo)
            except TypeError:  # a value that cannot be copied, such as a lock, is shared
                vars(copied)[name] = value
