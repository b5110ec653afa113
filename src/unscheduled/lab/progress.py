"""Shows the progress of the runs of a race."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

REFRESH_SECONDS = 0.5
SECONDS_BETWEEN_LINES = 20.0
EARLIEST_ESTIMATE = 0.02
"""The share of the work after which the time left is shown: until then the start of the processes dominates it."""


@dataclass(frozen=True)
class Expected:
    """The steps of an announced run, and the approximate seconds of a step."""

    steps: int
    seconds_per_step: float


class Watch:
    """Shows the runs done, the current runs and the time left: as bars in a terminal, else as a line every 20 seconds.

    Args:
        console: shows the progress.
        title: the name of the work.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self.later = 0.0
        """The seconds of work that are announced without their runs."""
        self._expected: dict[Path, Expected] = {}
        self._finished: set[Path] = set()
        self._lock = threading.Lock()
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
        self._all = self._progress.add_task(title, total=None, state="starting")
        self._current: dict[Path, TaskID] = {}

    def start(self) -> None:
        """Begin to show the progress, from a thread."""
        self._progress.start()
        self._thread.start()

    def stop(self) -> None:
        """Show the progress a last time, and end the thread."""
        self._closing.set()
        self._thread.join()
        self._show()
        self._progress.stop()

    def expect(self, progress_file: Path, steps: int, seconds_per_step: float) -> None:
        """Announce a run, which writes the number of its steps to this file."""
        with self._lock:
            self._expected[progress_file] = Expected(steps, seconds_per_step)

    def phase(self, name: str) -> None:
        """Show the name of the phase to which the next runs belong."""
        self._progress.update(self._all, description=f"{self._title}, {name}")

    def finished(self, progress_file: Path) -> None:
        """Note that a run is done."""
        with self._lock:
            self._finished.add(progress_file)

    def _watch(self) -> None:
        while not self._closing.wait(REFRESH_SECONDS):
            self._show()

    def _show(self) -> None:
        with self._lock:
            expected, finished = dict(self._expected), set(self._finished)
        running = {file: done for file in expected.keys() - finished if (done := steps_done(file))}
        total = self.later + sum(each.steps * each.seconds_per_step for each in expected.values())
        done = sum(expected[file].steps * expected[file].seconds_per_step for file in finished)
        done += sum(steps * expected[file].seconds_per_step for file, steps in running.items())
        state = f"{len(finished):,} of {len(expected):,} runs"
        if total and done > EARLIEST_ESTIMATE * total:
            state += f", {duration((time.monotonic() - self._started) * (total / done - 1))} left"
        self._progress.update(self._all, completed=done, total=total or None, state=state)
        self._show_current(running, expected)
        self._progress.refresh()
        if not self._console.is_terminal and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._console.print(f"{self._title}: {state}")

    def _show_current(self, running: dict[Path, int], expected: dict[Path, Expected]) -> None:
        for file in self._current.keys() - running.keys():
            self._progress.remove_task(self._current.pop(file))
        for file, done in running.items():
            if file not in self._current:
                name = f"{file.parent.name} {file.stem.rpartition('-')[0]}"
                self._current[file] = self._progress.add_task(name, total=expected[file].steps, state="")
            self._progress.update(self._current[file], completed=done, state=f"{done:,} of {expected[file].steps:,}")


def duration(seconds: float) -> str:
    """The seconds as text: minutes and seconds, or hours and minutes, such as 2:05 or 1 h 20 min."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60}:{whole % 60:02}"


def steps_done(progress_file: Path) -> int:
    """The steps that a run has made; 0 if its file is missing or being written."""
    try:
        return int(progress_file.read_text())
    except (OSError, ValueError):
        return 0
