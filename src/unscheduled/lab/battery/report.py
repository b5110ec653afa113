"""The report of the battery: JSON, pictures and one page that needs no other file and no network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from unscheduled.lab.battery.figures import draw_averaging, draw_frontier
from unscheduled.lab.battery.summary import summary
from unscheduled.lab.execution import write_json
from unscheduled.lab.pages import embedded, write_page
from unscheduled.lab.provenance import code_sha256
from unscheduled.lab.task import built_in_tasks, load_task

SUMMARY_FILE = "battery.json"
PAGE_FILE = "battery.html"
FRONTIER_FILE = "frontier.png"
AVERAGING_FILE = "averaging.png"


def write_report(records: Mapping[str, Mapping[str, Any]], out: Path) -> dict[str, Any]:
    """Write the summary, the pictures and the page, and return the summary."""
    found = summary(records)
    write_json(out / SUMMARY_FILE, found)
    deep = {name: record for name, record in records.items() if record["entry"]["kind"] != "convex"}
    pictures: dict[str, str] = {}
    for file, draw in ((FRONTIER_FILE, draw_frontier), (AVERAGING_FILE, draw_averaging)):
        draw(deep or records, out / file)
        pictures[file] = embedded(out / file)
    write_page(
        "battery.html.jinja",
        out / PAGE_FILE,
        summary=found,
        records=records,
        pictures=pictures,
        doubts=doubts_of(records),
    )
    return found


def doubts_of(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The doubts of all races, and the races that another version of their task or of the library made."""
    lines: list[str] = []
    for name, record in records.items():
        lines += [f"{name}: {doubt}" for doubt in record["doubts"]]
        built_in = record["task"]["name"] in built_in_tasks()
        if built_in and record["task"]["source_sha256"] != load_task(record["task"]["name"]).source_sha256:
            lines.append(f"{name}: raced with another version of the task; run it again")
        elif record.get("code_sha256", code_sha256()) != code_sha256():
            lines.append(f"{name}: raced with another version of the library")
    return lines


def print_totals(found: Mapping[str, Any], console: Console) -> None:
    """Print the counts of each contender as a table."""
    table = Table(box=SIMPLE_HEAD, title="against the best schedule tuned for each horizon (95%, Student's t)")
    for name in (
        "contender",
        "tasks",
        "cells",
        "better",
        "tie",
        "worse",
        "not worse",
        "within 1%",
        "loss ratio",
        "steps ratio",
    ):
        table.add_column(name, justify="left" if name in ("contender", "tasks") else "right")
    for total in found["totals"]:
        table.add_row(
            total["contender"],
            total["group"],
            *(str(total[name]) for name in ("cells", "better", "tie", "worse")),
            f"{total['not_worse']:.0%}",
            f"{total['within']:.0%}",
            "" if total["loss_ratio"] is None else f"{total['loss_ratio']:.3f}",
            f"{total['steps_ratio']:.2f}",
        )
    console.print(table)
