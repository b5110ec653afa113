"""Describes the contents of a training checkpoint in text."""

import math

from unscheduled.checkpoints.average import Fit, beta_of, located
from unscheduled.checkpoints.content import is_number, kind
from unscheduled.checkpoints.file import Checkpoint


def described(checkpoint: Checkpoint) -> list[str]:
    """The lines that describe a checkpoint: its optimizers with their groups, and whether its weights are x or y.

    Raises:
        CheckpointError: if the weights do not belong to the optimizers.
    """
    fit = located(checkpoint)
    counts = [weight.numel() for weight in fit.weights.values()]
    lines = [
        ("the weights are", _held(fit)),
        ("the model has", f"{len(counts)} tensors, {sum(counts):,} numbers"),
    ]
    for optimizer in checkpoint.optimizers:
        lines.append(("optimizer", kind(optimizer)))
        for index, group in enumerate(optimizer["param_groups"]):
            lr = float(group["lr"]) if is_number(group.get("lr")) else math.nan
            lines.append((f"group {index}", f"{len(group['params'])} parameters, lr {lr:g}"))
            if kind(optimizer) == "unscheduled":
                c = float(group["c"])
                window = f"{1 / c:,.0f} steps" if c > 0.0 else "none yet"
                mode = "train" if group["training"] else "eval"
                lines += [("  mode", mode), ("  steps", f"{group['step']:,}"), ("  beta", f"{group['beta']:g}")]
                lines += [("  window 1/c", window), ("  averaging", group["averaging"]["name"])]
            elif kind(optimizer) == "schedulefree":
                mode = "train" if group["train_mode"] else "eval"
                lines += [("  mode", mode), ("  steps", f"{group['k']:,}"), ("  beta", f"{beta_of(group):g}")]
    return [f"{name:<16} {value}" for name, value in lines]


def _held(fit: Fit) -> str:
    """A description of the weights: x, y, or neither."""
    if not fit.parameters:
        return "what they are: the optimizer is not schedule-free"
    averages = [parameter.holds_average(weight) for weight, parameter in fit.started]
    gradient_points = [parameter.holds_gradient_point(weight) for weight, parameter in fit.started]
    if all(averages):
        return "x, the average"
    if all(gradient_points):
        return "y, the gradient point"
    if all(map(max, averages, gradient_points)):
        return "x of some parameters, y of others"
    return "neither the x nor the y of the optimizer's state"
