"""The versions, the code and the machine that measured numbers depend on."""

import functools
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def versions() -> dict[str, str]:
    """The versions of Python, torch and this library."""
    return {"python": platform.python_version(), "torch": torch.__version__, "unscheduled": version("unscheduled")}


LAB_FILES = ("contender.py", "contenders.py", "peers.py", "run.py", "schedules.py")
"""The modules of the lab that a run executes."""


@functools.cache
def code_sha256() -> str:
    """The SHA-256 of the source that a run executes, without its task: the library and ``LAB_FILES``."""
    lab = Path(__file__).parent
    library = [file for file in lab.parent.rglob("*.py") if lab not in file.parents and file.name != "cli.py"]
    digest = hashlib.sha256()
    for file in sorted([*library, *(lab / name for name in LAB_FILES)]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def machine() -> dict[str, str | int]:
    """The processor, the number of cores and the system of this machine."""
    system = f"{platform.system()} {platform.machine()}"
    return {"processor": _processor(), "cores": os.cpu_count() or 1, "system": system}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
