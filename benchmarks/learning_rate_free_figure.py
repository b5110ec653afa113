"""The picture of the comparison of optimizers without a learning rate: the excess over the best rate, cell by cell."""
# matplotlib leaves the types of its keyword arguments open:
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

LEAST, MOST = -10.0, 50.0
"""The ends of the colours, in per cent."""
DARK = 0.36
"""How far from the middle of the colours, from 0 to 1, they are so dark that numbers on them are white."""


def draw(record: Mapping[str, Any], file: Path) -> None:
    """Draw a table: a row for each task, and for each contender a column for each horizon, in per cent."""
    contenders = [name for name in record["contenders"] if name != next(iter(record["contenders"]))]
    horizons = max(len({cell["horizon"] for cell in task["cells"]}) for task in record["tasks"].values())
    table = [
        [
            math.inf if cell["excess"] is None else 100.0 * cell["excess"]
            for name in contenders
            for cell in task["cells"]
            if cell["contender"] == name
        ]
        for task in record["tasks"].values()
    ]
    figure = Figure(figsize=(0.52 * len(table[0]) + 1.8, 0.27 * len(table) + 1.1), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = TwoSlopeNorm(0.0, LEAST, MOST)
    axes.imshow([[min(MOST, value) for value in row] for row in table], cmap="RdYlGn_r", norm=colours, aspect="auto")
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            ink = "white" if abs(colours(min(MOST, value)) - 0.5) > DARK else "black"
            axes.text(x, y, shown(value), ha="center", va="center", fontsize=6.5, color=ink)
    for edge in range(1, len(contenders)):
        axes.axvline(edge * horizons - 0.5, color="white", linewidth=3.0)
    axes.set_yticks(range(len(table)), list(record["tasks"]), fontsize="small")
    axes.set_xticks([(index + 0.5) * horizons - 0.5 for index in range(len(contenders))], contenders, fontsize="small")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(
        "loss above that of the best learning rate for each horizon (an eighth, a quarter, a half and all steps), %",
        fontsize="small",
    )
    figure.savefig(file)


def shown(percent: float) -> str:
    """A number of two or three digits, or infinity for a run that diverged."""
    return "∞" if math.isinf(percent) else f"{percent:+.1f}" if abs(percent) < 10 else f"{percent:+.0f}"
