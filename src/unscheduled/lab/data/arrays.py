"""Files of arrays by name."""

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
"""The errors that numpy raises for a damaged file."""


def read_arrays(path: Path) -> Arrays | None:
    """The arrays in a file; None if the file is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (FileNotFoundError, *DAMAGED):
        return None


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write a file of arrays, completely or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        np.savez(Path(folder, path.name), allow_pickle=False, **arrays)
        os.replace(Path(folder, path.name), path)
