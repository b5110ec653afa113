"""How far the runs of a race are, shown while they run."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

REFRESH_SECONDS = 0.5
SECONDS_BETWEEN_LINES = 20.0
EARLIEST_ESTIMATE = 0.02
"""The share of the steps after which the time left is told: before, it is mostly that of starting."""


class Watch:
    """Shows steps done, runs done, the current runs and the time left: a bar in a terminal, else a line now and then.

    Args:
        console: where.
        title: what is running.
        steps: for each run still to be done, the file it writes its progress to and its number of steps.
    """

    def __init__(self, console: Console, title: str, steps: Mapping[Path, int]) -> None:
        self._console = console
        self._title = title
        self._steps = dict(steps)
        self._total = sum(self._steps.values())
        self._finished: set[Path] = set()
        self._started = self._last_line = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._all = self._progress.add_task(title, total=self._total, state="starting")
        self._current: dict[Path, TaskID] = {}

    def __enter__(self) -> "Watch":
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        self._show()
        self._progress.stop()

    def finished(self, progress_file: Path) -> None:
        """A run is done."""
        self._finished.add(progress_file)

    def _watch(self) -> None:
        while not self._closing.wait(REFRESH_SECONDS):
            self._show()

    def _show(self) -> None:
        finished = frozenset(self._finished)  # the other thread adds to it
        running = {file: done for file in self._steps.keys() - finished if (done := steps_done(file))}
        done = sum(running.values()) + sum(self._steps[file] for file in finished)
        state = f"{len(finished)}/{len(self._steps)} runs, {done:,} of {self._total:,} steps"
        if done > EARLIEST_ESTIMATE * self._total:
            seconds = round((time.monotonic() - self._started) * (self._total / done - 1))
            state += f", {seconds // 60}:{seconds % 60:02} left"
        self._progress.update(self._all, completed=done, state=state)
        self._show_current(running)
        self._progress.refresh()
        if not self._console.is_terminal and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._console.print(f"{self._title}: {state}")

    def _show_current(self, running: Mapping[Path, int]) -> None:
        for file in self._current.keys() - running.keys():
            self._progress.remove_task(self._current.pop(file))
        for file, done in running.items():
            if file not in self._current:
                name = file.stem.rpartition("-")[0]
                self._current[file] = self._progress.add_task(name, total=self._steps[file], state="")
            self._progress.update(self._current[file], completed=done, state=f"{done:,} of {self._steps[file]:,}")


def steps_done(progress_file: Path) -> int:
    """The steps a run has done; 0 if it has not started or is writing just now."""
    try:
        return int(progress_file.read_text())
    except (OSError, ValueError):
        return 0
