"""The subcommand ``race``."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from unscheduled.lab.backends import Backend, all_cores
from unscheduled.lab.contenders import CONTENDERS
from unscheduled.lab.execution import Runner
from unscheduled.lab.forecast import forecast, with_trial
from unscheduled.lab.plan import make_plan
from unscheduled.lab.race import RACE_FILE, race
from unscheduled.lab.report import PAGE_FILE, PICTURE_FILE, write_report
from unscheduled.lab.task import RaceError, built_in_tasks, load_task
from unscheduled.lab.terminal import print_race
from unscheduled.lab.tuning import TunedRates, read_rates

INTERRUPTED = 130
WIDTH_OF_FILES = 10_000
"""The width of the output in characters where it goes to a file: no line is broken."""


def run(arguments: argparse.Namespace) -> int:
    """Race, and return the exit code.

    Raises:
        RaceError: if an argument is out of its range or unknown, or a run fails.
    """
    return exit_code(run_race, arguments)


def exit_code(work: Callable[[argparse.Namespace, Console], None], arguments: argparse.Namespace) -> int:
    """Call ``work`` with the arguments and a console, and return the exit code.

    Raises:
        RaceError: if ``work`` raises it, or a file cannot be read or written.
    """
    console = make_console()
    try:
        work(arguments, console)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RaceError(f"cannot read or write: {error}") from error
    except KeyboardInterrupt:
        console.print("interrupted: the finished runs are kept; give the same command again to continue")
        return INTERRUPTED
    return 0


def run_race(arguments: argparse.Namespace, console: Console) -> None:
    """Do what the arguments ask for: list the tasks, estimate the time of a race, or race."""
    if arguments.list:
        list_all(console)
        return
    loaded = load_task(arguments.task)
    plan = make_plan(
        loaded,
        steps=arguments.steps,
        horizons=arguments.horizons,
        contenders=arguments.contenders,
        seeds=arguments.seeds,
        rates=dict(arguments.rates or []),
    )
    backend = backend_of(arguments)
    out = arguments.out or Path("race") / loaded.name
    tune_first = arguments.tune or bool(arguments.rates)
    if arguments.dry_run:
        plan = with_trial(plan)
        tuned = TunedRates({}, []) if tune_first else read_rates(plan, out)
        console.print(f"{loaded.name}: {forecast(plan, tuned).shown(backend.jobs)}")
        return
    check_writable(out)
    with Runner(backend, console, loaded.name) as runner:
        record = race(plan, tune_first, out, runner, console)
    write_report(record, out)
    print_race(record, console)
    console.print(f"written to {out}: {PAGE_FILE}, {PICTURE_FILE}, {RACE_FILE}")


def backend_of(arguments: argparse.Namespace) -> Backend:
    """The backend that the arguments choose, with one run for each core by default."""
    return Backend(arguments.backend, all_cores() if arguments.jobs is None else arguments.jobs)


def make_console() -> Console:
    """A console for the terminal, or for a file, with lines wide enough for whole tables."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=WIDTH_OF_FILES)


def list_all(console: Console) -> None:
    """Print the tasks and the contenders, a line each."""
    console.print("tasks:")
    for name in built_in_tasks():
        console.print(f"  {name:19}{load_task(name).task.summary}")
    console.print("contenders, and the optimizer whose settings of the task they take:")
    for name, contender in CONTENDERS.items():
        console.print(f"  {name:19}{contender.settings_of:19}{contender.theory}")


def check_writable(folder: Path) -> None:
    """Make the folder if it is missing; raise RaceError if it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RaceError(f"cannot write to {folder}: {error.strerror}") from None
