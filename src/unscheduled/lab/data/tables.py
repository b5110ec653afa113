"""Parsers of classification tables to raw features and classes, numbered from 0."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unscheduled.lab.data.arrays import Arrays
from unscheduled.lab.data.contents import Files

DNA_BITS = {"A": (1, 0, 0), "C": (0, 1, 0), "G": (0, 0, 1), "T": (0, 0, 0)}
"""The bits of each letter, as the Statlog project encodes them."""


def table(feature_columns: slice = slice(0, -1)) -> Callable[[Files], Arrays]:
    """A parser of a file of comma-separated numbers without a header, with the class in the last column."""

    def parse(files: Files) -> Arrays:
        cells = cells_of(files)
        return {"features": cells[:, feature_columns].astype(np.float32), "labels": class_numbers(cells[:, -1])}

    return parse


def dna(files: Files) -> Arrays:
    """The 60 letters of each row as 180 bits, without rows that have an ambiguous letter (N, D, R, S)."""
    cells = cells_of(files)
    letters = cells[:, :-1]
    clear = np.isin(letters, list(DNA_BITS)).all(1)
    bits = np.array([[DNA_BITS[letter] for letter in row] for row in letters[clear]], np.float32)
    return {"features": np.reshape(bits, (len(bits), -1)), "labels": class_numbers(cells[clear, -1])}


def cells_of(files: Files) -> NDArray[np.str_]:
    """The cells of the only file as text, by row and column."""
    (content,) = files.values()
    lines = content.decode("ascii").split("\n")
    return np.array([[cell.strip() for cell in line.split(",")] for line in lines if line.strip()])


def class_numbers(names: NDArray[np.str_]) -> NDArray[np.int64]:
    """The classes numbered from 0, in ascending order of their numbers, or in alphabetical order of their names."""
    ordered = names.astype(np.int64) if all(name.isdigit() for name in names) else names
    return np.unique(ordered, return_inverse=True)[1].astype(np.int64)
