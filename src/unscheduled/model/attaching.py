"""Finds the module to attach to, and the other optimizers that are attached to the same parameters."""

from __future__ import annotations

import functools
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DataParallel, DistributedDataParallel

from unscheduled.model.attachable import check_class
from unscheduled.model.attached_module import attachments
from unscheduled.model.attachment import AttachedModel, alive
from unscheduled.model.follower import Follower


def attached_model(model: nn.Module) -> AttachedModel:
    """The tie of a model; a model without a tie gets one.

    Raises:
        TypeError: if the class of the model cannot be attached; the model does not change.
    """
    for known in attachments(model):
        return cast(AttachedModel, known)
    check_class(model)
    attached = AttachedModel(model)
    try:
        attached.hook()
        hears = attached.hears_the_flag()
    except BaseException:
        attached.let_go()
        raise
    if not hears:
        attached.let_go()
        raise TypeError(
            f"{type(model).__name__} cannot be attached: it keeps its flag 'training' in its own way. Attach a "
            "module that it is a part of, or call train() and eval() of the optimizer"
        )
    hook_newcomers()
    return attached


def owners_of(params: set[Tensor], but: Follower | None = None) -> dict[Follower, set[Tensor]]:
    """The attached optimizers, except ``but``, that have some of these parameters, each with those parameters."""
    found: dict[Follower, set[Tensor]] = {}
    for attached in tuple(alive):
        for follower in {each for param in params for each in attached.had_by(param)}:
            shared = params.intersection(follower.params())
            if shared and follower is not but:
                found[follower] = shared
    return found


def warn_of_shared_parts(attached: AttachedModel, follower: Follower) -> None:
    """Warn of parameters in an attached model whose optimizer follows only another model.

    Both are checked: this model with optimizers of other models, and other models with ``follower``.
    """
    for other in tuple(alive):
        if other is attached or not other.shares_with(attached):
            continue
        pairs = [(other, follower)] + [(attached, its) for its in other.followers()]
        for tie, its in pairs:
            roots = [each.model for each in alive if its in each.followers()]
            is_followed = any(root in roots for root in tie.model.modules())
            if not is_followed and tie.own_of(set(its.params())):
                warnings.warn(
                    f"{type(tie.model).__name__} has parameters of {type(its.optimizer).__name__}, which does not "
                    f"follow it, but {', '.join(type(root).__name__ for root in roots)}: attach() it to both",
                    stacklevel=4,
                )


@functools.cache
def hook_newcomers() -> None:
    """Register a hook of torch that hooks new modules when they become a part of an attached model."""

    def hook(parent: nn.Module, _: str, module: nn.Module | None) -> None:
        for attached in tuple(alive):
            if module is not None and attached.has_hooked(parent):
                attached.hook(module)

    register_module_module_registration_hook(hook)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of ``torch.compile`` and data parallelism."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = cast(nn.Module, model.module)
        elif (inner := dict(model.named_children()).get("_orig_mod")) is not None:
            model = inner
        else:
            return model


def check(model: Any, params: set[Tensor]) -> nn.Module:
    """The module to attach to: ``model`` without wrappers.

    Raises:
        TypeError: if it is no module, or it or a part with parameters is scripted and so has a fixed class.
        ValueError: if it holds none of the parameters.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"attach() takes the torch.nn.Module that has the parameters, but got {type(model)}")
    inner = unwrapped(model)
    is_known = any(cast(AttachedModel, known).own_of(params) for known in attachments(inner))
    if not is_known and not params.intersection(inner.parameters()):
        raise ValueError(
            f"{type(inner).__name__} holds none of this optimizer's parameters: attach the model that has them, "
            "after it was sharded, moved or loaded, and make the optimizer with its present parameters"
        )
    for name, part in () if is_known else cast(Any, inner).named_modules():
        if isinstance(part, torch.jit.ScriptModule) and not params.isdisjoint(part.parameters()):
            raise TypeError(
                f"{name} in {type(inner).__name__} is scripted and has parameters of this optimizer, whose average it "
                "cannot save: script it after training"
            )
    return inner
