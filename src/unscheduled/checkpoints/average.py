"""The averaged weights in a training checkpoint: finds the weights that an optimizer trained, and their x."""

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unscheduled.checkpoints.content import ITERATES, REAL, Optimizer, State, Weights, is_dense, kind
from unscheduled.checkpoints.file import Checkpoint
from unscheduled.checkpoints.matching import counterparts, plain_name, saved_names
from unscheduled.checkpoints.safe_loading import CheckpointError
from unscheduled.formulas import iterates
from unscheduled.state.buffers import wide, with_whole_y
from unscheduled.state.split_weights import narrowed

BATCH_NORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Parameter:
    """A parameter as an optimizer saved it; its state is empty before its first gradient."""

    kind: str
    group: dict[str, Any]
    state: State
    name: str | None

    @property
    def shape(self) -> torch.Size | None:
        tensor = self.state.get("gap", self.state.get("z"))
        return tensor.shape if isinstance(tensor, Tensor) else None

    @property
    def own_average(self) -> Tensor:
        """The average x, computed from the state of an optimizer of this package, without the weights."""
        y: Tensor = self.state["y"]
        return iterates.averaged(y.to(self.state["gap"].dtype), self.state["gap"], self.group["beta"]).to(y.dtype)

    def holds_average(self, weight: Tensor) -> bool:
        """Whether the weight is x: by its bits, or by the mode in a file of the ``schedulefree`` package."""
        if self.kind == "schedulefree":
            return not self.group["train_mode"]
        return torch.equal(weight, narrowed(self.own_average, weight.dtype))

    def holds_gradient_point(self, weight: Tensor) -> bool:
        """Whether the weight is y: by its bits, or by the mode in a file of the ``schedulefree`` package."""
        if self.kind == "schedulefree":
            return bool(self.group["train_mode"])
        return torch.equal(weight, narrowed(self.state["y"], weight.dtype))


@dataclass(frozen=True)
class Fit:
    """A set of weights, and the parameters of schedule-free optimizers by the names of their weights."""

    weights: Weights
    parameters: dict[str, Parameter]

    @property
    def started(self) -> list[tuple[Tensor, Parameter]]:
        return [(self.weights[name], parameter) for name, parameter in self.parameters.items() if parameter.state]

    @property
    def distance(self) -> float:
        """The largest distance of a weight from the nearer one of the x and the y in its optimizer's state."""
        return max(
            (
                min(float((weight - own).abs().max()) for own in (parameter.own_average, parameter.state["y"]))
                for weight, parameter in self.started
                if parameter.kind == "unscheduled" and weight.numel()
            ),
            default=0.0,
        )

    @property
    def at_gradient_point(self) -> int:
        """The number of weights that are not x."""
        return sum(not parameter.holds_average(weight) for weight, parameter in self.started)


def averaged_weights(checkpoint: Checkpoint) -> tuple[Weights, int]:
    """The weights of a checkpoint with every parameter of the optimizers at x, and the number of these parameters.

    Raises:
        CheckpointError: if no optimizer is schedule-free, the state does not belong to the weights, or x cannot be
            computed from it.
    """
    if all(kind(optimizer) == "other" for optimizer in checkpoint.optimizers):
        raise CheckpointError(
            "the optimizer in it is not schedule-free, so there is no average: use the weights as they are"
        )
    fit = located(checkpoint)
    averages = {name: _average(name, fit.weights[name], parameter) for name, parameter in fit.parameters.items()}
    return {**fit.weights, **averages}, len(averages)


def _average(name: str, weight: Tensor, parameter: Parameter) -> Tensor:
    state, group = parameter.state, parameter.group
    if not state:
        return weight
    if parameter.kind == "unscheduled":
        x = narrowed(parameter.own_average, weight.dtype)
        if not any(torch.allclose(weight, own.to(weight.dtype), rtol=1e-2, atol=1e-6) for own in (x, state["y"])):
            raise CheckpointError(
                f"{name} is neither the x nor the y of the optimizer's state: save both after the same step"
            )
    elif group["train_mode"]:
        z, beta = state["z"].double(), beta_of(group)
        if beta == 0.0:
            raise CheckpointError("beta = 0 in train mode: the average x cannot be recovered from y and z")
        x = iterates.averaged(weight.double(), iterates.gap_between(weight.double(), z, beta), beta).to(weight.dtype)
    else:
        x = weight
    if weight.isfinite().all() and not x.isfinite().all():
        raise CheckpointError(f"the average of {name} is not finite, but the weights are: the state is damaged")
    return x


def beta_of(group: dict[str, Any]) -> float:
    """The beta in a parameter group of the ``schedulefree`` package."""
    return float(group["momentum"] if "momentum" in group else group["betas"][0])


# Finding the weights of the optimizers.


def located(checkpoint: Checkpoint) -> Fit:
    """Find the weights that the optimizers trained.

    A checkpoint may have other weights with the same names and shapes, such as those of the best step. The state of an
    optimizer of this package has y and gives x, so the weights that are nearest to one of the two belong to it.

    Raises:
        CheckpointError: if no weights fit, or several sets fit and nothing distinguishes them.
    """
    parameters = [parameter for optimizer in checkpoint.optimizers for parameter in _parameters(optimizer)]
    if all(parameter.kind == "other" for parameter in parameters):
        return Fit(checkpoint.candidates[0], {})
    fits: list[Fit] = []
    for weights in checkpoint.candidates:
        with suppress(CheckpointError):
            fits += _fits(weights, parameters)
    fits = fits or _fits(checkpoint.candidates[0], parameters)  # raises the error that says why
    kinds = {parameter.kind for _, parameter in fits[0].started}
    if len(fits) > 1 and kinds == {"schedulefree"}:
        raise CheckpointError(
            f"{len(fits)} sets of weights in it fit the optimizer, and nothing shows which of them it trained: save "
            "the right set in its own file, and give the file of the optimizer with --optimizer"
        )
    return min(fits, key=lambda fit: (fit.distance, fit.at_gradient_point))


def _parameters(optimizer: Optimizer) -> list[Parameter]:
    names, whose = saved_names(optimizer), kind(optimizer)
    return [
        Parameter(whose, group, _iterates(optimizer["state"].get(key), whose), names.get(key))
        for group in optimizer["param_groups"]
        for key in group["params"]
    ]


def _iterates(state: Any, whose: str) -> State:
    """The tensors of a state that determine x and y; none before the first gradient."""
    return {name: wide(with_whole_y(state), name) for name in ITERATES[whose] if state}


def _fits(weights: Weights, parameters: list[Parameter]) -> list[Fit]:
    """The ways to assign the parameters of the optimizers to these weights: by names if all have one, else by order.

    Raises:
        CheckpointError: if there is no such way.
    """
    _check_weights(weights)
    schedule_free = [parameter for parameter in parameters if parameter.kind != "other"]
    named = {parameter.name: parameter for parameter in schedule_free if parameter.name is not None}
    if len(named) == len(schedule_free):
        full = {plain_name(name): name for name in weights}
        ways = [
            {full[other]: named[name] for name, other in way.items()} for way in counterparts(list(named), full.keys())
        ]
        if not ways:
            missing = next(name for name in named if name not in full)
            raise CheckpointError(f"the optimizer has a parameter {missing}, which is not among the weights")
    else:
        ways = [_in_order(weights, parameters)]
    problems = [_mismatch(weights, way) for way in ways]
    fits = [Fit(weights, _with_tied(weights, way)) for way, problem in zip(ways, problems, strict=True) if not problem]
    if not fits:
        raise CheckpointError(problems[0])
    return fits


def _check_weights(weights: Weights) -> None:
    for name, weight in weights.items():
        if not is_dense(weight):
            raise CheckpointError(f"{name} is not a dense tensor: the commands read no sparse or quantized ones")


def _mismatch(weights: Weights, way: dict[str, Parameter]) -> str:
    """The first weight whose shape or dtype does not fit, as a message; "" if all fit."""
    for name, parameter in way.items():
        if parameter.shape not in (None, weights[name].shape):
            return (
                f"{name} has shape {tuple(weights[name].shape)}, but {tuple(parameter.shape or ())} in the optimizer's "
                "state: they are of different models"
            )
        if parameter.state and weights[name].dtype not in REAL:
            return f"{name} has the dtype {weights[name].dtype}, but parameters are real: they are of different models"
    return ""


def _with_tied(weights: Weights, way: dict[str, Parameter]) -> dict[str, Parameter]:
    """The parameters by name, also by the other names of tied weights, whose values are equal."""
    alone = [name for name in weights if name not in way and weights[name].numel()]
    return way | {
        other: parameter
        for name, parameter in way.items()
        for other in alone
        if weights[other].dtype == weights[name].dtype and torch.equal(weights[other], weights[name])
    }


def _in_order(weights: Weights, parameters: list[Parameter]) -> dict[str, Parameter]:
    """The schedule-free parameters by the names of the weights, assigned in the order of the weights.

    Buffers of BatchNorm are skipped, and tied weights count once.

    Raises:
        CheckpointError: if the numbers or the shapes differ, or the order may be wrong.
    """
    names: dict[int, str] = {}
    for name, weight in weights.items():
        if name.rpartition(".")[2] not in BATCH_NORM_BUFFERS:
            names.setdefault(weight.data_ptr() if weight.numel() else id(weight), name)
    way = dict(zip(names.values(), parameters, strict=False))
    if len(names) != len(parameters) or _mismatch(weights, way):
        raise CheckpointError(
            f"the optimizer has {len(parameters)} parameters without names of their own, which do not line up with the "
            f"{len(names)} weights: load it in Python and use averaged_state_dict"
        )
    groups: dict[torch.Size, set[int]] = defaultdict(set)
    for name, parameter in way.items():
        groups[weights[name].shape].add(id(parameter.group))
    for name, parameter in way.items():
        unconfirmed = parameter.kind == "schedulefree" and parameter.state and parameter.group["train_mode"]
        if unconfirmed and len(groups[weights[name].shape]) > 1:  # y in a state of ours confirms the order
            raise CheckpointError(
                f"parameters of shape {tuple(weights[name].shape)} are in several groups, and without names their "
                "order is unknown: save in eval mode, or load it in Python and use averaged_state_dict"
            )
    return {name: parameter for name, parameter in way.items() if parameter.kind != "other"}
