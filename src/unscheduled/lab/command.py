"""The subcommand ``race``: from the arguments to the report."""

import argparse
import tempfile
from pathlib import Path

from joblib import cpu_count  # pyright: ignore[reportMissingTypeStubs]
from rich.console import Console

from unscheduled.lab.contenders import CONTENDERS
from unscheduled.lab.plan import make_plan
from unscheduled.lab.race import RACE_FILE, race
from unscheduled.lab.report import PAGE_FILE, PICTURE_FILE, print_table, write_report
from unscheduled.lab.task import RaceError, built_in_tasks, load_task

INTERRUPTED = 130


def run(arguments: argparse.Namespace) -> int:
    """Race, and return the exit code.

    Raises:
        RaceError: if the user asked for something that cannot be.
    """
    console = Console(highlight=False, soft_wrap=True)
    try:
        if arguments.list:
            list_all(console)
            return 0
        loaded = load_task(arguments.task)
        plan = make_plan(
            loaded,
            steps=arguments.steps,
            horizons=arguments.horizons,
            contenders=arguments.contenders,
            seeds=arguments.seeds,
            jobs=cpu_count() if arguments.jobs is None else arguments.jobs,
            out=arguments.out or Path("race") / loaded.name,
        )
        check_writable(plan.out)
        record = race(plan, arguments.tune, console)
        write_report(record, plan.out)
    except OSError as error:
        raise RaceError(f"cannot read or write: {error}") from error
    except KeyboardInterrupt:
        console.print("interrupted: the finished runs are kept, give the same command again to go on")
        return INTERRUPTED
    print_table(record, console)
    console.print(f"written to {plan.out}: {PAGE_FILE}, {PICTURE_FILE}, {RACE_FILE}")
    return 0


def list_all(console: Console) -> None:
    """The tasks and the contenders, a line each."""
    console.print("tasks:")
    for name in built_in_tasks():
        console.print(f"  {name:17}{load_task(name).task.summary}")
    console.print("contenders:")
    for name, contender in CONTENDERS.items():
        console.print(f"  {name:17}{contender.theory}")


def check_writable(folder: Path) -> None:
    """Make the folder if need be, and raise RaceError if it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RaceError(f"cannot write to {folder}: {error.strerror}") from None
