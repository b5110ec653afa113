"""Learning rates: grids that widen, runs that are kept, and what is chosen."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from races import contents, kept, planned, race, refused

from unscheduled.lab.run import known_contenders
from unscheduled.lab.task import built_in_tasks, load_task
from unscheduled.lab.tuning import WIDEST, choose

QUADRATIC = """
import torch
from torch import nn

from unscheduled.lab.task import OptimizerSettings, Task


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(3.0 + torch.rand(50))


def batches(generator):
    while True:
        yield torch.randn(50, generator=generator)


def loss(model, batch):
    return (model.weight - batch).square().sum()


def metric(model):
    return model.weight.square().mean().item()


task = Task(
    summary="a parabola",
    model=Weights,
    batches=batches,
    loss=loss,
    metric=metric,
    metric_name="distance",
    steps=16,
    warmup_steps=2,
    optimizers={
        "SGD": OptimizerSettings([0.01, 0.02], {"momentum": 0.5}),
        "SGDScheduleFree": OptimizerSettings([0.01, 0.02]),
        "AdamWScheduleFree": OptimizerSettings([0.01, 0.02], {"weight_decay": 0.0}),
    },
    seeds=2,
)
"""
LINEAR = ("--contenders", "sgd-linear", "--horizons", "16")


@pytest.fixture
def parabola(tmp_path: Path) -> Path:
    """A task whose weight has to go further than the learning rates of its grid take it."""
    file = tmp_path / "parabola.py"
    file.write_text(QUADRATIC)
    return file


def tried(out: Path, contender: str) -> list[float]:
    return sorted({score["lr"] for score in contents(out / "tuning.json")["scores"] if score["contender"] == contender})


@pytest.mark.parametrize("contender", ["sgd-linear", "sgd"])
def test_a_grid_widens_until_its_best_is_inside(parabola: Path, contender: str) -> None:
    record = race(parabola, "--contenders", contender, "--horizons", "8,16")
    assert record["doubts"] == []
    for rate in record["learning_rates"]:
        scores = contents(parabola.parent / "out" / "tuning.json")["scores"]
        own = [score for score in scores if score["length"] == rate["horizon"]]
        rates = sorted({score["lr"] for score in own})
        assert rates == pytest.approx([0.01 * 2**power for power in range(len(rates))], rel=1e-5)
        assert rates[0] < rate["lr"] < rates[-1]
        assert rate["lr"] == rates[-2]  # it widens no further than it has to
        assert rate["edge_of_grid"] is None


def test_other_start_rates_repeat_no_run(parabola: Path) -> None:
    race(parabola, *LINEAR)
    before = kept()
    chosen = contents(parabola.parent / "out" / "tuning.json")["chosen"]
    rates = tried(parabola.parent / "out", "sgd-linear")

    # From within: on its way up to the same end. From above: down to the same best, with two rates that are new.
    race(parabola, *LINEAR, "--rates", "0.04,0.08")
    assert kept() == before
    assert contents(parabola.parent / "out" / "tuning.json")["chosen"] == chosen
    above = [2 * rates[-1], 4 * rates[-1]]
    race(parabola, *LINEAR, "--rates", ",".join(map(str, above)))
    assert contents(parabola.parent / "out" / "tuning.json")["chosen"] == chosen
    after = kept()
    assert {name: after[name] for name in before} == before
    assert {name.split("-lr")[1].split("-")[0] for name in after.keys() - before.keys()} == {f"{lr:g}" for lr in above}


def test_rates_of_one_contender_and_of_all_others(parabola: Path) -> None:
    race(
        parabola,
        "--contenders",
        "sgd,sgd-linear,plus",
        "--horizons",
        "16",
        "--rates",
        "sgd-linear=0.1,0.2,0.3",
        "--rates",
        "0.5",
    )
    out = parabola.parent / "out"
    assert {0.1, 0.2, 0.3} <= {*tried(out, "sgd-linear")}
    assert tried(out, "sgd") == [0.5]  # one rate is no grid, and does not widen
    assert tried(out, "plus") == [1.0]


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ("0.1,-1", "--rates 0.1,-1: want different numbers above 0"),
        ("sgd-linear=nan", "--rates sgd-linear=nan: want different numbers above 0"),
        ("sgd-linear=0.1,0.1", "want different numbers above 0"),
        ("linear=a,b", "want [NAME=]RATE,RATE,... got 'linear=a,b'"),
        ("sgd=0.1", "--rates sgd=…: sgd is not raced; the contenders are sgd-linear, plus"),
        ("plus=0.1", "--rates plus=…: plus has no learning rate to tune"),
    ],
)
def test_rates_that_cannot_be(parabola: Path, rates: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(parabola, "--contenders", "sgd-linear,plus", "--rates", rates, capsys=capsys)


def test_a_contender_that_diverges_everywhere_is_refused(parabola: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parabola.write_text(QUADRATIC.replace("return (model", "return float('nan') * (model"))
    line = refused(parabola, *LINEAR, "--rates", "1000,2000", capsys=capsys)
    assert "sgd-linear diverged at every learning rate (0.9765" in line
    assert "500, 1000, 2000)" in line
    assert line.count(", ") == WIDEST - 1
    assert "give lower --rates" in line


def test_rates_that_diverge_are_widened_away_from(parabola: Path) -> None:
    """Both begin far above twice the initial metric."""
    (rate,) = race(parabola, *LINEAR, "--rates", "10,20")["learning_rates"]
    assert rate["edge_of_grid"] is None
    assert rate["lr"] < 5.0


def test_one_run_for_all_horizons_has_the_best_mean_of_the_logarithms(tiny_task: Path) -> None:
    """ln(0.1) + ln(4) < ln(0.9) + ln(0.5), though 0.9 + 0.5 < 0.1 + 4; at 16 alone the other rate is best."""
    plan = planned(tiny_task, horizons=[8, 16])
    means = {0.1: {8: 0.1, 16: 4.0}, 0.2: {8: 0.9, 16: 0.5}, 0.4: {8: None, 16: 0.1}}
    scores = [
        {"contender": "schedule-free", "length": 16, "horizon": horizon, "lr": lr, "mean": mean}
        for lr, each in means.items()
        for horizon, mean in each.items()
    ]
    choice = choose(plan, scores, "schedule-free", 16)
    assert (choice["lr"], choice["edge_of_grid"]) == (0.1, "lowest")
    assert choice["best_at"] == {"8": {"lr": 0.1, "mean": 0.1}, "16": {"lr": 0.4, "mean": 0.1}}


def best_by_the_rule(scores: Sequence[Mapping[str, Any]], lower_is_better: bool) -> float:
    """The learning rate with the best mean over the horizons of the logarithm, among those that never diverged.

    If all did, it is the lowest.
    """
    by_rate: dict[float, list[Any]] = {}
    for score in scores:
        by_rate.setdefault(score["lr"], []).append(score["mean"])
    finite = {lr: means for lr, means in by_rate.items() if None not in means}
    if not finite:
        return min(by_rate)
    scale = math.log if all(mean > 0 for means in finite.values() for mean in means) else float
    totals = {lr: sum(map(scale, means)) for lr, means in finite.items()}
    return (min if lower_is_better else max)(totals, key=lambda lr: totals[lr])


def check_choices(tuning: Mapping[str, Any]) -> None:
    """Each is the best by the rule, and inside its grid unless the grid is as wide as can be."""
    for choice in tuning["chosen"]:
        scores = [
            score
            for score in tuning["scores"]
            if (score["contender"], score["length"]) == (choice["contender"], choice["horizon"])
        ]
        assert choice["lr"] == best_by_the_rule(scores, tuning["task"]["lower_is_better"])
        rates = {score["lr"] for score in scores}
        inside = min(rates) < choice["lr"] < max(rates)
        assert inside or len(rates) in (1, WIDEST)
        assert (choice["edge_of_grid"] is None) == (inside or len(rates) == 1)
        for score in scores:
            assert score["mean"] is None or score["mean"] == pytest.approx(math.fsum(score["values"]) / 2)


def test_what_is_raced_is_the_best_of_the_tuning_seeds(tiny_task: Path) -> None:
    record = race(tiny_task)
    tuning = contents(tiny_task.parent / "out" / "tuning.json")
    assert not {*tuning["seeds"]} & {run["seed"] for run in record["runs"]}
    check_choices(tuning)
    chosen = {(choice["contender"], choice["horizon"]): choice["lr"] for choice in tuning["chosen"]}
    assert {(rate["contender"], rate["horizon"]): rate["lr"] for rate in record["learning_rates"]} == chosen


def test_sensitivity_is_reported_for_every_rate_and_horizon(tiny_task: Path) -> None:
    record = race(tiny_task)
    tuning = contents(tiny_task.parent / "out" / "tuning.json")
    scores = [score for score in tuning["scores"] if score["contender"] == "schedule-free"]
    assert {score["horizon"] for score in scores} == {2, 4, 8, 16}
    assert record["sensitivity"] == [
        {name: score[name] for name in ("contender", "lr", "horizon", "mean")} for score in scores
    ]
    (rate,) = [rate for rate in record["learning_rates"] if rate["contender"] == "schedule-free"]
    for horizon, best in rate["best_at"].items():
        means = {score["lr"]: score["mean"] for score in scores if score["horizon"] == int(horizon)}
        assert best == {"lr": min(means, key=lambda lr: means[lr]), "mean": min(means.values())}


def test_broken_tuning_file(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_task.with_suffix(".tuning.json").write_text("{}")
    assert "tiny_task.tuning.json is no tuning file" in refused(tiny_task, capsys=capsys)


@pytest.mark.parametrize("name", built_in_tasks())
def test_shipped_learning_rates_are_those_of_the_tuning_run(name: str) -> None:
    """Of the task as it is now, with the metric, the options and the choices that it leads to."""
    loaded = load_task(name)
    if not loaded.tuning_file.exists():
        pytest.skip(f"no learning rates are shipped with {name}")
    tuning = json.loads(loaded.tuning_file.read_text())
    assert tuning["task"]["metric"] == loaded.task.metric_name
    assert tuning["task"]["source_sha256"] == loaded.source_sha256
    for contender, stated in tuning["contenders"].items():
        settings_of = known_contenders(loaded.task)[contender].settings_of
        assert stated["settings_of"] == settings_of
        assert stated["options"] == json.loads(json.dumps(dict(loaded.task.optimizers[settings_of].options)))
    check_choices(tuning)
