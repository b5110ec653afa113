"""Runs a function in a forked child process, such as the workers of a DataLoader are."""

import multiprocessing
from collections.abc import Callable
from typing import Any


def in_a_forked_child(function: Callable[[], Any]) -> Any:
    """Return the result of a function in a forked child, which must exit with 0."""
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    child = context.Process(target=lambda: results.put(function()), daemon=True)
    child.start()
    found = results.get(timeout=60)
    child.join(timeout=60)
    assert child.exitcode == 0
    return found
