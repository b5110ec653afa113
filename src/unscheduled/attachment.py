"""The model's own life cycle moves the parameters: its ``training`` flag, ``state_dict`` and ``load_state_dict``.

The attached module gets a subclass of its own class whose ``training`` is a property, so that the parameters follow the
flag however it is set, at no cost in the forward pass. Hooks on its modules make ``state_dict`` give the average x in
either mode, and take what ``load_state_dict`` brings as the new x. Modules that come later get
theirs from torch's hook on the registration of modules.
"""

from __future__ import annotations

import functools
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from unscheduled.attached import ATTACHMENTS, Attached, Followed, attached_class, attachments, own_class
from unscheduled.batchnorm import RecentBatches, Switching

alive: weakref.WeakSet[Attachment] = weakref.WeakSet()


class Follower(Followed, Switching, Protocol):
    """What an attachment asks of its optimizer."""

    def eval(self) -> Any:
        """Put x into all parameters."""
        ...

    def detach(self) -> Any:
        """Take every attachment off."""
        ...

    def shared(self, params: set[Tensor]) -> set[Tensor]:
        """Which of the parameters are this optimizer's too."""
        ...

    def steps(self) -> int:
        """How many steps were made, or 0 if none was since a state was loaded."""
        ...

    def before_load(self, module: nn.Module, call: object) -> None:
        """Expect weights to be written into the parameters."""
        ...

    def after_load(self, module: nn.Module, call: object) -> None:
        """Take the weights that were written, if this module was the first of the call."""
        ...


def others_of(optimizer: Follower, params: set[Tensor]) -> list[Follower]:
    """The other optimizers of any of these parameters that are attached to a model."""
    found = [attachment.optimizer for attachment in alive if attachment.optimizer.shared(params)]
    return [other for other in dict.fromkeys(found) if other is not optimizer]


@functools.cache
def hook_newcomers() -> None:
    """Have modules hooked from the moment that they become a part of an attached model."""

    def hook(parent: nn.Module, _: str, module: nn.Module | None) -> None:
        for attachment in tuple(alive):
            if module is not None and attachment.has_hooked(parent):
                attachment.hook(module)

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


class Hook:
    """A hook that stays behind when its module is copied or pickled by itself."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> None:
        self.call(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (nothing,)


def nothing(*_: Any) -> None:
    """The hook of a copy."""


class Attachment:
    """The tie between an optimizer and a module that holds parameters of it."""

    def __init__(self, optimizer: Follower, model: nn.Module, bn_batches: int) -> None:
        self.optimizer = optimizer
        self.model = model
        self._handles: dict[nn.Module, list[RemovableHandle]] = {}
        self._saving: nn.Module | None = None  # the first module of a call of state_dict
        self._into: dict[str, Any] | None = None  # what it fills
        self._average_of: Callable[[Tensor], Tensor | None] = nothing  # the same for tied weights
        self._hooks = tuple(map(Hook, (self._before_save, self._save, self._before_load, self._after_load)))
        self._params: dict[Tensor, str] = {}
        self._steps = optimizer.steps()
        model.__dict__[ATTACHMENTS] = (*attachments(model), self)
        if not isinstance(model, Attached):
            model.__class__ = attached_class(type(model))
        self._recent = RecentBatches(model, bn_batches, optimizer) if bn_batches else None
        self.hook()
        self._check_parameters()
        hook_newcomers()

    def hook(self, part: nn.Module | None = None) -> None:
        """Put hooks on the modules of the model, or of a part that has come to it, that have none yet."""
        alive.add(self)
        if self._recent:
            self._recent.watch()
        before_save, save, before_load, after_load = self._hooks
        for module in cast(Any, self.model if part is None else part).modules():  # torch does not type the hooks
            if module not in self._handles:
                first = module.register_state_dict_post_hook(save)
                module._state_dict_hooks.move_to_end(first.id, last=False)  # those of users may change the entries
                self._handles[module] = [
                    first,
                    module.register_state_dict_pre_hook(before_save),
                    module.register_load_state_dict_pre_hook(before_load),
                    module.register_load_state_dict_post_hook(after_load),
                ]

    def has_hooked(self, module: nn.Module) -> bool:
        """Whether the module is a part of the model."""
        return module in self._handles

    def let_go(self) -> None:
        """Give the module its own class back, and take the hooks off."""
        alive.discard(self)
        if self._recent:
            self._recent.ignore()
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()
        self._handles.clear()
        others = tuple(attachment for attachment in attachments(self.model) if attachment is not self)
        if others:
            self.model.__dict__[ATTACHMENTS] = others
            return
        self.model.__dict__.pop(ATTACHMENTS, None)
        self.model.__class__ = own_class(type(self.model))

    def switched(self) -> None:
        """The parameters have been moved, or none has a gradient: the model may have others by now."""
        self.hook()
        for module in self._sharded():
            module.reshard()  # the root keeps them gathered after a forward pass without backward
        self._check_parameters()
        if self._recent and self._recent.blind and self.optimizer.steps() > self._steps and not self.model.training:
            self._steps = self.optimizer.steps()
            warnings.warn(
                f"no training batch was kept for BatchNorm, since {type(self.model).__name__} was never called in the "
                "steps that were made: attach the module that is called in training, or use update_bn()",
                stacklevel=2,
            )

    def before_copy(self) -> None:
        """The model is about to be saved or copied."""
        if self._recent and not self.model.training:
            self._recent.refresh()

    def _sharded(self) -> list[Any]:
        """The modules that FSDP2 gathers the parameters of."""
        fsdp = sys.modules.get("torch.distributed.fsdp")
        if fsdp is None or not hasattr(fsdp, "FSDPModule"):
            return []
        return [module for module in self.model.modules() if isinstance(module, fsdp.FSDPModule)]

    def _check_parameters(self) -> None:
        """Say it, once, if parameters of the optimizer have left the model, and it has some that are not trained."""
        names: dict[Tensor, str] = {param: name for name, param in self.model.named_parameters()}
        gone = [name for param, name in self._params.items() if param not in names]
        shared = self.optimizer.shared(set(names))
        self._params = {param: name for param, name in names.items() if param in shared}
        if gone and any(param.requires_grad for param in names if param not in shared):
            warnings.warn(
                f"parameters of the optimizer ({len(gone)}, from {gone[0]} on) are no longer in the attached model, "
                "which has others that are not averaged: make the optimizer of the present ones, or add them to it",
                stacklevel=2,
            )

    def _before_save(self, module: nn.Module, *_: Any) -> None:
        if self._saving is None or self._saving is module:
            self._saving, self._into = module, None
            self.before_copy()
        if module is self.model and not self._sharded():  # which may be gathered, and have others meanwhile
            self._check_parameters()

    def _save(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        if self._into is not state_dict:
            self._into, self._average_of = state_dict, self.optimizer.averages()
        for name, param in module.named_parameters(recurse=False, remove_duplicate=False):
            key = prefix + name
            if key in state_dict and state_dict[key] is not param:  # else keep_vars=True asks for the parameter itself
                average = self._average_of(param)
                if average is not None:
                    state_dict[key] = average
        if module is self._saving:
            self._saving, self._into, self._average_of = None, None, nothing

    def _before_load(
        self,
        module: nn.Module,
        _state_dict: Any,
        _prefix: str,
        metadata: dict[str, Any],
        _strict: bool,
        missing_keys: list[str],  # one list for all modules of a call
        *_: Any,
    ) -> None:
        if metadata.get("assign_to_params_buffers"):
            raise RuntimeError(
                "load_state_dict(assign=True) would put new parameters into the model, and the optimizer would go on "
                "with the old ones: load with assign=False, or load before the optimizer is made"
            )
        self.optimizer.before_load(module, missing_keys)

    def _after_load(self, module: nn.Module, keys: Any) -> None:
        self.optimizer.after_load(module, keys.missing_keys)


def check(model: Any, params: set[Tensor]) -> nn.Module:
    """The module to attach to.

    Raises:
        TypeError: if it is no module, or a scripted one, whose class is fixed.
        ValueError: if it holds none of the parameters.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"attach() takes the torch.nn.Module that the parameters are of, but got {type(model)}")
    inner = unwrapped(model)
    if not params.intersection(inner.parameters()):
        raise ValueError(
            f"{type(inner).__name__} holds none of this optimizer's parameters: attach the model that they are of, "
            "after it was sharded, moved or loaded, and make the optimizer of its present parameters"
        )
    return inner
