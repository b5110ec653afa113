"""The report of a race: a picture and a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unscheduled.lab import tables
from unscheduled.lab.figure import draw
from unscheduled.lab.pages import embedded, write_page
from unscheduled.lab.terminal import direction

PICTURE_FILE = "race.png"
PAGE_FILE = "race.html"


def write_report(record: Mapping[str, Any], out: Path) -> None:
    """Write ``race.png`` and ``race.html``, which needs no other file and no network."""
    draw(record, out / PICTURE_FILE)
    write_page(
        "race.html.jinja",
        out / PAGE_FILE,
        record=record,
        direction=direction(record),
        results=tables.results_table(record),
        others=tables.other_metrics(record),
        early_stopping=tables.early_stopping_table(record),
        targets=tables.targets_table(record),
        rates=tables.rates_table(record),
        one_rate=tables.one_rate_table(record),
        sensitivity=tables.sensitivity_tables(record),
        picture=embedded(out / PICTURE_FILE),
    )
