"""Measures the bytes of state for each parameter, and the additional memory of a step while it runs."""

import argparse
import ctypes
import gc
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import BY_NAME, Contender
from benchmarks.workloads import Gradients, equal_tensors, fresh_parameters

SHAPES = equal_tensors(10, 50_000_000)
WARM_STEPS = 3
ROOT = Path(__file__).parents[1]
RESETS_PEAK = "5"


def memory(contenders: list[Contender], threads: int) -> dict[str, dict[str, Any]]:
    """The bytes of state and the additional memory of a step of each contender, each measured in its own process."""
    return {
        contender.name: in_process(contender.name, threads) for contender in contenders if contender.role != "limit"
    }


def in_process(name: str, threads: int) -> dict[str, Any]:
    """The result of :func:`measure` in a new process, or the error if it failed."""
    command = [sys.executable, "-m", "benchmarks.memory", name, "--threads", str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"failed": (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str) -> dict[str, float | None]:
    """Measure a contender in this process, which has done nothing else."""
    params = fresh_parameters(SHAPES)
    gradients = Gradients(SHAPES)
    optimizer = BY_NAME[name].make(params)
    for step in range(WARM_STEPS):
        gradients.compute(optimizer, params, step)
        optimizer.step()
    gradients.compute(optimizer, params, WARM_STEPS)
    _release_memory()
    extra = _extra_of_step(optimizer)
    numbers, size = sum(map(Tensor.numel, params)), sum(param.nbytes for param in params)
    storages = {storage.data_ptr(): storage.nbytes() for storage in _storages(list(optimizer.state.values()))}
    return {
        "state_bytes_per_parameter": round(sum(storages.values()) / numbers, 4),
        "extra_share_of_parameters": None if extra is None else round(extra / size, 5),
    }


def _release_memory() -> None:
    """Return freed memory to the system, since a step could use it again unnoticed."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _extra_of_step(optimizer: torch.optim.Optimizer) -> int | None:
    """The bytes by which the process's peak memory during a step exceeds its memory before; None if not on Linux."""
    try:
        Path("/proc/self/clear_refs").write_text(RESETS_PEAK)
    except OSError:
        return None
    before = _status("VmRSS")
    optimizer.step()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the memory of all tensors in a state, also of those inside other objects."""
    if type(value) in (Tensor, torch.nn.Parameter):
        yield value.untyped_storage()
    elif isinstance(value, dict):
        for each in value.values():
            yield from _storages(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _storages(each)
    elif hasattr(value, "__dict__"):
        yield from _storages(vars(value))


def main() -> None:
    """Measure one contender and print the result as JSON, for :func:`in_process`."""
    parser = argparse.ArgumentParser(description="Measure the memory of one contender.")
    parser.add_argument("name", choices=BY_NAME)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(measure(arguments.name)))


if __name__ == "__main__":
    main()
