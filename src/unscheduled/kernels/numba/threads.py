"""The threads that share the work of a kernel.

They are torch's own threads if torch uses OpenMP: after a backward pass these spin while they wait for work, and other
threads would have to wait for cores. Without OpenMP, and after a fork, which ends the parent's threads in the child,
they are Python's.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import torch

Function = Callable[[int], None]


def run(function: int, argument: int, count: int) -> None:
    """Call the C function at an address with a pointer, in this thread and in up to ``count - 1`` other threads.

    Each call takes work until none is left. This function returns when all calls that have begun have ended.
    """
    if count == 1:
        _from_python(function)(argument)
    elif not _Current.forked and (parallel := _openmp()) is not None:
        parallel(function, argument, count, 0)
    else:
        _Current.pool.run(_from_python(function), argument, count)


@cache
def _from_python(function: int) -> Function:
    """The C function at an address, callable from Python; it runs without Python's lock."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)


def torch_library(name: str) -> ctypes.CDLL:
    """A shared library that torch has loaded.

    Raises:
        OSError: if the library is not in torch's folder.
    """
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"lib{name}.so"))


@cache
def _openmp() -> Any:
    """The function of OpenMP that runs a C function in several threads; None if torch does not have it."""
    try:
        parallel = torch_library("torch_cpu").GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


class Pool:
    """A pool of Python threads, which start when they are first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0

    def run(self, function: Function, argument: int, count: int) -> None:
        """Call a function in this thread and in up to ``count - 1`` other threads."""
        pool = self._at_least(count - 1)
        others: list[Future[None]] = []
        try:
            others.extend(pool.submit(function, argument) for _ in range(count - 1))
            function(argument)
        finally:
            _wait([other for other in others if not other.cancel()])  # a call that has not begun has no work left

    def _at_least(self, size: int) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._size < size:
                self._pool = ThreadPoolExecutor(size, thread_name_prefix="unscheduled")
                self._size = size
            return self._pool


def _wait(others: list[Future[None]]) -> None:
    """Wait until all calls have ended, since they write to memory in use; raise an interruption only then."""
    try:
        wait(others)
    except BaseException:
        _wait(others)
        raise


class _Current:
    """The threads of this process, which a forked child replaces."""

    forked = False
    pool = Pool()


def _after_fork() -> None:
    _Current.forked, _Current.pool = True, Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
