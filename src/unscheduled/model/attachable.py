"""Checks whether the class of a module can have a subclass whose ``training`` the parameters follow."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType

from torch import nn


def check_class(model: nn.Module) -> None:
    """Raise TypeError if a module of this class cannot be attached, without changing the module."""
    cls = type(model)
    remedy = "Attach a module that it is a part of, or call train() and eval() of the optimizer"
    if inspect.isdatadescriptor(inspect.getattr_static(cls, "training", None)) or "training" not in vars(model):
        raise TypeError(f"{cls.__name__} cannot be attached: it defines 'training' itself. {remedy}")
    for name, code in _methods(cls):
        if _calls_super_of_its_own_class(code):
            raise TypeError(
                f"{cls.__name__} cannot be attached: its {name}() calls super() with the class of the object, which "
                f"recurses without end in a subclass. Write super().{name}() there. {remedy}"
            )


def _methods(cls: type) -> Iterator[tuple[str, CodeType]]:
    """Yield the methods of a class by name, except those of ``nn.Module``, ``__init__`` and ``__new__``."""
    for each in cls.__mro__:
        if each is nn.Module:
            return
        for name, value in vars(each).items():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(function, FunctionType) and name not in ("__init__", "__new__"):
                yield name, function.__code__


def _calls_super_of_its_own_class(code: CodeType) -> bool:
    """Whether the code calls ``super(self.__class__, ...)`` or ``super(type(self), ...)``."""
    if "super" not in code.co_names:
        return False
    found = [each for each in dis.get_instructions(code) if each.opname.startswith("LOAD_")]
    for first, second, third in zip(found, found[1:], found[2:], strict=False):
        if first.argval == "super" and first.opname == "LOAD_GLOBAL":
            of_class = second.opname.startswith("LOAD_FAST") and third.argval == "__class__"
            if of_class or (second.opname == "LOAD_GLOBAL" and second.argval == "type"):
                return True
    return False
