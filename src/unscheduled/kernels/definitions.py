"""Copies of definitions, for compilers that need the functions that a function calls in another form."""

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

Function = Callable[..., Any]


def is_text(function: object) -> bool:
    """Whether a compiler can read all of a function: it is one of Python, and has no variables of another."""
    return isinstance(function, FunctionType) and not function.__closure__


def called(function: Any) -> dict[str, Any]:
    """The functions that a function calls, by name."""
    found = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return {name: value for name, value in found.items() if isinstance(value, FunctionType)}


def with_names(function: Any, names: Mapping[str, Any]) -> Any:
    """A copy of a function for which the global names are these."""
    return FunctionType(function.__code__, dict(names), function.__name__, function.__defaults__, function.__closure__)
