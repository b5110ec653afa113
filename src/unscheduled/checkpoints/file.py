"""Reads training checkpoints from files, and writes weights to files."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from unscheduled.checkpoints import dcp_files
from unscheduled.checkpoints.content import Optimizer, Weights, optimizers_in, weights_in
from unscheduled.checkpoints.safe_loading import CheckpointError, check_file, inside, load, safetensors

INDEX = ".index.json"
MODEL_FILES = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "model.pt",
    "model.pth",
)
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")


@dataclass(frozen=True)
class Checkpoint:
    """All sets of named tensors that may be the weights, the largest first, and the optimizers' state dicts."""

    candidates: list[Weights]
    optimizers: list[Optimizer]


# Reading.


def read(path: Path, optimizer_path: Path | None = None) -> Checkpoint:
    """Read a checkpoint: a file of ``torch.save``, or a folder of Transformers, Accelerate or torch's DCP.

    No code in the files runs, so they may come from others.

    Args:
        path: the file or folder with the weights, and with the optimizer's state if ``optimizer_path`` is None.
        optimizer_path: the file with the optimizer's state.

    Raises:
        CheckpointError: if a file cannot be read, or there are no weights or no optimizer's state.
    """
    tree = _read_folder(path, optimizer_path is None) if path.is_dir() else _read_file(path)
    optimizers = optimizers_in(load(optimizer_path) if optimizer_path else tree)
    if not optimizers:
        raise CheckpointError(
            f"{optimizer_path or path} has no state of an optimizer: give the file that has it with --optimizer"
        )
    candidates = sorted(weights_in(tree), key=len, reverse=True)
    if not candidates:
        raise CheckpointError(
            f"{path} has no weights of a model: give the file that has them, and this one with --optimizer, "
            "or the folder that has both"
        )
    return Checkpoint(candidates, optimizers)


def _read_file(path: Path) -> Any:
    return _read_shards(path) if path.name.endswith(INDEX) else load(path)


def _read_folder(path: Path, with_optimizer: bool) -> Any:
    if (path / dcp_files.METADATA).exists():
        return dcp_files.read(path)
    tree = {"model": _read_file(_first(path, MODEL_FILES, "give the file"))}
    if with_optimizer:
        tree["optimizer"] = load(_first(path, OPTIMIZER_FILES, "give the file that has its state with --optimizer"))
    return tree


def _first(folder: Path, names: tuple[str, ...], remedy: str) -> Path:
    """The first of these names under which the folder has a file."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise CheckpointError(f"{folder} is a folder without {' or '.join(names)}: {remedy}")


def _read_shards(path: Path) -> Weights:
    """The weights in the files that an index of Transformers lists, in the order of the files."""
    names: dict[str, set[str]] = defaultdict(set)
    for name, shard in _weight_map(path).items():
        names[str(inside(path.parent, shard, path).relative_to(path.parent))].add(name)
    weights: Weights = {}
    for shard in sorted(names):
        tensors = load(path.parent / shard)
        if not isinstance(tensors, dict) or not names[shard] <= cast(Weights, tensors).keys():
            raise CheckpointError(f"{path.parent / shard} lacks weights that {path} finds in it")
        weights |= {name: tensor for name, tensor in cast(Weights, tensors).items() if name in names[shard]}
    return weights


def _weight_map(path: Path) -> dict[str, Any]:
    """The file of each weight by the weight's name, from an index of Transformers."""
    check_file(path)
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or no index: it is no JSON") from error
    weight_map = cast(dict[str, Any], index).get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} is damaged or no index: it has no weight_map")
    return cast(dict[str, Any], weight_map)


# Writing.


def write(weights: Weights, path: Path) -> None:
    """Write weights to a file, completely or not at all.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == ".safetensors":
            whole = {name: weight.clone().contiguous() for name, weight in weights.items()}
            safetensors().save_file(whole, partial, metadata={"format": "pt"})
        else:
            torch.save(weights, partial)
        os.replace(partial, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
    except Exception as error:  # torch and safetensors raise errors of their own classes
        raise CheckpointError(
            f"{path} cannot be written: the disk is full, or the format has no room for the dtype of a tensor"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def check_output(path: Path, *sources: Path | None) -> None:
    """Raise CheckpointError if the averaged weights cannot be written to this path."""
    if path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise CheckpointError(f"-o {path}: write to a file that ends in .safetensors, .pt, .pth or .bin")
    if any(source is not None and source.exists() and path.exists() and source.samefile(path) for source in sources):
        raise CheckpointError(f"-o {path} is the checkpoint itself: give another file")
    if not path.parent.is_dir():
        raise CheckpointError(f"-o {path}: there is no folder {path.parent}")
    if path.suffix == ".safetensors":
        safetensors()
