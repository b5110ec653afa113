"""Training checkpoints as files: what they hold, and the averaged weights in them."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from unscheduled import iterates
from unscheduled.loading import plain_name, saved_names

Weights = dict[str, Tensor]
State = dict[str, Any]

MODEL_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt", "model.pth")
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")
BATCH_NORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class CheckpointError(Exception):
    """What a file lacks, in one line."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model, and the state of the optimizer beside them."""

    weights: Weights
    optimizer: dict[str, Any]

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.optimizer["param_groups"]

    @property
    def kind(self) -> str:
        """Whose optimizer it is: ``unscheduled``, ``schedulefree`` or ``other``."""
        if all("averaging" in group for group in self.groups):
            return "unscheduled"
        return "schedulefree" if all("train_mode" in group for group in self.groups) else "other"


# Reading.


def read(path: Path, optimizer_path: Path | None = None) -> Checkpoint:
    """Read a checkpoint: a file of ``torch.save``, or a folder of Transformers, Accelerate or torch's DCP.

    Args:
        path: what holds the weights, and the optimizer's state too, unless that is elsewhere.
        optimizer_path: the file with the optimizer's state.

    Raises:
        CheckpointError: if it cannot be read, or has no weights or no optimizer's state.
    """
    tree = _read_folder(path) if path.is_dir() else _read_file(path)
    source = _read_file(optimizer_path) if optimizer_path else tree
    optimizer = next(_optimizers(source), None) or _unflattened(source)
    if optimizer is None:
        raise CheckpointError(
            f"{optimizer_path or path} has no state of an optimizer: give the file that has it with --optimizer"
        )
    candidates = [weights for weights in _weights(tree) if weights]
    if not candidates:
        raise CheckpointError(f"{path} has no weights of a model: it should have the model's state dict")
    return Checkpoint(max(candidates, key=len), optimizer)


def _read_file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return _safetensors().load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there") from None
    except Exception as error:  # the readers raise whatever a damaged file leads them to
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read ({reason}): it is damaged or no checkpoint, or it has other objects than tensors, "
            "numbers and strings; then save the state dicts of the model and of the optimizer by themselves"
        ) from error


def _read_folder(path: Path) -> Any:
    if (path / ".metadata").exists():
        return _read_distributed(path)
    found = [[path / name for name in names if (path / name).exists()] for names in (MODEL_FILES, OPTIMIZER_FILES)]
    if not all(found):
        raise CheckpointError(
            f"{path} is a folder without {' or '.join(MODEL_FILES if not found[0] else OPTIMIZER_FILES)}: give the file"
        )
    return {"model": _read_file(found[0][0]), "optimizer": _read_file(found[1][0])}


def _read_distributed(path: Path) -> Any:
    from torch.distributed.checkpoint import format_utils

    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "checkpoint.pt"
        try:
            cast(Any, format_utils).dcp_to_torch_save(path, whole)
        except Exception as error:  # as above
            raise CheckpointError(f"{path} cannot be read as a distributed checkpoint ({error})") from error
        return _read_file(whole)


def _safetensors() -> Any:
    if importlib.util.find_spec("safetensors") is None:
        raise CheckpointError("files of safetensors need an extra: pip install 'unscheduled[checkpoints]'")
    return importlib.import_module("safetensors.torch")


def _entries(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return list(cast(dict[Any, Any], tree).values())
    return cast(list[Any], tree) if isinstance(tree, list) else []


def _is_optimizer(tree: Any) -> bool:
    entries = cast(dict[str, Any], tree) if isinstance(tree, dict) else {}
    groups = cast(list[Any], entries.get("param_groups") or [])
    return "state" in entries and bool(groups) and all("params" in group for group in groups)


def _optimizers(tree: Any) -> Iterator[dict[str, Any]]:
    if _is_optimizer(tree):
        yield tree
    else:
        for entry in _entries(tree):
            yield from _optimizers(entry)


def _weights(tree: Any) -> Iterator[Weights]:
    """Every dictionary of named tensors that is not the optimizer's."""
    if _is_optimizer(tree):
        return
    if isinstance(tree, dict):
        named = cast(dict[Any, Any], tree)
        tensors = {
            name: value
            for name, value in named.items()
            if isinstance(name, str) and isinstance(value, Tensor) and not name.startswith("state.")
        }
        if tensors:
            yield tensors
    for entry in _entries(tree):
        yield from _weights(entry)


def _unflattened(tree: Any) -> dict[str, Any] | None:
    """The optimizer's state that DCP has flattened into ``state.NAME.KEY`` and ``param_groups.NAME.KEY``."""
    if not isinstance(tree, dict):
        return None
    entries = cast(dict[str, Any], tree)
    states: dict[str, State] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in entries.items():
        section, _, rest = str(key).partition(".")
        name, _, option = rest.rpartition(".")
        if name and section in ("state", "param_groups"):
            (states if section == "state" else groups).setdefault(name, {})[option] = value
    if groups:
        return {"state": states, "param_groups": [{**group, "params": [name]} for name, group in groups.items()]}
    return next((found for entry in _entries(entries) if (found := _unflattened(entry))), None)


# The average.


def averaged(checkpoint: Checkpoint) -> tuple[Weights, int]:
    """The weights with every parameter of the optimizer at x, and how many tensors those are.

    Raises:
        CheckpointError: if the optimizer is no schedule-free one, or its state is not that of these weights.
    """
    if checkpoint.kind == "other":
        raise CheckpointError(
            "the optimizer in it is not schedule-free: its weights are what they are, without average"
        )
    averages: Weights = {}
    for group, name, key in _located(checkpoint):
        weight, state = checkpoint.weights[name], checkpoint.optimizer["state"].get(key)
        if state and checkpoint.kind == "unscheduled":
            averages[name] = _average(state, group)
            if not any(torch.allclose(weight, own, rtol=1e-2, atol=1e-6) for own in (averages[name], state["y"])):
                raise CheckpointError(
                    f"{name} is neither the x nor the y of the optimizer's state: the two are of different moments"
                )
        elif state and group["train_mode"]:
            z, beta = state["z"].double(), _beta(group)
            x = iterates.averaged(weight.double(), iterates.gap_between(weight.double(), z, beta), beta)
            averages[name] = x.to(weight.dtype)
        else:
            averages[name] = weight
    return {**checkpoint.weights, **averages}, len(averages)


def held(checkpoint: Checkpoint) -> str:
    """What the weights are, by their bits if the file tells: ``x``, ``y``, or neither."""
    if checkpoint.kind == "other":
        return "what they are: the optimizer is not schedule-free"
    if checkpoint.kind == "schedulefree":
        return "y (train mode)" if checkpoint.groups[0]["train_mode"] else "x (eval mode)"
    pairs = [
        (checkpoint.weights[name], checkpoint.optimizer["state"].get(key), group)
        for group, name, key in _located(checkpoint)
    ]
    started = [(weight, state, group) for weight, state, group in pairs if state]
    if all(torch.equal(weight, _average(state, group)) for weight, state, group in started):
        return "x, the average"
    if all(torch.equal(weight, state["y"]) for weight, state, _ in started):
        return "y, the gradient point"
    return "neither the x nor the y of the optimizer's state"


def _average(state: State, group: dict[str, Any]) -> Tensor:
    y: Tensor = state["y"]
    return iterates.averaged(y.to(state["gap"].dtype), state["gap"], group["beta"]).to(y.dtype)


def _beta(group: dict[str, Any]) -> float:
    return float(group["momentum"] if "momentum" in group else group["betas"][0])


def _located(checkpoint: Checkpoint) -> list[tuple[dict[str, Any], str, Any]]:
    """For each weight that the optimizer has: its group, its name, and its key in the optimizer's state.

    By name, if the file has names; else by their order, where buffers do not count and all shapes have to agree. Other
    names of the very same weights are tied ones.
    """
    states: dict[Any, State] = checkpoint.optimizer["state"]
    weights = {plain_name(name).removeprefix("module."): name for name in checkpoint.weights}
    keys = [(group, key) for group in checkpoint.groups for key in group["params"]]
    by_key = saved_names(checkpoint.optimizer)
    if by_key.keys() >= {key for _, key in keys}:
        names = [by_key[key] for _, key in keys]
    else:
        names = _in_order(checkpoint.weights, [states.get(key) for _, key in keys])
    missing = [name for name in names if name.removeprefix("module.") not in weights]
    if missing:
        raise CheckpointError(f"the optimizer has a parameter {missing[0]}, which is not among the weights")
    located: list[tuple[dict[str, Any], str, Any]] = []
    for (group, key), name in zip(keys, names, strict=True):
        first = weights[name.removeprefix("module.")]
        tensor, shape = checkpoint.weights[first], _shape(states.get(key))
        if shape is not None and shape != tensor.shape:
            raise CheckpointError(
                f"{first} has shape {tuple(tensor.shape)}, but {tuple(shape)} in the optimizer's state: "
                "they are of different models"
            )
        located.append((group, first, key))
    alone = set(checkpoint.weights) - {name for _, name, _ in located}
    for group, name, key in list(located):
        tensor = checkpoint.weights[name]
        tied = [other for other in alone if tensor.numel() and torch.equal(checkpoint.weights[other], tensor)]
        located += [(group, other, key) for other in tied]
    return located


def _in_order(weights: Weights, states: list[State | None]) -> list[str]:
    """The names of the optimizer's parameters, if they are in the order of the weights."""
    names: dict[int, str] = {}
    for name, weight in weights.items():
        if name.rpartition(".")[2] not in BATCH_NORM_BUFFERS:
            names.setdefault(weight.data_ptr() if weight.numel() else id(weight), name)  # tied weights count once
    found = list(names.values())
    fit = len(found) == len(states) and all(
        (shape := _shape(state)) is None or shape == weights[name].shape
        for name, state in zip(found, states, strict=False)
    )
    if not fit:
        raise CheckpointError(
            f"the optimizer has {len(states)} parameters without names, which do not line up with the {len(found)} "
            "weights: load it in Python and use averaged_state_dict"
        )
    return found


def _shape(state: State | None) -> torch.Size | None:
    tensor = (state or {}).get("gap", (state or {}).get("z"))
    return tensor.shape if isinstance(tensor, Tensor) else None


# Writing.


def write(weights: Weights, path: Path) -> None:
    """Write weights, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == ".safetensors":
            whole = {name: weight.clone().contiguous() for name, weight in weights.items()}
            _safetensors().save_file(whole, partial, metadata={"format": "pt"})
        else:
            torch.save(weights, partial)
        os.replace(partial, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def check_output(path: Path, *sources: Path | None) -> None:
    """Raise CheckpointError if the averaged weights cannot go there."""
    if path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise CheckpointError(f"-o {path}: write to a file that ends in .safetensors, .pt, .pth or .bin")
    if any(source is not None and source.exists() and path.exists() and source.samefile(path) for source in sources):
        raise CheckpointError(f"-o {path} is the checkpoint itself: give another file")
    if not path.parent.is_dir():
        raise CheckpointError(f"-o {path}: there is no folder {path.parent}")
    if path.suffix == ".safetensors":
        _safetensors()


# Describing.


def described(checkpoint: Checkpoint) -> str:
    """What a checkpoint holds, for people."""
    lines = [("optimizer", f"{checkpoint.kind}"), ("the weights are", held(checkpoint))]
    counts = {name: weight.numel() for name, weight in checkpoint.weights.items()}
    lines.append(("the model has", f"{len(counts)} tensors, {sum(counts.values()):,} numbers"))
    for index, group in enumerate(checkpoint.groups):
        lines.append((f"group {index}", f"{len(group['params'])} parameters, lr {float(group.get('lr', math.nan)):g}"))
        if checkpoint.kind == "unscheduled":
            c = float(group["c"])
            window = f"{1 / c:,.0f} steps" if c > 0.0 else "none yet"
            mode = "train" if group["training"] else "eval"
            lines += [("  mode", mode), ("  steps", f"{group['step']:,}"), ("  beta", f"{group['beta']:g}")]
            lines += [("  window 1/c", window), ("  averaging", group["averaging"]["name"])]
        elif checkpoint.kind == "schedulefree":
            mode = "train" if group["train_mode"] else "eval"
            lines += [("  mode", mode), ("  steps", f"{group['k']:,}"), ("  beta", f"{_beta(group):g}")]
    return "\n".join(f"{name:<16} {value}" for name, value in lines)
