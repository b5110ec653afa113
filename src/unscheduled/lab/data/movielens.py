"""The parser of MovieLens-100k: 943 users rate 1,682 films."""

from pathlib import PurePosixPath

import numpy as np

from unscheduled.lab.data.arrays import Arrays
from unscheduled.lab.data.contents import Files


def movielens(files: Files) -> Arrays:
    """The ratings, and the features of users and items, which are numbered from 0.

    Sexes, occupations and genres are numbered in alphabetical order; ``item_genres`` has a column for each genre.
    ``item_year`` is 0 where the year is not known.
    """
    by_suffix = {PurePosixPath(path).suffix: rows_of(content) for path, content in files.items()}
    ratings = np.array(by_suffix[".inter"]).astype(np.int64)
    _, ages, sexes, occupations, _ = zip(*by_suffix[".user"], strict=True)
    _, _, years, genres_of_item = zip(*by_suffix[".item"], strict=True)
    genres = sorted({genre for names in genres_of_item for genre in names.split()})
    return {
        "user": ratings[:, 0] - 1,
        "item": ratings[:, 1] - 1,
        "rating": ratings[:, 2],
        "timestamp": ratings[:, 3],
        "user_age": np.array([int(age) for age in ages], np.int64),
        "user_sex": np.unique(sexes, return_inverse=True)[1].astype(np.int64),
        "user_occupation": np.unique(occupations, return_inverse=True)[1].astype(np.int64),
        "item_genres": np.array([[genre in names.split() for genre in genres] for names in genres_of_item], np.float32),
        "item_year": np.array([int(year) if year.isdigit() else 0 for year in years], np.int64),
    }


def rows_of(content: bytes) -> list[list[str]]:
    """The rows of a file with tabs between cells, without its header; users and items are in the order of their ids."""
    return [line.split("\t") for line in content.decode("utf-8").split("\n")[1:] if line]
