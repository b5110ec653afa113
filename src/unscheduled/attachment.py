"""The model's own life cycle moves the parameters: its ``training`` flag, ``state_dict`` and ``load_state_dict``.

The attached module gets a subclass of its own class whose ``training`` is a property, so that the parameters follow the
flag however it is set, at no cost in the forward pass. Hooks on its modules make ``state_dict`` give the average x in
either mode, and take what ``load_state_dict`` brings as the new x.
"""

from __future__ import annotations

import copy
import functools
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from unscheduled.batchnorm import RecentBatches, Switching

ATTACHMENTS = "_unscheduled_attachments"


class Follower(Switching, Protocol):
    """What an attachment asks of its optimizer."""

    def eval(self) -> Any:
        """Put x into all parameters."""
        ...

    def detach(self) -> Any:
        """Take every attachment off."""
        ...

    def shares(self, params: set[Tensor]) -> bool:
        """Whether any of the parameters is this optimizer's too."""
        ...

    def follow(self) -> None:
        """Put into the parameters what the flags of the attached models ask for."""
        ...

    def average_of(self, param: Tensor) -> Tensor | None:
        """The average x of a parameter that holds y; None for one that holds x already, or is not the optimizer's."""
        ...

    def before_load(self) -> None:
        """Expect weights to be written into the parameters."""
        ...

    def after_load(self) -> None:
        """Take the weights that were written, and put the mode back."""
        ...


class Attached(nn.Module):
    """The part of an attached module's class that is not its own."""

    @property
    def training(self) -> bool:
        return self.__dict__["training"]

    @training.setter
    def training(self, mode: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        before = self.__dict__["training"]
        self.__dict__["training"] = mode
        if mode == before:
            return
        try:
            for attachment in attachments(self):
                attachment.optimizer.follow()
        except BaseException:  # out of memory, or interrupted
            self.__dict__["training"] = before
            raise

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """A plain module of its own that holds x."""
        for attachment in attachments(self):
            for param in self.parameters():
                average = attachment.optimizer.average_of(param)
                if average is not None and id(param) not in memo:
                    memo[id(param)] = nn.Parameter(average, param.requires_grad)
        with plain(self):
            return copy.deepcopy(self, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return copy.deepcopy(self).__reduce_ex__(0)  # protocol 2 and later want the class of what is pickled


@functools.cache
def attached_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``cls`` whose ``training`` is followed; it goes by the name of ``cls``."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return types.new_class(cls.__name__, (Attached, cls), exec_body=lambda namespace: namespace.update(names))


def attachments(model: nn.Module) -> tuple[Attachment, ...]:
    """What is attached to a module itself."""
    return model.__dict__.get(ATTACHMENTS, ())


@contextmanager
def plain(model: nn.Module) -> Generator[None, None, None]:
    """Within the ``with`` block an attached module is one of its own class, without our hooks."""
    attached = attachments(model)
    cls = type(model)
    try:
        for attachment in attached:
            attachment.let_go()
        yield
    finally:
        model.__dict__[ATTACHMENTS] = attached
        model.__class__ = cls
        for attachment in attached:
            attachment.hook()


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


class SharedAverages:
    """The averages that one call of ``state_dict`` has given, so that tied weights share one there too."""

    def __init__(self) -> None:
        self.call: weakref.ref[dict[str, Any]] | None = None
        self.keys: set[str] = set()
        self.found: dict[Tensor, weakref.ref[Tensor]] = {}

    def of(self, param: Tensor, key: str, state_dict: dict[str, Any], optimizer: Follower) -> Tensor | None:
        if self.call is None or self.call() is not state_dict or key in self.keys:
            self.call = weakref.ref(state_dict) if isinstance(state_dict, OrderedDict) else None
            self.keys, self.found = set(), {}
        self.keys.add(key)
        reference = self.found.get(param)
        average = reference() if reference else None
        if average is None and (average := optimizer.average_of(param)) is not None:
            self.found[param] = weakref.ref(average)
        return average


class Attachment:
    """The tie between an optimizer and a module that holds parameters of it."""

    def __init__(self, optimizer: Follower, model: nn.Module, bn_batches: int) -> None:
        self.optimizer = optimizer
        self.model = model
        self._handles: dict[nn.Module, list[RemovableHandle]] = {}
        self._averages = SharedAverages()
        self._loading: nn.Module | None = None
        self._hooks = Hook(self._save), Hook(self._before_load), Hook(self._after_load), Hook(self._before_save)
        model.__dict__[ATTACHMENTS] = (*attachments(model), self)
        if not isinstance(model, Attached):
            model.__class__ = attached_class(type(model))
        self._recent = RecentBatches(model, bn_batches, optimizer) if bn_batches else None
        self.hook()

    def hook(self) -> None:
        """Put hooks on the modules that have none yet."""
        if self._recent:
            self._recent.watch()
        save, before_load, after_load, before_save = self._hooks
        for module in cast(Any, self.model.modules()):  # torch does not say what the hooks are
            if module not in self._handles:
                self._handles[module] = [
                    module.register_state_dict_post_hook(save),
                    module.register_load_state_dict_pre_hook(before_load),
                    module.register_load_state_dict_post_hook(after_load),
                ]
                if module is self.model:
                    self._handles[module].append(module.register_state_dict_pre_hook(before_save))

    def let_go(self) -> None:
        """Give the module its own class back, and take the hooks off."""
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
        bases = type(self.model).__bases__
        if bases[0] is Attached:  # else a library has made a subclass of it since
            self.model.__class__ = cast(type[nn.Module], bases[1])

    def reshard(self) -> None:
        """Make FSDP2 gather the parameters anew: the root keeps them gathered after a forward pass without backward."""
        fsdp = sys.modules.get("torch.distributed.fsdp")
        if fsdp is not None and hasattr(fsdp, "FSDPModule"):
            for module in self.model.modules():
                if isinstance(module, fsdp.FSDPModule):
                    cast(Any, module).reshard()

    def _before_save(self, *_: Any) -> None:
        self.hook()  # modules may have come since
        if self._recent and not self.model.training:
            self._recent.refresh()

    def _save(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, param in module.named_parameters(recurse=False, remove_duplicate=False):
            key = prefix + name
            if key in state_dict and state_dict[key] is not param:  # else keep_vars=True asks for the parameter itself
                average = self._averages.of(param, key, state_dict, self.optimizer)
                if average is not None:
                    state_dict[key] = average

    def _before_load(self, module: nn.Module, _: Any, __: str, metadata: dict[str, Any], *___: Any) -> None:
        if metadata.get("assign_to_params_buffers"):
            raise RuntimeError(
                "load_state_dict(assign=True) would put new parameters into the model, and the optimizer would go on "
                "with the old ones: load with assign=False, or load before the optimizer is made"
            )
        if self._loading is None or self._loading is module:  # the outermost, whose other hook comes last
            self._loading = module
            self.optimizer.before_load()

    def _after_load(self, module: nn.Module, _: Any) -> None:
        if module is self._loading:
            self._loading = None
            self.optimizer.after_load()


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
