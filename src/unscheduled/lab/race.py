"""The race: tuned contenders over several seeds, compared at every horizon."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from rich.console import Console

from unscheduled.lab.contenders import CONTENDERS
from unscheduled.lab.execution import run_all, write_json
from unscheduled.lab.plan import Plan
from unscheduled.lab.provenance import machine, versions
from unscheduled.lab.statistics import Estimate, compare, estimate
from unscheduled.lab.task import RaceError
from unscheduled.lab.tuning import TunedRates, find_tuned_rates, tune, value_at

RACE_FILE = "race.json"
FAR = 1.5
"""Horizons further apart than by this factor want learning rates of their own."""


def race(plan: Plan, tune_first: bool, console: Console) -> dict[str, Any]:
    """Run what is not on disk yet, and write and return the contents of ``race.json``."""
    head = plan.record()
    tuned = None if tune_first else find_tuned_rates(plan)
    if tuned is None:
        if not tune_first:
            console.print(f"{plan.loaded.name}: no tuned learning rates for these contenders yet, so they come first")
        tuned = tune(plan, console)
    rates = learning_rates(plan, tuned)
    for warning in doubts(rates):
        console.print(warning)
    cells = [(rate["contender"], rate["horizon"], rate["lr"]) for rate in rates]
    settings = [plan.settings(*cell, seed) for cell in cells for seed in range(plan.seeds)]
    runs = run_all(plan.loaded, settings, plan.out, plan.jobs, console, f"racing {plan.loaded.name}")
    check_fairness(plan, runs)
    results = compare_all(plan, runs)
    record = {
        **head,
        "seeds": plan.seeds,
        "learning_rates": rates,
        "doubts": doubts(rates),
        "results": results,
        "verdict": verdict(plan, results),
        "seconds_of_training": sum(run["seconds"] for run in runs),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "runs": runs,
    }
    write_json(plan.out / RACE_FILE, record)
    return record


def learning_rates(plan: Plan, tuned: TunedRates) -> list[dict[str, Any]]:
    """For each run of each contender its learning rate, and where it was tuned."""
    rates: list[dict[str, Any]] = []
    for contender in plan.contenders:
        for horizon in plan.runs_of(contender):
            choice = tuned.choice(contender, horizon)
            rates.append(
                {
                    "contender": contender,
                    "horizon": horizon,
                    "lr": choice["lr"],
                    "tuned_at_horizon": choice["horizon"],
                    "edge_of_grid": choice["edge_of_grid"],
                    "file": tuned.source,
                }
            )
    return rates


def doubts(rates: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes the learning rates of a race doubtful, a line each: the table is to be read with it in mind."""
    rates = [rate for rate in rates if CONTENDERS[rate["contender"]].lr is None]  # the others are not to be tuned
    at_edge = [rate for rate in rates if rate["edge_of_grid"]]
    elsewhere = [rate for rate in rates if not 1 / FAR <= rate["horizon"] / rate["tuned_at_horizon"] <= FAR]
    edges = ", ".join(f"{rate['contender']} at {rate['horizon']:,} ({rate['edge_of_grid']})" for rate in at_edge)
    others = ", ".join(
        f"{rate['contender']} at {rate['horizon']:,} (tuned at {rate['tuned_at_horizon']:,})" for rate in elsewhere
    )
    lines: list[str] = []
    if at_edge:
        lines.append(
            f"doubtful: the best learning rate lies at an end of its grid, so widen the grids of the task: {edges}"
        )
    if elsewhere:
        lines.append(f"doubtful: learning rates tuned for another number of steps, so give --tune: {others}")
    return lines


def check_fairness(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> None:
    """Raise RaceError unless the runs of a seed started from the same weights with the same batch."""
    for seed in range(plan.seeds):
        for name in ("initial_weights", "first_batch"):
            if len({run[f"{name}_sha256"] for run in runs if run["seed"] == seed}) > 1:
                raise RaceError(
                    f"{plan.loaded.name}: the runs of a seed differ in {name.replace('_', ' ')}: `model` may draw from "
                    "torch's global generator only, `batches` from the generator it is given only"
                )


def compare_all(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each horizon and contender: its values, their mean, and how the first contender compares with it."""
    results: list[dict[str, Any]] = []
    for horizon in plan.horizons:
        values = {contender: values_at(plan, runs, contender, horizon) for contender in plan.contenders}
        first = values[plan.contenders[0]]
        for contender in plan.contenders:
            mean = estimate(values[contender])
            result: dict[str, Any] = {
                "horizon": horizon,
                "contender": contender,
                "values": values[contender],
                "mean": mean.mean,
                "standard_error": mean.standard_error,
            }
            if contender != plan.contenders[0]:
                comparison = compare(first, values[contender])
                result |= {
                    "difference": comparison.difference.mean,
                    "difference_standard_error": comparison.difference.standard_error,
                    "verdict": comparison.verdict,
                }
            results.append(result)
    return results


def values_at(plan: Plan, runs: Sequence[Mapping[str, Any]], contender: str, horizon: int) -> list[float | None]:
    """One value a seed, from the run that serves the horizon; None for a run that had diverged by then."""
    length = horizon if horizon in plan.runs_of(contender) else plan.horizons[-1]
    serving = [run for run in runs if (run["contender"], run["horizon"]) == (contender, length)]
    return [value_at(run, horizon) for run in sorted(serving, key=lambda run: run["seed"])]


def verdict(plan: Plan, results: Sequence[Mapping[str, Any]]) -> str:
    """The question of the race, answered for the last horizon."""
    first, *others = [result for result in results if result["horizon"] == plan.horizons[-1]]
    answer = f"At {plan.horizons[-1]:,} steps {first['contender']} ({shown(first)})"
    if not others:
        return answer + "."
    answer += " is " + (in_groups(others) if len(others) > 3 else " and ".join(map(compared_with, others))) + "."
    verdicts = {other["verdict"] for other in others}
    drops_the_schedule = CONTENDERS[first["contender"]].anytime and not any(
        CONTENDERS[other["contender"]].anytime for other in others
    )
    if drops_the_schedule and verdicts == {"better"}:
        answer += " Dropping the schedule costs nothing here."
    elif drops_the_schedule and verdicts <= {"better", "tie"}:
        answer += f" No cost of dropping the schedule was found with {plan.seeds} seeds."
    elif drops_the_schedule and "worse" in verdicts:
        answer += " Dropping the schedule costs something here."
    return answer


RELATIONS = {
    "better": "better than",
    "worse": "worse than",
    "tie": "tied with",
    "diverged": "as divergent as",
    "one seed": "not comparable, with one seed, to",
}


def in_groups(others: Sequence[Mapping[str, Any]]) -> str:
    """How the first contender does against many, without the differences."""
    groups = [
        f"{relation} " + ", ".join(f"{other['contender']} ({shown(other)})" for other in found)
        for verdict, relation in RELATIONS.items()
        if (found := [other for other in others if other["verdict"] == verdict])
    ]
    return "; ".join(groups)


def compared_with(other: Mapping[str, Any]) -> str:
    """How the first contender does against another one at one horizon."""
    numbers = shown(other)
    if other["difference"] is not None:
        difference = Estimate(other["difference"], other["difference_standard_error"])
        numbers += f"; difference {difference.shown('+')}"
    return f"{RELATIONS[other['verdict']]} {other['contender']} ({numbers})"


def shown(result: Mapping[str, Any]) -> str:
    """Mean and standard error of one contender at one horizon."""
    return str(Estimate(result["mean"], result["standard_error"]))
