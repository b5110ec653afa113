"""Copies of parameters that hold x, and of what was saved of them."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from unscheduled.state.split_weights import shard


def memory_of(tensor: Tensor) -> int | None:
    """Where the memory of a tensor begins; None if it has none of its own."""
    local = shard(tensor)
    return local.untyped_storage().data_ptr() if local.layout is torch.strided and not local.is_meta else None


def kept_apart(found: Any, memories: set[int | None]) -> Any:
    """Return what was saved, with copies of tensors in the memory of a parameter, which holds y again afterwards."""
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
    """Have x in the copy of a parameter, which may have been copied, with its y, before the model was."""
    copied = memo.get(id(param))
    if copied is None:
        memo[id(param)] = _copy_of(param, average)
    elif copied is not param and isinstance(copied, Tensor) and torch.equal(shard(copied), shard(param)):
        copied.copy_(average)


@torch.no_grad()
def _copy_of(param: Tensor, average: Tensor) -> Tensor:
    """A copy of a parameter, of its class, that holds x."""
    if type(param) is nn.Parameter or hasattr(param, "to_local"):
        return nn.Parameter(average, param.requires_grad)
    copied = copy.deepcopy(param)
    copied.copy_(average)
    return copied


def copy_notes(param: Tensor, memo: dict[int, Any]) -> None:
    """Give a copy of a parameter the attributes that it has in Python, which torch leaves out."""
    copied = memo.get(id(param))
    for name, value in vars(param).items() if copied is not None else ():
        if name not in vars(copied):
            try:
                vars(copied)[name] = copy.deepcopy(value, memo)
            except TypeError:  # what cannot be copied, as a lock, is shared
                vars(copied)[name] = value
