"""The subcommand ``race``: from the arguments to the report."""

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
"""Where there is no terminal a line is as long as it has to be."""


def run(arguments: argparse.Namespace) -> int:
    """Race, and return the exit code.

    Raises:
        RaceError: if the user asked for something that cannot be.
    """
    return exit_code(run_race, arguments)


def exit_code(work: Callable[[argparse.Namespace, Console], None], arguments: argparse.Namespace) -> int:
    """Call it with the arguments and a console, and return the exit code.

    Raises:
        RaceError: if it does, or if a file cannot be read or written.
    """
    console = make_console()
    try:
        work(arguments, console)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RaceError(f"cannot read or write: {error}") from error
    except KeyboardInterrupt:
        console.print("interrupted: the finished runs are kept, give the same command again to go on")
        return INTERRUPTED
    return 0


def run_race(arguments: argparse.Namespace, console: Console) -> None:
    """List, or estimate, or race."""
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
    """What executes the runs: by default on all cores."""
    return Backend(arguments.backend, all_cores() if arguments.jobs is None else arguments.jobs)


def make_console() -> Console:
    """For the terminal, or wide enough for whole tables if the output is none."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=WIDTH_OF_FILES)


def list_all(console: Console) -> None:
    """The tasks and the contenders, a line each."""
    console.print("tasks:")
    for name in built_in_tasks():
        console.print(f"  {name:19}{load_task(name).task.summary}")
    console.print("contenders, and the optimizer whose settings of the task they take:")
    for name, contender in CONTENDERS.items():
        console.print(f"  {name:19}{contender.settings_of:19}{contender.theory}")


def check_writable(folder: Path) -> None:
    """Make the folder if need be, and raise RaceError if it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RaceError(f"cannot write to {folder}: {error.strerror}") from None
