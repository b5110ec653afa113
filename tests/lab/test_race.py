"""Whole races on a tiny task: what they write, what they keep, and that nothing is done twice."""

import json
import re
from pathlib import Path

import pytest
from races import contents, kept, planned, race, refused

from unscheduled.cli import main
from unscheduled.lab.contenders import DEFAULT_CONTENDERS
from unscheduled.lab.execution import runs_folder
from unscheduled.lab.race import doubts
from unscheduled.lab.statistics import Estimate
from unscheduled.lab.task import load_task

PNG = b"\x89PNG\r\n"


def test_race_of_a_users_task(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = race(tiny_task)
    out = tiny_task.parent / "out"
    printed = capsys.readouterr().out
    assert "no tuned learning rates" in printed
    assert record["verdict"] in printed
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

    assert (out / "race.png").read_bytes().startswith(PNG)
    page = (out / "race.html").read_text(encoding="utf-8")
    assert [*{*re.findall(r"(?:src|href)\s*=\s*[\"']?(.{5})", page)}] == ["data:"]
    assert "url(" not in page
    assert "@import" not in page
    for result in record["results"]:
        assert str(Estimate(result["mean"], result["standard_error"])) in page

    # A result that was cut short is run again.
    cut, *_ = runs_folder().rglob("linear-16-*-seed0-*.json")
    whole = json.loads(cut.read_text())
    cut.write_text(cut.read_text()[:50])
    race(tiny_task)
    assert json.loads(cut.read_text())["curve"] == whole["curve"]
    capsys.readouterr()

    # Again: nothing is run, nothing is tuned.
    before = kept()
    again = race(tiny_task)
    assert kept() == before
    assert again["results"] == record["results"]
    assert "no tuned learning rates" not in capsys.readouterr().out

    # Another task in the same file is tuned and raced anew.
    tiny_task.write_text(tiny_task.read_text().replace("Dropout(0.2)", "Dropout(0.1)"))
    load_task.cache_clear()
    race(tiny_task, "--contenders", "schedule-free,linear")
    assert "no tuned learning rates" in capsys.readouterr().out


def test_a_warmup_is_in_proportion_to_the_run(tiny_task: Path) -> None:
    """4 of 16 steps: a quarter of every run, and of one of two steps none, since a half is rounded to even."""
    record = race(tiny_task, "--seeds", "1", "--contenders", "schedule-free,linear", "--rates", "0.1")
    warmups = {(rate["contender"], rate["horizon"]): rate["warmup_steps"] for rate in record["learning_rates"]}
    assert warmups == {
        ("schedule-free", 16): 4,
        ("linear", 2): 0,
        ("linear", 4): 1,
        ("linear", 8): 2,
        ("linear", 16): 4,
    }
    assert {(run["contender"], run["horizon"]): run["warmup_steps"] for run in record["runs"]} == warmups


def test_the_shortest_runs_are_not_all_warmup(tiny_task: Path) -> None:
    tiny_task.write_text(tiny_task.read_text().replace("warmup_steps=4", "warmup_steps=15"))
    record = race(tiny_task, "--horizons", "1,2,16", "--contenders", "cosine", "--rates", "0.1")
    assert [rate["warmup_steps"] for rate in record["learning_rates"]] == [0, 1, 15]


def test_learning_rates_of_the_nearest_tuned_horizon(tiny_task: Path) -> None:
    both = ("--contenders", "schedule-free,linear", "--seeds", "1")
    race(tiny_task, *both)
    record = race(tiny_task, "--steps", "12", "--horizons", "3,7,12", *both)
    tuned_at = {(rate["contender"], rate["horizon"]): rate["tuned_at_horizon"] for rate in record["learning_rates"]}
    # log 3 is nearer to log 4 than to log 2, log 7 nearer to log 8, log 12 nearer to log 16.
    assert tuned_at == {("schedule-free", 12): 16, ("linear", 3): 4, ("linear", 7): 8, ("linear", 12): 16}
    record = race(tiny_task, "--steps", "30", *both)
    assert "tuned for another number of steps, so give --tune: schedule-free at 30 (tuned at 16)" in record["doubts"][0]
    assert {result["verdict"] for result in record["results"] if result["contender"] == "linear"} == {"one seed"}


def test_divergence_is_shown(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All diverge in the race, with seed 1 only; the tuning seeds are 1000 and more."""
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
    assert "diverged" in capsys.readouterr().out
    assert "as divergent as linear at 2, 4, 8 and 16 steps" in record["verdict"]
    assert record["best_schedules"] == record["steps_to_target"] == []


def test_unfair_task_is_refused(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Initial weights that come from elsewhere than torch's seeded generator."""
    source = tiny_task.read_text().replace("def model():\n", "def model():\n    torch.manual_seed(time.time_ns())\n")
    tiny_task.write_text(source)
    assert "differ in initial weights" in refused(tiny_task, capsys=capsys)


def test_a_rate_that_is_not_to_be_tuned_is_not_doubtful(tiny_task: Path) -> None:
    plan = planned(tiny_task, contenders=["plus", "cosine"])
    rates = [
        {"contender": name, "horizon": 30, "tuned_at_horizon": 16, "edge_of_grid": None} for name in ("plus", "cosine")
    ]
    (line,) = doubts(plan, rates)
    assert line.endswith("so give --tune: cosine at 30 (tuned at 16)")


def test_two_races_into_one_folder_keep_both(tiny_task: Path) -> None:
    out = tiny_task.parent / "out"
    first = race(tiny_task, "--contenders", "schedule-free,linear")
    page = (out / "race.html").read_text()
    second = race(tiny_task, "--contenders", "schedule-free,cosine")
    (folder,) = (out / "earlier").iterdir()
    assert {file.name for file in folder.iterdir()} == {"race.json", "race.html", "race.png", "tuning.json"}
    assert contents(folder / "race.json") == first
    assert (folder / "race.html").read_text() == page
    assert contents(out / "race.json") == second

    # The same again leaves no copy; the rates that the first race tuned still serve.
    race(tiny_task, "--contenders", "schedule-free,cosine")
    assert len([*(out / "earlier").iterdir()]) == 1
    before = kept()
    third = race(tiny_task, "--contenders", "schedule-free,linear")
    assert kept() == before
    assert third["learning_rates"] == first["learning_rates"]
    assert {*contents(out / "tuning.json")["contenders"]} == {"schedule-free", "cosine", "linear"}
    assert len([*(out / "earlier").iterdir()]) == 2


def test_races_of_one_task_share_their_runs(tiny_task: Path) -> None:
    """Whatever folder they write to: only the runs of the new seed are new."""
    race(tiny_task)
    before = kept()
    race(tiny_task, "--seeds", "3", out=tiny_task.parent / "other")
    after = kept()
    assert {name: after[name] for name in before} == before
    new = after.keys() - before.keys()
    assert len(new) == 9
    assert all("-seed2-" in name for name in new)


@pytest.mark.parametrize("options", [(), ("--tune",)])
def test_dry_run_says_how_long_and_runs_nothing(
    tiny_task: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """36 runs of tuning and 18 of the race, of 16 or 2 + 4 + 8 + 16 steps each."""
    out = tiny_task.parent / "out"
    with pytest.raises(SystemExit) as exit_:
        main(["race", str(tiny_task), "--out", str(out), "--jobs", "2", "--dry-run", *options])
    assert exit_.value.code == 0
    (line,) = capsys.readouterr().out.splitlines()
    steps = 3 * 2 * (16 + 2 * 30)
    assert re.fullmatch(rf"tiny-task: 54 runs, {steps} steps: at least \d+:\d\d on 2 cores", line)
    assert not kept()
    assert not out.exists()
