"""Training checkpoints as files: what they hold, and writing weights."""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

Weights = dict[str, Tensor]
State = dict[str, Any]

MODEL_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt", "model.pth")
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")


class CheckpointError(Exception):
    """What a file lacks, in one line."""


@dataclass(frozen=True)
class Checkpoint:
    """Every set of named tensors that may be the weights, the largest first, and the optimizers' state dicts."""

    candidates: list[Weights]
    optimizers: list[dict[str, Any]]


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
    optimizers = list(_optimizers(source))
    if not optimizers:
        raise CheckpointError(
            f"{optimizer_path or path} has no state of an optimizer: give the file that has it with --optimizer"
        )
    candidates = sorted(_weights(tree), key=len, reverse=True)
    if not candidates:
        raise CheckpointError(
            f"{path} has no weights of a model: give the file that has them, and this one with --optimizer, "
            "or the folder that has both"
        )
    return Checkpoint(candidates, optimizers)


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
    elif flattened := _unflattened(tree):
        yield flattened
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
    if not groups:
        return None
    return {"state": states, "param_groups": [{**group, "params": [name]} for name, group in groups.items()]}


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
