"""The picture of a race: the metric against steps, and the first contender minus the others at each horizon."""
# matplotlib leaves the types of its keyword arguments open:
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from unscheduled.lab.comparison import mean_curve
from unscheduled.lab.run import is_blown_up

# The palette of Okabe and Ito, which colour-blind people can distinguish; each contender has its own marker too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
MANY = 4
"""With more contenders than this the picture is higher, to have room for the legend."""
CLOSE = 1.4
"""The labels of horizons within this factor would overlap."""
WIDE_RANGE = 5.0
"""Values that differ by more than this factor are shown on a logarithmic axis."""


def draw(record: Mapping[str, Any], file: Path) -> None:
    """Write the picture of a race to a PNG file."""
    compared = len(record["contenders"]) > 1
    many = len(record["contenders"]) > MANY
    figure = Figure(figsize=(11 if compared else 7, 8 if many else 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    columns = 2 if compared else 1
    left, *right = figure.subplots(1, columns, width_ratios=(1.6, 1) if compared else None, squeeze=False)[0]
    draw_curves(left, record)
    for axes in right:
        draw_differences(axes, record)
    for axes in (left, *right):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(labelled(record["horizons"])))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("steps (logarithmic)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3 if many else len(labels), frameon=False)
    figure.savefig(file)


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """The marker of a contender; contenders with the same colour have different markers."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def labelled(horizons: Sequence[int]) -> list[int]:
    """The horizons that get a label: the last one, and before it those that are far enough apart."""
    labels: list[int] = []
    for horizon in reversed(horizons):
        if not labels or labels[-1] > CLOSE * horizon:
            labels.append(horizon)
    return labels


def draw_curves(axes: Axes, record: Mapping[str, Any]) -> None:
    """Draw the mean curve of each run, and the frontier: the best mean of the other contenders at each horizon."""
    lowest_shown = record["horizons"][0] / 3
    lower_is_better = record["task"]["lower_is_better"]
    shown: list[float] = []
    for index, name in enumerate(record["contenders"]):
        lengths = sorted({run["horizon"] for run in record["runs"] if run["contender"] == name})
        for length in lengths:
            runs = [run for run in record["runs"] if (run["contender"], run["horizon"]) == (name, length)]
            curve = mean_curve(runs)
            axes.plot(
                [step for step, _ in curve],
                [mean for _, mean in curve],
                color=colour(index),
                linewidth=2.6 if index == 0 else 1.1,
                zorder=3 if index == 0 else 2,
            )
            shown += [
                mean
                for step, mean in curve
                if step >= lowest_shown and not (lower_is_better and is_blown_up(mean, runs[0]["initial"]))
            ]
        results = [result for result in record["results"] if result["contender"] == name and result["mean"] is not None]
        axes.plot(
            [result["horizon"] for result in results],
            [result["mean"] for result in results],
            linestyle="none",
            marker=marker(index),
            markersize=7,
            color=colour(index),
            markeredgecolor="white",
            label=f"{name} ({'one run' if len(lengths) == 1 else f'{len(lengths)} runs'} a seed)",
            zorder=4,
        )
    _, *others = record["contenders"]
    frontier = [
        (horizon, min(means) if lower_is_better else max(means))
        for horizon in record["horizons"]
        if (
            means := [
                result["mean"]
                for result in record["results"]
                if result["horizon"] == horizon and result["contender"] in others and result["mean"] is not None
            ]
        )
    ]
    if frontier:
        axes.plot(
            *zip(*frontier, strict=True),
            color="#333333",
            linestyle="--",
            linewidth=1.2,
            label="frontier: the best of the others",
        )
    if shown and min(shown) > 0.0 and max(shown) > WIDE_RANGE * min(shown):
        axes.set_yscale("log")
        if max(shown) < 1000.0 * min(shown):
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0.9 * min(shown), 1.1 * max(shown))
    elif shown:
        margin = 0.05 * (max(shown) - min(shown)) or 0.1
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set_xlim(lowest_shown, record["horizons"][-1] * 1.08)
    axes.set_ylabel(record["task"]["metric"])
    seeds = record["seeds"]
    axes.set_title(f"{record['task']['name']}: {f'mean of {seeds} seeds' if seeds > 1 else 'one seed'}", loc="left")


def draw_differences(axes: Axes, record: Mapping[str, Any]) -> None:
    """Draw the first contender minus each other one with the 95% interval; a bar that crosses 0 is a tie."""
    first, *others = record["contenders"]
    axes.axhline(0.0, color=COLOURS[0], linewidth=2.0)
    for index, name in enumerate(others, start=1):
        results = [
            result for result in record["results"] if result["contender"] == name and result["difference"] is not None
        ]
        spread = 1.0 + min(0.05, 0.5 / len(others)) * (index - (len(others) + 1) / 2)
        axes.errorbar(
            [result["horizon"] * spread for result in results],
            [result["difference"] for result in results],
            yerr=[result["difference_half_width"] or 0.0 for result in results],
            linestyle="none",
            marker=marker(index),
            markersize=7,
            capsize=4,
            color=colour(index),
        )
    axes.set_xlim(record["horizons"][0] / 1.4, record["horizons"][-1] * 1.4)
    axes.set_ylabel(f"{first} minus the other")
    side = "below" if record["task"]["lower_is_better"] else "above"
    bars = "; bars: 95% intervals" if record["seeds"] > 1 else ""
    axes.set_title(f"{side} 0 it is better{bars}", loc="left", fontsize="medium")
