"""The kernels of the fused implementation for GPUs: the text of the kernel with the definitions of a rule in it.

A function that Triton compiles may call only functions that are declared to it, and refer only to constants. So copies
of the functions are made, whose global names are these. What the functions say is not changed.
"""
# Triton has no types:
# pyright: basic, reportMissingTypeStubs=false, reportAttributeAccessIssue=false, reportCallIssue=false

import ast
import inspect
import textwrap
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import triton
import triton.language as tl

from unscheduled.formulas import iterates, primitives
from unscheduled.formulas.rule import Rule
from unscheduled.kernels.definitions import Function, with_names
from unscheduled.kernels.triton.kernel import step

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether Triton's interpreter runs the kernels, on the CPU: for tests."""


def rounded_root(value):
    """The square root, correctly rounded."""
    return tl.sqrt_rn(value)


def either(condition, some, other):
    """``some`` where the condition holds, else ``other``."""
    return tl.where(condition, some, other)


MEANING = {primitives.sqrt: rounded_root, primitives.where: either}
"""The primitives whose text Triton cannot compile, since it asks for the type of a number, and what does the same."""


def kernel_of(rule: Rule) -> Any:
    """The kernel of a rule, which Triton compiles when it is first called with tensors of some dtypes.

    Raises:
        OSError, ValueError: if a function of the rule is not in a file.
    """
    definitions = {"direction": rule.direction, "base_move": iterates.base_move, "advance": iterates.advance}
    assumed_nothing_of = ("table", "tensor_of", "tensors", "grads", "keys", "scalars")
    return triton.jit(_copied(step, definitions, {}), do_not_specialize=assumed_nothing_of)


def _copied(function: Any, definitions: Mapping[str, Function], known: dict[Function, Any]) -> Function:
    """A copy of a function, for which the functions that it calls are declared to Triton, and numbers are constants.

    Args:
        function: the function.
        definitions: what to put in for some of the names that it calls.
        known: what was declared already.
    """
    names: dict[str, Any] = {"tl": tl, "__name__": function.__module__}
    for name in function.__code__.co_names:
        value = definitions.get(name, function.__globals__.get(name))
        if isinstance(value, FunctionType):
            text = MEANING.get(value, value)
            if text not in known:
                known[text] = triton.jit(_copied(text, definitions, known))
            names[name] = known[text]
        elif isinstance(value, (int, float)):
            names[name] = value if INTERPRETED else tl.constexpr(value)
    copy = with_names(function, dict.fromkeys(_in_annotations(function), tl.constexpr(None)) | names)
    copy.__annotations__ = {name: kind for name, kind in function.__annotations__.items() if kind is tl.constexpr}
    return copy


def _in_annotations(function: Any) -> set[str]:
    """The names in the annotations of a function, which Triton's interpreter evaluates."""
    (text,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(text, ast.FunctionDef)
    annotations = [each.annotation for each in text.args.args] + [text.returns]
    return {node.id for each in annotations if each for node in ast.walk(each) if isinstance(node, ast.Name)}
