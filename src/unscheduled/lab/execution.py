"""Runs side by side, each kept on disk as soon as it is done and never done twice."""

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
from unscheduled.lab.run import RunSettings, train
from unscheduled.lab.task import LoadedTask, RaceError, describe_error, load_task

SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class Job:
    """A training run of a task that is wanted.

    Args:
        loaded: the task.
        settings: the run.
        seconds_per_step: what a step takes, or about; the time left is estimated with it.
    """

    loaded: LoadedTask
    settings: RunSettings
    seconds_per_step: float = 1.0

    @functools.cached_property
    def file(self) -> Path:
        """Where its result is kept: the name has a checksum of all that the result depends on."""
        settings = self.settings
        everything = json.dumps({"settings": asdict(settings), **identity(self.loaded)}, sort_keys=True)
        digest = hashlib.sha256(everything.encode()).hexdigest()[:12]
        name = f"{settings.contender}-{settings.horizon}-lr{settings.lr:g}-seed{settings.seed}-{digest}.json"
        return runs_folder() / self.loaded.name / name

    @property
    def progress_file(self) -> Path:
        """Where the run writes how many steps it has done while it lasts."""
        return self.file.with_suffix(".progress")


def runs_folder() -> Path:
    """The folder of all finished runs, which every race of this user shares."""
    return cache_folder() / "runs"


@functools.cache
def identity(loaded: LoadedTask) -> dict[str, Any]:
    """What all runs of a task depend on: its source, its data, the library's code and the versions."""
    return {**sources(loaded), "facts": dict(loaded.task.facts())}


def sources(loaded: LoadedTask) -> dict[str, Any]:
    """What all runs of a task depend on, but for its data."""
    return {"task": loaded.source_sha256, "versions": versions(), "code": code_sha256()}


class Runner:
    """Runs jobs side by side and shows the progress of all that is to come.

    Args:
        backend: what runs them, and how many at once.
        console: where the progress is shown.
        title: what is running.
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
        """These jobs are asked for later: the time left counts them."""
        for job in jobs:
            if read_result(job.file) is None:
                self._watch.expect(job.progress_file, job.settings.horizon, job.seconds_per_step)

    def expect_later(self, seconds: float) -> None:
        """So much work comes beside the jobs that are expected; it replaces what was said before."""
        self._watch.later = seconds

    def run(self, jobs: Sequence[Job], phase: str) -> list[dict[str, Any]]:
        """The results in the order of ``jobs``. Those on disk are read, the others are run, the longest first."""
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
    """The result of a finished run, or None if there is none or its file was cut short."""
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
    """In a worker: train on one thread, keep the result on disk and return its file and the result."""
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
            with suppress(OSError):  # a full disk is found out where a result is to be kept
                progress_file.write_text(str(step))

    try:
        result = train(loaded.task, settings, report)
    except Exception as error:
        told = describe_error(error, loaded.path, loaded.task)
        raise RaceError(f"{loaded.name}: the run {file.stem} failed: {told}") from error
    finally:
        progress_file.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result)
    return file, json.loads(json.dumps(result))  # as it is read from disk


@functools.cache
def end_with(race_process: int) -> None:
    """In a worker, once: end within a second of the race that started it, should that be killed."""

    def watch() -> None:
        while os.getppid() == race_process:
            time.sleep(1.0)
        os._exit(1)

    if race_process != os.getpid():
        threading.Thread(target=watch, daemon=True).start()


def write_json(file: Path, value: object, lines: bool = True) -> None:
    """Write all of it or nothing: a file that is there is complete. Without ``lines`` it is one line, and small."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    form: dict[str, Any] = {"indent": 1} if lines else {"separators": (",", ":")}
    unfinished.write_text(json.dumps(value, allow_nan=False, **form) + "\n")
    unfinished.replace(file)
