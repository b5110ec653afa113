"""Plant faults in the source, one at a time, and see whether the fast tests find them.

    python -m benchmarks.faults [--products] [--jobs N] [--only PLACE ...] [--out FILE]

Each fault of `fault_list.py` is put into a clone of the last commit, whose tests run until one fails: those of the
fault's own room first. With `--products` they run with all combinations of their parameters. The record names the test
that found each fault; what is found is kept if the command is stopped and started again.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
from rich.console import Console
from rich.progress import Progress

from benchmarks.fault_list import FAULTS, Fault

ROOT = Path(__file__).parent.parent
ROOMS = ("formulas", "algorithms", "optimizer", "state", "kernels", "model", "checkpoints", "project", "lab")


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant faults and see whether the fast tests find them.")
    parser.add_argument("--products", action="store_true", help="run the tests with all combinations of parameters")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time (default: 1)")
    parser.add_argument("--only", type=int, nargs="*", help="places in the list, from 0 (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/faults.json", help="the record")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore what tests send
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    named = {name_of(fault): fault for fault in FAULTS}
    wanted = [name for place, name in enumerate(named) if args.only is None or place in args.only]
    waiting = [name for name in wanted if name not in record]
    jobs = (joblib.delayed(found_by)(name, named[name], args.products) for name in waiting)
    results: Iterator[Any] = joblib.Parallel(n_jobs=args.jobs, return_as="generator_unordered")(jobs)
    with Progress(console=Console(stderr=True)) as progress:
        for name, test in progress.track(results, total=len(waiting), description="faults"):
            progress.console.print(f"{name}: {test or 'NOT FOUND'}")
            record[name] = test
            args.out.write_text(json.dumps({name: record[name] for name in named if name in record}, indent=1) + "\n")
    missed = [name for name in wanted if record[name] is None]
    print(f"{len(wanted) - len(missed)} of {len(wanted)} faults are found")
    return bool(missed)


def name_of(fault: Fault) -> str:
    return f"{fault.file}: {' '.join(fault.right.split())} -> {' '.join(fault.wrong.split())}"


def found_by(name: str, fault: Fault, products: bool) -> tuple[str, str | None]:
    """The name of a fault, and the first test that fails with it."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = ["-c", "advice.detachedHead=false", "clone", "--quiet", "--shared"]
        subprocess.run(["git", *quiet, ROOT, folder], check=True)
        file = Path(folder) / "src/unscheduled" / fault.file
        text = file.read_text()
        if text.count(fault.right) != 1:
            raise SystemExit(f"{name}: this stands {text.count(fault.right)} times in the file: mend the list")
        file.write_text(text.replace(fault.right, fault.wrong))
        room = fault.file.split("/")[0]
        others = [f"tests/{other}" for other in ROOMS if other != room]
        options = ["--products"] * products
        found = first_failure(Path(folder), [*options, f"tests/{room}"])
        found = found or first_failure(Path(folder), [*options, *others, "src"])
        file.write_text(text)
        if found and first_failure(Path(folder), [*options, found]):
            raise SystemExit(f"{found} fails without {name}, too: mend it first")
        return name, found


def first_failure(folder: Path, arguments: list[str]) -> str | None:
    """The first test that fails in a copy of the project; None if all pass."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return None
    # the name of a test, which a file that cannot be imported is not
    failed = re.search(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if failed is None:
        raise SystemExit(f"the tests did not run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return failed[1]


if __name__ == "__main__":
    sys.exit(main())
