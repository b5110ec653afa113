"""Parts of README.md and other files of the root on pages of the site, and links to files outside of docs/.

    <!-- README.md: ## Use -> ## Checkpoints -->

is replaced by what stands in README.md between the line that begins with ``## Use`` and the one that begins with
``## Checkpoints``: with the first of them unless it is a heading, since the page has its own. Without an arrow it goes to
the end, without lines it is the whole file.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"^<!-- (\w+\.md)(?:: (.*?)(?: -> (.*?))?)? -->$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
"""Which page of the site has a file of the root."""


def on_files(files: Files, *, config: Any) -> Files:
    """Bring the files outside of docs/ that pages point to onto the site."""
    for file in sorted((ROOT / "src/unscheduled/lab/tasks").glob("*.json")):
        files.append(File.generated(config, file.relative_to(ROOT).as_posix(), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Put the parts of other files in, and have every link go from this page."""
    here = page.file.src_uri
    return MARK.sub(lambda mark: linked(part(*mark.groups()), "", here), linked(markdown, "docs", here))


def part(name: str, first: str | None, beyond: str | None) -> str:
    """The lines of a file of the root from one to before another."""
    lines = (ROOT / name).read_text().splitlines()
    start = index_of(lines, name, first) if first else 0
    end = index_of(lines, name, beyond) if beyond else len(lines)
    if first and first.startswith("#"):
        start += 1
    return "\n".join(lines[start:end]).strip()


def index_of(lines: list[str], name: str, start: str) -> int:
    """The only line that begins so."""
    found = [index for index, line in enumerate(lines) if line.startswith(start)]
    if len(found) != 1:
        raise PluginError(f"{len(found)} lines of {name} begin with {start!r}, where one should")
    return found[0]


def linked(markdown: str, folder: str, here: str) -> str:
    """A text of a file in this folder of the project, with links that go from the page ``here`` of docs/."""

    def target(link: re.Match[str]) -> str:
        start = posixpath.dirname(posixpath.join("docs", here)) if folder else ""
        path = posixpath.normpath(posixpath.join(start, link[0]))
        if path.startswith("docs/") and folder:
            return link[0]  # from a page to a page
        path = PAGES.get(path, path.removeprefix("docs/"))
        return posixpath.relpath(path, posixpath.dirname(here) or ".")

    return LINK.sub(target, markdown)
