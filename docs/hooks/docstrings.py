"""Converts docstrings to Markdown: references become links, and characters with a meaning in Markdown are escaped."""

import re
from types import ModuleType
from typing import Any

from griffe import Extension, Object

import unscheduled

ROLE = re.compile(r":(?:class|func|meth|mod):`~?(?:unscheduled\.)?([\w.]+)`")
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")
CODE = re.compile(r"(``.+?``|`.+?`)")


class PlainDocstrings(Extension):
    """Rewrites the docstring of every object before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Convert the docstring of an object after it was read from its source."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    """A docstring as Markdown, for a parser of Google's style."""
    lines: list[str] = []
    depth, is_code, is_example = 0, False, False
    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        if line and not (lines and lines[-1]):
            is_code = indent >= depth + 4  # a formula
        if line and not is_code:
            depth = indent
            is_example = line == "Example:" or (is_example and indent > 0)
        if line == "Example:":
            line = "Examples:"  # the section of what can be run, and no admonition
        lines.append(line if is_code or is_example else marked(line))
    return "\n".join(lines)


def marked(line: str) -> str:
    """A line of text with its references as links."""
    pieces = CODE.split(ROLE.sub(link, line))
    pieces[::2] = [ARXIV.sub(r"[\g<0>](https://arxiv.org/abs/\1)", escaped(piece)) for piece in pieces[::2]]
    return "".join(pieces)


def escaped(text: str) -> str:
    """The text with the characters of emphasis and HTML escaped for Markdown."""
    return text.replace("<", "&lt;").replace("*", "\\*")


def link(role: re.Match[str]) -> str:
    """The name in a role as code, and as a link if the reference has it."""
    name = role[1]
    for full in (name, f"ScheduleFreeOptimizer.{name}"):
        owner, _, member = full.rpartition(".")
        holder = getattr(unscheduled, owner, None) if owner else unscheduled
        found = getattr(holder, member, None)
        if (holder is unscheduled or isinstance(holder, type)) and found and not isinstance(found, ModuleType):
            return f"[`{name}`][unscheduled.{full}]"
    return f"`unscheduled.{name}`"
