"""The battery: what is run, what the races say together, and what the command leaves behind."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from unscheduled.cli import main
from unscheduled.lab.battery.ablations import AROUND, DEFAULT, VARIANTS, ablation_jobs
from unscheduled.lab.battery.command import seconds_of
from unscheduled.lab.battery.entries import ADAMW, ENTRIES, entry_of
from unscheduled.lab.battery.one_setting import RATES, one_setting
from unscheduled.lab.battery.run import fitting, prepare
from unscheduled.lab.battery.summary import NEVER, cells_of, totals, window
from unscheduled.lab.command import make_console
from unscheduled.lab.contenders import CONTENDERS
from unscheduled.lab.plan import make_plan
from unscheduled.lab.task import RaceError, load_task
from unscheduled.lab.tuning import TUNING_SEEDS


def battery(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["battery", *arguments])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def result(contender: str, horizon: int, values: list[float | None]) -> dict[str, Any]:
    finite = [value for value in values if value is not None]
    mean = sum(finite) / len(finite) if len(finite) == len(values) else None
    return {"contender": contender, "horizon": horizon, "values": values, "mean": mean, "others": {}}


def record(results: list[dict[str, Any]], curve: list[tuple[int, float]], kind: str = "CNN") -> dict[str, Any]:
    """A race of made-up results, whose contenders without a schedule all have this curve with every seed."""
    names = list(dict.fromkeys(each["contender"] for each in results))
    horizons = sorted({each["horizon"] for each in results})
    return {
        "entry": {"kind": kind, "counterpart": "", "length": 1},
        "contenders": {name: {} for name in names},
        "horizons": horizons,
        "results": results,
        "runs": [
            {"contender": name, "horizon": horizons[-1], "curve": curve, "seed": seed}
            for name in names
            for seed in range(2)
        ],
    }


def test_cells_are_against_the_best_schedule_of_each_horizon() -> None:
    results = [
        result("schedule-free", 10, [1.0, 1.02, 1.01]),
        result("cosine", 10, [1.2, 1.22, 1.21]),
        result("linear", 10, [1.3, 1.1, 1.5]),
        result("schedule-free", 20, [0.9, 0.92, 0.91]),
        result("cosine", 20, [0.8, None, 0.7]),
        result("linear", 20, [0.6, 0.61, 0.62]),
    ]
    first, last = cells_of("made-up", record(results, [(5, 1.4), (10, 1.01), (20, 0.91)]))
    assert (first["schedule"], first["verdict"]) == ("cosine", "better")
    assert first["ratio"] == pytest.approx(1.01 / 1.21)
    # From 1.4 to 1.01 evenly in log(step): 1.21 is reached at 5 * 2 ** (0.19 / 0.39).
    assert first["steps_ratio"] == pytest.approx(0.5 * 2 ** (0.19 / 0.39))
    assert (last["schedule"], last["verdict"]) == ("linear", "worse")
    assert last["steps_ratio"] is None
    (total,) = totals([first, last])
    assert (total["better"], total["tie"], total["worse"], total["never_reached"]) == (1, 0, 1, 1)
    assert total["not_worse"] == 0.5
    assert total["loss_ratio"] == pytest.approx(math.sqrt(1.01 / 1.21 * 0.91 / 0.61))
    assert total["steps_ratio"] == pytest.approx(math.sqrt(first["steps_ratio"] * NEVER))
    assert total["within"] == 0.5


def test_never_is_worse_than_late() -> None:
    """At a fourth of the budget a target that is reached at its end counts as 4, and one that is never reached as 8."""
    results = [result("schedule-free", 10, [1.0, 1.0]), result("cosine", 10, [0.9, 0.9])]
    results += [result("schedule-free", 40, [0.9, 0.9]), result("cosine", 40, [0.5, 0.5])]
    late, never = cells_of("made-up", record(results, [(10, 1.0), (40, 0.9)]))
    assert late["steps_ratio"] == pytest.approx(4.0)
    assert totals([late])[0]["steps_ratio"] == pytest.approx(4.0)
    results[1] = result("cosine", 10, [0.8, 0.8])
    missed, _ = cells_of("made-up", record(results, [(10, 1.0), (40, 0.9)]))
    assert missed["steps_ratio"] is None
    assert totals([missed])[0]["steps_ratio"] == pytest.approx(4.0 * NEVER)
    assert totals([never])[0]["steps_ratio"] == pytest.approx(NEVER)


def test_early_stopping_counts_the_best_value_on_the_way() -> None:
    """One that overfits after step 10 is worse at step 20, and not worse for those who stop early."""
    results = [result(name, h, [v, v]) for h, v in ((10, 1.0), (20, 2.0)) for name in ("schedule-free",)]
    results += [result("cosine", 10, [1.5, 1.5]), result("cosine", 20, [1.2, 1.2])]
    race = record(results, [(10, 1.0), (20, 2.0)])
    for run in race["runs"]:
        if run["contender"] == "cosine":
            run["curve"] = [(10, 1.5), (20, 1.2)]
    _, last = cells_of("made-up", race)
    assert last["verdict"] == "worse"
    assert last["early"] == {"schedule": "cosine", "ratio": pytest.approx(1.0 / 1.2), "verdict": "better"}
    assert totals([last])[0]["early_not_worse"] == 1.0


def test_within_one_per_cent_is_more_than_a_tie() -> None:
    """A tie of noisy runs says little; one whose interval ends below 1% more says what its name says."""
    noisy = [result("schedule-free", 10, [1.0, 1.2, 0.9]), result("cosine", 10, [1.0, 1.0, 1.0])]
    quiet = [result("schedule-free", 10, [1.0, 1.001, 0.999]), result("cosine", 10, [1.0, 1.0, 1.0])]
    for results, within in ((noisy, 0.0), (quiet, 1.0)):
        cells = cells_of("made-up", record(results, [(10, 1.0)]))
        assert [cell["verdict"] for cell in cells] == ["tie"]
        assert totals(cells)[0]["within"] == within


def test_a_contender_that_diverged_is_worse() -> None:
    results = [result("schedule-free", 10, [1.0, None]), result("cosine", 10, [1.2, 1.3])]
    (cell,) = cells_of("made-up", record(results, [(10, 1.0)]))
    assert (cell["ratio"], cell["verdict"]) == (None, "worse")


def test_a_run_that_diverged_before_its_first_evaluation_has_no_ratio() -> None:
    race = record([result("schedule-free", 10, [None, None]), result("cosine", 10, [1.2, 1.3])], [(10, 1.0)])
    for run in race["runs"]:
        if run["contender"] == "schedule-free":
            run["curve"] = []
    (cell,) = cells_of("made-up", race)
    assert cell["early"] == {"schedule": "cosine", "ratio": None, "verdict": "worse"}
    json.dumps(totals([cell]), allow_nan=False)


def test_window_of_a_loss_that_is_known() -> None:
    """log loss = (log2 rate)^2 / 100: 1% more at log2 rate = +-sqrt(100 log 1.01), between grid points linearly."""
    scores = {2.0**k: math.exp(k * k / 100) for k in range(-3, 4)}
    expected = 100 * math.log(1.01)  # on the line from (0, 0) to (1, 1)
    factor, is_open = window(scores, 0.01)
    assert math.log2(factor) == pytest.approx(2 * expected)
    assert not is_open
    assert window({1.0: 1.0, 2.0: 1.001, 4.0: 2.0}, 0.01)[1]
    # Next to a rate that diverged the window ends.
    factor, is_open = window({0.5: math.inf, 1.0: 1.0, 2.0: 1.001, 4.0: math.inf}, 0.01)
    assert factor == pytest.approx(2.0)
    assert not is_open


def test_one_setting_is_the_geometric_mean_over_tasks_and_horizons() -> None:
    def scores(base: float) -> list[dict[str, Any]]:
        return [
            {"contender": name, "horizon": horizon, "lr": lr, "mean": None if factor is None else base * factor}
            for name, factors in factors_of.items()
            for horizon in (10, 20)
            for lr, factor in zip(RATES, factors, strict=True)
        ]

    rest = [5.0] * (len(RATES) - 3)
    factors_of: dict[str, list[float | None]] = {
        "cosine": [2.0, 1.0, 4.0, *rest],
        "schedule-free": [1.0, 3.0, None, *rest],
        "schedule-free-r1": [1.0, 1.0, 1.0, *rest],
    }

    records = {
        name: {**record([result("cosine", h, [1.0]) for h in (10, 20)], []), "tuning_scores": scores(base)}
        for name, base in {"a": 0.5, "b": 7.0}.items()
    }
    rows = {(row["contender"], row["lr"]): row["ratio"] for row in one_setting(records)}
    assert rows["cosine", 0.001] == pytest.approx(2.0)
    assert rows["cosine", None] == pytest.approx(1.0)
    assert rows["schedule-free", 0.002] == pytest.approx(3.0)
    assert rows["schedule-free", 0.004] is None
    assert one_setting({"a": {**records["a"], "tuning_scores": [{**s, "mean": None} for s in scores(1.0)]}})
    # A task on which only the races were run is left out.
    records["c"] = {**records["a"], "tuning_scores": scores(0.1)[::2]}
    assert {(row["contender"], row["lr"]): row["ratio"] for row in one_setting(records)} == rows


def test_ablations_vary_one_choice_at_a_time() -> None:
    plan = make_plan(load_task("digits"), contenders=["schedule-free"])
    jobs = ablation_jobs(plan, VARIANTS, tuned_lr=0.02)
    size = len(AROUND) * len(TUNING_SEEDS)
    assert len(jobs) == len(VARIANTS) * size
    assert VARIANTS[0] is DEFAULT
    default = jobs[0].settings
    assert {job.settings.lr for job in jobs} == {0.01, 0.02, 0.04}
    for index, variant in enumerate(VARIANTS[1:], start=1):
        settings = jobs[index * size].settings
        changed = {
            "options": settings.options != default.options,
            "warmup": settings.warmup_steps != default.warmup_steps,
        }
        assert changed == {"options": variant.warmup is None, "warmup": variant.warmup is not None}
    assert len({job.file for job in jobs}) == len(jobs)


def test_every_entry_has_contenders_that_exist_and_a_task_of_its_own() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len({*names}) == len(names)
    for entry in ENTRIES:
        task = load_task(entry.task).task
        for name in entry.contenders:
            assert CONTENDERS[name].settings_of in task.optimizers, (entry.name, name)
    assert entry_of("no-such-task") is None


def test_a_task_whose_data_are_not_here_is_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    entry = entry_of("mnist-cnn")
    assert entry is not None
    assert prepare([entry], make_console(), tmp_path) == []
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    reason = "data set mnist-5k is not in the cache: run 'unscheduled data fetch mnist-5k'"
    assert f"mnist-cnn: left out, {reason}" in printed


@pytest.mark.parametrize(("budget", "seconds"), [("90s", 90.0), ("30m", 1800.0), ("1.5h", 5400.0)])
def test_budgets(budget: str, seconds: float) -> None:
    assert seconds_of(budget) == seconds


@pytest.mark.parametrize("budget", ["30", "0m", "-5m", "soon"])
def test_budgets_that_are_none(budget: str) -> None:
    with pytest.raises(RaceError, match="--budget"):
        seconds_of(budget)


def test_a_budget_takes_what_fits(tiny_task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = entry_of(str(tiny_task))
    assert entry is not None
    planned = prepare([entry, entry], make_console(), tmp_path, seeds=1)
    seconds = planned[0].forecast.seconds + planned[1].forecast.seconds
    assert fitting(planned, 1.01 * seconds) == planned
    assert fitting(planned, 0.9 * seconds) == planned[:1]
    assert battery(str(tiny_task), "--budget", "0.001s", "--jobs", "1", "--out", str(tmp_path)) == 0
    assert "left out, since they do not fit into 0.001s: tiny-task" in capsys.readouterr().out


@pytest.mark.slow
def test_a_battery_of_ones_own_task(tiny_task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "battery"
    arguments = (str(tiny_task), "--jobs", "1", "--seeds", "2", "--out", str(out))
    assert battery(*arguments, "--dry-run") == 0
    assert "tiny-task" in capsys.readouterr().out
    assert not list(out.glob("*.json"))
    assert battery(*arguments) == 0
    summary = json.loads((out / "battery.json").read_text())
    race = json.loads((out / "tiny-task.json").read_text())
    assert {*race["contenders"]} == {*ADAMW}
    assert {total["contender"] for total in summary["totals"]} <= {*ADAMW}
    assert {cell["task"] for cell in summary["cells"]} == {"tiny-task"}
    for name in ("frontier.png", "averaging.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG\r\n")
    page = (out / "battery.html").read_text(encoding="utf-8")
    assert "http" not in page
    assert page.count('src="data:image/png;base64,') == 2
    assert "schedule-free-r1" in capsys.readouterr().out

    # Again: nothing is run, and the learning rates are those that were found.
    cache = tmp_path / "battery" / "tuning" / "tiny-task" / "tuning.json"
    tuned = json.loads(cache.read_text())["chosen"]
    assert battery(*arguments) == 0
    assert json.loads((out / "tiny-task.json").read_text())["results"] == race["results"]
    for rate in race["learning_rates"]:
        (choice,) = [
            each for each in tuned if (each["contender"], each["horizon"]) == (rate["contender"], rate["horizon"])
        ]
        assert choice["lr"] == rate["lr"]


def test_unknown_task(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert battery("no-such-task", "--out", str(tmp_path)) == 2
    line = capsys.readouterr().err
    assert "no task 'no-such-task' in the battery" in line
    assert "char-lm" in line
