"""Where numbers come from: the versions and the machine."""

import functools
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def versions() -> dict[str, str]:
    """The versions that the numbers depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "unscheduled": version("unscheduled")}


@functools.cache
def code_sha256() -> str:
    """The checksum of the library's own source: numbers of another version of it are not these."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.parent.rglob("*.py")):
        if file.parent.name != "tasks":  # each task has a checksum of its own
            digest.update(file.read_bytes())
    return digest.hexdigest()


def machine() -> dict[str, str | int]:
    """The machine, without its name."""
    system = f"{platform.system()} {platform.machine()}"
    return {"processor": _processor(), "cores": os.cpu_count() or 1, "system": system}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
