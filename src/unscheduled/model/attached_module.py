"""The classes of attached modules: their own, but that ``training`` is followed, and that copies and files hold x.

The attached module gets a subclass of its own class. So do parts of it whose class copies, saves or loads itself in its
own way, since no hook of torch's is called then.
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

ATTACHMENTS = "_unscheduled_attachments"  # where a model has its tie
PARTS = "_unscheduled_parts"  # where a part of models has theirs
COPYING = ("__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__")
SAVING = ("state_dict", "_save_to_state_dict", "get_extra_state")
LOADING = ("load_state_dict",)

AverageReader = Callable[[Tensor], Tensor | None]


class Tie(Protocol):
    """The tie between a model and its optimizers, as an attached module knows it."""

    @property
    def training(self) -> bool:
        """The flag that the parameters follow."""
        ...

    @property
    def holds_averages(self) -> bool:
        """Whether somebody has put x into the parameters of all optimizers for the moment."""
        ...

    def hear(self, mode: bool) -> None:
        """Put into the parameters what the flag of the model asks for, unless that is put off."""
        ...

    def putting_off(self) -> AbstractContextManager[None]:
        """Within it a change of the flag moves nothing."""
        ...

    def averaged_parameters(self) -> AbstractContextManager[None]:
        """Within it the parameters of all optimizers hold x."""
        ...

    def reader(self) -> AverageReader:
        """A function that gives the average x of a parameter, each time the same; None for one that needs none."""
        ...

    def params(self) -> Iterable[Tensor]:
        """The parameters of all optimizers."""
        ...

    def before_copy(self) -> None:
        """The model is about to be saved or copied."""
        ...

    def loading(self, module: nn.Module) -> AbstractContextManager[None]:
        """Within it weights are loaded into a module in whatever way."""
        ...

    def end_load(self) -> None:
        """Loading has ended, in whatever way."""
        ...

    def let_go(self) -> None:
        """Give the modules their own classes back, and take the hooks off."""
        ...

    def come_back(self) -> None:
        """Undo :meth:`let_go`, if an optimizer is attached."""
        ...


class SavedAtAverage(nn.Module):
    """The part of a module's class with which its copies and files hold x, whatever its own class does."""

    def __init_subclass__(cls, **_: Any) -> None:
        """What the user's class does with its subclasses is not for this one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """A new object of the class is a plain one, unless a library has made a subclass of it since."""
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
        """Another object with the same parameters, as of any module: attached, too, since what it shares is."""
        own: Any = getattr(super(), "__copy__", None)
        if own is not None:
            return own()
        copied: Any = object.__new__(type(self))
        get_state: Any = getattr(self, "__getstate__", None)  # from Python 3.11 on, all objects have it
        copied.__setstate__((get_state() if get_state else None) or self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """A plain module of its own that holds x."""
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
            else:  # of the subclass that a library has made of it since
                copied = object.__new__(type(self))
                memo[id(self)] = copied
                copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        for param in params:
            copy_notes(param, memo)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        if ties_of(self):
            return copy.deepcopy(self).__reduce_ex__(0)  # protocol 2 and later want the class of what is pickled
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
    """The part of an attached model's class with which the parameters follow its ``training``."""

    training = Training()  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    def train(self, mode: bool = True) -> Any:
        """x comes before any module hears of ``eval()``, and y when all have heard of ``train()``.

        Layers that merge something into weights in ``eval()`` take out in ``train()`` what they have put in. An
        interruption takes effect afterwards.
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
    """The flag that the parameters follow, if there is one."""
    return next((tie.training for tie in attachments(model)), otherwise)


def _tell(model: nn.Module, mode: bool) -> None:
    for tie in attachments(model):
        tie.hear(mode)


def _has_own_way(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether a class defines one of these methods for a part that has parameters of an optimizer."""
    parts = [part for part in module.modules() if has_own(part, names)]
    followed = {param for tie in ties_of(module) for param in tie.params()} if parts else set[Tensor]()
    return any(not followed.isdisjoint(part.parameters()) for part in parts)


# Classes.


@functools.cache
def attached_class(cls: type[nn.Module], part: type[SavedAtAverage]) -> type[nn.Module]:
    """The subclass of ``cls`` that ``part`` is put before; it goes by the name of ``cls``."""
    names: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return types.new_class(cls.__name__, (part, cls), exec_body=lambda namespace: namespace.update(names))


def own_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that an attached module had before."""
    return cast(type[nn.Module], cls.__bases__[1]) if cls.__bases__[0] in (SavedAtAverage, Attached) else cls


def tie(module: nn.Module, tie: Tie, key: str) -> None:
    """Tie a module to a model that it is (``key`` is ATTACHMENTS) or is a part of (PARTS), and change its class."""
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
    """Give a module the class that its ties ask for. Its own may restrict which attributes can be set."""
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
    """Whether a class that is not torch's defines one of these methods for a module."""
    return _has_own(_without_ours(type(module)), names)


@functools.cache
def _without_ours(cls: type[nn.Module]) -> type[nn.Module]:
    """The class itself, or the first of its bases that a module had before it was attached."""
    if not issubclass(cls, SavedAtAverage):
        return cls
    bases = cast(tuple[type[nn.Module], ...], cls.__mro__)
    return next(base for base in bases if not issubclass(base, SavedAtAverage))


def attachments(model: nn.Module) -> tuple[Tie, ...]:
    """The ties of an attached model to its optimizers; none for a module that is only a part of one."""
    return vars(model).get(ATTACHMENTS, ())


def ties_of(module: nn.Module) -> tuple[Tie, ...]:
    """The ties of a module that is an attached model or a part of some."""
    return (*attachments(module), *vars(module).get(PARTS, ()))


@contextmanager
def plain(module: nn.Module) -> Generator[None, None, None]:
    """Within the ``with`` block a module is one of its own class, without our hooks, and so are its parts."""
    ties, before = ties_of(module), {key: vars(module)[key] for key in (ATTACHMENTS, PARTS) if key in vars(module)}
    try:
        for tie in ties:
            tie.let_go()
        for key in before.keys() & vars(module).keys():  # of a shallow copy, which the ties do not know
            del vars(module)[key]
        _put_class(module)
        yield
    finally:
        with Deferred():
            vars(module).update(before)
            _put_class(module)
            for tie in ties:
                tie.come_back()
