"""Prints the result of a race: the table, the verdict, and the details behind them."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unscheduled.lab.tables import Cell, is_long, number, per_cent, results_table
from unscheduled.lab.verdict import RELATIONS, listed

STYLES = {"better": "green", "tie": "default", "worse": "red", "diverged": "red", "one seed": "default"}
Record = Mapping[str, Any]


def print_race(record: Record, console: Console) -> None:
    """Print the table and the verdict of a race, and then the details, a line each."""
    first, *others = record["contenders"]
    seeds = f"mean ± standard error of {record['seeds']} seeds" if record["seeds"] > 1 else "one seed"
    task = record["task"]
    table = Table(box=SIMPLE_HEAD, title=f"{task['name']}: {task['metric']} ({direction(record)}), {seeds}")
    header, *rows = results_table(record)
    for index, name in enumerate(header):
        table.add_column(str(name), justify="left" if index == 0 and is_long(record) else "right")
    for row in rows:
        table.add_row(*(text(each) if isinstance(each, Cell) else each for each in row))
    console.print(table)
    if others:
        console.print(f"(the second lines: {first} compared with the other, and {first} minus it)")
    lines = [record["verdict"], *record["doubts"], *metric_lines(record), *early_stopping_lines(record)]
    for line in (*lines, *target_lines(record), *rate_lines(record)):
        console.print(line)


def text(cell: Cell) -> Text:
    """The text of a cell: the mean, and below it in colour the verdict and the difference."""
    comparison = f"\n{cell.verdict} {cell.difference}".rstrip() if cell.verdict else ""
    return Text.assemble(cell.mean, (comparison, STYLES.get(cell.verdict, "")))


def direction(record: Record) -> str:
    """The direction of the compared number: "lower is better" or "higher is better"."""
    return "lower is better" if record["task"]["lower_is_better"] else "higher is better"


def metric_lines(record: Record) -> Iterator[str]:
    """Yield a line for each other number of the metric, with its means at the last horizon."""
    last = record["horizons"][-1]
    results = [result for result in record["results"] if result["horizon"] == last]
    for name in dict.fromkeys(name for result in results for name in result["others"]):
        means = ", ".join(f"{result['contender']} {number(result['others'].get(name))}" for result in results)
        yield f"{name} at {last:,} steps: {means}"


def early_stopping_lines(record: Record) -> Iterator[str]:
    """Yield a line that lists the verdicts that change if each run counts with its best value up to the horizon."""
    changed: list[str] = []
    for result in record["results"]:
        best = result["best_so_far"]
        if "verdict" in result and best["verdict"] != result["verdict"]:
            with_it = RELATIONS[best["verdict"]].format(result["contender"])
            changed.append(f"{with_it} at {result['horizon']:,} (without: {result['verdict']})")
    if changed:
        first = next(iter(record["contenders"]))
        yield f"with early stopping, which keeps the best value up to a horizon, {first} is {listed(changed)}"


def target_lines(record: Record) -> Iterator[str]:
    """Yield a line for each horizon: the steps after which the first contender reaches the best schedule's value."""
    first = next(iter(record["contenders"]))
    for target in record["steps_to_target"]:
        if target["contender"] != first:
            continue
        what = f"{number(target['target'])}, where {target['schedule']} ends after {target['horizon']:,} steps"
        if target["steps"] is None:
            yield f"{first} does not reach {what}"
        else:
            steps, seconds = per_cent(target["steps_ratio"]), per_cent(target["seconds_ratio"])
            yield f"{first} reaches {what}, after {target['steps']:,.0f}: {steps} of the steps, {seconds} of the time"


def rate_lines(record: Record) -> Iterator[str]:
    """Yield a line for each contender with the learning rate and the warmup of its runs."""
    yield "learning rates, and steps of warmup:"
    width = max(map(len, record["contenders"]))
    for name in record["contenders"]:
        rates = [rate for rate in record["learning_rates"] if rate["contender"] == name]
        shown = [f"{rate['horizon']:,}: {rate['lr']:g} ({rate['warmup_steps']:,})" for rate in rates]
        if record["contenders"][name]["anytime"]:
            shown = [f"{rate['lr']:g} ({rate['warmup_steps']:,}) for all" for rate in rates]
        yield f"  {name:{width}}  {', '.join(shown)}"
