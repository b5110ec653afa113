"""The parser of KDD Census-Income, whose label is an income above 50,000 dollars a year."""

import gzip
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unscheduled.lab.data.arrays import Arrays
from unscheduled.lab.data.contents import Files

COLUMNS = 42
NUMBERS = (0, 5, 16, 17, 18, 30, 39)
"""The columns of age, hourly wage, capital gains, capital losses, dividends, size of the employer, weeks worked."""
WEIGHT = 24
"""The column with the number of people that a row stands for. The data set's authors ask users to leave it out."""
LABEL = 41
CATEGORIES = [column for column in range(COLUMNS) if column not in (*NUMBERS, WEIGHT, LABEL)]


def census_income(files: Files) -> Arrays:
    """The categories, numbers and labels of the training and test set.

    Categories are numbered in alphabetical order of their names, alike in both sets; the label of a high income is 1.
    """
    parts = {
        "train": columns_of(next(content for path, content in files.items() if path.endswith(".data.gz"))),
        "test": columns_of(next(content for path, content in files.items() if path.endswith(".test.gz"))),
    }
    names = [sorted({*parts["train"][column], *parts["test"][column]}) for column in CATEGORIES]
    arrays: Arrays = {"category_sizes": np.array([len(each) for each in names], np.int64)}
    for part, columns in parts.items():
        categories = [numbered(columns[column], each) for column, each in zip(CATEGORIES, names, strict=True)]
        numbers = [np.array(columns[column]).astype(np.float32) for column in NUMBERS]
        arrays[f"{part}_categories"] = np.stack(categories, 1)
        arrays[f"{part}_numbers"] = np.stack(numbers, 1)
        arrays[f"{part}_labels"] = np.array([label == "50000+." for label in columns[LABEL]], np.int64)
    return arrays


def columns_of(content: bytes) -> list[tuple[str, ...]]:
    """The columns of a compressed file of comma-separated cells; equal cells are one object, to save memory."""
    lines = gzip.decompress(content).decode("ascii").split("\n")
    rows = [[sys.intern(cell.strip()) for cell in line.split(",")] for line in lines if line.strip()]
    return list(zip(*rows, strict=True))


def numbered(cells: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """The position of each cell among the names."""
    number = {name: position for position, name in enumerate(names)}
    return np.array([number[cell] for cell in cells], np.int64)
