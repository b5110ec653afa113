"""Threads that share the work of a kernel, which lets go of Python's lock while it runs.

Python's own threads rather than those of a threading layer: they may be used from several threads at a time, and
after a fork the child makes new ones.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait


class Threads:
    """The threads of this process, made when they are first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0

    def run(self, work: Callable[[], object], count: int) -> None:
        """Call ``work`` in this thread and in ``count - 1`` others; return when all have returned."""
        others = [self._at_least(count - 1).submit(work) for _ in range(count - 1)] if count > 1 else []
        try:
            work()
        finally:
            wait(others)
        for other in others:
            other.result()

    def _at_least(self, size: int) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._size < size:
                self._pool = ThreadPoolExecutor(size, thread_name_prefix="unscheduled")
                self._size = size
            return self._pool


class _Current:
    threads = Threads()


def run(work: Callable[[], object], count: int) -> None:
    """Call ``work`` in ``count`` threads, this one included."""
    _Current.threads.run(work, count)


def _forget() -> None:
    _Current.threads = Threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
