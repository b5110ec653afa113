"""What a reader sees: the terminal, the page, the picture and the time left."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure
from races import race
from rich.console import Console

from unscheduled.lab import figure, progress
from unscheduled.lab.execution import Runner
from unscheduled.lab.progress import Watch
from unscheduled.lab.statistics import Estimate
from unscheduled.lab.terminal import print_race

BOTH = ("--contenders", "schedule-free,linear")


class Tables(HTMLParser):
    """The rows of all tables of a page, by the heading above."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.heading, self.inside = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.inside = tag if tag in ("h2", "h3", "td", "th", "small") else self.inside
        if tag == "tr":
            self.found.setdefault(self.heading, []).append([])
        elif tag in ("td", "th"):
            self.found[self.heading][-1].append("")
        elif tag in ("h2", "h3"):
            self.heading = ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in ("h2", "h3"):
            self.heading += data
        elif self.inside in ("td", "th"):
            self.found[self.heading][-1][-1] += data


def test_the_page_has_the_rates_and_what_one_rate_costs(tiny_task: Path) -> None:
    record = race(tiny_task, *BOTH)
    tables = Tables((tiny_task.parent / "out" / "race.html").read_text()).found
    assert [row[:4] for row in tables["Learning rates"][1:]] == [
        [rate["contender"], f"{rate['horizon']}", f"{rate['warmup_steps']}", f"{rate['lr']:g}"]
        for rate in record["learning_rates"]
    ]
    scores = {(score["lr"], score["horizon"]): score["mean"] for score in record["sensitivity"]}
    rates = sorted({lr for lr, _ in scores})
    by_rate = tables["schedule-free: every learning rate that was tried, at each horizon"]
    assert by_rate[0] == ["learning rate", "2", "4", "8", "16"]
    assert by_rate[1:] == [
        [f"{lr:g}", *("diverged" if scores[lr, h] is None else f"{scores[lr, h]:.4g}" for h in (2, 4, 8, 16))]
        for lr in rates
    ]
    one = record["learning_rates"][0]["lr"]
    for row, horizon in zip(tables["What one learning rate for all horizons costs"][1:], (2, 4, 8, 16), strict=True):
        means = {lr: scores[lr, horizon] for lr in rates if scores[lr, horizon] is not None}
        best = min(means, key=lambda lr: means[lr])
        cost = 100 * (means[one] / means[best] - 1)
        shown = [f"{best:g}", f"{means[best]:.4g}", f"{means[one]:.4g}", f"{one:g}", f"{cost:.1f}%"]
        assert row == ["schedule-free", str(horizon), *shown]


def test_steps_to_target_and_rates_are_told(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = race(tiny_task, *BOTH)
    lines = capsys.readouterr().out.splitlines()
    tables = Tables((tiny_task.parent / "out" / "race.html").read_text()).found
    assert len(record["steps_to_target"]) == 4
    for target, row in zip(record["steps_to_target"], tables["Steps to the same value"][1:], strict=True):
        what = f"{target['target']:.4g}, where linear ends after {target['horizon']} steps"
        if target["steps"] is None:
            assert f"schedule-free does not reach {what}" in lines
            assert row[4] == "never"
        else:
            shares = [f"{100 * target[name]:.0f}%" for name in ("steps_ratio", "seconds_ratio")]
            steps = f"{target['steps']:.0f}"
            told = f"after {steps}: {shares[0]} of the steps, {shares[1]} of the time"
            assert f"schedule-free reaches {what}, {told}" in lines
            assert row[4:] == [steps, *shares]
    rates = {(rate["contender"], rate["horizon"]): rate["lr"] for rate in record["learning_rates"]}
    assert f"  schedule-free  {rates['schedule-free', 16]:g} (4) for all" in lines
    warmups = {2: 0, 4: 1, 8: 2, 16: 4}
    shown = ", ".join(f"{h}: {rates['linear', h]:g} ({warmups[h]})" for h in warmups)
    assert f"  linear         {shown}" in lines


def printed(record: dict[str, Any]) -> str:
    file = io.StringIO()
    print_race(record, Console(file=file, width=10_000))
    return file.getvalue()


def test_early_stopping_is_told_where_it_changes_the_verdict(tiny_task: Path) -> None:
    record = race(tiny_task, *BOTH, "--rates", "0.1")
    others = [result for result in record["results"] if "verdict" in result]
    for result in others:
        result["verdict"] = result["best_so_far"]["verdict"] = "tie"
    assert "early stopping" not in printed(record)
    others[1]["best_so_far"]["verdict"] = "better"
    others[3]["best_so_far"]["verdict"] = "worse"
    assert (
        "with early stopping, which keeps the best value up to a horizon, schedule-free is better than linear at 4 "
        "(without: tie) and worse than linear at 16 (without: tie)\n"
    ) in printed(record)
    tables = Tables((tiny_task.parent / "out" / "race.html").read_text()).found
    assert [row[1] for row in tables["With early stopping"][1:]] == [
        str(Estimate(result["best_so_far"]["mean"], result["best_so_far"]["standard_error"]))
        for result in record["results"]
        if result["contender"] == "schedule-free"
    ]


def test_no_table_is_wrapped_where_there_is_no_terminal(
    tiny_task: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even with 16 horizons, in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    horizons = ",".join(map(str, range(1, 17)))
    names = "schedule-free,constant,primal,plus,muon"
    record = race(tiny_task, "--contenders", names, "--horizons", horizons, "--rates", "0.03")
    output = capsys.readouterr().out
    lines = output.splitlines()
    header = next(line.split() for line in lines if line.split()[:1] == ["steps"])
    assert header == ["steps", *horizons.split(",")]
    for name in record["contenders"]:
        shown = [
            str(Estimate(result["mean"], result["standard_error"]))
            for result in record["results"]
            if result["contender"] == name
        ]
        row = next(line for line in lines if line.split()[:1] == [name])
        assert row.split()[1:] == " ".join(shown).split()
    assert not re.search(r"± *$|^ *±", output, re.MULTILINE)
    assert "<th>muon</th>" in (tiny_task.parent / "out" / "race.html").read_text(encoding="utf-8")


def drawn(record: dict[str, Any], file: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The picture, before it is a file."""
    pictures: list[Figure] = []

    class Kept(Figure):
        def savefig(self, *args: Any, **kwargs: Any) -> None:
            super().savefig(*args, **kwargs)
            pictures.append(self)

    monkeypatch.setattr(figure, "Figure", Kept)
    figure.draw(record, file)
    return pictures[0]


def test_the_bars_are_95_percent_intervals_and_no_legend_covers_them(
    tiny_task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = race(tiny_task, *BOTH, "--rates", "0.1")
    picture = drawn(record, tiny_task.parent / "picture.png", monkeypatch)
    left, right = picture.axes
    (bars,) = right.containers
    segments = bars.lines[2][0].get_segments()
    others = [result for result in record["results"] if "verdict" in result]
    for result, ((_, low), (_, high)) in zip(others, segments, strict=True):
        assert (high - low) / 2 == pytest.approx(result["difference_half_width"])
        assert (high + low) / 2 == pytest.approx(result["difference"])
    assert right.get_title(loc="left") == "below 0 it is better; bars: 95% intervals"
    assert left.get_legend() is right.get_legend() is None
    (legend,) = picture.legends
    for axes in (left, right):
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_a_curve_that_blows_up_does_not_squeeze_the_others(tiny_task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = race(tiny_task, *BOTH, "--rates", "0.1")
    for run in record["runs"]:
        if run["contender"] == "linear":
            run["curve"][-1][1] = 1e9
    left, _ = drawn(record, tiny_task.parent / "picture.png", monkeypatch).axes
    assert left.get_ylim()[1] < 10.0


def test_the_time_left_is_of_all_that_is_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 30 s one of two runs of 20 s of work each is done, and 60 s follow: a fifth of all took 30 s."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    file = io.StringIO()
    watch = Watch(Console(file=file), "title")
    for name in ("one", "two"):
        watch.expect(Path(name), steps=10, seconds_per_step=2.0)
    watch.later = 60.0
    watch.start()
    watch.finished(Path("one"))
    clock.now = 30.0
    watch.stop()
    assert file.getvalue().rstrip().splitlines()[-1] == "title: 1 of 2 runs, 2:00 left"


def test_while_rates_are_tuned_the_race_is_counted_too(tiny_task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """During the tuning the steps of the race are still to come, two seeds of each run; then nothing is."""
    later: list[tuple[str, float]] = []
    run = Runner.run

    def noted(self: Any, jobs: Any, phase: str) -> Any:
        later.append((phase, self._watch.later))
        return run(self, jobs, phase)

    monkeypatch.setattr(Runner, "run", noted)
    race(tiny_task, *BOTH, "--rates", "0.1")
    assert later == [("tuning", 2 * (16 + 2 + 4 + 8 + 16)), ("racing", 0.0)]
