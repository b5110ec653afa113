"""The classes of attached modules: parameters follow ``training``, and copies and files hold the average x.

An attached module gets a subclass of its class. A part of it gets one too if its class defines copying, saving or
loading itself, since torch calls no hooks then.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, cast

from torch import Tensor, nn

from unscheduled.model.copies import copy_notes, kept_apart, memory_of, put_copy
from unscheduled.state.interruption import Deferred

ATTACHMENTS = "_unscheduled_attachments"  # the attribute of an attached model with its ties
PARTS = "_unscheduled_parts"  # the attribute of a part of attached models with their ties
COPYING = ("__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__")
SAVING = ("state_dict", "_save_to_state_dict", "get_extra_state")
LOADING = ("load_state_dict",)

AverageReader = Callable[[Tensor], Tensor | None]


class Tie(Protocol):
    """The tie between a model and its optimizers, as an attached module uses it."""

    @property
    def training(self) -> bool:
        """The flag that the parameters follow."""
        ...

    @property
    def holds_averages(self) -> bool:
        """Whether the parameters of all optimizers hold x because of :meth:`averaged_parameters`."""
        ...

    def hear(self, mode: bool) -> None:
        """Switch the parameters to the mode of the model's flag, unless switching is put off."""
        ...

    def putting_off(self) -> AbstractContextManager[None]:
        """A context in which a change of the flag does not switch the parameters."""
        ...

    def averaged_parameters(self) -> AbstractContextManager[None]:
        """A context in which the parameters of all optimizers hold x."""
        ...

    def reader(self) -> AverageReader:
        """A function that returns the average x of a parameter, each time the same tensor, or None if it needs none."""
        ...

    def params(self) -> Iterable[Tensor]:
        """The parameters of all optimizers."""
        ...

    def before_copy(self) -> None:
        """Re-estimate BatchNorm's statistics if needed, before the model is saved or copied."""
        ...

    def loading(self, module: nn.Module) -> AbstractContextManager[None]:
        """A context in which a module loads weights with its own ``load_state_dict``."""
        ...

    def end_load(self) -> None:
        """Note that loading has ended, with or without success."""
        ...

    def let_go(self) -> None:
        """Restore the classes of the modules, and remove the hooks."""
        ...

    def come_back(self) -> None:
        """Undo :meth:`let_go`, if an optimizer is attached."""
        ...


class SavedAtAverage(nn.Module):
    """A base class of attached modules whose copies and files hold x, also if their class copies or saves itself."""

    def __init_subclass__(cls, **_: Any) -> None:
        """Do nothing: the ``__init_subclass__`` of the user's class is not meant for the subclass made here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make a new object of the class that the user wrote, unless it is of a subclass that a library has made."""
        if own_class(type(self)) is not type(self) and not ties_of(self):
            cast(nn.Module, self).__class__ = own_class(type(self))
            self.__init__(*args, **kwargs)
        else:
            super().__init__(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        ties, state_dict = ties_of(self), cast(Any, super().state_dict)
        if all(tie.holds_averages for tie in ties) or not _has_own_way(self, SAVING):
            return state_dict(*args, **kwargs)
        with ExitStack() as stack:
            for tie in ties:
                tie.before_copy()
                stack.enter_context(tie.averaged_parameters())
            found = state_dict(*args, **kwargs)
            if kwargs.get("keep_vars"):
                return found
            return kept_apart(found, {memory_of(param) for tie in ties for param in tie.params()})

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for tie in ties_of(self):
                stack.callback(tie.end_load)  # the hooks after loading are not called if it fails
                if has_own(self, LOADING):
                    stack.enter_context(tie.loading(self))
            return super().load_state_dict(*args, **kwargs)

    def __copy__(self) -> nn.Module:
        """A shallow copy: it shares the parameters and is attached too."""
        own: Any = getattr(super(), "__copy__", None)
        if own is not None:
            return own()
        copied: Any = object.__new__(type(self))
        get_state: Any = getattr(self, "__getstate__", None)  # from Python 3.11 on, all objects have it
        copied.__setstate__((get_state() if get_state else None) or self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """A deep copy: a plain module with its own parameters, which hold x."""
        params, copies_itself = list(self.parameters()), _has_own_way(self, COPYING)
        with ExitStack() as stack:
            for tie in ties_of(self):
                tie.before_copy()
                if copies_itself:
                    stack.enter_context(tie.averaged_parameters())
                average_of = tie.reader()
                for param in params:
                    average = average_of(param)
                    if average is not None:
                        put_copy(param, average, memo)
            stack.enter_context(plain(self))
            if not isinstance(cast(nn.Module, self), SavedAtAverage):
                copied = copy.deepcopy(self, memo)
            else:  # a library has made a subclass of the attached class
                copied = object.__new__(type(self))
                memo[id(self)] = copied
                copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        for param in params:
            copy_notes(param, memo)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        if ties_of(self):
            return copy.deepcopy(self).__reduce_ex__(0)  # protocols from 2 on require the class of the pickled object
        return super().__reduce_ex__(protocol)


class Training:
    """The attribute ``training`` of an attached model: the parameters follow it.

    It has no ``__get__``, so that the flag is read from the model's ``__dict__`` as of any module, also by torch's
    compilers.
    """

    def __set__(self, model: Attached, mode: bool) -> None:
        with Deferred():
            before = vars(model).get("training", mode)
            vars(model)["training"] = mode
            try:
                _tell(model, mode)
            except BaseException:  # out of memory
                vars(model)["training"] = _followed(model, before)
                raise


class Attached(SavedAtAverage):
    """A base class of attached models whose parameters follow the flag ``training``."""

    training = Training()  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    def train(self, mode: bool = True) -> Any:
        """Set the mode: x is put in before the modules run ``eval()``, y is put in after they have run ``train()``.

        The reason: layers that merge other weights into their own in ``eval()`` undo that in ``train()``. Signals are
        deferred until the switch is complete.
        """
        with Deferred():
            if not mode:
                _tell(self, False)
            with ExitStack() as stack:
                for tie in attachments(self):
                    stack.enter_context(tie.putting_off())
                found = super().train(mode)
            try:
                _tell(self, self.training)
            except BaseException:
                self.__dict__["training"] = _followed(self, False)
                raise
            return found


def _followed(model: nn.Module, otherwise: bool) -> bool:
    """The flag that the parameters follow, or ``otherwise`` if the model is attached no longer."""
    return next((tie.training for tie in attachments(model)), otherwise)


def _tell(model: nn.Module, mode: bool) -> None:
    for tie in attachments(model):
        tie.hear(mode)


def _has_own_way(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether a part with parameters of an optimizer has a class that defines one of these methods itself."""
    parts = [part for part in module.modules() if has_own(part, names)]
    followed = {param for tie in ties_of(module) for param in tie.params()} if parts else set[Tensor]()
    return any(not followed.isdisjoint(part.parameters()) for part in parts)


# Classes.


@functools.cache
def attached_class(cls: type[nn.Module], part: type[SavedAtAverage]) -> type[nn.Module]:
    """The subclass of ``part`` and ``cls``, in this order, with the name of ``cls``."""
    names: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return types.new_class(cls.__name__, (part, cls), exec_body=lambda namespace: namespace.update(names))


def own_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that an attached module had before it was attached."""
    return cast(type[nn.Module], cls.__bases__[1]) if cls.__bases__[0] in (SavedAtAverage, Attached) else cls


def tie(module: nn.Module, tie: Tie, key: str) -> None:
    """Add the tie of a model to the model (``key`` is ATTACHMENTS) or to a part of it (PARTS); change its class."""
    if tie not in vars(module).get(key, ()):
        vars(module)[key] = (*vars(module).get(key, ()), tie)
    _put_class(module)


def untie(module: nn.Module, tie: Tie, key: str) -> None:
    """Undo :func:`tie`."""
    others = tuple(other for other in vars(module).pop(key, ()) if other is not tie)
    if others:
        vars(module)[key] = others
    _put_class(module)


def _put_class(module: nn.Module) -> None:
    """Set the class of a module as its ties require, past a ``__setattr__`` of the class that might refuse."""
    cls = type(module)
    part = Attached if attachments(module) else SavedAtAverage if ties_of(module) else None
    if part is None:
        wanted = own_class(cls)
    elif issubclass(cls, part) and (part is Attached or cls.__bases__[0] is not Attached):
        return
    else:
        wanted = attached_class(own_class(cls), part)
    if wanted is not cls:
        object.__setattr__(module, "__class__", wanted)


@functools.cache
def _has_own(cls: type[nn.Module], names: tuple[str, ...]) -> bool:
    found = [getattr(cls, name, None) for name in names]
    of_torch = [getattr(nn.Module, name, None) for name in names]
    return any(
        each is not None and each is not theirs and not getattr(each, "__module__", "").startswith("torch.")
        for each, theirs in zip(found, of_torch, strict=True)
    )


def has_own(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether the module inherits one of these methods from a class outside of torch."""
    return _has_own(_without_ours(type(module)), names)


@functools.cache
def _without_ours(cls: type[nn.Module]) -> type[nn.Module]:
    """The class itself, or its first base class that is not made here."""
    if not issubclass(cls, SavedAtAverage):
        return cls
    bases = cast(tuple[type[nn.Module], ...], cls.__mro__)
    return next(base for base in bases if not issubclass(base, SavedAtAverage))


def attachments(model: nn.Module) -> tuple[Tie, ...]:
    """The ties of an attached model to its optimizers; none for a module that is only a part of a model."""
    return vars(model).get(ATTACHMENTS, ())


def ties_of(module: nn.Module) -> tuple[Tie, ...]:
    """The ties of a module: its own if it is an attached model, and those of the models of which it is a part."""
    return (*attachments(module), *vars(module).get(PARTS, ()))


@contextmanager
def plain(module: nn.Module) -> Generator[None, None, None]:
    """Restore the classes of a module and of its parts, without hooks, for the ``with`` block."""
    ties, before = ties_of(module), {key: vars(module)[key] for key in (ATTACHMENTS, PARTS) if key in vars(module)}
    try:
        for tie in ties:
            tie.let_go()
        for key in before.keys() & vars(module).keys():  # the attributes of a shallow copy, which the ties do not know
            del vars(module)[key]
        _put_class(module)
        yield
    finally:
        with Deferred():
            vars(module).update(before)
            _put_class(module)
            for tie in ties:
                tie.come_back()
