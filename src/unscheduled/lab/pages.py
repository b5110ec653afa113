"""HTML pages that need no other file and no network."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def write_page(template: str, file: Path, **values: Any) -> None:
    """Fill in a template of ``lab/templates`` and write the page."""
    environment = Environment(
        loader=PackageLoader("unscheduled.lab", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    file.write_text(environment.get_template(template).render(**values), encoding="utf-8")


def embedded(picture: Path) -> str:
    """A picture as the text of a data URL."""
    return base64.b64encode(picture.read_bytes()).decode()
