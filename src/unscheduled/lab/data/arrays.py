"""Arrays by name, and the files that keep them."""

import os
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

DAMAGED = (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What numpy raises on a file that is not what it wrote."""


def read_arrays(path: Path) -> Arrays | None:
    """The arrays of a file; None if it is not there or is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (FileNotFoundError, *DAMAGED):
        return None


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write a file of arrays, which appears when it is complete."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        np.savez(Path(folder, path.name), allow_pickle=False, **arrays)
        os.replace(Path(folder, path.name), path)
