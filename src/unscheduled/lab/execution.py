"""Runs side by side, each kept on disk as soon as it is done and never done twice."""
# joblib has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

import functools
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError
from rich.console import Console

from unscheduled.lab.progress import Watch
from unscheduled.lab.provenance import code_sha256, versions
from unscheduled.lab.run import RunSettings, train
from unscheduled.lab.task import LoadedTask, RaceError, describe_error, load_task

SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class Run:
    """One training run and the file that keeps its result."""

    reference: str
    settings: RunSettings
    file: Path

    @property
    def progress_file(self) -> Path:
        """Where the run writes how many steps it has done while it lasts."""
        return self.file.with_suffix(".progress")


def plan_run(loaded: LoadedTask, settings: RunSettings, shared: Mapping[str, Any], out: Path) -> Run:
    """The run, kept in a file whose name has a checksum of its settings and of what all runs of the race share."""
    everything = json.dumps({"settings": asdict(settings), **shared}, sort_keys=True)
    digest = hashlib.sha256(everything.encode()).hexdigest()[:12]
    name = f"{settings.contender}-{settings.horizon}-lr{settings.lr:g}-seed{settings.seed}-{digest}.json"
    return Run(loaded.reference, settings, out / "runs" / name)


def run_all(
    loaded: LoadedTask, settings: Sequence[RunSettings], out: Path, jobs: int, console: Console, title: str
) -> list[dict[str, Any]]:
    """The results in the order of ``settings``. Those on disk are read, the others are run, the longest first."""
    shared = {
        "task": loaded.source_sha256,
        "facts": dict(loaded.task.facts()),
        "versions": versions(),
        "code": code_sha256(),
    }
    runs = [plan_run(loaded, each, shared, out) for each in settings]
    results = {run.file: result for run in runs if (result := read_result(run.file)) is not None}
    missing = [run for run in runs if run.file not in results]
    if results:
        console.print(f"{title}: {len(results)} of {len(runs)} runs are done already and are not run again")
    if missing:
        missing.sort(key=lambda run: -run.settings.horizon)
        (out / "runs").mkdir(parents=True, exist_ok=True)
        for leftover in (out / "runs").glob("*.progress"):
            leftover.unlink(missing_ok=True)
        with Watch(console, title, {run.progress_file: run.settings.horizon for run in missing}) as watch:
            parallel = Parallel(n_jobs=min(jobs, len(missing)), return_as="generator_unordered")
            with interrupts_ignored():  # by the workers that start here, for good: Ctrl-C is the race's to answer
                finished = parallel(delayed(execute)(run, loaded.source_sha256, os.getpid()) for run in missing)
            try:
                for run, result in cast("Iterable[tuple[Run, dict[str, Any]]]", finished):
                    results[run.file] = result
                    watch.finished(run.progress_file)
            except TerminatedWorkerError as error:
                raise RaceError("a worker was killed, perhaps for want of memory: try fewer --jobs") from error
    return [results[run.file] for run in runs]


@contextmanager
def interrupts_ignored() -> Generator[None, None, None]:
    """Ctrl-C does nothing in this process for now, nor ever in those that it starts meanwhile."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def read_result(file: Path) -> dict[str, Any] | None:
    """The result of a finished run, or None if there is none or its file was cut short."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None


def execute(run: Run, source_sha256: str, race_process: int) -> tuple[Run, dict[str, Any]]:
    """In a worker: train on one thread, keep the result on disk and return it."""
    end_with(race_process)
    torch.set_num_threads(1)
    loaded = load_task(run.reference)
    if loaded.source_sha256 != source_sha256:
        raise RaceError(f"{loaded.path.name} was changed during the race: start it again")
    last_report = time.monotonic()

    def report(step: int) -> None:
        nonlocal last_report
        if time.monotonic() - last_report > SECONDS_BETWEEN_REPORTS:
            last_report = time.monotonic()
            with suppress(OSError):  # a full disk is found out where a result is to be kept
                run.progress_file.write_text(str(step))

    try:
        result = train(loaded.task, run.settings, report)
    except Exception as error:
        raise RaceError(
            f"{loaded.name}: the run {run.file.stem} failed: {describe_error(error, loaded.path)}"
        ) from error
    write_json(run.file, result)
    run.progress_file.unlink(missing_ok=True)
    return run, result


@functools.cache
def end_with(race_process: int) -> None:
    """In a worker, once: end within a second of the race that started it, should that be killed."""

    def watch() -> None:
        while os.getppid() == race_process:
            time.sleep(1.0)
        os._exit(1)

    if race_process != os.getpid():
        threading.Thread(target=watch, daemon=True).start()


def write_json(file: Path, value: object) -> None:
    """Write all of it or nothing: a file that is there is complete."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    unfinished.replace(file)
