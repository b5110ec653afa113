"""Reads files inside an archive: a wheel, a source distribution or a Debian package."""

import fnmatch
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

Files = Mapping[str, bytes]
"""The content of files by their path inside an archive."""

DEB_HEADER_SIZE = 60


def read_files(archive: Path, patterns: tuple[str, ...]) -> Files:
    """The files whose path inside the archive matches one of the patterns, by path in alphabetical order."""

    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in sorted(filter(wanted, wheel.namelist()))}
    content = io.BytesIO(data_member(archive.read_bytes()) if archive.suffix == ".deb" else archive.read_bytes())
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=content) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if wanted(name) and (file := tar.extractfile(member)) is not None:
                files[name] = file.read()
    return dict(sorted(files.items()))


def data_member(package: bytes) -> bytes:
    """The member ``data.tar.*`` of a Debian package, which is an ``ar`` file.

    After 8 bytes of magic number each member has a header of 60 bytes, with its name in the first 16 and its size as
    text in bytes 48 to 58; members start at even positions.
    """
    position = 8
    while position < len(package):
        header = package[position : position + DEB_HEADER_SIZE]
        start, size = position + DEB_HEADER_SIZE, int(header[48:58])
        if header.startswith(b"data.tar"):
            return package[start : start + size]
        position = start + size + size % 2
    raise ValueError("the Debian package has no member data.tar")
