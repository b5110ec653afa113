"""Whole races on a tiny task: what they write, what they keep, and that nothing is done twice."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from unscheduled.cli import main
from unscheduled.lab.contenders import CONTENDERS, DEFAULT_CONTENDERS
from unscheduled.lab.race import doubts
from unscheduled.lab.statistics import Estimate
from unscheduled.lab.task import built_in_tasks, load_task

PNG = b"\x89PNG\r\n"


def race(task: Path, *options: str) -> dict[str, Any]:
    """Race in this process, and what ``race.json`` then says."""
    out = task.parent / "out"
    with pytest.raises(SystemExit) as exit_:
        main(["race", str(task), "--jobs", "1", "--out", str(out), *options])
    assert exit_.value.code == 0

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads((out / "race.json").read_text(), parse_constant=no_constants)


def kept(out: Path) -> dict[str, int]:
    """When each finished run was written."""
    return {file.name: file.stat().st_mtime_ns for file in (out / "runs").glob("*.json")}


def test_race_of_a_users_task(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = race(tiny_task)
    out = tiny_task.parent / "out"
    printed = capsys.readouterr().out
    assert "no tuned learning rates" in printed
    assert record["verdict"] in " ".join(printed.split())
    (doubt,) = record["doubts"]  # a grid of two has nothing but ends
    assert doubt.startswith("doubtful: the best learning rate lies at an end of its grid")
    assert doubt in " ".join(printed.split())
    assert "\x1b" not in printed

    # One run a seed for schedule-free, four for each schedule; each evaluated at its horizons.
    assert record["horizons"] == [2, 4, 8, 16]
    lengths = {
        name: sorted(r["horizon"] for r in record["runs"] if r["contender"] == name) for name in DEFAULT_CONTENDERS
    }
    several = [2, 2, 4, 4, 8, 8, 16, 16]
    assert lengths == {name: [16, 16] if name == "schedule-free" else several for name in DEFAULT_CONTENDERS}
    for result in record["results"]:
        length = 16 if result["contender"] == "schedule-free" else result["horizon"]
        runs = [r for r in record["runs"] if (r["contender"], r["horizon"]) == (result["contender"], length)]
        values = [dict(map(tuple, run["curve"]))[result["horizon"]] for run in runs]
        assert result["values"] == values
        assert result["mean"] == pytest.approx(sum(values) / 2)
        assert result["standard_error"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert {run["seed"] for run in record["runs"]} == {0, 1}
    assert record["warmup_steps"] == {"2": 1, "4": 2, "8": 4, "16": 4}

    # Tuning: its own seeds, the lowest mean of the grid for each run.
    tuning = json.loads((out / "tuning.json").read_text())
    assert not {*tuning["seeds"]} & {0, 1}
    for rate in record["learning_rates"]:
        candidates = [
            score
            for score in tuning["scores"]
            if (score["contender"], score["horizon"]) == (rate["contender"], rate["horizon"])
        ]
        assert [score["lr"] for score in candidates] == [0.01, 0.03]
        assert rate["lr"] == min(candidates, key=lambda score: score["mean"])["lr"]
        assert rate["edge_of_grid"] == ("lowest" if rate["lr"] == 0.01 else "highest")

    assert (out / "race.png").read_bytes().startswith(PNG)
    page = (out / "race.html").read_text(encoding="utf-8")
    assert [*{*re.findall(r"(?:src|href)\s*=\s*[\"']?(.{5})", page)}] == ["data:"]
    assert "url(" not in page
    assert "@import" not in page
    for result in record["results"]:
        assert str(Estimate(result["mean"], result["standard_error"])) in page

    # A result that was cut short is run again.
    cut, *_ = (out / "runs").glob("linear-16-*-seed0-*.json")
    whole = json.loads(cut.read_text())
    cut.write_text(cut.read_text()[:50])
    race(tiny_task)
    assert json.loads(cut.read_text())["curve"] == whole["curve"]
    capsys.readouterr()

    # Again: nothing is run, nothing is tuned.
    before = kept(out)
    assert len(before) == 18 + 36
    again = race(tiny_task)
    assert kept(out) == before
    assert again["results"] == record["results"]
    assert "no tuned learning rates" not in capsys.readouterr().out

    # Another task in the same file is tuned and raced anew.
    tiny_task.write_text(tiny_task.read_text().replace("Dropout(0.2)", "Dropout(0.1)"))
    load_task.cache_clear()
    race(tiny_task, "--contenders", "schedule-free,linear")
    assert "no tuned learning rates" in capsys.readouterr().out


def test_learning_rates_of_the_nearest_tuned_horizon(tiny_task: Path) -> None:
    race(tiny_task)
    record = race(
        tiny_task, "--steps", "12", "--horizons", "3,7,12", "--contenders", "schedule-free,linear", "--seeds", "1"
    )
    tuned_at = {(rate["contender"], rate["horizon"]): rate["tuned_at_horizon"] for rate in record["learning_rates"]}
    # log 3 is nearer to log 4 than to log 2, log 7 nearer to log 8, log 12 nearer to log 16.
    assert tuned_at == {("schedule-free", 12): 16, ("linear", 3): 4, ("linear", 7): 8, ("linear", 12): 16}
    assert record["warmup_steps"] == {"3": 1, "7": 3, "12": 3}
    record = race(tiny_task, "--steps", "30", "--contenders", "schedule-free,linear", "--seeds", "1")
    assert "tuned for another number of steps, so give --tune: schedule-free at 30 (tuned at 16)" in record["doubts"][1]
    assert {result["verdict"] for result in record["results"] if result["contender"] == "linear"} == {"one seed"}


def test_a_task_may_import_its_neighbours_when_it_runs(tiny_task: Path) -> None:
    (tiny_task.parent / "neighbour_of_the_task.py").write_text("WIDTH = 8\n")
    source = tiny_task.read_text().replace("def model():\n", "def model():\n    import neighbour_of_the_task\n")
    tiny_task.write_text(source)
    assert race(tiny_task, "--contenders", "schedule-free", "--seeds", "1")["verdict"].startswith("At 16 steps")


def test_divergence_is_shown(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """AdamW diverges in the race, with seed 1 only; the tuning seeds are 1000 and more."""
    source = tiny_task.read_text().replace(
        "    return nn.functional.binary",
        "    scale = float('nan') if batch[0][0, 0] == BAD else 1.0\n    return scale * nn.functional.binary",
    )
    bad = "next(batches(torch.Generator().manual_seed(1)))[0][0, 0]"
    tiny_task.write_text(source.replace("\n\ntask = ", f"\n\nBAD = {bad}\n\ntask = "))
    record = race(tiny_task)
    for result in record["results"]:
        assert result["values"][0] is not None
        assert result["values"][1] is None
        assert result["mean"] is None
    assert {run["diverged_at"] for run in record["runs"] if run["seed"] == 1} == {1}
    printed = capsys.readouterr().out
    assert "diverged" in printed
    assert "as divergent as linear" in " ".join(record["verdict"].split())


def test_broken_tuning_file(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_task.with_suffix(".tuning.json").write_text("{}")
    with pytest.raises(SystemExit) as exit_:
        main(["race", str(tiny_task), "--jobs", "1", "--out", str(tiny_task.parent / "out")])
    assert exit_.value.code == 2
    assert "tiny_task.tuning.json is no tuning file" in capsys.readouterr().err


def test_unfair_task_is_refused(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Initial weights that come from elsewhere than torch's seeded generator."""
    source = tiny_task.read_text().replace("def model():\n", "def model():\n    torch.manual_seed(time.time_ns())\n")
    tiny_task.write_text(source)
    with pytest.raises(SystemExit) as exit_:
        main(["race", str(tiny_task), "--jobs", "1", "--out", str(tiny_task.parent / "out")])
    assert exit_.value.code == 2
    assert "differ in initial weights" in capsys.readouterr().err


def test_task_that_fails_while_running(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_task.write_text(tiny_task.read_text().replace("nn.Linear(8, 1)", "nn.Linear(7, 1)"))
    with pytest.raises(SystemExit) as exit_:
        main(["race", str(tiny_task), "--jobs", "1", "--out", str(tiny_task.parent / "out")])
    assert exit_.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied" in line
    assert re.search(r"\(tiny_task\.py, line \d+\)", line)


def start(task: Path) -> "subprocess.Popen[str]":
    """A race with two workers, in a process group of its own."""
    command = [sys.executable, "-m", "unscheduled", "race", str(task), "--jobs", "2"]
    out = str(task.parent / "out")
    return subprocess.Popen(
        [*command, "--out", out], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_runs(out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(kept(out)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_killed_race_goes_on_where_it_was(slow_task: Path) -> None:
    """After kill -9 the workers end too (communicate waits for all that hold the output), and no run is done twice."""
    out = slow_task.parent / "out"
    process = start(slow_task)
    wait_for_runs(out, 5)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    before = kept(out)
    assert len(before) < 18 + 36
    for file in (out / "runs").glob("*.json"):
        json.loads(file.read_text())
    process = start(slow_task)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    after = kept(out)
    assert len(after) == 18 + 36
    assert {name: after[name] for name in before} == before
    assert f"{len(before)} of 36 runs are done already" in printed
    assert not list((out / "runs").glob("*.progress"))


def test_interrupt_says_how_to_go_on(slow_task: Path) -> None:
    """Ctrl-C goes to the whole process group, the workers too."""
    out = slow_task.parent / "out"
    process = start(slow_task)
    wait_for_runs(out, 2)
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert printed.splitlines()[-1].startswith("interrupted: the finished runs are kept")
    trackers = [line for line in errors.splitlines() if "resource_tracker" in line or "warnings.warn" in line]
    assert errors.splitlines() == trackers  # joblib's, if it was interrupted while it started a worker


def test_a_rate_that_is_not_to_be_tuned_is_not_doubtful() -> None:
    rates = [
        {"contender": name, "horizon": 30, "tuned_at_horizon": 16, "edge_of_grid": None} for name in ("plus", "lion")
    ]
    (line,) = doubts(rates)
    assert line.endswith("so give --tune: lion at 30 (tuned at 16)")


def test_a_race_of_many_has_a_line_for_each(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = race(tiny_task, "--contenders", "schedule-free,constant,primal,plus,muon", "--horizons", "8,16")
    lines = capsys.readouterr().out.splitlines()
    header = next(line.split() for line in lines if line.split()[:1] == ["steps"])
    assert header == ["steps", "8", "16"]
    for name in record["contenders"]:
        shown = [
            str(Estimate(result["mean"], result["standard_error"]))
            for result in record["results"]
            if result["contender"] == name
        ]
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert line.split(maxsplit=1)[1].split() == " ".join(shown).split()
    page = (tiny_task.parent / "out" / "race.html").read_text(encoding="utf-8")
    assert "<th>muon</th>" in page
    assert record["verdict"].count(":") == record["verdict"].count(" minus ") == 0
    rates = {rate["contender"]: rate["lr"] for rate in record["learning_rates"]}
    assert rates["plus"] == 1.0


@pytest.mark.parametrize(
    ("suffix", "contenders"), [(".tuning.json", DEFAULT_CONTENDERS), (".family.tuning.json", CONTENDERS)]
)
@pytest.mark.parametrize("name", built_in_tasks())
def test_shipped_learning_rates_are_those_of_the_tuning_run(name: str, suffix: str, contenders: Iterable[str]) -> None:
    """The file belongs to the task's grids and options; each choice is the best and not at an end of its grid."""
    loaded = load_task(name)
    (file,) = [file for file in loaded.tuning_files() if file.name.endswith(loaded.path.stem + suffix)]
    tuning = json.loads(file.read_text())
    assert tuning["task"]["metric"] == loaded.task.metric_name
    assert tuning["steps"] <= loaded.task.steps
    assert any("sha256" in fact for fact in tuning["task"]["facts"])
    for contender in contenders:
        settings = CONTENDERS[contender]
        options = loaded.task.optimizers[settings.optimizer]
        assert tuning["grids"][contender] == (sorted(options.learning_rates) if settings.lr is None else [settings.lr])
        assert tuning["contenders"][contender]["options"] == json.loads(json.dumps(options.options))
        choices = [choice for choice in tuning["chosen"] if choice["contender"] == contender]
        assert [choice["horizon"] for choice in choices] == (
            tuning["horizons"][-1:] if settings.anytime else tuning["horizons"]
        )
        for choice in choices:
            means = {
                score["lr"]: math.inf if score["mean"] is None else score["mean"]
                for score in tuning["scores"]
                if (score["contender"], score["horizon"]) == (contender, choice["horizon"])
            }
            assert choice["lr"] == min(means, key=lambda lr: means[lr])
            assert choice["edge_of_grid"] is None or suffix.startswith(".family")
