"""How long a call takes, whether it had to wait for a core, and what many such times say."""

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
"""To be woken takes as long; another process that is in the way takes some milliseconds."""
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
    """One call: its seconds, and those for which its threads waited for a core that another process had, in all."""

    seconds: float
    waited: float

    @property
    def calm(self) -> bool:
        """Whether it hardly had to wait."""
        return self.waited <= TOLERATED_SECONDS + TOLERATED_SHARE * self.seconds


class Spread(NamedTuple):
    """Quartiles, of how many values, how many were dropped, and whether there was too little to choose from."""

    median: float
    low: float
    high: float
    used: int
    dropped: int
    disturbed: bool

    def record(self) -> dict[str, float | bool]:
        """It as JSON, to 4 digits."""
        return {
            name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in self._asdict().items()
        }


def can_tell_waiting() -> bool:
    """Whether this system tells how long threads have waited: Linux, with its scheduler's statistics."""
    return bool(_threads())


def timed(call: Callable[[], object]) -> Timing:
    """Call it once, while nothing is collected.

    Threads also wait for each other, as for PyTorch's own, which go on spinning after a backward pass. That is a cost
    of the call, not a disturbance: what counts is the waiting while the cores were not all used by this process.
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
    """The seconds that each thread of the process has waited for a core, and that it has used one."""
    threads: dict[int, tuple[float, float]] = {}
    for task in _TASKS.iterdir() if _TASKS.exists() else ():
        with suppress(OSError):  # it has ended, or there are no statistics
            waited = int((task / "schedstat").read_text().split()[1]) * 1e-9
            thread = int(task.name)
            threads[thread] = waited, time.clock_gettime(~thread << 3 | _SCHEDULED_TIME_OF_THREAD)
    return threads


def times(timings: Sequence[Timing]) -> Spread:
    """The seconds of the calm calls."""
    return _spread([(timing.seconds, timing.waited / timing.seconds, timing.calm) for timing in timings])


def ratios(of: Sequence[Timing], to: Sequence[Timing]) -> Spread:
    """The one divided by the other, round by round, over the rounds in which both were calm."""
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
    """Of (value, waiting, calm)."""
    chosen = [value for value, _, calm in values if calm]
    disturbed = len(chosen) < min(FEWEST, len(values))
    if disturbed:
        chosen = [value for value, _, _ in sorted(values, key=lambda entry: entry[1])[:FEWEST]]
    low, median, high = statistics.quantiles(chosen, n=4, method="inclusive") if len(chosen) > 1 else chosen * 3
    return Spread(median, low, high, len(chosen), len(values) - len(chosen), disturbed)
