"""A race in a process of its own: what earlier races leave behind in memory is not in the times of later ones."""

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
    """The race of the contenders of a family, see :func:`benchmarks.race.race`, with so many threads.

    Raises:
        RuntimeError: if its process ends without a result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_raced, args=(sender, workload, family, rounds, threads), daemon=True)
    process.start()
    sender.close()
    with receiver:
        try:
            while isinstance(told := receiver.recv(), tuple):
                shown(*told)
        except EOFError:
            process.join()
            raise RuntimeError(f"{workload.name}, {family}: the race ended with exit code {process.exitcode}") from None
    process.join()
    return told


def _raced(sender: Connection, workload: Workload, family: Family, rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    contenders, _ = available()
    sender.send(race(workload, family, contenders, rounds, lambda *done: sender.send(done)))
