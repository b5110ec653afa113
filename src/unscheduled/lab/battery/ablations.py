"""Ablations: one choice of Schedule-Free AdamW varied at a time, each variant at the best of three learning rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from unscheduled.lab.execution import Job
from unscheduled.lab.plan import Plan
from unscheduled.lab.statistics import estimate, geometric_mean
from unscheduled.lab.tuning import TUNING_SEEDS, rounded, value_at

CONTENDER = "schedule-free"
AROUND = (0.5, 1.0, 2.0)
"""The learning rates of a variant, as multiples of the tuned one."""


@dataclass(frozen=True)
class Variant:
    """Schedule-Free AdamW with one choice changed.

    Args:
        choice: the name of the choice.
        value: its value as text.
        options: keyword arguments that replace those of the task.
        beta: the interpolation beta; None for that of the task.
        warmup: the share of the steps that are warmup; None for that of the task.
        batch_norm: whether BatchNorm's running statistics are re-estimated at x.
    """

    choice: str
    value: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    beta: float | None = None
    warmup: float | None = None
    batch_norm: bool = True


DEFAULT = Variant("default", "β 0.9, r 0, decay at y, warmup 5%")
BETAS = tuple(Variant("β", f"{beta:g}", beta=beta) for beta in (0.5, 0.8, 0.95, 0.98))
VARIANTS = (
    DEFAULT,
    *BETAS,
    *(Variant("r", f"{r:g}", {"r": r}) for r in (0.5, 1.0, 2.0, 4.0)),
    *(Variant("warmup", f"{share:.0%}", warmup=share) for share in (0.0, 0.02, 0.1, 0.25)),
    Variant("decay", "at z", {"decay_at": "z"}),
)
WITHOUT_BATCH_NORM = Variant("BatchNorm", "not re-estimated at x", batch_norm=False)


def ablation_jobs(plan: Plan, variants: Sequence[Variant], tuned_lr: float) -> list[Job]:
    """The jobs of the variants, in the order of variants, learning rates and seeds."""
    jobs: list[Job] = []
    length = plan.horizons[-1]
    for variant in variants:
        for factor in AROUND:
            for seed in TUNING_SEEDS:
                settings = plan.settings(CONTENDER, length, rounded(factor * tuned_lr), seed, plan.horizons)
                options = {**settings.options, **variant.options}
                if variant.beta is not None:
                    options["betas"] = (variant.beta, options["betas"][1])
                warmup = settings.warmup_steps if variant.warmup is None else round(variant.warmup * length)
                settings = replace(settings, options=options, warmup_steps=warmup, batch_norm=variant.batch_norm)
                jobs.append(Job(plan.loaded, settings, plan.seconds_per_step))
    return jobs


def ablation_rows(plan: Plan, variants: Sequence[Variant], runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each variant its best learning rate, and the ratio of its loss to the default's loss at each horizon.

    The best rate has the lowest geometric mean of the losses over the horizons; a variant that diverged with every rate
    has no rate (None).
    """
    size = len(AROUND) * len(TUNING_SEEDS)
    found = [best_rate(plan, runs[index * size : (index + 1) * size]) for index in range(len(variants))]
    default = found[0][1]
    rates = {run["lr"] for run in runs}
    return [
        {
            "choice": variant.choice,
            "value": variant.value,
            "lr": lr,
            "edge": lr in (min(rates), max(rates)),
            "means": means,
            "ratios": [mean / base for mean, base in zip(means, default, strict=True)] if means and default else None,
        }
        for variant, (lr, means) in zip(variants, found, strict=True)
    ]


def best_rate(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> tuple[float | None, list[float]]:
    """The best learning rate of a variant and its mean at each horizon; (None, []) if it diverged with every rate."""
    means: dict[float, list[float]] = {}
    for lr in {run["lr"] for run in runs}:
        same = [run for run in runs if run["lr"] == lr]
        each = [estimate([value_at(plan.loaded, run, step) for run in same]).mean for step in plan.horizons]
        finite = [mean for mean in each if mean is not None]
        if len(finite) == len(each):
            means[lr] = finite
    if not means:
        return None, []
    best = min(means, key=lambda lr: geometric_mean(means[lr]))
    return best, means[best]
