"""Executes runs side by side; each result is kept on disk when the run ends, and no run is made twice."""

import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console

from unscheduled.lab.backends import Backend
from unscheduled.lab.cache import cache_folder
from unscheduled.lab.progress import Watch
from unscheduled.lab.provenance import code_sha256, versions
from unscheduled.lab.run import RunSettings, known_contenders, train
from unscheduled.lab.task import LoadedTask, RaceError, describe_error, load_task

SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class Job:
    """A training run of a task, to be made unless its result is on disk.

    Args:
        loaded: the task.
        settings: the settings of the run.
        seconds_per_step: the approximate time of a step, for the estimate of the time left.
    """

    loaded: LoadedTask
    settings: RunSettings
    seconds_per_step: float = 1.0

    @functools.cached_property
    def file(self) -> Path:
        """The file of its result; the file's name has a checksum of everything that the result depends on."""
        settings = self.settings
        everything = {"settings": asdict(settings), **identity(self.loaded)}
        if library := known_contenders(self.loaded.task)[settings.contender].library_version:
            everything["library"] = library
        digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:12]
        name = f"{settings.contender}-{settings.horizon}-lr{settings.lr:g}-seed{settings.seed}-{digest}.json"
        return runs_folder() / self.loaded.name / name

    @property
    def progress_file(self) -> Path:
        """The file to which the run writes how many steps it has made, until it ends."""
        return self.file.with_suffix(".progress")


def runs_folder() -> Path:
    """The folder of all finished runs, which all races of this user share."""
    return cache_folder() / "runs"


@functools.cache
def identity(loaded: LoadedTask) -> dict[str, Any]:
    """Everything that all runs of a task depend on: its source, its data, the library's code and the versions."""
    return {**sources(loaded), "facts": dict(loaded.task.facts())}


def sources(loaded: LoadedTask) -> dict[str, Any]:
    """The checksums of the task and of the library's code, and the versions: ``identity`` without the data."""
    return {"task": loaded.source_sha256, "versions": versions(), "code": code_sha256()}


class Runner:
    """Runs jobs side by side and shows the progress of these jobs and of those that are announced.

    Args:
        backend: executes the jobs.
        console: shows the progress.
        title: the name of the work, shown with the progress.
    """

    def __init__(self, backend: Backend, console: Console, title: str) -> None:
        self._backend = backend
        self._console = console
        self._watch = Watch(console, title)
        self._open = ExitStack()

    def __enter__(self) -> "Runner":
        self._open.enter_context(self._backend.started())
        self._watch.start()
        self._open.callback(self._watch.stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def expect(self, jobs: Iterable[Job]) -> None:
        """Announce jobs that ``run`` will get: the estimate of the time left includes them."""
        for job in jobs:
            if read_result(job.file) is None:
                self._watch.expect(job.progress_file, job.settings.horizon, job.seconds_per_step)

    def expect_later(self, seconds: float) -> None:
        """Announce seconds of work beside the announced jobs, in place of the seconds that were announced before."""
        self._watch.later = seconds

    def run(self, jobs: Sequence[Job], phase: str) -> list[dict[str, Any]]:
        """Return the results of the jobs in their order: read from disk, or else run, the longest first."""
        results = {job.file: result for job in jobs if (result := read_result(job.file)) is not None}
        missing = {job.file: job for job in jobs if job.file not in results}
        if results:
            self._console.print(f"{phase}: {len(results)} of {len(results) + len(missing)} runs are done already")
        self.expect(missing.values())
        self._watch.phase(phase)
        for job in missing.values():
            job.file.parent.mkdir(parents=True, exist_ok=True)
            job.progress_file.unlink(missing_ok=True)
        longest_first = sorted(missing.values(), key=lambda job: -job.settings.horizon * job.seconds_per_step)
        race_process = os.getpid() if self._backend.local else None
        calls = [
            (job.loaded.reference, sources(job.loaded), job.settings, job.file, job.progress_file, race_process)
            for job in longest_first
        ]
        for file, result in self._backend.run(execute, calls):
            results[file] = result
            if read_result(file) is None:  # the worker has another disk
                write_json(file, result)
            self._watch.finished(missing[file].progress_file)
        return [results[job.file] for job in jobs]


def read_result(file: Path) -> dict[str, Any] | None:
    """The result of a finished run; None if its file is missing or incomplete."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None


def execute(
    reference: str,
    wanted: dict[str, Any],
    settings: RunSettings,
    file: Path,
    progress_file: Path,
    race_process: int | None,
) -> tuple[Path, dict[str, Any]]:
    """Train on one thread in a worker, keep the result on disk, and return its file and the result."""
    if race_process is not None:
        end_with(race_process)
    torch.set_num_threads(1)
    loaded = load_task(reference)
    found = sources(loaded)
    if found["task"] != wanted["task"]:
        raise RaceError(f"{loaded.path.name} was changed during the race: start it again")
    if found != wanted:
        raise RaceError("a worker has another version of the library, of torch or of Python: start the race again")
    last_report = time.monotonic()

    def report(step: int) -> None:
        nonlocal last_report
        if time.monotonic() - last_report > SECONDS_BETWEEN_REPORTS:
            last_report = time.monotonic()
            with suppress(OSError):  # a full disk raises its error where the result is written
                progress_file.write_text(str(step))

    try:
        result = train(loaded.task, settings, report)
    except Exception as error:
        reason = describe_error(error, loaded.path, loaded.task)
        raise RaceError(f"{loaded.name}: the run {file.stem} failed: {reason}") from error
    finally:
        progress_file.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result)
    return file, json.loads(json.dumps(result))  # the same types as when it is read from disk


@functools.cache
def end_with(race_process: int) -> None:
    """End this worker process within a second of the end of the race's process, also if that is killed."""

    def watch() -> None:
        while os.getppid() == race_process:
            time.sleep(1.0)
        os._exit(1)

    if race_process != os.getpid():
        threading.Thread(target=watch, daemon=True).start()


def write_json(file: Path, value: object, lines: bool = True) -> None:
    """Write a value as JSON, completely or not at all; without ``lines`` as one line, which takes less space."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    form: dict[str, Any] = {"indent": 1} if lines else {"separators": (",", ":")}
    unfinished.write_text(json.dumps(value, allow_nan=False, **form) + "\n")
    unfinished.replace(file)
