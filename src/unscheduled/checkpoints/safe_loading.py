"""Reads tensors, numbers and strings from files that may come from others, without running code in them."""

from __future__ import annotations

import importlib
import importlib.util
import io
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

import torch

Source = Path | io.BytesIO

OTHER_OBJECTS = "it has other objects than tensors, numbers and strings"
REMEDY = "save only the state dicts of the model and of the optimizer"


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message is one line."""


def load(path: Path) -> Any:
    """The tensors, numbers and strings of a file of ``torch.save``, or the tensors of one of safetensors.

    Raises:
        CheckpointError: if the file is missing or damaged, or has other objects.
    """
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors().load_file(path)
        return _unpickled(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can raise any error
        reason = "it is damaged or no file of safetensors" if path.suffix == ".safetensors" else _reason(path)
        raise CheckpointError(f"{path} cannot be read: {reason}") from error


def loaded(saved: bytes, what: str) -> Any:
    """The tensors, numbers and strings in bytes that ``torch.save`` wrote.

    Args:
        saved: the bytes.
        what: the name of the bytes in a message.

    Raises:
        CheckpointError: if the bytes are damaged, or have other objects.
    """
    try:
        return _unpickled(io.BytesIO(saved))
    except Exception as error:  # damaged bytes can raise any error
        raise CheckpointError(f"{what} cannot be read: {_reason(io.BytesIO(saved))}") from error


def _unpickled(source: Source) -> Any:
    return torch.load(source, map_location="cpu", weights_only=True)


def _reason(source: Source) -> str:
    """The reason, in one line, why torch does not load a source: torch's own messages have many lines."""
    with suppress(Exception):  # the source may be damaged, or in an old format
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(source))
        if names:
            return f"{OTHER_OBJECTS}, such as {names[0]}: {REMEDY}"
    return f"it is damaged or no checkpoint, or {OTHER_OBJECTS}; then {REMEDY}"


def safetensors() -> Any:
    """The module ``safetensors.torch``.

    Raises:
        CheckpointError: if safetensors is not installed.
    """
    if importlib.util.find_spec("safetensors") is None:
        raise CheckpointError("files of safetensors need an extra: pip install 'unscheduled[checkpoints]'")
    return importlib.import_module("safetensors.torch")


def check_file(path: Path) -> None:
    """Raise CheckpointError unless the path is a file that can be opened."""
    try:
        if path.is_file():
            path.open("rb").close()
            return
        problem = "is no file" if path.exists() else "is not there"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise CheckpointError(f"{path} {problem}")


def inside(folder: Path, name: Any, index: Path) -> Path:
    """The path of a file that an index names, within the folder of the index.

    Raises:
        CheckpointError: if the name leads out of the folder.
    """
    if not isinstance(name, str):
        raise CheckpointError(f"{index} is damaged: it names a file by a {type(name).__name__}")
    parts = PureWindowsPath(name)  # it knows the separators and roots of POSIX too
    if parts.anchor or ".." in parts.parts:
        raise CheckpointError(f"{index} names a file outside of its folder: {name}")
    return folder / name
