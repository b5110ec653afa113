"""Prints the results as tables."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import FUSED, SCHEDULEFREE

Record = Mapping[str, Any]
MARKS = {True: "[green]yes[/]", False: "[red]no[/]"}


def print_report(record: Record, console: Console) -> None:
    """Print a table for each part that was measured, and the table of targets."""
    for part in ("workloads", "parameters", "tensors"):
        for family in ("AdamW", "SGD"):
            races = [race for race in record["races"] if (race["part"], race["family"]) == (part, family)]
            if races:
                console.print(race_table(races, f"{family}: {part}"))
    for title, rows in (
        ("memory", memory_rows(record)),
        ("switching", switching_rows(record)),
        ("start", start_rows(record)),
    ):
        if len(rows) > 1:
            console.print(plain_table(title, *rows))
    console.print(target_table(record))
    for name, reason in record["unavailable"].items():
        console.print(f"left out: {name}: {reason}", markup=False)
    console.print(f"Rounds: {record['rounds_rule']}. Marked with *: too few calm rounds.", markup=False)


def race_table(races: list[Record], title: str) -> Table:
    """A table with a line for each contender in each race: times, and ratios with quartiles."""
    table = Table(box=SIMPLE_HEAD, title=title)
    table.add_column("workload", no_wrap=True)
    table.add_column("contender")
    for name in ("ms", "÷ torch fused", "÷ schedulefree", "rounds kept"):
        table.add_column(name, justify="right", no_wrap=name == "ms")
    table.add_column("same work")
    for race in races:
        ratios = {(ratio["of"], ratio["to"]): ratio for ratio in race["ratios"]}
        family = race["family"]
        for index, (name, result) in enumerate(race["contenders"].items()):
            seconds = result["seconds"]
            deviation = "" if result["deviation"] is None else f" ({result['deviation']:.0e})"
            table.add_row(
                race["workload"] if index == 0 else "",
                name,
                f"{1000.0 * seconds['median']:.4g}",
                spread(ratios.get((name, FUSED[family]))),
                spread(ratios.get((name, SCHEDULEFREE[family]))) if result["role"] == "ours" else "",
                f"{seconds['used']} of {race['rounds']}",
                MARKS[result["same_work"]] + deviation,
            )
        table.add_section()
    return table


def spread(of: Record | None) -> str:
    """The median and, in parentheses, the quartiles as text; "" if there is no ratio."""
    if of is None:
        return ""
    return f"{of['median']:.3f}{'*' if of['disturbed'] else ''} [dim]({of['low']:.3f}, {of['high']:.3f})[/]"


def plain_table(title: str, header: tuple[str, ...], *rows: tuple[str, ...]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(box=SIMPLE_HEAD, title=title)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table


def memory_rows(record: Record) -> list[tuple[str, ...]]:
    """The rows of the state and the additional memory of each contender, or of its error."""
    rows = [("contender", "state, bytes a parameter", "extra in a step, share of parameters")]
    for name, result in record.get("memory", {}).items():
        if "failed" in result:
            rows.append((name, "failed", result["failed"]))
        else:
            extra = result["extra_share_of_parameters"]
            rows.append(
                (name, f"{result['state_bytes_per_parameter']:.3f}", "unknown" if extra is None else f"{extra:.2%}")
            )
    return rows


def switching_rows(record: Record) -> list[tuple[str, ...]]:
    """The rows of the times of the switches and of plain copies, and their ratios."""
    rows = [("switch", "ms", "÷ plain")]
    if found := record.get("switching"):
        compared = {"eval": spread(found["eval_to_copy"]), "train": spread(found["train_to_copy_back"])}
        rows += [
            (name, f"{1000.0 * seconds['median']:.4g}", compared.get(name, ""))
            for name, seconds in found["seconds"].items()
        ]
    return rows


def start_rows(record: Record) -> list[tuple[str, ...]]:
    """The rows of the times of the import and of the first steps."""
    rows = [("beginning", "ms")]
    found = record.get("start", {})
    rows += [(f"failed: {name}", reason) for name, reason in found.get("failed", {}).items()]
    if "import" in found:
        numba = "imports Numba" if found["imports_numba"] else "without Numba"
        rows.append((f"import unscheduled after torch, {numba}", f"{1000.0 * found['import']['median']:.4g}"))
        for name, steps in found["first_step"].items():
            rows += [
                (f"first step of {name}{', ' * bool(kind)}{kind}", f"{1000.0 * seconds['median']:.4g}")
                for kind, seconds in steps.items()
            ]
    return rows


def target_table(record: Record) -> Table:
    """The table of the targets: bound, measured value, and whether the target holds."""
    table = Table(box=SIMPLE_HEAD, title="targets")
    table.add_column("target")
    table.add_column("bound", justify="right")
    table.add_column("measured", justify="right")
    table.add_column("holds")
    for target in record["targets"]:
        if target["measured"] is not None:
            measured = f"{target['measured']:.4g}{'*' if target['disturbed'] else ''}"
            table.add_row(target["what"], target["bound"], measured, MARKS[target["holds"]])
    missing = sum(target["measured"] is None for target in record["targets"])
    table.caption = f"{missing} more were not measured" if missing else None
    return table
