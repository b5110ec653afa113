"""Converts state dicts of the ``schedulefree`` package, of Adam and of AdamW into the form of this package."""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any, TypeAlias

import torch

from unscheduled.formulas.averaging import PolynomialAveraging
from unscheduled.formulas.rule import Rule
from unscheduled.state import param_groups
from unscheduled.state.device_math import on_host
from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import State

States: TypeAlias = dict[Any, State]

KINDS = {"momentum": "SGDScheduleFree", "silent_sgd_phase": "RAdamScheduleFree", "betas": "AdamWScheduleFree"}
"""The classes of the ``schedulefree`` package, by the first of these options that is in their groups."""

COUNTERS = {"k", "lr_max", "train_mode", "weight_sum"}
"""Entries that the groups of every version of the ``schedulefree`` package have."""

NOT_OURS = {"foreach", "k", "r", "scheduled_lr", "train_mode", "weight_lr_power"}
"""Entries of the ``schedulefree`` package's groups that this package has elsewhere or under another name."""


def recognised(state_dict: dict[str, Any], param_groups: list[Group], rule: Callable[[Group], Rule]) -> dict[str, Any]:
    """The state dict converted into the form of this package; the same object if no other optimizer is recognised.

    - The ``schedulefree`` package's SGD, AdamW and RAdam: the run continues with the numbers of the file; options that
      the package does not have (``decay_at``, ``interpolation``, ...) are those of ``param_groups``. The averaging is
      polynomial, without warmup. The state of a parameter gets the package's ``z``; the gap is computed from z and the
      weights, which are y beside a file of train mode and x beside a file of eval mode. All parameters of a group have
      seen its ``k`` gradients. If the largest learning rate was 0 until now, nothing has moved and the sum of the
      averaging weights is 0, although the package's sum is above 0 if ``weight_lr_power`` is 0.
    - ``torch.optim.AdamW`` and ``Adam``, for a rule with second moments: the file gives the second moments, their
      counts for the bias correction and, if the rule has momentum, the first moments. A new run begins with the options
      of ``param_groups``: x = y = z are the weights.

    Args:
        state_dict: the state dict of some optimizer; it does not change.
        param_groups: the groups to load it into. Whether they fit is not checked; a group of the file without a
            counterpart is converted like the first.
        rule: returns the rule of a group.

    Raises:
        ValueError: if the file is of another class of the ``schedulefree`` package than this optimizer, its groups are
            in different modes, its x cannot be recovered (beta = 0 in train mode), or a number is out of its range.
    """
    saved_groups: list[Group] = state_dict["param_groups"]
    if all(set(saved) >= COUNTERS for saved in saved_groups):
        convert = _of_schedulefree
        if len({bool(saved["train_mode"]) for saved in saved_groups}) > 1:
            raise ValueError(
                "the state dict does not fit: it was made by the schedulefree package with some groups in train mode "
                "and some in eval mode: call its optimizer's train() or eval() before saving"
            )
    elif all("amsgrad" in saved for saved in saved_groups) and all(_has_moments(rule(ours)) for ours in param_groups):
        convert = _of_adam
    else:
        return state_dict
    converted: list[Group] = []
    states: States = {}
    pairs = zip_longest(saved_groups, param_groups[: len(saved_groups)], fillvalue=param_groups[0])
    for index, (saved, ours) in enumerate(pairs):
        started = {key: state_dict["state"][key] for key in saved["params"] if state_dict["state"].get(key)}
        try:
            group, state = convert(saved, ours, started, rule(ours))
        except ValueError as error:
            raise ValueError(f"the state dict does not fit: parameter group {index}: {error}") from None
        converted.append(group)
        states.update(state)
    return {**state_dict, "state": states, "param_groups": converted}


def _of_schedulefree(saved: Group, ours: Group, started: States, rule: Rule) -> tuple[Group, States]:
    """A group of the ``schedulefree`` package and the state of its parameters, converted."""
    if _kind(saved) != _kind(ours):
        raise ValueError(
            f"it was made by {_kind(saved)} of the schedulefree package, this optimizer is {_kind(ours)}: "
            f"construct {_kind(saved)}"
        )
    beta = float(saved["momentum"] if "momentum" in saved else saved["betas"][0])
    if started and saved["train_mode"] and beta == 0.0:
        raise ValueError(
            "beta = 0 in train mode: the average x cannot be recovered from y and z: "
            "load the model alone, and start a new run from it"
        )
    step, lr_max, weight_sum = saved["k"], max(float(saved["lr_max"]), 0.0), float(saved["weight_sum"])
    averaging = PolynomialAveraging(saved["r"], saved["weight_lr_power"])
    if lr_max == 0.0:
        weight_sum = 0.0
    _, weight = averaging(step, lr_max, lr_max, 0.0) if step > 0 else (0.0, 0.0)
    group = {
        **_options(ours),
        **{name: value for name, value in saved.items() if name not in NOT_OURS},
        **param_groups.described_axes(ours | {"averaging": averaging}),
        "step": step,
        "weight_sum": weight_sum,
        "lr_max": lr_max,
        "beta": beta,
        "c": min(weight / weight_sum, 1.0) if weight_sum > 0.0 else 0.0,  # the power may have changed since
        "effective_lr": float(saved.get("scheduled_lr", 0.0)),
        "training": bool(saved["train_mode"]),
    }
    states: States = {}
    for key, state in started.items():
        if "z" not in state:
            raise ValueError(f"the state dict is damaged: it has no 'z' for parameter {key}")
        states[key] = {**state, "step": step, "gap": torch.zeros_like(state["z"])}
    return group, states


def _of_adam(saved: Group, ours: Group, started: States, rule: Rule) -> tuple[Group, States]:
    """A group of Adam or AdamW and the state of its parameters, converted."""
    group = {
        **_options(ours),
        **{name: saved[name] for name in ("params", "param_names") if name in saved},
        **param_groups.described_axes(ours),
        **param_groups.fresh_counters(on_host(ours["beta"]), training=True),
    }
    states: States = {
        key: {
            "step": int(state["step"]),
            "gap": torch.zeros_like(state["exp_avg_sq"]),
            **{name: state[name] for name in rule.buffers},
        }
        for key, state in started.items()
    }
    return group, states


def _has_moments(rule: Rule) -> bool:
    """Whether the buffers of a rule are second moments, with or without first moments: Adam's state has all of them."""
    return "exp_avg_sq" in rule.buffers and set(rule.buffers) <= {"exp_avg", "exp_avg_sq"}


def _kind(group: Group) -> str:
    return next((name for option, name in KINDS.items() if option in group), "another")


def _options(group: Group) -> Group:
    plain = group | param_groups.counters_on_host(group)
    return {name: value for name, value in plain.items() if name not in ("params", "param_names")}
