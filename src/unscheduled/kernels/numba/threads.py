"""The threads that share the work of a kernel.

They are those of torch where they are OpenMP's: after a backward pass these are awake and wait for work, and others
would have to wait for them. Elsewhere, and after a fork, when those of the parent are gone, they are Python's.
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
    """Call a C function of one pointer, by their addresses, in this thread and, as far as they are free, in others.

    Each call does what is left to do, so that nothing is left when this one has returned, but for what others have
    begun, which is waited for.
    """
    if count == 1:
        _from_python(function)(argument)
    elif not _Current.forked and (parallel := _openmp()) is not None:
        parallel(function, argument, count, 0)
    else:
        _Current.pool.run(_from_python(function), argument, count)


@cache
def _from_python(function: int) -> Function:
    """A C function, which is called without Python's lock."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)


def torch_library(name: str) -> ctypes.CDLL:
    """A library that torch has loaded.

    Raises:
        OSError: if it is elsewhere.
    """
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"lib{name}.so"))


@cache
def _openmp() -> Any:
    """OpenMP's own function for running another in several threads."""
    try:
        parallel = torch_library("torch_cpu").GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


class Pool:
    """Threads of Python, made when they are first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0

    def run(self, function: Function, argument: int, count: int) -> None:
        """Call a function in this thread and in up to ``count - 1`` others."""
        pool = self._at_least(count - 1)
        others: list[Future[None]] = []
        try:
            others.extend(pool.submit(function, argument) for _ in range(count - 1))
            function(argument)
        finally:
            _wait([other for other in others if not other.cancel()])  # what has not begun by now has nothing to do

    def _at_least(self, size: int) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._size < size:
                self._pool = ThreadPoolExecutor(size, thread_name_prefix="unscheduled")
                self._size = size
            return self._pool


def _wait(others: list[Future[None]]) -> None:
    """Wait to the end, since the memory that they write to is to stay; what interrupts is raised then."""
    try:
        wait(others)
    except BaseException:
        _wait(others)
        raise


class _Current:
    """The threads of this process."""

    forked = False
    pool = Pool()


def _after_fork() -> None:
    _Current.forked, _Current.pool = True, Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
