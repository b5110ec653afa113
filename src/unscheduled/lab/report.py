"""What a race leaves behind for people: a picture and a page."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from unscheduled.lab import tables
from unscheduled.lab.figure import draw
from unscheduled.lab.terminal import direction

PICTURE_FILE = "race.png"
PAGE_FILE = "race.html"


def write_report(record: Mapping[str, Any], out: Path) -> None:
    """Write ``race.png`` and ``race.html``, which needs no other file and no network."""
    draw(record, out / PICTURE_FILE)
    environment = Environment(
        loader=PackageLoader("unscheduled.lab", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("race.html.jinja").render(
        record=record,
        direction=direction(record),
        results=tables.results_table(record),
        others=tables.other_metrics(record),
        early_stopping=tables.early_stopping_table(record),
        targets=tables.targets_table(record),
        rates=tables.rates_table(record),
        one_rate=tables.one_rate_table(record),
        sensitivity=tables.sensitivity_tables(record),
        picture=base64.b64encode((out / PICTURE_FILE).read_bytes()).decode(),
    )
    (out / PAGE_FILE).write_text(page, encoding="utf-8")
