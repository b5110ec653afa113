"""The subcommand ``data``, which fetches and lists data sets."""

import argparse
from collections.abc import Sequence

from rich.console import Console

from unscheduled.lab.data.archives import Archive
from unscheduled.lab.data.clients import FetchError
from unscheduled.lab.data.data_sets import DATA_SETS, DataSet
from unscheduled.lab.data.store import arrays_path, fetch, parsed
from unscheduled.lab.task import RaceError, built_in_tasks, load_task

INTERRUPTED = 130


def run(arguments: argparse.Namespace) -> int:
    """Fetch or list data sets, and return the exit code.

    Raises:
        RaceError: if a name is unknown, or a file cannot be read or written.
    """
    console = Console(highlight=False, soft_wrap=True)
    try:
        if arguments.action == "list":
            list_all(console)
            return 0
        return fetch_all(chosen(arguments.names), console)
    except OSError as error:
        raise RaceError(f"cannot read or write: {error}") from error
    except KeyboardInterrupt:
        console.print("interrupted: the fetched files are kept; give the same command again to continue")
        return INTERRUPTED


def chosen(names: Sequence[str]) -> list[DataSet]:
    """The data sets that are named, and those of the tasks that are named; all data sets if there are no names."""
    if not names:
        return list(DATA_SETS.values())
    found: dict[str, DataSet] = {}
    for name in names:
        for data_name in [name] if name in DATA_SETS else data_of_task(name):
            found[data_name] = DATA_SETS[data_name]
    return list(found.values())


def data_of_task(name: str) -> Sequence[str]:
    """The names of the data sets that a task needs."""
    if name not in built_in_tasks() and not name.endswith(".py"):
        raise RaceError(
            f"unknown name {name!r}: the data sets are {', '.join(DATA_SETS)}; the tasks are "
            f"{', '.join(built_in_tasks())}; or give the path of a task file of your own"
        )
    data = load_task(name).task.data
    unknown = [data_name for data_name in data if data_name not in DATA_SETS]
    if unknown:
        raise RaceError(f"{name} has unknown data = {unknown}: the data sets are {', '.join(DATA_SETS)}")
    return data


def fetch_all(data_sets: Sequence[DataSet], console: Console) -> int:
    """Fetch and parse the data sets, also after a failure; return 1 if there was a failure, else 0."""
    failures: dict[Archive, str] = {}
    archives = list(dict.fromkeys(archive for data_set in data_sets for archive in data_set.archives))
    for position, archive in enumerate(archives, start=1):
        had = set(archives[:position]) - failures.keys()
        complete = [each for each in data_sets if archive in each.archives and had.issuperset(each.archives)]
        failure = fetch_one(archive, complete, console)
        if failure is not None:
            failures[archive] = failure
    for data_set in data_sets:
        reasons = [failures[archive] for archive in data_set.archives if archive in failures]
        if reasons:
            console.print(f"{data_set.name}: cannot be fetched: {'; '.join(reasons)}", markup=False)
    return 1 if failures else 0


def fetch_one(archive: Archive, complete: Sequence[DataSet], console: Console) -> str | None:
    """Fetch an archive and parse the data sets that it completes; return the reason if the fetch fails, else None."""
    with console.status(str(archive)) as status:

        def say(doing: str) -> None:
            status.update(f"{archive}: {doing}")

        try:
            fetch(archive, say)
        except FetchError as error:
            return str(error)
        for data_set in complete:
            say(f"parsing {data_set.name}")
            parsed(data_set)
    names = ", ".join(data_set.name for data_set in complete)
    console.print(f"{archive}: fetched and parsed: {names}" if names else f"{archive}: fetched")
    return None


def list_all(console: Console) -> None:
    """Print the data sets, below the archives that contain them."""
    for archives in dict.fromkeys(data_set.archives for data_set in DATA_SETS.values()):
        for archive in archives:
            console.print(f"{archive} ({archive.megabytes}), licence: {archive.licence}", markup=False)
        for data_set in DATA_SETS.values():
            if data_set.archives == archives:
                here = "here" if arrays_path(data_set).is_file() else "not here"
                console.print(f"  {data_set.name:15}{here:10}{data_set.summary}")
