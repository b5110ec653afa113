"""Includes parts of other files of the project in pages, and links to these files.

    <!-- README.md: ## Quick start -> ## Results -->

is replaced by the lines of README.md from the line that begins with ``## Quick start`` up to the line that begins with
``## Results``, which is excluded. A first line that is a heading is excluded too, since the page has its own. Without
an arrow the part goes to the end; without lines it is the whole file. A program, as in
``<!-- examples/vision_loop.py -->``, is shown as code.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"^<!-- ([\w/]+\.(?:md|py))(?:: (.*?)(?: -> (.*?))?)? -->$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
LINK_BY_ITS_PATH = re.compile(r"\[(docs/[\w/-]+\.md)\](?=\(\1\))")
MEASURED = re.compile(r"(?<=\d) ± (?=\d)|(?<=\d) (?=[\N{MINUS SIGN}+=] \|)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the files outside of docs/ to which pages link to the site."""
    for file in sorted((ROOT / "src/unscheduled/lab/tasks").glob("*.json")):
        files.append(File.generated(config, file.relative_to(ROOT).as_posix(), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Include the parts of other files, make their links relative to this page, and keep numbers on one line."""
    here = page.file.src_uri
    folder = posixpath.join("docs", posixpath.dirname(here))

    def put_in(mark: re.Match[str]) -> str:
        text = part(*mark.groups())
        return f"```python\n{text}\n```" if mark[1].endswith(".py") else linked(text, "", here)

    text = MARK.sub(put_in, linked(markdown, folder, here))
    return MEASURED.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def part(name: str, first: str | None, beyond: str | None) -> str:
    """The lines of a file of the project from one line up to another, which is excluded."""
    lines = (ROOT / name).read_text().splitlines()
    start = index_of(lines, name, first) if first else 0
    end = index_of(lines, name, beyond) if beyond else len(lines)
    if first and first.startswith("#"):
        start += 1
    others = [line for line in lines[start + 1 : end] if line.startswith("## ")]
    if others and first and first.startswith("## "):
        raise PluginError(f"the part of {name} from {first!r} to before {beyond!r} has {others[0]!r} in it")
    return "\n".join(lines[start:end]).strip()


def index_of(lines: list[str], name: str, start: str) -> int:
    """The index of the only line that begins with this text."""
    found = [index for index, line in enumerate(lines) if line.startswith(start)]
    if len(found) != 1:
        raise PluginError(f"{len(found)} lines of {name} begin with {start!r}, where one should")
    return found[0]


def linked(markdown: str, folder: str, here: str) -> str:
    """A text from this folder of the project with its links made relative to the page ``here`` of docs/."""

    def target(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[0])).removeprefix("docs/")
        return posixpath.relpath(path, posixpath.dirname(here) or ".")

    return LINK.sub(target, LINK_BY_ITS_PATH.sub(lambda link: f"[{title(link[1])}]", markdown))


def title(path: str) -> str:
    """The heading of a page."""
    return (ROOT / path).read_text().partition("\n")[0].removeprefix("# ")
