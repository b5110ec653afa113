"""The data sets in the cache: fetches, checks, parses and loads them.

The archives stay in the cache too, so that a new parser needs no download. A file gets its name when it is complete,
and is made under a lock, so that several processes can use the cache at once.
"""

import hashlib
import inspect
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from unscheduled.lab.cache import cache_folder
from unscheduled.lab.data.archives import Archive
from unscheduled.lab.data.arrays import Arrays, read_arrays, write_arrays
from unscheduled.lab.data.clients import FetchError, download
from unscheduled.lab.data.contents import read_files
from unscheduled.lab.data.data_sets import DATA_SETS, DataSet
from unscheduled.lab.task import RaceError

ATTEMPTS = 2


class DataMissing(RaceError):  # noqa: N818
    """A data set is not in the cache."""


def load(name: str) -> Arrays:
    """The arrays of a data set, by name.

    They are read from the cache, or parsed again from the archives in the cache if the parser has changed or the file
    of arrays is damaged. Nothing is downloaded.

    Raises:
        DataMissing: if the data set was not fetched.
        RaceError: if there is no such data set.
    """
    if name not in DATA_SETS:
        raise RaceError(f"unknown data set {name!r}: the data sets are {', '.join(DATA_SETS)}")
    data_set = DATA_SETS[name]
    arrays = read_arrays(arrays_path(data_set))
    return parsed(data_set) if arrays is None else arrays


def arrays_path(data_set: DataSet) -> Path:
    """The file of the arrays, whose name changes with the archives and with the source of the parser."""
    source = Path(inspect.getfile(data_set.parse)).read_bytes()
    checksums = "".join(archive.sha256 for archive in data_set.archives)
    version = hashlib.sha256(checksums.encode() + source).hexdigest()[:12]
    return cache_folder() / "data" / f"{data_set.name}-{version}.npz"


def archive_path(archive: Archive) -> Path:
    """The file of an archive in the cache."""
    return cache_folder() / "data" / "archives" / archive.file


def parsed(data_set: DataSet) -> Arrays:
    """The arrays of a data set, read from the cache or else parsed from its archives there.

    Raises:
        DataMissing: if an archive is missing or damaged.
    """
    path, name = arrays_path(data_set), data_set.name
    if not all(is_intact(archive_path(archive), archive) for archive in data_set.archives):
        raise DataMissing(f"data set {name} is not in the cache: run 'unscheduled data fetch {name}'")
    with locked(path):
        arrays = read_arrays(path)
        if arrays is None:
            files: dict[str, bytes] = {}
            for archive in data_set.archives:
                files |= read_files(archive_path(archive), data_set.files)
            arrays = data_set.parse(files)
            write_arrays(path, arrays)
    return arrays


def fetch(archive: Archive, say: Callable[[str], None]) -> None:
    """Download an archive into the cache unless it is there; a damaged file is deleted and downloaded again.

    Args:
        archive: the archive.
        say: called with a word for each thing that is being done, to show the progress.

    Raises:
        FetchError: if the download fails, or gives the wrong file twice.
    """
    path = archive_path(archive)
    with locked(path):
        say("checking")
        if is_intact(path, archive):
            return
        path.unlink(missing_ok=True)
        for _ in range(ATTEMPTS):
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                say(f"fetching {archive.megabytes}")
                download(archive, Path(folder))
                say("checking")
                if is_intact(Path(folder, archive.file), archive):
                    os.replace(Path(folder, archive.file), path)
                    return
    raise FetchError(f"{archive}: fetched {ATTEMPTS} times, but the SHA-256 of {archive.file} is not {archive.sha256}")


def is_intact(path: Path, archive: Archive) -> bool:
    """Whether the file exists and has the SHA-256 of the archive."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == archive.sha256


def locked(path: Path) -> FileLock:
    """The lock of a file, for a ``with`` block that makes it; makes the file's folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock")
