"""The class of an attached module: its own, but that its ``training`` is followed, and that it is copied at x."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol, cast

from torch import Tensor, nn

ATTACHMENTS = "_unscheduled_attachments"


class Followed(Protocol):
    """What an attached module asks of the optimizer."""

    def follow(self) -> None:
        """Put into the parameters what the flags of the attached models ask for."""
        ...

    def averages(self) -> Callable[[Tensor], Tensor | None]:
        """A function that gives the average x of a parameter, each time the same; None for one that needs none."""
        ...

    def end_load(self) -> None:
        """Loading has ended, in whatever way."""
        ...


class Tie(Protocol):
    """What an attached module asks of an attachment."""

    @property
    def optimizer(self) -> Followed:
        """Whose parameters it has."""
        ...

    def before_copy(self) -> None:
        """The model is about to be saved or copied."""
        ...

    def hook(self) -> None:
        """Put hooks on the modules of the model that have none yet."""
        ...

    def let_go(self) -> None:
        """Give the module its own class back, and take the hooks off."""
        ...


class Attached(nn.Module):
    """The part of an attached module's class that is not its own."""

    def __init_subclass__(cls, **_: Any) -> None:
        """What the user's class does with its subclasses is not for this one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """A new object of the class is a plain one, unless a library has made a subclass of it since."""
        if type(self).__bases__[0] is Attached and not attachments(self):
            cast(nn.Module, self).__class__ = own_class(type(self))
            self.__init__(*args, **kwargs)
        else:
            super().__init__(*args, **kwargs)

    @property
    def training(self) -> bool:
        return self.__dict__["training"]

    @training.setter
    def training(self, mode: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        before = self.__dict__.get("training", mode)
        self.__dict__["training"] = mode
        if mode == before:
            return
        try:
            for attachment in attachments(self):
                attachment.optimizer.follow()
        except BaseException:  # out of memory, or interrupted
            self.__dict__["training"] = before
            raise

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().load_state_dict(*args, **kwargs)
        finally:  # the hooks after loading are not called if it fails
            for attachment in attachments(self):
                attachment.optimizer.end_load()

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """A plain module of its own that holds x."""
        for attachment in attachments(self):
            attachment.before_copy()
            average_of = attachment.optimizer.averages()
            for param in self.parameters():
                if id(param) not in memo and (average := average_of(param)) is not None:
                    memo[id(param)] = nn.Parameter(average, param.requires_grad)
        with plain(self):
            if not isinstance(cast(nn.Module, self), Attached):
                return copy.deepcopy(self, memo)
            copied = object.__new__(type(self))  # of the subclass that a library has made of it since
            memo[id(self)] = copied
            copied.__dict__ = copy.deepcopy(self.__dict__, memo)
            return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        if attachments(self):
            return copy.deepcopy(self).__reduce_ex__(0)  # protocol 2 and later want the class of what is pickled
        return super().__reduce_ex__(protocol)


@functools.cache
def attached_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``cls`` whose ``training`` is followed; it goes by the name of ``cls``."""
    names: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    names["__jit_unused_properties__"] = [*getattr(cls, "__jit_unused_properties__", ()), "training"]  # for scripting
    return types.new_class(cls.__name__, (Attached, cls), exec_body=lambda namespace: namespace.update(names))


def own_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that an attached module had before."""
    return cast(type[nn.Module], cls.__bases__[1]) if cls.__bases__[0] is Attached else cls


def attachments(model: nn.Module) -> tuple[Tie, ...]:
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
        if attached:
            model.__dict__[ATTACHMENTS] = attached
            model.__class__ = cls
        for attachment in attached:
            attachment.hook()
