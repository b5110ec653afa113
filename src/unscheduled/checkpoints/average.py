"""The averaged weights in a training checkpoint: which weights the optimizer's are, and their x."""

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unscheduled.checkpoints.content import ITERATES, REAL, Optimizer, State, Weights, is_dense, kind
from unscheduled.checkpoints.file import Checkpoint
from unscheduled.checkpoints.optimizer_state import counterparts, plain_name, saved_names
from unscheduled.checkpoints.safe_loading import CheckpointError
from unscheduled.formulas import iterates
from unscheduled.state.buffers import wide, with_whole_y
from unscheduled.state.split_weights import narrowed

BATCH_NORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Parameter:
    """A parameter as an optimizer has saved it; its state is empty before its first gradient."""

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
        """The x that a state of ours tells without the weights."""
        y: Tensor = self.state["y"]
        return iterates.averaged(y.to(self.state["gap"].dtype), self.state["gap"], self.group["beta"]).to(y.dtype)

    def holds_average(self, weight: Tensor) -> bool:
        """Whether the weight is x, by its bits or, in a file of the ``schedulefree`` package, by the mode."""
        if self.kind == "schedulefree":
            return not self.group["train_mode"]
        return torch.equal(weight, narrowed(self.own_average, weight.dtype))

    def holds_gradient_point(self, weight: Tensor) -> bool:
        """Whether the weight is y, likewise."""
        if self.kind == "schedulefree":
            return bool(self.group["train_mode"])
        return torch.equal(weight, narrowed(self.state["y"], weight.dtype))


@dataclass(frozen=True)
class Fit:
    """Weights, and the parameters of schedule-free optimizers by their names among them."""

    weights: Weights
    parameters: dict[str, Parameter]

    @property
    def started(self) -> list[tuple[Tensor, Parameter]]:
        return [(self.weights[name], parameter) for name, parameter in self.parameters.items() if parameter.state]

    @property
    def distance(self) -> float:
        """How far the weights are from the x and from the y of the optimizer's state, whichever is nearer."""
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
        """How many of the weights are not x."""
        return sum(not parameter.holds_average(weight) for weight, parameter in self.started)


def averaged(checkpoint: Checkpoint) -> tuple[Weights, int]:
    """The weights with every parameter of the optimizers at x, and how many tensors those are.

    Raises:
        CheckpointError: if no optimizer is a schedule-free one, their state is not that of these weights, or it does
            not tell x.
    """
    if all(kind(optimizer) == "other" for optimizer in checkpoint.optimizers):
        raise CheckpointError(
            "the optimizer in it is not schedule-free: its weights are what they are, without average"
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
                f"{name} is neither the x nor the y of the optimizer's state: the two are of different moments"
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
    """The beta that a group of the ``schedulefree`` package states."""
    return float(group["momentum"] if "momentum" in group else group["betas"][0])


# Which weights the optimizer's are.


def located(checkpoint: Checkpoint) -> Fit:
    """The weights that the optimizers trained.

    Others of the same form may be beside them, such as those of the best step. The state of an optimizer of ours has y
    and tells x, so that the nearest to one of them are its own.

    Raises:
        CheckpointError: if none fit, or several do and nothing tells them apart.
    """
    parameters = [parameter for optimizer in checkpoint.optimizers for parameter in _parameters(optimizer)]
    if all(parameter.kind == "other" for parameter in parameters):
        return Fit(checkpoint.candidates[0], {})
    fits: list[Fit] = []
    for weights in checkpoint.candidates:
        with suppress(CheckpointError):
            fits += _fits(weights, parameters)
    fits = fits or _fits(checkpoint.candidates[0], parameters)  # which says why not
    kinds = {parameter.kind for _, parameter in fits[0].started}
    if len(fits) > 1 and kinds == {"schedulefree"}:
        raise CheckpointError(
            f"{len(fits)} sets of weights in it fit the optimizer, and nothing tells which of them it trained: save "
            "the right ones by themselves, and give the file of the optimizer with --optimizer"
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
    """The tensors of a state that tell x and y; none before the first gradient."""
    return {name: wide(with_whole_y(state), name) for name in ITERATES[whose] if state}


def _fits(weights: Weights, parameters: list[Parameter]) -> list[Fit]:
    """The ways in which the optimizers may belong to these weights: by names, if they tell; else by the order.

    Raises:
        CheckpointError: if there is none.
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
    """What does not fit in the shapes; nothing if all do."""
    for name, parameter in way.items():
        if parameter.shape not in (None, weights[name].shape):
            return (
                f"{name} has shape {tuple(weights[name].shape)}, but {tuple(parameter.shape or ())} in the optimizer's "
                "state: they are of different models"
            )
        if parameter.state and weights[name].dtype not in REAL:
            return f"{name} has the dtype {weights[name].dtype}, in which nothing is trained"
    return ""


def _with_tied(weights: Weights, way: dict[str, Parameter]) -> dict[str, Parameter]:
    """With the other names of the very same weights, which are tied ones."""
    alone = [name for name in weights if name not in way and weights[name].numel()]
    return way | {
        other: parameter
        for name, parameter in way.items()
        for other in alone
        if weights[other].dtype == weights[name].dtype and torch.equal(weights[other], weights[name])
    }


def _in_order(weights: Weights, parameters: list[Parameter]) -> dict[str, Parameter]:
    """The schedule-free parameters by the names of the weights, if the parameters are in the order of the weights.

    Buffers of BatchNorm do not count, and tied weights count once.
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
        if unconfirmed and len(groups[weights[name].shape]) > 1:  # a state of ours has y, which confirms the order
            raise CheckpointError(
                f"parameters of shape {tuple(weights[name].shape)} are in several groups, and without names nothing "
                "tells which is which: save in eval mode, or load it in Python and use averaged_state_dict"
            )
    return {name: parameter for name, parameter in way.items() if parameter.kind != "other"}
