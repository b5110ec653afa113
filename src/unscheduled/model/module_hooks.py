"""The hooks on the modules of an attached model: ``state_dict`` returns x, and ``load_state_dict`` sets it.

A module has them once, however many optimizers are attached. Modules that are added later get them through torch's hook
on the registration of modules, or else before the model is next switched, saved or loaded.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unscheduled.model.attached_module import COPYING, LOADING, PARTS, SAVING, AverageReader, Tie, has_own, tie, untie
from unscheduled.model.follower import Follower


class HookedTie(Tie, Protocol):
    """The tie between a model and its optimizers, as the hooks use it."""

    @property
    def model(self) -> nn.Module:
        """The attached model."""
        ...

    def followers(self) -> list[Follower]:
        """The attached optimizers."""
        ...

    def params(self) -> Mapping[Tensor, Follower]:
        """The parameters of all optimizers, each with its optimizer."""
        ...

    def hook(self, part: nn.Module | None = None) -> None:
        """Put hooks on the modules of the model, or of a new part, that have none yet."""
        ...

    def before_save_of_all(self) -> None:
        """Note the parameters of the model before all of it is saved."""
        ...


class Hook:
    """A hook that does nothing in a copy or a pickle of its module alone."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> None:
        self.call(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (nothing,)


def nothing(*_: Any) -> None:
    """Do nothing, as the hook of a copy."""


def _is_scripted(module: nn.Module) -> bool:
    """Whether a module is scripted, so that torch puts no hooks on it."""
    return isinstance(module, torch.jit.ScriptModule)


class ModuleHooks:
    """The hooks of a model, and the classes of its parts that copy, save or load themselves."""

    def __init__(self, tie: HookedTie) -> None:
        self._tie = tie
        self._handles = weakref.WeakKeyDictionary[nn.Module, list[RemovableHandle]]()
        self._own_ways = weakref.WeakSet[nn.Module]()  # parts whose class copies, saves or loads itself
        self._parts = weakref.WeakSet[nn.Module]()  # those of them that have a class made here
        self._saving: nn.Module | None = None  # the first module of a call of state_dict
        self._into: dict[str, Any] | None = None  # the dictionary that the call fills
        self._average_of: AverageReader = nothing  # returns one tensor for tied weights
        self._load: tuple[nn.Module, object] | None = None  # the first module of load_state_dict, and the call
        self._loads_itself = False
        self._hooks = tuple(map(Hook, (self._before_save, self._save, self._before_load, self._after_load)))

    def put(self, module: nn.Module) -> None:
        """Put the hooks on a module and its parts that have none yet."""
        before_save, save, before_load, after_load = self._hooks
        for part in cast(Any, module).modules():  # torch does not type the hooks
            if part not in self._handles and not _is_scripted(part) and not self._is_copied_from_hooked(part):
                first = part.register_state_dict_post_hook(save)
                part._state_dict_hooks.move_to_end(first.id, last=False)  # hooks of users come later
                self._handles[part] = [
                    first,
                    part.register_state_dict_pre_hook(before_save),
                    part.register_load_state_dict_pre_hook(before_load),
                    part.register_load_state_dict_post_hook(after_load),
                ]
                if part is not self._tie.model and has_own(part, (*COPYING, *SAVING, *LOADING)):
                    self._own_ways.add(part)
        self.tie_parts()

    def tie_parts(self) -> None:
        """Change the class of each part that copies, saves or loads itself and has parameters of an optimizer."""
        candidates = self._own_ways - self._parts
        params = self._tie.params().keys() if candidates else ()
        for part in candidates:
            if any(param in params for param in part.parameters()):
                tie(part, self._tie, PARTS)
                self._parts.add(part)

    def _is_copied_from_hooked(self, module: nn.Module) -> bool:
        """Whether a module shares the hooks of another module, as a shallow copy does."""
        return any(hook is self._hooks[1] for hook in cast(Any, module)._state_dict_hooks.values())

    def has(self, module: nn.Module) -> bool:
        """Whether a module has the hooks."""
        return module in self._handles

    def take_off(self) -> None:
        """Remove the hooks, and restore the classes of the parts."""
        while self._handles:
            for handle in self._handles.popitem()[1]:
                handle.remove()
        while self._parts:
            untie(self._parts.pop(), self._tie, PARTS)
        self._own_ways.clear()

    # Saving.

    def _before_save(self, module: nn.Module, *_: Any) -> None:
        if self._saving is None or self._saving is module:
            self._saving, self._into = module, None
            self._tie.hook(module)
            self._tie.before_copy()
        if module is self._tie.model:
            self._tie.before_save_of_all()

    def _save(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        if self._into is not state_dict:
            self._into, self._average_of = state_dict, self._tie.reader()
        saves_itself = has_own(module, ("_save_to_state_dict",))  # then its parameters hold x
        for name, param in module.named_parameters(recurse=False, remove_duplicate=False) if not saves_itself else ():
            key = prefix + name
            if key in state_dict and state_dict[key] is not param:  # else keep_vars=True asks for the parameter itself
                average = self._average_of(param)
                if average is not None:
                    state_dict[key] = average
        if module is self._saving:
            self._saving, self._into, self._average_of = None, None, nothing

    # Loading.

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
                "load_state_dict(assign=True) would put new parameters into the model, and the optimizer would train "
                "the old ones: load with assign=False, or load before the optimizer is made"
            )
        if not self._loads_itself and (self._load is None or self._load[1] is not missing_keys):
            self._begin_load(module, missing_keys)

    def _begin_load(self, module: nn.Module, call: object) -> None:
        self._load = module, call
        self._tie.hook(module)
        for follower in self._tie.followers():
            follower.before_load(module, call)

    def _after_load(self, module: nn.Module, keys: Any) -> None:
        if self._load is not None and self._load[0] is module and self._load[1] is keys.missing_keys:
            self._load = None
            for follower in self._tie.followers():
                follower.after_load(module, keys.missing_keys)

    @contextmanager
    def loading(self, module: nn.Module) -> Generator[None, None, None]:
        """A context in which a module loads weights with its own ``load_state_dict``."""
        if self._loads_itself:
            yield
            return
        self._loads_itself = True
        try:
            self._begin_load(module, object())
            yield
        finally:
            self._loads_itself = False
            self.end_load()

    def end_load(self) -> None:
        """Note that loading has ended, with or without success."""
        if not self._loads_itself:
            self._load = None
            for follower in self._tie.followers():
                follower.end_load()
