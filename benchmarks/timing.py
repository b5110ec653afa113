"""Times calls, finds out how long they waited for a core, and computes quartiles of many times."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TOLERATED_SHARE = 0.03
TOLERATED_SECONDS = 100e-6
"""Waking a thread takes about this long; another process on the core takes some milliseconds."""
FEWEST = 5
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_TASKS = Path("/proc/self/task")
_SCHEDULED_TIME_OF_THREAD = 6  # the clocks of Linux: clock_getcpuclockid(3), for a thread

RULE = (
    "dropped if the threads waited for a core that another process had, for more than "
    f"{TOLERATED_SECONDS * 1e6:.0f} µs and {TOLERATED_SHARE:.0%} of the time; "
    f"with fewer than {FEWEST} left, the {FEWEST} with the least waiting are taken"
)


class Timing(NamedTuple):
    """The seconds of a call, and the sum of the seconds that its threads waited for a core used by another process."""

    seconds: float
    waited: float

    @property
    def calm(self) -> bool:
        """Whether the threads waited so little that the time is valid."""
        return self.waited <= TOLERATED_SECONDS + TOLERATED_SHARE * self.seconds


class Spread(NamedTuple):
    """Quartiles, the numbers of used and dropped values, and whether there were too few calm values."""

    median: float
    low: float
    high: float
    used: int
    dropped: int
    disturbed: bool

    def record(self) -> dict[str, float | bool]:
        """The fields as a dictionary, to 4 digits."""
        return {
            name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in self._asdict().items()
        }


def can_tell_waiting() -> bool:
    """Whether this system reports how long threads waited, as Linux does with statistics of the scheduler."""
    return bool(_threads())


def timed(call: Callable[[], object]) -> Timing:
    """Time one call, without garbage collection.

    Threads of this process also wait for each other, for example for PyTorch's threads, which spin after a backward
    pass. That is a cost of the call, not a disturbance: only waiting while this process did not use all cores counts.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        opened, before = time.perf_counter(), _threads()
        started = time.perf_counter()
        call()
        seconds = time.perf_counter() - started
        closed, after = time.perf_counter(), _threads()
    finally:
        if collects:
            gc.enable()
    new = (0.0, 0.0)
    waited, used = (sum(now[i] - before.get(thread, new)[i] for thread, now in after.items()) for i in (0, 1))
    return Timing(seconds, min(waited, max(0.0, CORES * (closed - opened) - used)))


def _threads() -> dict[int, tuple[float, float]]:
    """The seconds that each thread of this process has waited for a core, and that it has used a core."""
    threads: dict[int, tuple[float, float]] = {}
    for task in _TASKS.iterdir() if _TASKS.exists() else ():
        with suppress(OSError):  # the thread has ended, or there are no statistics
            waited = int((task / "schedstat").read_text().split()[1]) * 1e-9
            thread = int(task.name)
            threads[thread] = waited, time.clock_gettime(~thread << 3 | _SCHEDULED_TIME_OF_THREAD)
    return threads


def times(timings: Sequence[Timing]) -> Spread:
    """The quartiles of the seconds of the calm calls."""
    return _spread([(timing.seconds, timing.waited / timing.seconds, timing.calm) for timing in timings])


def ratios(of: Sequence[Timing], to: Sequence[Timing]) -> Spread:
    """The quartiles of the ratio of two times of one round, over the rounds in which both were calm."""
    return _spread(
        [
            (
                one.seconds / other.seconds,
                one.waited / one.seconds + other.waited / other.seconds,
                one.calm & other.calm,
            )
            for one, other in zip(of, to, strict=True)
        ]
    )


def _spread(values: Sequence[tuple[float, float, bool]]) -> Spread:
    """The quartiles of the calm values, given as (value, waiting, calm)."""
    chosen = [value for value, _, calm in values if calm]
    disturbed = len(chosen) < min(FEWEST, len(values))
    if disturbed:
        chosen = [value for value, _, _ in sorted(values, key=lambda entry: entry[1])[:FEWEST]]
    low, median, high = statistics.quantiles(chosen, n=4, method="inclusive") if len(chosen) > 1 else chosen * 3
    return Spread(median, low, high, len(chosen), len(values) - len(chosen), disturbed)
