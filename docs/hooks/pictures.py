"""Draws the pictures of pages while the site is built: runs of real optimizers, and the imports between rooms.

    <!-- picture: paths -->

on a page is replaced by the picture that ``PICTURES`` has under this name, as SVG within the page: its axes and words
have the colour of the text around it, light or dark.
"""

import functools
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import grimp
import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from unscheduled import Averaging, ExponentialAveraging, Iterates, PolynomialAveraging, SGDScheduleFree

MARK = re.compile(r"<!-- picture: (\w+) -->")
TEXT = "#010203"
"""The placeholder colour that is replaced by the colour of the text."""
STYLE = {
    **{f"{part}.color": TEXT for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}color": TEXT for part in ("edge", "label")},
    "axes.facecolor": "none",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 10,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
}
BLUE, RED, GREEN, PINK, ORANGE = "#1f8fd0", "#d55e00", "#009e73", "#cc79a7", "#e69f00"

# The small problem: a quadratic that is 25 times as steep one way as the other, with noise on its gradients.

STEEPNESS = torch.tensor([1.0, 25.0])
START = torch.tensor([-4.0, 1.5])
NOISE = 3.0
RUNS = 50
"""The rows of one parameter, each of which is a run with its own noise."""


def loss(points: torch.Tensor) -> torch.Tensor:
    """The loss without the noise."""
    return 0.5 * (points**2 * STEEPNESS).sum(-1)


def run(lr: float, beta: float, steps: int) -> Iterates:
    """All x, y and z of the runs of Schedule-Free SGD, the initial points first: by step, run and coordinate."""
    weight = torch.nn.Parameter(START.repeat(RUNS, 1))
    optimizer = SGDScheduleFree([weight], lr=lr, momentum=beta)
    generator = torch.Generator().manual_seed(0)
    points = [optimizer.iterates(weight)]
    for _ in range(steps):
        weight.grad = weight.detach() * STEEPNESS + NOISE * torch.randn(RUNS, 2, generator=generator)
        optimizer.step()
        points.append(optimizer.iterates(weight))
    return Iterates(*(torch.stack(sequence) for sequence in zip(*points, strict=True)))


def paths() -> Figure:
    """Left, z, y and x of 60 steps of one run on the contours of the loss; right, the mean loss there of 50 runs."""
    figure, (left, right) = panels(2)
    x, y, z = run(lr=0.075, beta=0.9, steps=1000)
    across, along = np.meshgrid(np.linspace(-4.6, 2.6, 200), np.linspace(-1.9, 1.9, 200))
    heights = loss(torch.stack([torch.tensor(across), torch.tensor(along)], -1))
    left.contour(across, along, heights, levels=[0.1, 0.5, 2, 5, 10, 20, 40], colors=TEXT, linewidths=0.6, alpha=0.35)
    for name, points, colour, width in (("z", z, RED, 0.8), ("y", y, GREEN, 1.3), ("x", x, BLUE, 2.2)):
        left.plot(*points[:61, 0].T, color=colour, linewidth=width, label=name, marker=".", markersize=2 + width)
        right.plot(range(1, 1001), loss(points[1:]).mean(1), color=colour, linewidth=width, label=name)
    left.set(xlim=(-4.6, 2.6), ylim=(-1.9, 1.9), title="60 steps of one run")
    left.legend(loc="upper right")
    right.set(xscale="log", yscale="log", xlabel="steps", ylabel="loss", title="the loss, mean of 50 runs")
    right.legend(loc="lower left")
    return figure


def weights() -> Figure:
    """The weight of each base iterate in the average after 1,000 steps, for several averagings."""
    figure, (axes,) = panels(1)
    averagings: dict[str, tuple[Averaging, int]] = {
        "r = 0: all alike": (PolynomialAveraging(), 0),
        "r = 0, with a warmup of 200 steps": (PolynomialAveraging(), 200),
        "r = 1": (PolynomialAveraging(r=1.0), 0),
        "river, C = 100 and β = 0.95: r = 4": (PolynomialAveraging.river(C=100.0, beta=0.95), 0),
        "GPA: a window of 300 steps": (ExponentialAveraging(c=0.0033), 0),
    }
    colours = (BLUE, GREEN, ORANGE, RED, PINK)
    for (name, (averaging, warmup)), colour in zip(averagings.items(), colours, strict=True):
        axes.plot(range(1, 1001), 1000 * shares(averaging, warmup, 1000), color=colour, linewidth=1.8, label=name)
    axes.set(xlabel="step t", ylabel="weight of z after step t (1 = equal share)", ylim=(0, 5.2))
    axes.legend(loc="upper left")
    return figure


def shares(averaging: Averaging, warmup_steps: int, steps: int) -> np.ndarray[Any, Any]:
    """The weight of each z in the last x of a run, measured in the run.

    Each step moves a coordinate of its own: how far x has followed z along it is the weight of all z from there on.
    """
    weight = torch.nn.Parameter(torch.zeros(steps, dtype=torch.float64))
    optimizer = SGDScheduleFree([weight], lr=1.0, warmup_steps=warmup_steps, averaging=averaging)
    for direction in torch.eye(steps, dtype=torch.float64):
        weight.grad = direction
        optimizer.step()
    x, _, z = optimizer.iterates(weight)
    from_here_on = np.append((x / z).numpy(), 0.0)
    return -np.diff(from_here_on)


def betas() -> Figure:
    """The loss at x for several β with a small and a large learning rate, mean of 50 runs."""
    figure, axes = panels(2)
    for axis, lr in zip(axes, (0.02, 0.15), strict=True):
        for beta, colour in zip((0.0, 0.5, 0.9, 1.0), (PINK, ORANGE, BLUE, RED), strict=True):
            losses = loss(run(lr, beta, steps=1000).x[1:]).mean(1)
            name = f"β = {beta:g}" if losses[-1] < losses[0] else f"β = {beta:g}: diverges"
            axis.plot(range(1, 1001), losses.clamp(max=1e6), color=colour, linewidth=1.8, label=name)
        axis.set(xscale="log", yscale="log", ylim=(1e-3, 2e2), xlabel="steps", ylabel="loss at x", title=f"lr = {lr}")
        axis.legend(loc="lower left")
    return figure


FLOORS = (
    *(("cli",), ("lab",), ("algorithms",), ("optimizer",)),
    *(("kernels", "checkpoints", "model"), ("state",), ("formulas",)),
)


def rooms() -> Figure:
    """The rooms of the library on their floors, with the number of modules; arrows are imports, thicker where more."""
    figure = Figure(figsize=(9.5, 6.5))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, 1), ylim=(0.5 - len(FLOORS), 0.5))
    axes.set_axis_off()
    graph = grimp.build_graph("unscheduled")
    room_of = {module: module.split(".")[1] for module in graph.modules if module.count(".") and "__" not in module}
    places = {
        room: ((position + 1) / (len(floor) + 1), -height)
        for height, floor in enumerate(FLOORS)
        for position, room in enumerate(floor)
    }
    box = {"boxstyle": "round,pad=0.5", "facecolor": "#dceefb", "edgecolor": BLUE}
    boxes: dict[str, Any] = {}
    for room, place in places.items():
        count = sum(name == room and not graph.find_children(module) for module, name in room_of.items())
        label = room if count == 1 else f"{room} ({count})"
        boxes[room] = axes.text(*place, label, ha="center", va="center", bbox=box, color="#123456").get_bbox_patch()
    figure.draw_without_rendering()  # the boxes have their size then
    imports = Counter(
        (room, room_of.get(imported, "algorithms"))  # the package itself has the names of the algorithms
        for module, room in room_of.items()
        for imported in graph.find_modules_directly_imported_by(module)
    )
    for (one, other), count in imports.items():
        if one != other:
            bend = 0.3 if places[one][1] - places[other][1] > 1 else 0.0
            style = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bend}", "linewidth": 0.4 + 0.06 * count}
            patches = {"patchA": boxes[one], "patchB": boxes[other], "shrinkA": 0, "shrinkB": 1}
            axes.annotate("", places[other], places[one], zorder=1, arrowprops={**style, **patches, "color": BLUE})
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {"paths": paths, "weights": weights, "betas": betas, "rooms": rooms}


def panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


@functools.cache
def svg(name: str) -> str:
    """A picture as an element of a page."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure, written = PICTURES[name](), io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    drawn = written.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(TEXT, "currentColor")
    drawn = re.sub(r'<g id="\w+">', "<g>", drawn)  # every picture has the same
    description = " ".join((PICTURES[name].__doc__ or "").split())
    return f'<figure class="picture" role="img" aria-label="{description}">{drawn}</figure>'


def on_page_content(html: str, **_: Any) -> str:
    """Replace the comments of a page by their pictures."""
    return MARK.sub(lambda mark: svg(mark[1]), html)
