"""Runs a race in its own process, so that the memory of earlier races does not affect its times."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.contenders import Family, available
from benchmarks.race import race
from benchmarks.workloads import Workload


def alone(
    workload: Workload, family: Family, rounds: int, threads: int, shown: Callable[[int, int], None]
) -> dict[str, Any] | None:
    """Run :func:`benchmarks.race.race` in a new process with ``threads`` threads, and return its record.

    Raises:
        RuntimeError: if the process ends without a result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_raced, args=(sender, workload, family, rounds, threads), daemon=True)
    process.start()
    sender.close()
    with receiver:
        try:
            while isinstance(received := receiver.recv(), tuple):
                shown(*received)
        except EOFError:
            process.join()
            raise RuntimeError(f"{workload.name}, {family}: the race ended with exit code {process.exitcode}") from None
    process.join()
    return received


def _raced(sender: Connection, workload: Workload, family: Family, rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    contenders, _ = available()
    sender.send(race(workload, family, contenders, rounds, lambda *done: sender.send(done)))
