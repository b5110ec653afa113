"""What a race leaves behind for people: a table in the terminal, a picture and a page."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unscheduled.lab.figure import draw
from unscheduled.lab.statistics import Estimate

PICTURE_FILE = "race.png"
PAGE_FILE = "race.html"
STYLES = {"better": "green", "tie": "default", "worse": "red", "diverged": "red", "one seed": "default"}


@dataclass(frozen=True)
class Cell:
    """One contender at one horizon: its mean, and how the first contender compares ("" for the first itself)."""

    mean: str
    verdict: str = ""
    difference: str = ""


def cells(record: Mapping[str, Any]) -> list[tuple[int, list[Cell]]]:
    """The table of the race: for each horizon a cell for each contender."""
    return [
        (horizon, [cell(result) for result in record["results"] if result["horizon"] == horizon])
        for horizon in record["horizons"]
    ]


def is_long(record: Mapping[str, Any]) -> bool:
    """Whether there are so many contenders that each gets a line of the table."""
    return len(record["contenders"]) > 4


def rows_of(record: Mapping[str, Any]) -> list[list[Any]]:
    """The lines of the table, its header first: one for each horizon, or for each of many contenders."""
    table = [["steps", *record["contenders"]], *([f"{horizon:,}", *row] for horizon, row in cells(record))]
    return [list(column) for column in zip(*table, strict=True)] if is_long(record) else table


def cell(result: Mapping[str, Any]) -> Cell:
    """One cell; a difference is shown with no more decimals than the mean above it."""
    mean = Estimate(result["mean"], result["standard_error"])
    if "verdict" not in result:
        return Cell(str(mean))
    difference = Estimate(result["difference"], result["difference_standard_error"])
    shown = "" if difference.mean is None else difference.shown("+", most_decimals=mean.decimals())
    return Cell(str(mean), result["verdict"], shown)


def print_table(record: Mapping[str, Any], console: Console) -> None:
    """The table and the verdict, for the terminal."""
    first = next(iter(record["contenders"]))
    seeds = f"mean ± standard error of {record['seeds']} seeds" if record["seeds"] > 1 else "one seed"
    table = Table(box=SIMPLE_HEAD, title=f"{record['task']['name']}: {record['task']['metric']}, {seeds}")
    header, *rows = rows_of(record)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 and is_long(record) else "right")
    for row in rows:
        table.add_row(*(text(each) if isinstance(each, Cell) else each for each in row))
    console.print(table)
    if len(record["contenders"]) > 1:
        console.print(f"(the second lines: {first} compared with the other, and {first} minus it)")
    for line in (record["verdict"], *record["doubts"]):
        console.print(line)


def text(cell: Cell) -> Text:
    """The mean, and below it in colour how the first contender compares."""
    comparison = f"\n{cell.verdict} {cell.difference}".rstrip() if cell.verdict else ""
    return Text.assemble(cell.mean, (comparison, STYLES.get(cell.verdict, "")))


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
        table=rows_of(record),
        picture=base64.b64encode((out / PICTURE_FILE).read_bytes()).decode(),
    )
    (out / PAGE_FILE).write_text(page, encoding="utf-8")
