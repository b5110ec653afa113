"""The benchmarks, run by ``make bench``: they measure side by side, and write every number to step.json."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.alone import alone
from benchmarks.contenders import Contender, available
from benchmarks.figure import draw
from benchmarks.memory import memory
from benchmarks.report import print_report
from benchmarks.start import start
from benchmarks.switching import switching
from benchmarks.targets import TARGETS, TEN_SMALL
from benchmarks.timing import RULE, can_tell_waiting
from benchmarks.workloads import Workload, equal_tensors, gpt2_small, resnet50
from unscheduled.lab.provenance import code_sha256, machine, versions

PEERS = ("schedulefree AdamW", "pytorch_optimizer AdamW")
ADAMW = (
    *("unscheduled AdamW fused", "unscheduled AdamW foreach", "unscheduled AdamW compact"),
    *("torch AdamW fused", "torch AdamW foreach", *PEERS),
)
SGD = ("unscheduled SGD fused", "torch SGD fused", "schedulefree SGD")
MAIN = ("unscheduled AdamW fused", "unscheduled AdamW compact", "torch AdamW fused", "schedulefree AdamW")
SCALED = ("unscheduled AdamW fused", "torch AdamW fused", "torch AdamW foreach", "schedulefree AdamW")
FUSED = ("unscheduled AdamW fused", "torch AdamW fused")
COMPILED = ("unscheduled AdamW compiled", "heavyball AdamW")  # compile for minutes if there are many shapes
ON_BIG_ALONE = (*COMPILED, "stream (Numba)", "stream (torch)")

WORKLOADS = (
    Workload("big", equal_tensors(10, 50_000_000), (*ADAMW, *SGD, *ON_BIG_ALONE)),
    Workload("resnet", resnet50(), (*ADAMW, *SGD)),
    Workload("transformer", gpt2_small(), MAIN),
    Workload("small", equal_tensors(400, 400 * 64), (*ADAMW, *SGD)),
    *(
        Workload(name, equal_tensors(10, parameters), (*ADAMW, *SGD))
        for name, parameters in zip(TEN_SMALL, (100_000, 300_000, 1_000_000, 3_000_000), strict=True)
    ),
)
LARGE = 20_000_000
PARAMETERS = tuple(
    Workload(f"{parameters:,} parameters", equal_tensors(10, parameters), SCALED if parameters <= LARGE else FUSED)
    for power in range(4, 9)
    for parameters in (10**power, 2 * 10**power, 5 * 10**power)
    if parameters <= 200_000_000
)
TENSORS = tuple(
    Workload(f"{tensors:,} tensor{'s' * (tensors > 1)}", equal_tensors(tensors, 64 * tensors), SCALED)
    for tensors in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
)
WIDTH_OF_FILE = 140
PARTS = ("parameters", "tensors", "memory", "switching", "start")
LIBRARIES = ("numpy", "numba", "triton", "schedulefree", "pytorch_optimizer", "heavyball")

Shown = Callable[[int, int], None]


def main() -> None:
    """Measure the parts that the arguments choose, write step.json after each part, and print the tables."""
    names = [*(workload.name.replace(" ", "-") for workload in WORKLOADS), *PARTS]
    parser = argparse.ArgumentParser(description="Measure the optimizers side by side.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(names)}, or beginnings")
    parser.add_argument("--rounds", type=int, default=30, help="calm rounds wanted; 5 times as many if small")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    chosen = [name for name in names if not arguments.only or name.startswith(tuple(arguments.only))]
    if not chosen or arguments.rounds < 1 or arguments.threads < 1:
        parser.error(f"--only takes {', '.join(names)}, or beginnings of them; --rounds and --threads are at least 1")
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_FILE)
    contenders, unavailable = available()
    record: dict[str, Any] = {
        "machine": machine() | {"threads": arguments.threads},
        "versions": versions() | library_versions(),
        "code_sha256": code_sha256(),
        "rounds_wanted": arguments.rounds,
        "rounds_rule": RULE if can_tell_waiting() else "all are kept: this system does not show how long threads wait",
        "unavailable": unavailable,
        "races": [],
    }
    with bar(console) as track:
        for found in measured(chosen, contenders, arguments.rounds, arguments.threads, track):
            record |= found | {"races": record["races"] + found.get("races", [])}
            record["targets"] = [target.record(record) for target in TARGETS]
            (arguments.out / "step.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print_report(record, console)
    draw(record, arguments.out / "step.png")


def measured(
    chosen: list[str], contenders: list[Contender], rounds: int, threads: int, track: Callable[[str], Shown]
) -> Iterator[dict[str, Any]]:
    """Yield the results of each part for the record; each race runs in its own process."""
    parts = {
        "workloads": [workload for workload in WORKLOADS if workload.name.replace(" ", "-") in chosen],
        "parameters": PARAMETERS if "parameters" in chosen else (),
        "tensors": TENSORS if "tensors" in chosen else (),
    }
    for part, workloads in parts.items():
        for workload in workloads:
            for family in dict.fromkeys(each.family for each in contenders if each.name in workload.contenders):
                if found := alone(workload, family, rounds, threads, track(f"{workload.name}, {family}")):
                    yield {"races": [{"part": part, **found}]}
    names = [contender.name for contender in contenders]
    if "memory" in chosen:
        track("memory")(0, 1)
        yield {"memory": memory(contenders, threads)}
    if "switching" in chosen:
        yield {"switching": switching(contenders, rounds, track("switching"))}
    if "start" in chosen:
        yield {"start": start(names, threads, track("start"))}


@contextmanager
def bar(console: Console) -> Iterator[Callable[[str], Shown]]:
    """Show the progress of the present race as a bar in a terminal, else print a line for each race."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)

        def track(title: str) -> Shown:
            if not console.is_terminal:
                console.print(title, markup=False)
            progress.update(task, description=title)
            return show

        def show(done: int, most: int) -> None:
            progress.update(task, completed=max(0, done), total=most)

        yield track


def library_versions() -> dict[str, str]:
    """The versions of the installed libraries among ``LIBRARIES``."""
    installed = {each.name: each.version for each in distributions()}
    return {name: installed[name] for name in LIBRARIES if name in installed}


if __name__ == "__main__":
    main()
