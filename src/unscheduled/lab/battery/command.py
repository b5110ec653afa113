"""The subcommand ``battery``."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from unscheduled.lab.backends import Backend
from unscheduled.lab.battery.entries import ENTRIES, Entry, entry_of
from unscheduled.lab.battery.report import PAGE_FILE, SUMMARY_FILE, print_totals, write_report
from unscheduled.lab.battery.run import Planned, fitting, prepare, run_battery
from unscheduled.lab.command import backend_of, check_writable, exit_code
from unscheduled.lab.execution import Runner
from unscheduled.lab.forecast import total
from unscheduled.lab.task import RaceError

UNITS = {"s": 1, "m": 60, "h": 3600}


def run(arguments: argparse.Namespace) -> int:
    """Run the battery, and return the exit code.

    Raises:
        RaceError: if an argument is out of its range or unknown, or a run fails.
    """
    return exit_code(race_all, arguments)


def race_all(arguments: argparse.Namespace, console: Console) -> None:
    """Do what the arguments ask for: list the tasks, estimate the time, or race on the chosen tasks."""
    if arguments.list:
        for entry in ENTRIES:
            console.print(f"{entry.name:22}{entry.kind:22}{len(entry.contenders):3} contenders  {entry.counterpart}")
        return
    backend = backend_of(arguments)
    check_writable(arguments.out)
    planned = chosen(arguments, backend, console)
    if arguments.dry_run or not planned:
        return
    try:
        with Runner(backend, console, "battery") as runner:
            run_battery(planned, arguments.races_only, arguments.out, runner)
    finally:  # also after an interruption: a report of the finished races
        if records := records_in(arguments.out):
            print_totals(write_report(records, arguments.out), console)
    console.print(f"written to {arguments.out}: {PAGE_FILE}, {SUMMARY_FILE}, a race for each task, and pictures")


def records_in(out: Path) -> dict[str, dict[str, Any]]:
    """All races in the output folder, also those of earlier commands, in the order of the battery."""
    order = [entry.name for entry in ENTRIES]
    found = {file.stem: json.loads(file.read_text()) for file in sorted(out.glob("*.json"))}
    races = {name: record for name, record in found.items() if "entry" in record}
    return dict(sorted(races.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def chosen(arguments: argparse.Namespace, backend: Backend, console: Console) -> list[Planned]:
    """The tasks that the arguments choose and that fit into the budget; prints an estimate of each."""
    entries: list[Entry] = []
    for name in arguments.tasks:
        entry = entry_of(name)
        if entry is None:
            known = ", ".join(each.name for each in ENTRIES)
            raise RaceError(f"no task {name!r} in the battery: it has {known}, or give the path of a file of your own")
        entries.append(entry)
    planned = prepare(entries or ENTRIES, console, arguments.out, arguments.tune, arguments.races_only, arguments.seeds)
    if arguments.budget is not None:
        kept = fitting(planned, seconds_of(arguments.budget) * backend.jobs)
        left_out = [each.entry.name for each in planned if each not in kept]
        if left_out:
            console.print(f"left out, since they do not fit into {arguments.budget}: {', '.join(left_out)}")
        planned = kept
    for each in planned:
        console.print(f"{each.entry.name:22}{each.forecast.shown(backend.jobs)}")
    console.print(f"{'all':22}{total([each.forecast for each in planned]).shown(backend.jobs)}")
    return planned


def seconds_of(budget: str) -> float:
    """The seconds of a duration such as 90s, 30m or 1.5h.

    Raises:
        RaceError: if the text is no duration above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget)
    if found is None or float(found[1]) == 0.0:
        raise RaceError(f"--budget {budget}: want a duration above 0 such as 90s, 30m or 1.5h")
    return float(found[1]) * UNITS[found[2]]
