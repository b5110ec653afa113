"""Measures, in new processes, the time of the import of the library and of the first step of an optimizer."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Timing, timed, times

ROOT = Path(__file__).parents[1]
REPEATS = 5
COMPILED = ("unscheduled AdamW fused", "unscheduled AdamW compact")
STARTED = (*COMPILED, "unscheduled AdamW foreach", "torch AdamW fused", "schedulefree AdamW")


def start(names: list[str], threads: int, shown: Callable[[int, int], None]) -> dict[str, Any]:
    """The times of the import of ``unscheduled`` after ``torch``, and of the first step of each optimizer.

    Numba caches compiled code in a directory that is empty at first, so that the first time includes compilation.
    """
    chosen = [name for name in STARTED if name in names]
    imports: list[dict[str, Any]] = []
    first: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for done, name in enumerate(chosen):
        shown(done, len(chosen))
        try:
            with tempfile.TemporaryDirectory() as kept:
                nothing, *others = [_in_process(name, threads, kept) for _ in range(1 + REPEATS)]
        except subprocess.CalledProcessError as error:
            failed[name] = (error.stderr.splitlines() or [f"exit code {error.returncode}"])[-1][:200]
            continue
        imports += others
        first[name] = {"": _spread(others, "first_step")}
        if name in COMPILED:
            first[name] = {
                "nothing compiled before": _spread([nothing], "first_step"),
                "compiled code on the disk": _spread(others, "first_step"),
            }
    if not imports:
        return {"failed": failed}
    return {
        "failed": failed,
        "import": _spread(imports, "import"),
        "imports_numba": any(each["imports_numba"] for each in imports),
        "first_step": first,
    }


def _spread(results: list[dict[str, Any]], name: str) -> dict[str, float | bool]:
    return times([Timing(*result[name]) for result in results]).record()


def _in_process(name: str, threads: int, kept: str) -> dict[str, Any]:
    environment = os.environ | {"NUMBA_CACHE_DIR": kept, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.start", name, "--threads", str(threads)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str) -> dict[str, Any]:
    """Measure a contender in this process, which has imported only ``torch``."""
    imported = timed(lambda: importlib.import_module("unscheduled"))
    imports_numba = "numba" in sys.modules
    from benchmarks.contenders import BY_NAME
    from benchmarks.workloads import Gradients, equal_tensors, fresh_parameters

    shapes = equal_tensors(10, 10_000)
    params = fresh_parameters(shapes)
    optimizer = BY_NAME[name].make(params)
    Gradients(shapes).compute(optimizer, params, 0)
    return {"import": imported, "imports_numba": imports_numba, "first_step": timed(optimizer.step)}


def main() -> None:
    """Measure one contender and print the result as JSON, for :func:`start`."""
    parser = argparse.ArgumentParser(description="Measure the first step of one contender.")
    parser.add_argument("name", choices=STARTED)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(measure(arguments.name)))


if __name__ == "__main__":
    main()
