"""The result of a race in sentences, over all its horizons."""

from collections.abc import Mapping, Sequence
from typing import Any

from unscheduled.lab.plan import Plan

RELATIONS = {
    "better": "better than {}",
    "tie": "tied with {}",
    "worse": "worse than {}",
    "diverged": "as divergent as {}",
    "one seed": "not comparable, with one seed, to {}",
}
Result = Mapping[str, Any]


def verdict(plan: Plan, results: Sequence[Result], best: Sequence[Result]) -> str:
    """The sentences on the first contender against each other at every horizon, and on the cost of no schedule."""
    first, *others = plan.contenders
    if not others:
        return f"{first} ran alone."
    sentences = [f"{first} is {against(name, results)}." for name in others]
    if plan.contender(first).anytime and best:
        sentences.append(price(plan, best))
    return " ".join(sentences)


def against(name: str, results: Sequence[Result]) -> str:
    """The comparison of the first contender with one other as text: better at these horizons, tied at those."""
    own = [result for result in results if result["contender"] == name]
    clauses: list[str] = []
    for kind, relation in RELATIONS.items():
        found = [result for result in own if result["verdict"] == kind]
        if found:
            shown = listed([f"{result['horizon']:,}{share(result)}" for result in found])
            clauses.append(f"{relation.format(name if not clauses else 'it')} at {shown} steps")
    return ", ".join(clauses)


def share(result: Result) -> str:
    """The difference as text in per cent of the other contender's value; "" if there is none."""
    if result["difference"] is None or not result["mean"]:
        return ""
    return f" ({100.0 * result['difference'] / abs(result['mean']):+.1f}%)"


def listed(parts: Sequence[str]) -> str:
    """The parts joined as in a sentence: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def price(plan: Plan, best: Sequence[Result]) -> str:
    """The sentence on the cost of no schedule against the best schedule at each horizon."""
    verdicts = [result["verdict"] for result in best]
    against_best = "against the best schedule tuned for each horizon"
    if "worse" in verdicts:
        worse = [result for result in best if result["verdict"] == "worse"]
        shown = listed([f"{result['horizon']:,}{share(result)}" for result in worse])
        return f"Dropping the schedule costs something here, {against_best}: at {shown} steps."
    if {*verdicts} == {"better"}:
        return f"Dropping the schedule costs nothing here, {against_best}, at any horizon."
    if {*verdicts} <= {"better", "tie"}:
        found = f"No cost of dropping the schedule was found with {plan.seeds} seeds, {against_best}, at any horizon"
        return f"{found}{not_excluded(plan, best)}."
    return "What dropping the schedule costs cannot be said from these runs."


def not_excluded(plan: Plan, best: Sequence[Result]) -> str:
    """The end of a sentence that states the largest cost within the 95% intervals of the ties; "" without ties."""
    sign = 1.0 if plan.loaded.task.lower_is_better else -1.0
    costs = {
        100.0 * (sign * result["difference"] + result["difference_half_width"]) / abs(result["mean"]): result["horizon"]
        for result in best
        if result["verdict"] == "tie" and result["mean"]
    }
    if not costs:
        return ""
    return f"; a cost of {max(costs):.0f}% at {costs[max(costs)]:,} steps is within the 95% interval"
