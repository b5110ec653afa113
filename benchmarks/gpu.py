"""Times of a step on a GPU, side by side: ``python -m benchmarks.gpu`` writes docs/benchmarks/gpu.json.

Each contender makes the same steps in turn, round after round. Before each step the cache of the device is overwritten,
as a backward pass does, and the gradients are there already. A step is timed by events on the device, with all that the
host does for it in between, so a step that waits for the host is as long as the host takes. The rate of the memory is
that of copying a large tensor; the GB/s of a step are the bytes of the tensors that it reads and writes, each once.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.contenders import ADAMW, Contender, available
from benchmarks.run import WORKLOADS, library_versions
from benchmarks.workloads import Shape, Workload, equal_tensors
from unscheduled import AdamWScheduleFree
from unscheduled.lab.execution import write_json
from unscheduled.lab.provenance import code_sha256, machine, versions

CACHE = 1 << 28  # bytes: more than the cache of any device
WARMUP = 3
BILLION = Workload("1e9", equal_tensors(10, 10**9), ())
STREAMS = {"fused": 28, "compact": 18}
"""The bytes that a step moves for each parameter: y, the gap and v are read and written, and g is read."""

GOALS = {
    "fused float32 ÷ torch fused": 1.05,
    "compact ÷ torch fused": 0.7,
    "foreach ÷ fused": 3.5,
    "share of the streaming rate": 0.85,
}

Make = Callable[[list[Tensor]], torch.optim.Optimizer]


def contenders(names: list[str]) -> dict[str, Make]:
    """The optimizers to time, by name; those of other libraries if these are installed."""

    def ours(**options: Any) -> Make:
        return lambda params: AdamWScheduleFree(params, **ADAMW, **options)

    found: dict[str, Make] = {
        "unscheduled fused": ours(implementation="fused"),
        "unscheduled fused compact": ours(implementation="fused", state_precision="compact"),
        "unscheduled foreach": ours(implementation="foreach"),
        "unscheduled compiled": ours(implementation="compiled"),
        "torch fused": lambda params: torch.optim.AdamW(params, **ADAMW, fused=True),
    }
    peers: list[Contender] = [each for each in available()[0] if each.role == "peer" and each.family == "AdamW"]
    found |= {each.name: each.make for each in peers}
    return {name: make for name, make in found.items() if not names or name.startswith(tuple(names))}


def parameters(shapes: tuple[Shape, ...], device: torch.device) -> list[Tensor]:
    """Parameters with gradients."""
    params = [torch.randn(shape, device=device).requires_grad_() for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def seconds_of(call: Callable[[], object]) -> float:
    """The seconds between two events on the device, one before and one after a call."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def streaming_rate(device: torch.device, rounds: int) -> float:
    """The bytes a second that copying a large tensor reads and writes."""
    source = torch.zeros(CACHE, device=device)
    target = torch.empty_like(source)
    times = [seconds_of(lambda: target.copy_(source)) for _ in range(WARMUP + rounds)][WARMUP:]
    return 2 * source.nbytes / statistics.median(times)


def race(workload: Workload, makes: dict[str, Make], device: torch.device, rounds: int) -> dict[str, Any]:
    """The times of a step of each contender, which has the device's memory for itself."""
    cache = torch.empty(CACHE, dtype=torch.uint8, device=device)
    times: dict[str, list[float]] = {}
    problems: dict[str, str] = {}
    for name, make in makes.items():
        params: list[Tensor] = []
        try:
            params = parameters(workload.shapes, device)
            optimizer = make(params)
            for _ in range(WARMUP):
                optimizer.step()
            times[name] = []
            for _ in range(rounds):
                cache.zero_()
                times[name].append(seconds_of(optimizer.step))
        except Exception as error:  # out of memory, or a compiler that fails: the others are measured all the same
            times.pop(name, None)
            problems[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        optimizer = None
        params.clear()
        torch.cuda.empty_cache()
    return {
        "workload": workload.name,
        "tensors": len(workload.shapes),
        "parameters": workload.parameters,
        "seconds": {name: statistics.median(each) for name, each in times.items()},
        "all_seconds": times,
        "problems": problems,
    }


def goals(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured of the goals, on each workload."""
    found: list[dict[str, Any]] = []
    for each in record["races"]:
        seconds, rate = each["seconds"], record["streaming_rate"]
        fused, base = seconds.get("unscheduled fused"), seconds.get("torch fused")
        compact, foreach = seconds.get("unscheduled fused compact"), seconds.get("unscheduled foreach")
        moved = STREAMS["fused"] * each["parameters"]
        measured = (
            fused / base if fused and base else None,
            compact / base if compact and base else None,
            foreach / fused if foreach and fused else None,
            moved / fused / rate if fused else None,
        )
        found += [
            {"workload": each["workload"], "goal": name, "wanted": wanted, "measured": value}
            for (name, wanted), value in zip(GOALS.items(), measured, strict=True)
        ]
    return found


def print_races(record: dict[str, Any], console: Console) -> None:
    """Print the medians, and the rates of memory."""
    table = Table(title=f"a step on {record['device']}; copying moves {record['streaming_rate'] / 1e9:,.0f} GB/s")
    for column in ("workload", "contender", "milliseconds", "÷ torch fused", "GB/s"):
        table.add_column(column)
    for each in record["races"]:
        base = each["seconds"].get("torch fused")
        for name, seconds in each["seconds"].items():
            kind = "compact" if "compact" in name else "fused" if name.endswith("fused") else ""
            rate = f"{STREAMS[kind] * each['parameters'] / seconds / 1e9:,.0f}" if kind else ""
            ratio = f"{seconds / base:.2f}" if base else ""
            table.add_row(each["workload"], name, f"{seconds * 1e3:.3f}", ratio, rate)
        for name, problem in each["problems"].items():
            table.add_row(each["workload"], name, problem, "", "")
    console.print(table)


def main() -> None:
    """Measure all workloads, write gpu.json after each, and print a table."""
    workloads = {each.name: each for each in (*WORKLOADS, BILLION)}
    parser = argparse.ArgumentParser(description="Time steps on a GPU side by side.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(workloads)}")
    parser.add_argument("--contenders", nargs="+", default=[], metavar="NAME", help="beginnings of names; all if none")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.only if name not in workloads]:
        parser.error(f"no workload {unknown[0]!r}: the workloads are {', '.join(workloads)}")
    if not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use")
    device, console, makes = torch.device("cuda"), Console(), contenders(arguments.contenders)
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device),
        "machine": machine(),
        "versions": versions() | library_versions(),
        "code_sha256": code_sha256(),
        "rounds": arguments.rounds,
        "streaming_rate": streaming_rate(device, arguments.rounds),
        "races": [],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or workloads:
        console.print(name)
        record["races"].append(race(workloads[name], makes, device, arguments.rounds))
        record["goals"] = goals(record)
        write_json(arguments.out / "gpu.json", record)
    print_races(record, console)


if __name__ == "__main__":
    main()
