"""A forked child, as the workers of a DataLoader are."""

import multiprocessing
from collections.abc import Callable
from typing import Any


def in_a_forked_child(function: Callable[[], Any]) -> Any:
    """What a function gives there; the child has to end well."""
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    child = context.Process(target=lambda: results.put(function()), daemon=True)
    child.start()
    found = results.get(timeout=60)
    child.join(timeout=60)
    assert child.exitcode == 0
    return found
