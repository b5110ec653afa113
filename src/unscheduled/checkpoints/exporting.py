"""Exports the state of an optimizer to the ``schedulefree`` package and to ``torch.optim.AdamW``."""

from typing import Any, Protocol, cast

import torch
from torch import Tensor

from unscheduled.formulas.averaging import PolynomialAveraging
from unscheduled.formulas.interpolation import ConstantInterpolation
from unscheduled.formulas.step_size import ConstantStep
from unscheduled.state.buffers import wide_state
from unscheduled.state.device_math import on_host
from unscheduled.state.param_groups import Group, counters_on_host, named, put_lr
from unscheduled.state.parameter import Iterates, State

SHARED = ("params", "param_names", "initial_lr", "lr", "momentum", "betas", "eps", "weight_decay", "silent_sgd_phase")
"""Entries that the groups of both packages have under the same name; learning-rate schedulers add ``initial_lr``."""


class Exported(Protocol):
    """The part of a :class:`unscheduled.ScheduleFreeOptimizer` that an export reads."""

    param_groups: list[Group]

    @property
    def implementation(self) -> str: ...
    def state_dict(self) -> dict[str, Any]: ...
    def iterates(self, param: Tensor) -> Iterates: ...


def export_schedulefree_state_dict(optimizer: Exported) -> dict[str, Any]:
    """A state dict for the optimizer of the same name in the ``schedulefree`` package, which continues the run.

    It belongs to the weights that are saved beside ``optimizer.state_dict()``, whose mode becomes ``train_mode``: y in
    train mode, x in eval mode or if a model is attached. For each parameter it has z, in the parameter's precision, and
    the second moments. The package counts the gradients of a group, not of a parameter, so that a parameter that has
    seen fewer gradients than its group gets another bias correction there.

    ``optimizer.load_state_dict`` of this package loads it too.

    Args:
        optimizer: an :class:`SGDScheduleFree`, :class:`AdamWScheduleFree` or :class:`RAdamScheduleFree`; it does not
            change.

    Raises:
        ValueError: if the package has no counterpart: an interpolation that changes, another averaging than the
            polynomial over the running maximum, an averaging that is restarted, frozen or cools down, a warmup of the
            averaging or of RAdam that is not over, a Polyak or distance step, decay at z or AdamC's, ``maximize``, an
            inner momentum, beta = 0 (or, in SGD, 1), or a beta that was changed since y was formed.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> from unscheduled import export_schedulefree_state_dict
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = unscheduled.SGDScheduleFree([weight], lr=0.5)
        >>> (weight**2).sum().backward()
        >>> optimizer.step()
        >>> state_dict = export_schedulefree_state_dict(optimizer)
        >>> state_dict["state"][0]
        {'z': tensor([0.])}
        >>> state_dict["param_groups"][0]["train_mode"], state_dict["param_groups"][0]["k"]
        (True, 1)
    """
    if "schedulefree" not in _destinations(optimizer):
        raise ValueError(
            f"the schedulefree package has no {type(optimizer).__name__}: "
            "export SGDScheduleFree, AdamWScheduleFree or RAdamScheduleFree"
        )
    exported = optimizer.state_dict()
    for index, saved in enumerate(exported["param_groups"]):
        group = optimizer.param_groups[index]
        _check_expressible(group | counters_on_host(group), index, saved["training"])
    states = {
        key: {
            "z": optimizer.iterates(param).z.to(param.dtype),
            **{name: state[name].to(param.dtype, copy=True) for name in state if name == "exp_avg_sq"},
        }
        for key, param, state, _ in _started(optimizer, exported)
    }
    param_groups = [
        {
            **{name: saved[name] for name in SHARED if name in saved},
            **({} if "silent_sgd_phase" in saved else {"warmup_steps": saved["warmup_steps"]}),
            "r": group["averaging"].r,
            "weight_lr_power": group["averaging"].weight_lr_power,
            "k": saved["step"],
            "train_mode": saved["training"],
            "weight_sum": saved["weight_sum"],
            "lr_max": saved["lr_max"],
            "scheduled_lr": saved["effective_lr"],
            "foreach": optimizer.implementation != "loop",
        }
        for group, saved in zip(optimizer.param_groups, exported["param_groups"], strict=True)
    ]
    return {"state": states, "param_groups": param_groups}


def export_adamw_state_dict(optimizer: Exported) -> dict[str, Any]:
    """A state dict for ``torch.optim.AdamW``, which continues from the average x.

    Load it beside the weights x: those in the parameters after ``optimizer.eval().detach()`` (an optimizer that stays
    attached would put its y and x into them), or those of :func:`unscheduled.averaged_state_dict`. It has the second
    moments and the count of gradients of each parameter. The first moments are those of the inner momentum; without one
    they are 0, and AdamW's first steps are small, since the bias correction assumes that they contain all gradients. It
    has the options ``lr``, ``eps``, ``weight_decay``, ``maximize`` and beta2; beta1 is the inner momentum, or 0.9. The
    other options are AdamW's defaults. With a Polyak or distance step, ``lr`` is the last one. AdamC's decay becomes
    gamma lambda, where gamma is the last effective learning rate.

    ``optimizer.load_state_dict`` of this package loads it too, to start a new run from x.

    Args:
        optimizer: an :class:`AdamWScheduleFree` or :class:`RAdamScheduleFree`; it does not change.

    Raises:
        ValueError: if a parameter has no second moments, or the optimizer has a Polyak or distance step but has
            made none.

    Example:
        >>> import torch
        >>> import unscheduled
        >>> from unscheduled import export_adamw_state_dict
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = unscheduled.AdamWScheduleFree([weight], lr=0.1)
        >>> (weight**2).sum().backward()
        >>> optimizer.step()
        >>> _ = optimizer.eval().detach()
        >>> adamw = torch.optim.AdamW([weight])
        >>> adamw.load_state_dict(export_adamw_state_dict(optimizer))
        >>> adamw.param_groups[0]["lr"]
        0.1
    """
    if "AdamW" not in _destinations(optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} has no second moments of all parameters for AdamW: call eval() and detach(), "
            "and start a new optimizer from the average x"
        )
    exported = optimizer.state_dict()
    states: dict[int, State] = {}
    for key, param, state, group in _started(optimizer, exported):
        momentum = state["exp_avg"] if _inner_momentum(group) > 0.0 else torch.zeros_like(param)
        states[key] = {
            "step": torch.tensor(float(state["step"]), dtype=torch.float32, device="cpu"),
            "exp_avg": momentum.detach().to(param.dtype, copy=True),
            "exp_avg_sq": state["exp_avg_sq"].to(param.dtype, copy=True),
        }
    param_groups: list[Group] = []
    for group, saved in zip(optimizer.param_groups, exported["param_groups"], strict=True):
        adamw = torch.optim.AdamW(  # its group has all entries of this version of torch
            [torch.zeros(1, device="cpu")],
            lr=float(saved["lr"]) if isinstance(group["step_size"], ConstantStep) else last_lr(group),
            betas=(_inner_momentum(saved) or 0.9, saved["betas"][1]),
            eps=saved["eps"],
            weight_decay=saved["weight_decay"] * (last_lr(group) if saved.get("corrected_decay") else 1.0),
            maximize=saved["maximize"],
        )
        kept = {name: saved[name] for name in ("params", "param_names") if name in saved}
        param_groups.append({**adamw.param_groups[0], **kept})
    return {"state": states, "param_groups": param_groups}


def torch_adamw(optimizer: Exported, lrs: list[float]) -> torch.optim.AdamW:
    """``torch.optim.AdamW`` with the second moments of an optimizer and these learning rates, to go on from x."""
    exported = export_adamw_state_dict(optimizer)
    plain = torch.optim.AdamW([{"params": named(group)} for group in optimizer.param_groups])
    plain.load_state_dict(exported)
    for group, lr in zip(plain.param_groups, lrs, strict=True):
        put_lr(group, lr)
    return plain


def _destinations(optimizer: object) -> frozenset[str]:
    """The libraries to which the state of an optimizer can be exported; none for an optimizer of another package."""
    return getattr(optimizer, "_exports_to", frozenset())


def last_lr(group: Group) -> float:
    """The last effective learning rate of a group, or its ``lr`` if the last one was 0.

    Raises:
        ValueError: if the group's step size takes the place of ``lr``, and was 0 or has made no step.
    """
    lr = on_host(group["effective_lr"])
    if lr == 0.0 and not isinstance(group["step_size"], ConstantStep):
        raise ValueError("effective_lr = 0.0 is no learning rate for AdamW: make a step above 0 before")
    return lr or float(group["lr"])


def _check_expressible(group: Group, index: int, training: bool) -> None:
    """Raise ValueError if the ``schedulefree`` package has no counterpart of a group."""
    averaging, interpolation, step = group["averaging"], group["interpolation"], group["step"]
    beta = group["momentum"] if "momentum" in group else group["betas"][0]
    warmup = "train until it is over"
    unknown = [
        (not isinstance(interpolation, ConstantInterpolation), "interpolation", "make it ConstantInterpolation()"),
        (not isinstance(averaging, PolynomialAveraging), "averaging", "only PolynomialAveraging can be exported"),
        (getattr(averaging, "weight_lr", "") == "current", "averaging", "make its weight_lr 'maximum'"),
        (getattr(averaging, "cooldown_start", None) is not None, "averaging", "make its cooldown_start None"),
        (group["averaging_state"] != "running", "averaging_state", "train until it is 'running'"),
        (group["averaging_start"] > 0, "averaging_start", "its averages begin at the first step"),
        (not isinstance(group["step_size"], ConstantStep), "step_size", "give it a learning rate"),
        (group.get("corrected_decay", False), "corrected_decay", "make it False"),
        (step < getattr(averaging, "warmup_steps", 0), "averaging", warmup),
        ("silent_sgd_phase" in group and step < group["warmup_steps"], "warmup_steps", warmup),
        (group["decay_at"] == "z" and group["weight_decay"] > 0.0, "decay_at", "make it 'y'"),
        (group["maximize"], "maximize", "minimize the negative"),
        (_inner_momentum(group) > 0.0, "inner_momentum", "only 0 can be exported"),
        (beta == 0.0, "momentum" if "momentum" in group else "betas", "beta must be above 0, since it divides by it"),
        (group.get("momentum") == 1.0, "momentum", "make it less than 1"),
    ]
    for refused, name, remedy in unknown:
        if refused:
            raise ValueError(
                f"parameter group {index}: the schedulefree package has no {name} = {group[name]!r}: {remedy}"
            )
    if training and group["beta"] != beta:
        raise ValueError(
            f"parameter group {index}: y was formed with beta = {group['beta']}, but the next is formed with {beta}: "
            "export in eval mode, or after the next step"
        )


def _inner_momentum(group: Group) -> float:
    return group.get("inner_momentum", 0.0)


def _started(optimizer: Exported, exported: dict[str, Any]) -> list[tuple[int, Tensor, State, Group]]:
    """The parameters that have seen a gradient, each with its key and state in the state dict, and its group."""
    return [
        (key, param, wide_state(exported["state"][key]), group)
        for group, saved in zip(optimizer.param_groups, exported["param_groups"], strict=True)
        for param, key in zip(cast(list[Tensor], group["params"]), saved["params"], strict=True)
        if exported["state"].get(key)
    ]
