"""What is concluded from the runs: by Student's t, at all horizons, with divergence, targets and early stopping."""

import math
from pathlib import Path
from typing import Any

import pytest
from races import made_up, planned
from scipy.stats import t, ttest_rel

from unscheduled.lab.comparison import best_schedules, compare_all, first_crossing, steps_to_target
from unscheduled.lab.plan import Plan
from unscheduled.lab.run import blown_up_at
from unscheduled.lab.statistics import compare
from unscheduled.lab.verdict import verdict

HORIZONS = (8, 16)


@pytest.fixture
def plan(tiny_task: Path) -> Plan:
    """Schedule-free against two schedules at 8 and 16 steps."""
    return planned(tiny_task, contenders=["schedule-free", "cosine", "linear"], horizons=HORIZONS, seeds=3)


def runs_of(plan: Plan, values: dict[str, dict[int, list[float]]]) -> list[dict[str, Any]]:
    """Runs with these values at the horizons, one for each seed."""
    runs: list[dict[str, Any]] = []
    for name, by_horizon in values.items():
        for seed in range(plan.seeds):
            curve = {horizon: each[seed] for horizon, each in by_horizon.items()}
            if plan.contender(name).anytime:
                runs.append(made_up(name, curve, seed=seed))
            else:
                runs += [made_up(name, {h: value}, horizon=h, seed=seed) for h, value in curve.items()]
    return runs


def concluded(plan: Plan, values: dict[str, dict[int, list[float]]]) -> str:
    results = compare_all(plan, runs_of(plan, values))
    return verdict(plan, results, best_schedules(plan, results))


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("lower_is_better", [True, False])
def test_verdict_is_that_of_the_paired_t_test(seeds: int, shift: float, lower_is_better: bool) -> None:
    first = [math.sin(7.0 * seed) for seed in range(seeds)]
    second = [value + shift + 0.5 * math.cos(11.0 * seed) for seed, value in enumerate(first)]
    comparison = compare(first, second, lower_is_better)
    test = ttest_rel(first, second)
    interval = test.confidence_interval(0.95)
    assert comparison.difference.mean is not None
    assert comparison.half_width == pytest.approx((interval.high - interval.low) / 2)
    assert comparison.difference.mean == pytest.approx((interval.high + interval.low) / 2)
    if test.pvalue >= 0.05:
        assert comparison.verdict == "tie"
    else:
        assert comparison.verdict == ("better" if (test.statistic < 0) == lower_is_better else "worse")


def test_two_standard_errors_are_no_evidence_with_three_seeds() -> None:
    """Differences 1, 2, 3 are 3.5 standard errors from 0, of which three seeds need 4.3."""
    assert t.ppf(0.975, 2) == pytest.approx(4.303, abs=0.001)
    assert compare([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).verdict == "tie"


def test_the_verdict_speaks_of_all_horizons(plan: Plan) -> None:
    said = concluded(
        plan,
        {
            "schedule-free": {8: [1.0, 1.0, 1.0], 16: [0.6, 0.6, 0.6]},
            "cosine": {8: [1.25, 1.25, 1.25], 16: [0.5, 0.5, 0.5]},
            "linear": {8: [0.5, 1.5, 2.0], 16: [0.2, 0.8, 1.4]},
        },
    )
    assert "schedule-free is better than cosine at 8 (-20.0%) steps, worse than it at 16 (+20.0%) steps." in said
    assert "schedule-free is tied with linear at 8 (-25.0%) and 16 (-25.0%) steps." in said
    assert said.endswith(
        "Dropping the schedule costs something here, against the best schedule tuned for each horizon: "
        "at 16 (+20.0%) steps."
    )


def test_ties_say_what_cost_they_leave_open(plan: Plan) -> None:
    """Linear is the best at both; at 16 the difference is 0 ± 4.303 * 0.2 / sqrt(3), relative to 0.6."""
    said = concluded(
        plan,
        {
            "schedule-free": {8: [0.5, 0.5, 0.5], 16: [0.6, 0.6, 0.6]},
            "cosine": {8: [2.0, 2.0, 2.0], 16: [2.0, 2.0, 2.0]},
            "linear": {8: [1.0, 1.0, 1.0], 16: [0.4, 0.6, 0.8]},
        },
    )
    assert "No cost of dropping the schedule was found with 3 seeds" in said
    cost = 100 * t.ppf(0.975, 2) * 0.2 / math.sqrt(3) / 0.6
    assert said.endswith(f"at any horizon; a cost of {cost:.0f}% at 16 steps is within the 95% interval.")


def test_better_everywhere_costs_nothing(plan: Plan) -> None:
    values = {name: {h: [value] * 3 for h in HORIZONS} for name, value in zip(plan.contenders, (1, 2, 3), strict=True)}
    assert "costs nothing here, against the best schedule tuned for each horizon, at any horizon." in concluded(
        plan, values
    )


def test_a_run_that_blows_up_has_diverged_and_loses(plan: Plan) -> None:
    """More than twice the 1.0 before training: no tie, however much the seeds differ."""
    values = {
        "schedule-free": {8: [0.5, 0.5, 0.5], 16: [0.5, 0.5, 90.0]},
        "cosine": {8: [0.5, 0.7, 0.3], 16: [0.5, 0.7, 0.3]},
        "linear": {8: [0.5, 0.7, 0.3], 16: [0.5, 2.1, 900.0]},
    }
    results = {(result["contender"], result["horizon"]): result for result in compare_all(plan, runs_of(plan, values))}
    assert results["schedule-free", 16]["values"] == [0.5, 0.5, None]
    assert results["schedule-free", 16]["mean"] is None
    assert results["linear", 16]["values"] == [0.5, None, None]
    assert [results["cosine", h]["verdict"] for h in HORIZONS] == ["tie", "worse"]
    assert [results["linear", h]["verdict"] for h in HORIZONS] == ["tie", "diverged"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.9, 0.5, 0.4], None),
        ([0.9, 2.1, 5.0], 4),
        ([2.1, 3.0, 0.5], None),  # it came back
        ([2.1, 0.5, 3.0], 6),
        ([2.0, 2.0, 2.0], None),  # no more than twice
        ([], None),
    ],
)
def test_blown_up_is_told_from_the_step_on_since_which_it_is(values: list[float], expected: int | None) -> None:
    assert blown_up_at([(2 * index, value) for index, value in enumerate(values, 1)], 1.0) == expected


def test_an_accuracy_may_double(tiny_task: Path) -> None:
    tiny_task.write_text(tiny_task.read_text().replace("seeds=2,", "seeds=2,\n    lower_is_better=False,"))
    plan = planned(tiny_task, contenders=["schedule-free", "linear"], horizons=[16], seeds=2)
    values = {"schedule-free": {16: [0.9, 0.9]}, "linear": {16: [0.5, 0.5]}}
    runs = [{**run, "initial": 0.1} for run in runs_of(plan, values)]
    results = compare_all(plan, runs)
    assert results[1]["verdict"] == "better"
    assert results[0]["best_so_far"]["mean"] == pytest.approx(0.9)


def test_early_stopping_takes_the_best_value_up_to_each_horizon(plan: Plan) -> None:
    runs = [
        *(made_up("schedule-free", {2: 0.9, 6: 0.3, 8: 0.5, 12: 0.2, 16: 0.8}, seed=seed) for seed in range(3)),
        *(
            made_up(name, {2: 0.9, 6: 0.6, 8: 0.4}, horizon=8, seed=seed)
            for name in ("cosine", "linear")
            for seed in range(3)
        ),
        *(
            made_up(name, {6: 0.6, 16: 0.4}, horizon=16, seed=seed)
            for name in ("cosine", "linear")
            for seed in range(3)
        ),
    ]
    results = compare_all(plan, runs)
    means = {(result["contender"], result["horizon"]): result["best_so_far"]["mean"] for result in results}
    assert [means["schedule-free", h] for h in HORIZONS] == pytest.approx([0.3, 0.2])
    assert [means["linear", h] for h in HORIZONS] == pytest.approx([0.4, 0.4])
    linear = [result for result in results if result["contender"] == "linear"]
    assert [result["verdict"] for result in linear] == ["worse", "worse"]
    assert [result["best_so_far"]["verdict"] for result in linear] == ["better", "better"]


@pytest.mark.parametrize(
    ("target", "step"),
    [
        (0.9, 2.0),  # at the first evaluation, or before
        (0.8, 2.0),
        (0.4, 8.0),
        (0.6, 4.0),  # half way from 0.8 to 0.4, and from 2 to 8 in the logarithm
        (0.3, None),
    ],
)
@pytest.mark.parametrize("lower_is_better", [True, False])
def test_first_crossing(target: float, step: float | None, lower_is_better: bool) -> None:
    sign = 1.0 if lower_is_better else -1.0
    curve = [(2, sign * 0.8), (8, sign * 0.4), (16, sign * 0.5)]
    found = first_crossing(curve, sign * target, lower_is_better)
    assert found == (None if step is None else pytest.approx(step))


def test_steps_and_seconds_to_what_the_best_schedule_has_at_its_end(plan: Plan) -> None:
    """Schedule-free: 0.8, 0.4, 0.2 after 2, 8, 16 steps of 0.1 s; the best schedule 0.6 after 8 and 0.2 after 16."""
    runs = [
        *(made_up("schedule-free", {2: 0.8, 8: 0.4, 16: 0.2}, seed=seed, seconds=1.6 + seed) for seed in range(3)),
        *(made_up("cosine", {8: 0.9}, horizon=8, seed=seed, seconds=0.4) for seed in range(3)),
        *(made_up("cosine", {16: 0.1}, horizon=16, seed=seed, seconds=0.8) for seed in range(3)),
        *(made_up("linear", {8: 0.6}, horizon=8, seed=seed, seconds=1.6) for seed in range(3)),
        *(made_up("linear", {16: 0.9}, horizon=16, seed=seed, seconds=3.2) for seed in range(3)),
    ]
    best = best_schedules(plan, compare_all(plan, runs))
    assert [result["contender"] for result in best] == ["linear", "cosine"]
    reached, missed = steps_to_target(plan, runs, best)
    assert (reached["horizon"], reached["schedule"]) == (8, "linear")
    assert reached["target"] == pytest.approx(0.6)
    assert reached["steps"] == pytest.approx(4.0)
    assert reached["steps_ratio"] == pytest.approx(0.5)
    assert reached["seconds_ratio"] == pytest.approx(4 * 0.1 / 1.6)
    assert (missed["horizon"], missed["schedule"]) == (16, "cosine")
    assert missed["steps"] is missed["steps_ratio"] is missed["seconds_ratio"] is None


def test_the_time_of_a_step_counts_the_steps_that_were_made(tiny_task: Path) -> None:
    """One that blew up at 4 made all 16; one that met NaN at 4 made 4."""
    plan = planned(tiny_task, contenders=["schedule-free", "linear"], horizons=[16], seeds=1)
    linear = made_up("linear", {16: 0.5}, seconds=16.0)
    blown_up = made_up("schedule-free", {2: 0.5, 4: 3.0, 16: 3.0}, seconds=16.0, diverged_at=4)
    not_a_number = made_up("schedule-free", {2: 0.5}, seconds=4.0, diverged_at=4)
    for run in (blown_up, not_a_number):
        runs = [run, linear]
        (target,) = steps_to_target(plan, runs, best_schedules(plan, compare_all(plan, runs)))
        assert target["seconds_ratio"] == pytest.approx(target["steps_ratio"]) == pytest.approx(2 / 16)


def test_other_numbers_of_the_metric_are_means_over_the_seeds(plan: Plan) -> None:
    others = [{"accuracy": [0.5, 0.9]}, {"accuracy": [0.6, 0.7]}, {"accuracy": [0.1, 0.2]}]
    runs = [made_up("schedule-free", {8: 0.5, 16: 0.4}, seed=seed, others=each) for seed, each in enumerate(others)]
    for name in ("cosine", "linear"):
        runs += [made_up(name, {h: 0.5}, horizon=h, seed=seed) for h in HORIZONS for seed in range(3)]
        runs[-1]["others"] = {"accuracy": [0.5]}
    results = compare_all(plan, runs)
    found = {result["horizon"]: result["others"] for result in results if result["contender"] == "schedule-free"}
    assert found == {8: {"accuracy": pytest.approx(0.4)}, 16: {"accuracy": pytest.approx(0.6)}}
    (linear,) = [result for result in results if (result["contender"], result["horizon"]) == ("linear", 16)]
    assert linear["others"] == {"accuracy": None}  # two of its seeds have none
