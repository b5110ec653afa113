"""The pictures of the battery, with a panel for each task."""
# matplotlib leaves the types of its keyword arguments open:
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from unscheduled.lab.battery.summary import ADAMW_SCHEDULES, runs_of
from unscheduled.lab.comparison import mean_curve

COLUMNS = 4
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
STYLES = {
    "schedule-free": (BLUE, "-", "Schedule-Free AdamW, one run"),
    "schedule-free-r1": (SKY, "-", "Schedule-Free AdamW with β 0.8, r 1, decay at z"),
    "polyak-ruppert": (ORANGE, "-", "Polyak-Ruppert averaging (β = 0)"),
    "primal": (GREEN, "-", "primal averaging (β = 1)"),
}
MARKERS = {"cosine": "s", "linear": "^", "step": "v", "wsd": "D"}
TALL = 3.0
"""The highest value of a panel is this many times the highest value at the ends of the scheduled runs."""

Record = Mapping[str, Any]


def draw_frontier(records: Mapping[str, Record], file: Path) -> None:
    """Draw one schedule-free run against the ends of the scheduled runs of every length."""

    def panel(axes: Axes, record: Record) -> None:
        for name in ("schedule-free", "schedule-free-r1"):
            draw_curve(axes, record, name)
        for name, marker in MARKERS.items():
            ends = [(result["horizon"], result["mean"]) for result in finished(record, name)]
            if ends:
                label = f"AdamW + {name}, a run for each length"
                axes.plot(*zip(*ends, strict=True), linestyle="none", marker=marker, color="#444444", label=label)
        frontier = [
            (horizon, min(ends))
            for horizon in record["horizons"]
            if (
                ends := [
                    result["mean"]
                    for name in ADAMW_SCHEDULES
                    for result in finished(record, name)
                    if result["horizon"] == horizon
                ]
            )
        ]
        if frontier:
            axes.plot(*zip(*frontier, strict=True), linestyle="--", color="#444444", linewidth=1.0)

    draw_panels(records, panel, file)


def draw_averaging(records: Mapping[str, Record], file: Path) -> None:
    """Draw Polyak–Ruppert averaging, primal averaging and Schedule-Free learning, each at its tuned learning rate."""

    def panel(axes: Axes, record: Record) -> None:
        for name in ("polyak-ruppert", "primal", "schedule-free"):
            draw_curve(axes, record, name)

    draw_panels(records, panel, file)


def draw_panels(records: Mapping[str, Record], panel: Callable[[Axes, Record], None], file: Path) -> None:
    """Draw a panel for each task in a grid, with one legend below."""
    columns = min(COLUMNS, math.ceil(math.sqrt(len(records))))
    rows = math.ceil(len(records) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows + 0.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid: list[Axes] = [axes for row in cast(Any, figure.subplots(rows, columns, squeeze=False)) for axes in row]
    labels: dict[str, Any] = {}
    for axes, (name, record) in zip(grid, records.items(), strict=False):
        panel(axes, record)
        finish(axes, name, record)
        handles, texts = axes.get_legend_handles_labels()
        labels |= dict(zip(texts, handles, strict=True))
    for axes in grid[len(records) :]:
        axes.set_visible(False)
    figure.legend(
        labels.values(),
        labels.keys(),
        loc="outside lower center",
        ncols=min(3, columns),
        frameon=False,
        fontsize="small",
    )
    figure.savefig(file)


def draw_curve(axes: Axes, record: Record, name: str) -> None:
    """Draw the mean over the seeds of a contender with one run for all horizons, if it raced."""
    if name not in record["contenders"]:
        return
    colour, line, label = STYLES[name]
    curve = mean_curve(runs_of(record, name, record["horizons"][-1]))
    if curve:
        axes.plot(*zip(*curve, strict=True), color=colour, linestyle=line, linewidth=1.8, label=label)


def finished(record: Record, name: str) -> list[Record]:
    """The results of a contender at the horizons where it did not diverge."""
    return [result for result in record["results"] if result["contender"] == name and result["mean"] is not None]


def finish(axes: Axes, name: str, record: Record) -> None:
    """Set the axes, ticks and title of a panel."""
    first = record["horizons"][0]
    axes.set_xscale("log")
    axes.set_xticks(record["horizons"])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(first / 2, record["horizons"][-1] * 1.15)
    shown = values_shown(axes, first / 2)
    if shown:
        low, high = min(shown), max(shown)
        high = min(high, TALL * max(ends)) if (ends := end_values(record)) else high
        margin = 0.06 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
    axes.set_title(f"{name} ({record['entry']['kind']})", loc="left", fontsize="small")
    axes.set_ylabel(record["task"]["metric"], fontsize="x-small")
    axes.tick_params(labelsize="x-small")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def values_shown(axes: Axes, start: float) -> list[float]:
    """All values in a panel from this step on."""
    return [
        float(y)
        for line in axes.get_lines()
        for x, y in zip(as_floats(line.get_xdata()), as_floats(line.get_ydata()), strict=True)
        if x >= start
    ]


def as_floats(data: Any) -> Sequence[float]:
    return [float(value) for value in data]


def end_values(record: Record) -> list[float]:
    """The means of the AdamW schedules at all horizons."""
    return [result["mean"] for name in ADAMW_SCHEDULES for result in finished(record, name)]
