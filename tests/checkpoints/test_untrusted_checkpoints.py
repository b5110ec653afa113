"""Checkpoints from others: the commands read them without running what they hold, and say in one line what is wrong."""

import builtins
import functools
import importlib
import json
import os
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schedulefree
import torch
import torch.distributed.checkpoint as dcp
from commands import run
from models import at_average, trained
from problems import includes
from registry import OptimizerInfo, optimizers
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from unscheduled import AdamWScheduleFree, SGDScheduleFree
from unscheduled.checkpoints import dcp_files
from unscheduled.checkpoints.safe_loading import CheckpointError, load

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, about how the files are made


def small(compact: bool = False) -> tuple[nn.Linear, AdamWScheduleFree]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1, state_precision="compact" if compact else "float32")
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()


def whole() -> dict[str, Any]:
    model, optimizer = small()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def refused(capsys: pytest.CaptureFixture[str], path: Path, *options: Any) -> str:
    """What both commands say: one line, and nothing is written."""
    output = path.parent / "x.pt"
    lines: list[str] = []
    for command in (["inspect", path], ["average", path, "-o", output]):
        code, out, err = run(capsys, *command, *options)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.rstrip("\n").isprintable(), err
        lines.append(err.partition(": ")[2])
    assert not output.exists()
    return lines[0]


# What would run.


class Call:
    """A call in a pickle; its result may be called in turn."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None: ...


def state_of_a_class(mark: Path) -> Any:
    """An attribute of a class that DCP writes: unpickled without restriction, it is set in this process."""

    class Raw:
        def __reduce__(self) -> Any:
            return torch.distributed.checkpoint.metadata.StorageMeta, (), (None, {"__call__": mark.touch})

    return Call(Call(builtins.getattr, Raw(), "__call__"))


def loading(mark: Path) -> Any:
    inner = mark.with_suffix(".inner")
    torch.save(Call(open, str(mark), "w"), inner)
    return Call(functools.partial(torch.load, weights_only=False), str(inner))


GADGETS: dict[str, Callable[[Path], Any]] = {
    "open": lambda mark: Call(open, str(mark), "w"),
    "os.system": lambda mark: Call(os.system, f"touch {mark}"),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "getattr": lambda mark: Call(
        Call(builtins.getattr, Call(importlib.import_module, "os"), "system"), f"touch {mark}"
    ),
    "pickle.loads": lambda mark: Call(pickle.loads, pickle.dumps(Call(open, str(mark), "w"))),
    "torch.load": loading,
    "an attribute of a class": state_of_a_class,
}


def distributed(state: Any, folder: Path) -> Path:
    dcp.save(state, checkpoint_id=folder)
    return folder


def evil_metadata(gadget: Any, place: Path) -> list[Path]:
    folder = distributed(whole(), place / "dcp")
    (folder / ".metadata").write_bytes(pickle.dumps(gadget))
    return [folder]


def evil_place_of_an_entry(gadget: Any, place: Path) -> list[Path]:
    folder = distributed(whole(), place / "dcp")
    metadata = FileSystemReader(folder).read_metadata()
    metadata.planner_data["more"] = gadget
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return [folder]


def evil_file(gadget: Any, place: Path, zipped: bool = True) -> list[Path]:
    torch.save({**whole(), "more": gadget}, place / "file.pt", _use_new_zipfile_serialization=zipped)
    return [place / "file.pt"]


def evil_pickle(gadget: Any, place: Path) -> list[Path]:
    (place / "file.pt").write_bytes(pickle.dumps(gadget))
    return [place / "file.pt"]


def evil_optimizer(gadget: Any, place: Path) -> list[Path]:
    torch.save(whole()["model"], place / "model.pt")
    torch.save({**whole()["optimizer"], "more": gadget}, place / "optimizer.pt")
    return [place / "model.pt", Path("--optimizer"), place / "optimizer.pt"]


def evil_shard(gadget: Any, place: Path) -> list[Path]:
    folder = sharded(place / "folder", {"a.bin": {"weight": torch.ones(2, 3)}, "b.bin": {"more": torch.ones(2)}})
    torch.save({"more": gadget}, folder / "b.bin")
    return [folder]


PLACES: dict[str, Callable[[Any, Path], list[Path]]] = {
    "metadata of DCP": evil_metadata,
    "a path in the metadata of DCP": evil_place_of_an_entry,
    "an entry of DCP": lambda gadget, place: [distributed({**whole(), "more": gadget}, place / "dcp")],
    "a file": evil_file,
    "an old file": functools.partial(evil_file, zipped=False),
    "a bare pickle": evil_pickle,
    "the optimizer's file": evil_optimizer,
    "a shard": evil_shard,
}


@pytest.mark.parametrize("gadget", GADGETS)
def test_these_pickles_run_code_where_nothing_hinders_them(gadget: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(GADGETS[gadget](mark)))
    assert mark.exists()
    if "__call__" in vars(torch.distributed.checkpoint.metadata.StorageMeta):
        del torch.distributed.checkpoint.metadata.StorageMeta.__call__


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("gadget", GADGETS)
def test_nothing_in_a_file_runs(gadget: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "ran"
    line = refused(capsys, *PLACES[where](GADGETS[gadget](mark), tmp_path))
    assert not mark.exists()
    assert "__call__" not in vars(torch.distributed.checkpoint.metadata.StorageMeta)
    assert "damaged" in line or "which is no part of" in line or "other objects than tensors" in line


def test_the_name_that_is_refused_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = f"{os.system.__module__}.system"
    mark = tmp_path / "ran"
    assert f"has {system}, which" in refused(capsys, *evil_metadata(Call(os.system, f"touch {mark}"), tmp_path))
    assert f"such as {system}: save" in refused(capsys, *evil_file(Call(os.system, f"touch {mark}"), tmp_path))


# torch's DCP.


@pytest.mark.covering(1)
@pytest.mark.parametrize("flat", [True, False])
@optimizers
def test_a_good_distributed_checkpoint_is_read_as_torch_reads_it(
    info: OptimizerInfo, flat: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if flat and not info.flattens:
        pytest.skip("its state can only be used unflattened")
    model, optimizer = trained(info)
    x = at_average(model, optimizer)
    weights, state = get_state_dict(
        model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flat, ignore_frozen_params=False)
    )
    more = {
        "step": 5,
        "lists": [1, {"a": (2, torch.ones(3))}],
        "deep": {"er": {"b": [torch.ones(2, dtype=torch.bool)]}},
    }
    folder = distributed({"model": weights, "optimizer": state, "more": more}, tmp_path / "dcp")
    dcp_to_torch_save(folder, tmp_path / "torch.pt")
    assert alike(dcp_files.read(folder), load(tmp_path / "torch.pt"))
    code, _, err = run(capsys, "average", folder, "-o", tmp_path / "x.pt")
    assert (code, err) == (0, "")
    assert includes(load(tmp_path / "x.pt"), x)
    code, out, _ = run(capsys, "inspect", folder)
    assert "optimizer        unscheduled" in out


def alike(some: Any, other: Any) -> bool:
    """Whether two trees have the same values of the same types in the same order."""
    if type(some) is not type(other):
        return False
    if isinstance(some, dict):
        return list(some) == list(other) and all(alike(some[key], other[key]) for key in some)
    if isinstance(some, list | tuple):
        return len(some) == len(other) and all(map(alike, some, other))
    return torch.equal(some, other) and some.dtype == other.dtype if isinstance(some, torch.Tensor) else some == other


def in_parts(folder: Path, starts: list[tuple[int, int]], shape: tuple[int, int] = (4, 3)) -> Path:
    """A tensor whose halves two processes have saved."""
    halves = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(6.0, 12.0).view(2, 3)}
    distributed(halves, folder)
    metadata = FileSystemReader(folder).read_metadata()
    places = {index.fqn: info for index, info in metadata.storage_data.items()}
    sizes = [ChunkStorageMetadata(torch.Size(start), torch.Size((2, 3))) for start in starts]
    metadata.state_dict_metadata = {"w": TensorStorageMetadata(TensorProperties(), torch.Size(shape), sizes)}
    metadata.storage_data = {
        MetadataIndex("w", start, number): places[name]
        for number, (start, name) in enumerate(zip(starts, "ab", strict=False))
    }
    metadata.planner_data = {"w": ("w",)}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def test_a_tensor_is_joined_from_the_parts_of_several_processes(tmp_path: Path) -> None:
    expected = torch.arange(12.0).view(4, 3)
    assert torch.equal(dcp_files.read(in_parts(tmp_path / "dcp", [(0, 0), (2, 0)]))["w"], expected)
    expected = torch.stack([torch.arange(6.0).view(2, 3), torch.arange(6.0, 12.0).view(2, 3)], 1).reshape(2, 6)
    found = dcp_files.read(in_parts(tmp_path / "beside", [(0, 0), (0, 3)], (2, 6)))["w"]
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("starts", "match"),
    [
        ([(0, 0)], "lacks a part"),
        ([(0, 0), (0, 0)], "lacks a part"),
        ([(0, 0), (1, 0)], "lacks a part"),
        ([(0, 0), (3, 0)], "does not fit into the tensor"),
        ([(0, 0), (-2, 0)], "does not fit into the tensor"),
    ],
)
def test_a_tensor_without_all_of_its_parts_is_refused(
    starts: list[tuple[int, int]], match: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=match):
        dcp_files.read(in_parts(tmp_path / "dcp", starts))


@pytest.mark.parametrize("name", ["../stolen", "/etc/passwd", "a/../../b", "..\\stolen", "C:\\stolen", "C:stolen"])
def test_entries_outside_of_the_folder_are_not_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = distributed(whole(), tmp_path / "dcp")
    metadata = FileSystemReader(folder).read_metadata()
    next(iter(metadata.storage_data.values())).relative_path = name
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert f"names a file outside of its folder: {name}" in refused(capsys, folder)


def edited(folder: Path, edit: Callable[[Any], None]) -> Path:
    distributed(whole(), folder)
    metadata = FileSystemReader(folder).read_metadata()
    edit(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


METADATA: dict[str, Callable[[Any], None]] = {
    "no places": lambda metadata: setattr(metadata, "storage_data", None),
    "no entries": lambda metadata: setattr(metadata, "state_dict_metadata", 5),
    "a place without entry": lambda metadata: metadata.storage_data.popitem(),
    "a file that is not there": lambda metadata: setattr(
        next(iter(metadata.storage_data.values())), "relative_path", "gone"
    ),
    "no string": lambda metadata: setattr(next(iter(metadata.storage_data.values())), "relative_path", 5),
    "an end beyond the file": lambda metadata: setattr(next(iter(metadata.storage_data.values())), "length", 10**12),
    "a start before it": lambda metadata: setattr(next(iter(metadata.storage_data.values())), "offset", -5),
    "a compressed entry": lambda metadata: setattr(
        next(iter(metadata.storage_data.values())), "transform_descriptors", ["stream.zstd"]
    ),
    "an entry in another": lambda metadata: metadata.planner_data.update({"model.weight": ("optimizer",)}),
    "no path": lambda metadata: metadata.planner_data.update({"model.weight": ()}),
    "an endless path": lambda metadata: metadata.planner_data.update({"model.weight": ("a",) * 100_000}),
}


@pytest.mark.parametrize("edit", METADATA)
def test_metadata_that_lie_are_one_line(edit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, edited(tmp_path / "dcp", METADATA[edit]))


def test_a_far_position_in_a_list_allots_no_memory(tmp_path: Path) -> None:
    def edit(metadata: Any) -> None:
        metadata.planner_data["model.weight"] = ("model", 10**12, "weight")

    assert list(dcp_files.read(edited(tmp_path / "dcp", edit))["model"][0]) == ["weight"]


def test_a_number_of_an_object_allots_no_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "dcp"
    folder.mkdir()
    (folder / ".metadata").write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")  # of C's unpickler, 32 GB
    assert ".metadata is damaged" in refused(capsys, folder)


# Shards.


def sharded(folder: Path, shards: dict[str, dict[str, torch.Tensor]], index: Any = None) -> Path:
    """A folder as Transformers writes it for a large model."""
    folder.mkdir()
    suffix = next(iter(shards)).rpartition(".")[2]
    for name, weights in shards.items():
        save_file(weights, folder / name) if suffix == "safetensors" else torch.save(weights, folder / name)
    weight_map = {name: shard for shard, weights in shards.items() for name in weights}
    whole_index = {"metadata": {"total_size": 0}, "weight_map": weight_map} if index is None else index
    name = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[suffix]
    text = whole_index if isinstance(whole_index, str) else json.dumps(whole_index, indent=2, sort_keys=True)
    (folder / f"{name}.index.json").write_text(text)
    torch.save(small()[1].state_dict(), folder / "optimizer.pt")
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("names", [True, False])
def test_weights_in_shards(suffix: str, names: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if suffix == "safetensors" and not names:
        pytest.skip("safetensors does not keep the order, so names are needed")
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model = nn.ModuleDict({"z": model[0], "a": model[1], "m": model[2]})  # the order is not that of the alphabet
    optimizer = SGDScheduleFree(model.named_parameters() if names else model.parameters(), lr=0.1)
    for _ in range(3):
        for module in model.values():
            module(torch.ones(3)).sum().backward()
        optimizer.step()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    first, second = list(weights)[:3], list(weights)[3:]
    folder = sharded(
        tmp_path / "folder",
        {
            f"model-00001-of-00002.{suffix}": {name: weights[name] for name in first},
            f"model-00002-of-00002.{suffix}": {name: weights[name] for name in second},
        },
    )
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(optimizer.state_dict(), tmp_path / "elsewhere.pt")
    optimizer.eval()
    index = next(folder.glob("*.index.json"))
    ways = [
        [folder],
        [index, "--optimizer", folder / "optimizer.pt"],
        [folder, "--optimizer", tmp_path / "elsewhere.pt"],
    ]
    for way in ways:
        code, out, err = run(capsys, "average", *way, "-o", tmp_path / "x.pt")
        assert (code, err) == (0, "")
        assert "6 tensors, of which 6 are the average x" in out
        assert includes(load(tmp_path / "x.pt"), model.state_dict())
        assert "y, the gradient point" in run(capsys, "inspect", *way)[1]
    (folder / "optimizer.pt").unlink()
    (tmp_path / "x.pt").unlink()
    assert "give the file that has its state with --optimizer" in refused(capsys, folder)


SHARD = {"a.bin": {"weight": torch.ones(2, 3)}}


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ("{", "it is no JSON"),
        ("", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("9" * 10_000, "damaged or no index"),
        ([], "it has no weight_map"),
        ({"weight_map": {}}, "it has no weight_map"),
        ({"weight_map": ["a.bin"]}, "it has no weight_map"),
        ({"weight_map": {"weight": 5}}, "it names a file by a int"),
        ({"weight_map": {"weight": None}}, "it names a file by a NoneType"),
        ({"weight_map": {"weight": "b.bin"}}, "b.bin is not there"),
        ({"weight_map": {"weight": ""}}, "is no file"),
        ({"weight_map": {"weight": "."}}, "is no file"),
        ({"weight_map": {"weight": "\0"}}, "is not there"),
        ({"weight_map": {"weight": "x" * 10_000}}, "xxx"),
        ({"weight_map": {"weight": "../a.bin"}}, "names a file outside of its folder: ../a.bin"),
        ({"weight_map": {"weight": "/etc/passwd"}}, "names a file outside of its folder: /etc/passwd"),
        ({"weight_map": {"weight": "b\\..\\..\\a.bin"}}, "names a file outside of its folder"),
        ({"weight_map": {"weight": "a.bin", "other": "a.bin"}}, "lacks weights that"),
        ({"weight_map": {"weight": "\x1b[31mred\n.bin"}}, r"\x1b[31mred\n.bin is not there"),
    ],
)
def test_an_index_that_lies_is_one_line(
    index: Any, match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(SHARD["a.bin"], tmp_path / "a.bin")
    assert match in refused(capsys, sharded(tmp_path / "folder", SHARD, index))


def test_an_index_of_bytes_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sharded(tmp_path / "folder", SHARD)
    (folder / "pytorch_model.bin.index.json").write_bytes(b"\xff\xfe\x00")
    assert "it is no JSON" in refused(capsys, folder)


@pytest.mark.parametrize("content", [[1, 2], 5, {}, {"other": torch.ones(1)}])
def test_a_shard_of_something_else(content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sharded(tmp_path / "folder", SHARD)
    torch.save(content, folder / "a.bin")
    assert "lacks weights that" in refused(capsys, folder)


def test_a_link_to_a_file_elsewhere_is_a_file_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the cache of the Hugging Face Hub."""
    model, _ = small()
    folder = sharded(tmp_path / "folder", {"a.bin": model.state_dict()})
    (folder / "a.bin").rename(tmp_path / "blob")
    (folder / "a.bin").symlink_to(tmp_path / "blob")
    assert run(capsys, "inspect", folder)[0] == 0


# Damage.

CYCLE: list[Any] = []
CYCLE.append(CYCLE)
TWINS: list[Any] = []
for _ in range(60):
    TWINS = [TWINS, TWINS]


def junk_of_all_kinds() -> tuple[Any, ...]:
    return (
        None,
        5,
        2**70,
        "a\n\x1b[31mred",
        [],
        {"a": 1},
        CYCLE,
        TWINS,
        torch.ones(()),
        torch.ones(2, 3, dtype=torch.complex64),
        torch.ones(2, 3, dtype=torch.int16),
        torch.ones(2, 3).to(torch.float8_e4m3fn),
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3, device="meta"),
        torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8),
    )


def ours() -> dict[str, Any]:
    return whole()


def compact() -> dict[str, Any]:
    model, optimizer = small(compact=True)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def package() -> dict[str, Any]:
    model, _ = small()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.1)
    optimizer.train()
    step(model, optimizer)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a tree: what contains it, and its key."""
    keys: list[Any] = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    for key in keys:
        yield tree, key
        yield from places(tree[key])


@pytest.mark.parametrize("make", [ours, compact, package])
def test_junk_anywhere_in_a_state_dict_is_one_line_or_harmless(
    make: Callable[[], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, path = make(), tmp_path / "checkpoint.pt"
    commands = [["inspect", path], ["average", path, "-o", tmp_path / "x.pt"]]  # by turns
    absent, junk_values = object(), junk_of_all_kinds()
    refusals = 0
    for container, key in list(places(checkpoint)):
        original = container[key]
        commands.reverse()
        for junk in (absent, *junk_values):
            if junk is absent:
                del container[key]
            else:
                container[key] = junk
            torch.save(checkpoint, path)
            if junk is absent and isinstance(container, list):
                container.insert(key, original)
            code, out, err = run(capsys, *commands[0])
            commands.reverse()
            where = f"{key} = {junk!r}" if junk is not CYCLE and junk is not TWINS else str(key)
            assert code in (0, 2), where
            assert err.count("\n") == (1 if code else 0), where
            assert err.rstrip("\n").isprintable(), where
            assert "\x1b" not in out, where
            assert "do not fit together" not in err, where
            refusals += code == 2
        container[key] = original
    assert refusals > 100


def test_bytes_that_are_cut_or_changed_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(0)
    folder, path, old = distributed(whole(), tmp_path / "dcp"), tmp_path / "checkpoint.pt", tmp_path / "old.pt"
    torch.save(whole(), path)
    torch.save(whole(), old, _use_new_zipfile_serialization=False)
    save_file(whole()["model"], tmp_path / "model.safetensors")
    torch.save(whole()["optimizer"], tmp_path / "optimizer.pt")
    files: dict[Path, list[Path]] = {
        path: [path],
        old: [old],
        folder / ".metadata": [folder],
        folder / "__0_0.distcp": [folder],
        tmp_path / "model.safetensors": [tmp_path],
        tmp_path / "optimizer.pt": [tmp_path],
    }
    for file, arguments in files.items():
        content = file.read_bytes()
        for number in range(40):
            changed = bytearray(content)
            if number % 4 == 0:
                del changed[generator.randrange(len(content)) :]
            elif number % 4 == 1:
                changed = bytearray(generator.randbytes(number))
            else:
                for _ in range(number % 4):
                    changed[generator.randrange(len(content))] = generator.randrange(256)
            file.write_bytes(changed)
            code, _, err = run(capsys, "average", *arguments, "-o", tmp_path / "x.pt")
            assert code in (0, 2)
            assert err.count("\n") == (1 if code else 0), err
            assert err.rstrip("\n").isprintable()
        file.write_bytes(content)
        assert run(capsys, "inspect", *arguments)[0] == 0


def test_deep_nesting_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Deeper than Python's stack, in the old format, which torch reads without recursion."""
    depth = 5 * sys.getrecursionlimit()
    torch.save([], tmp_path / "deep.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "deep.pt").read_bytes()
    empty = pickle.dumps([], 2)
    assert content.count(empty) == 2  # the value, and the list of tensors
    deep = b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
    (tmp_path / "deep.pt").write_bytes(content.replace(empty, deep, 1))
    assert "has no state of an optimizer" in refused(capsys, tmp_path / "deep.pt")


# What is printed.


def test_names_in_a_file_do_not_reach_the_terminal_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    red = "a\x1b[31m\nthe weights are  x, the average\r\u202e\x07"
    checkpoint = whole()
    checkpoint["model"][red] = torch.ones(1)
    torch.save(checkpoint, tmp_path / "file.pt")
    assert "do not line up" in refused(capsys, tmp_path / "file.pt")
    model = nn.Linear(3, 2, bias=False)
    optimizer = AdamWScheduleFree([(red, model.weight)], lr=0.1)
    step(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "file.pt")
    assert r"has a parameter a\x1b[31m\nthe weights are  x" in refused(capsys, tmp_path / "file.pt")
    checkpoint = whole()
    checkpoint["optimizer"]["param_groups"][0]["averaging"]["name"] = red
    torch.save(checkpoint, tmp_path / "file.pt")
    code, out, _ = run(capsys, "inspect", tmp_path / "file.pt")
    assert code == 0
    assert all(line.isprintable() for line in out.splitlines())
    assert out.count("\nthe weights are") == 0
    evil = tmp_path / "\x1b[31mred\n.pt"
    assert r"\x1b[31mred\n.pt is not there" in refused(capsys, evil)


def test_a_line_has_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = whole()
    checkpoint["optimizer"]["param_names"] = {0: "x" * 1_000_000}
    torch.save(checkpoint, tmp_path / "file.pt")
    assert len(refused(capsys, tmp_path / "file.pt")) < 3_000


def test_other_optimizers_may_keep_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As those of bitsandbytes keep codes, and Adafactor no learning rate."""
    model, _ = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = torch.ones(2, 3, dtype=torch.uint8)
    state["param_groups"][0]["lr"] = None
    state["state"][1] = torch.ones(2)
    state["param_groups"][0]["params"].append(1)
    torch.save({"model": model.state_dict(), "optimizer": state}, tmp_path / "file.pt")
    code, out, _ = run(capsys, "inspect", tmp_path / "file.pt")
    assert code == 0
    assert "the optimizer is not schedule-free" in out
    assert "not schedule-free" in run(capsys, "average", tmp_path / "file.pt", "-o", tmp_path / "x.pt")[2]


@pytest.mark.parametrize("distribute", [True, False])
def test_an_interrupt_remains_one(
    distribute: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(whole(), tmp_path / "file.pt")
    path = distributed(whole(), tmp_path / "dcp") if distribute else tmp_path / "file.pt"

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(capsys, "inspect", path)


def test_what_is_no_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(whole()["model"], tmp_path / "model.pt")
    assert "is no file" in refused(capsys, tmp_path / "model.pt", "--optimizer", tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    assert "is no file" in refused(capsys, tmp_path / "pipe.pt")
    refused(capsys, tmp_path / "model.pt", "--optimizer", tmp_path / ("x" * 500))  # a name that is too long
    refused(capsys, tmp_path / ("x" * 500))
