"""Reads checkpoints of torch's DCP without running code from them, unlike torch's own reader.

The file ``.metadata`` is a pickle. Its classes that DCP writes become records, which have no code; all other names are
refused, so that no code in the file runs. Each entry is a slice of a file, in the format of ``torch.save``.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from unscheduled.checkpoints.safe_loading import CheckpointError, check_file, inside, loaded

METADATA = ".metadata"

PATHS = frozenset({"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"})
RECORDS: dict[str, frozenset[str]] = {
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.distributed._shard.sharded_tensor.metadata": frozenset({"TensorProperties", "MEM_FORMAT_ENCODING"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "pathlib": PATHS,
    "pathlib._local": PATHS,  # Python 3.13
    "builtins": frozenset({"getattr"}),  # part of a pickled enum in Python 3.11.0
}


class Record:
    """The attributes of a pickled object, without the code of its class."""

    fields: dict[str, Any]

    def __new__(cls, *_: Any) -> Record:
        record = super().__new__(cls)
        record.fields = {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.fields = state if isinstance(state, dict) else {}

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


class Unpickler(pickle.Unpickler):
    """Unpickles records, tuples and dtypes, and nothing else.

    Raises:
        CheckpointError: if the pickle names anything else.
    """

    def find_class(self, module: str, name: str, /) -> Any:
        if name in RECORDS.get(module, ()):
            return type(name, (Record,), {})  # a new class each time, since a file may change its class
        if module == "torch" and name == "Size":
            return tuple
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        raise CheckpointError(f"it has {module}.{name}, which is no part of a distributed checkpoint")


class Place(NamedTuple):
    """The slice of a file that has an entry or a part of a tensor, and the position of the part's first element."""

    path: Path
    offset: int
    length: int
    start: tuple[int, ...] | None


def read(folder: Path) -> Any:
    """Read a distributed checkpoint, and return it nested as it was saved.

    Raises:
        CheckpointError: if it is damaged, or has other objects than tensors, numbers and strings.
    """
    path = folder / METADATA
    check_file(path)
    try:
        metadata = _metadata(path.read_bytes())
        descriptions, places = metadata["state_dict_metadata"], _places(folder, metadata["storage_data"])
        paths: Any = metadata.fields.get("planner_data")
        paths = cast(dict[str, Any], paths) if isinstance(paths, dict) else {}
        entries = {
            tuple(paths.get(key, (key,))): _entry(f"the entry {key}", description, places[key])
            for key, description in descriptions.items()
        }
        return _nested(entries)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} cannot be read as a distributed checkpoint: {error}") from error
    except Exception as error:  # a damaged file can raise any error
        raise CheckpointError(f"{folder} cannot be read as a distributed checkpoint: {path.name} is damaged") from error


def _metadata(pickled: bytes) -> Record:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if opcode.name.endswith("PUT") and cast(int, argument) > count:
            raise ValueError("the index of an object is so high that the unpickler would allocate too much memory")
    return cast(Record, Unpickler(io.BytesIO(pickled)).load())


def _places(folder: Path, storage_data: Mapping[Record, Record]) -> dict[str, list[Place]]:
    places: dict[str, list[Place]] = defaultdict(list)
    for index, info in storage_data.items():
        if info.fields.get("transform_descriptors"):
            raise CheckpointError("its entries are compressed or encrypted: save it without extensions")
        path = inside(folder, info["relative_path"], folder / METADATA)
        places[index["fqn"]].append(Place(path, info["offset"], info["length"], index.fields.get("offset")))
    return dict(places)


def _entry(what: str, description: Record, places: list[Place]) -> Any:
    found = [(place.start, loaded(_slice(place), what)) for place in places]
    if type(description).__name__ != "TensorStorageMetadata":
        return found[0][1]
    shape = torch.Size(description["size"])
    if len(found) == 1 and found[0][1].shape == shape:
        return found[0][1]
    return _joined(what, shape, cast(list[tuple[tuple[int, ...], Tensor]], found))


def _slice(place: Place) -> bytes:
    check_file(place.path)
    if min(place.offset, place.length) < 0 or place.offset + place.length > place.path.stat().st_size:
        raise CheckpointError(f"{place.path} is too short")
    with place.path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.length)


def _joined(what: str, shape: torch.Size, parts: list[tuple[tuple[int, ...], Tensor]]) -> Tensor:
    """The tensor that consists of these parts, each given with the position of its first element."""
    missing = CheckpointError(f"{what} lacks a part of the tensor")
    if sum(part.numel() for _, part in parts) < math.prod(shape):
        raise missing
    whole = torch.empty(shape, dtype=parts[0][1].dtype)
    known = torch.zeros(shape, dtype=torch.bool)
    for start, part in parts:
        window = tuple(slice(first, first + length) for first, length in zip(start, part.shape, strict=True))
        if part.dtype != whole.dtype or whole[window].shape != part.shape or min(start, default=0) < 0:
            raise CheckpointError(f"{what} has a part that does not fit into the tensor")
        whole[window] = part
        known[window] = True
    if not known.all():
        raise missing
    return whole


class _Branch(dict[Any, Any]):
    """A dictionary or a list in construction, by key or by position."""


def _nested(entries: Mapping[tuple[Any, ...], Any]) -> Any:
    """The entries nested in dictionaries, by names, and in lists, by positions."""
    root = _Branch()
    for path, value in entries.items():
        branch = root
        for part in path[:-1]:
            branch = branch.setdefault(part, _Branch())
            if not isinstance(branch, _Branch):
                raise ValueError("an entry is in another")
        branch[path[-1]] = value
    return {key: _finished(value) for key, value in root.items()}


def _finished(value: Any) -> Any:
    if not isinstance(value, _Branch):
        return value
    if all(type(key) is int for key in value):
        return [_finished(value[key]) for key in sorted(value)]
    return {key: _finished(child) for key, child in value.items()}
