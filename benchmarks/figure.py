"""The picture of ratios to PyTorch's fused optimizers, and of times against the numbers of parameters and tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from benchmarks.contenders import CONTENDERS, FUSED

Record = Mapping[str, Any]

# The palette of Okabe and Ito, which colour-blind people can distinguish, and more; each contender has its own marker.
COLOURS = (
    *("#0072B2", "#56B4E9", "#999999", "#009E73", "#D55E00", "#E69F00", "#CC79A7"),
    *("#882255", "#F0E442", "#000000", "#555555"),
)
MARKERS = "o^vDPXshp*<>d"
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
STYLES = {
    contender.name: {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
    for family in ("AdamW", "SGD")
    for index, contender in enumerate(each for each in CONTENDERS if each.family == family)
}


def draw(record: Record, file: Path) -> None:
    """Write the picture to a PNG file, with the panels for which there are numbers."""
    races = record["races"]
    panels = [
        (part, family, chosen)
        for part, family in (
            ("workloads", "AdamW"),
            ("workloads", "SGD"),
            ("parameters", "AdamW"),
            ("tensors", "AdamW"),
        )
        if (chosen := [race for race in races if (race["part"], race["family"]) == (part, family)])
    ]
    if not panels:
        return
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(8.0 * columns, 5.5 * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (part, family, chosen) in zip(grid, panels, strict=False):
        if part == "workloads":
            draw_ratios(axes, family, chosen)
        else:
            draw_times(axes, part, chosen)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid):
        axes.set_visible(False)
    machine = record["machine"]
    figure.suptitle(
        f"Time of a step on {machine['processor']}, {machine['threads']} threads; PyTorch {record['versions']['torch']}"
    )
    figure.savefig(file)


def draw_ratios(axes: Axes, family: str, races: list[Record]) -> None:
    """Draw a row for each workload, with a marker and quartiles for each contender."""
    names = list(dict.fromkeys(name for race in races for name in race["contenders"] if name != FUSED[family]))
    for position, name in enumerate(names):
        offset = 0.6 * ((position + 0.5) / len(names) - 0.5)
        found = [
            (row + offset, ratio)
            for row, race in enumerate(races)
            for ratio in race["ratios"]
            if (ratio["of"], ratio["to"]) == (name, FUSED[family])
        ]
        medians = [ratio["median"] for _, ratio in found]
        errors = [[r["median"] - r["low"] for _, r in found], [r["high"] - r["median"] for _, r in found]]
        axes.errorbar(
            medians, [row for row, _ in found], xerr=errors, linestyle="none", markersize=6, label=name, **STYLES[name]
        )
    axes.axvline(1.0, color="#333333", linewidth=1.2)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(races)), [workload_label(race) for race in races])
    axes.set_ylim(len(races) - 0.5, -0.5)
    for row in range(1, len(races)):
        axes.axhline(row - 0.5, color="#DDDDDD", linewidth=0.8)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(f"time of a step ÷ that of {FUSED[family]} (logarithmic; bars: quartiles)")
    axes.set_title(f"{family}: left of the line is faster", loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize="small", frameon=False)


def workload_label(race: Record) -> str:
    """The label of a workload: its name and its size."""
    parameters = race["parameters"]
    size = f"{parameters / 1e6:.3g} M" if parameters >= 1_000_000 else f"{parameters:,}"
    return f"{race['workload']}\n{size} in {race['tensors']:,} tensors"


def draw_times(axes: Axes, against: str, races: list[Record]) -> None:
    """Draw a line for each contender, with logarithmic axes."""
    for name in dict.fromkeys(name for race in races for name in race["contenders"]):
        found = [(race[against], race["contenders"][name]["seconds"]) for race in races if name in race["contenders"]]
        numbers = [number for number, _ in found]
        axes.plot(numbers, [1000.0 * of["median"] for _, of in found], label=name, markersize=5, **STYLES[name])
        quartiles = [[1000.0 * of[end] for _, of in found] for end in ("low", "high")]
        axes.fill_between(numbers, *quartiles, color=STYLES[name]["color"], alpha=0.2, linewidth=0.0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.set_xlabel("parameters, in 10 tensors" if against == "parameters" else "tensors of 64 parameters")
    axes.set_ylabel("ms a step (bands: quartiles)")
    axes.set_title(f"Time against the number of {against}", loc="left")
    axes.legend(fontsize="small", frameon=False)
