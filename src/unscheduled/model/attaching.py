"""Which module an optimizer is attached to, and which other optimizers are attached to its parameters."""

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
    """The tie of a model, which is made if there is none.

    Raises:
        TypeError: if its class cannot be attached; nothing is changed.
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
    """The optimizers that are attached to a model and have some of these parameters, and which; but for one."""
    found: dict[Follower, set[Tensor]] = {}
    for attached in tuple(alive):
        for follower in {each for param in params for each in attached.had_by(param)}:
            shared = params.intersection(follower.params())
            if shared and follower is not but:
                found[follower] = shared
    return found


def warn_of_shared_parts(attached: AttachedModel, follower: Follower) -> None:
    """Warn if this model has parameters of an optimizer that does not follow it, or another model has this one's."""
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
                    stacklevel=3,
                )


@functools.cache
def hook_newcomers() -> None:
    """Have modules hooked from the moment that they become a part of an attached model."""

    def hook(parent: nn.Module, _: str, module: nn.Module | None) -> None:
        for attached in tuple(alive):
            if module is not None and attached.has_hooked(parent):
                attached.hook(module)

    register_module_module_registration_hook(hook)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module within ``torch.compile`` and data parallelism, whose flag they set and whose parameters they use."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = cast(nn.Module, model.module)
        elif (inner := dict(model.named_children()).get("_orig_mod")) is not None:
            model = inner
        else:
            return model


def check(model: Any, params: set[Tensor]) -> nn.Module:
    """The module to attach to.

    Raises:
        TypeError: if it is no module, or a scripted one, whose class is fixed.
        ValueError: if it holds none of the parameters.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"attach() takes the torch.nn.Module that the parameters are of, but got {type(model)}")
    inner = unwrapped(model)
    is_known = any(cast(AttachedModel, known).own_of(params) for known in attachments(inner))
    if not is_known and not params.intersection(inner.parameters()):
        raise ValueError(
            f"{type(inner).__name__} holds none of this optimizer's parameters: attach the model that they are of, "
            "after it was sharded, moved or loaded, and make the optimizer of its present parameters"
        )
    for name, part in () if is_known else cast(Any, inner).named_modules():
        if isinstance(part, torch.jit.ScriptModule) and not params.isdisjoint(part.parameters()):
            raise TypeError(
                f"{name} in {type(inner).__name__} is scripted and has parameters of this optimizer, whose average it "
                "cannot save: script it after training"
            )
    return inner
