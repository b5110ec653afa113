"""Parsers of citation graphs: nodes are papers, features are the words in them, labels are their subjects.

``edges`` (2, number of edges) has each link between two papers once, with the smaller node first.
"""

import collections
import io
import pickle
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unscheduled.lab.data.arrays import Arrays
from unscheduled.lab.data.contents import Files

TRAINING_NODES_PER_CLASS, VALIDATION_NODES, TEST_NODES = 20, 500, 1000
"""The sizes of the public splits."""


def cora(files: Files) -> Arrays:
    """The graph in the files of LINQS, which have the words of each paper as zeros and ones, and pairs of papers.

    The files have no split. The split here has the sizes of the public split: the first 20 papers of each subject are
    for training, the first 500 of the others for validation and the next 1,000 for testing.
    """
    by_suffix = {PurePosixPath(path).suffix: content.decode("ascii") for path, content in files.items()}
    rows = [line.split() for line in by_suffix[".content"].split("\n") if line]
    node = {row[0]: position for position, row in enumerate(rows)}
    links = [[node[paper] for paper in line.split()] for line in by_suffix[".cites"].split("\n") if line]
    labels = np.unique([row[-1] for row in rows], return_inverse=True)[1].astype(np.int64)
    train = np.concatenate([np.flatnonzero(labels == label)[:TRAINING_NODES_PER_CLASS] for label in np.unique(labels)])
    others = np.setdiff1d(np.arange(len(rows)), train)
    return {
        "features": np.array([row[1:-1] for row in rows]).astype(np.float32),
        "edges": undirected(links),
        "labels": labels,
        "train": np.sort(train),
        "validation": others[:VALIDATION_NODES],
        "test": others[VALIDATION_NODES : VALIDATION_NODES + TEST_NODES],
    }


def planetoid(files: Files) -> Arrays:
    """The graph in the files of Planetoid, with the public split: training nodes first, then 500 for validation."""
    by_name = {PurePosixPath(path).suffix: content for path, content in files.items()}
    test = np.array(by_name[".index"].split()).astype(np.int64)
    first_features, test_features = (unpickled(by_name[name]).dense() for name in (".allx", ".tx"))
    first_labels, test_labels = (unpickled(by_name[name]).argmax(1) for name in (".ally", ".ty"))
    features = np.concatenate([first_features, test_features])
    labels = np.concatenate([first_labels, test_labels]).astype(np.int64)
    features[test], labels[test] = test_features, test_labels
    neighbours = unpickled(by_name[".graph"])
    links = [(node, neighbour) for node in neighbours for neighbour in neighbours[node]]
    training = len(unpickled(by_name[".y"]))
    return {
        "features": features,
        "edges": undirected(links),
        "labels": labels,
        "train": np.arange(training),
        "validation": np.arange(training, training + VALIDATION_NODES),
        "test": np.sort(test),
    }


def undirected(links: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """The links as edges (2, number of edges), without repetitions and links of a node to itself."""
    pairs = sorted({(min(link), max(link)) for link in links})
    return np.stack([np.array([pair[end] for pair in pairs if pair[0] != pair[1]], np.int64) for end in (0, 1)])


class SparseRows:
    """The attributes that a pickle of a ``scipy.sparse.csr_matrix`` sets: the columns and values of each row."""

    data: NDArray[np.float32]
    indices: NDArray[np.int32]
    indptr: NDArray[np.int32]
    _shape: tuple[int, int]

    def dense(self) -> NDArray[np.float32]:
        """The matrix as a dense array."""
        matrix = np.zeros(self._shape, np.float32)
        rows = np.repeat(np.arange(self._shape[0]), np.diff(self.indptr))
        matrix[rows, self.indices] = self.data
        return matrix


class Unpickler(pickle.Unpickler):
    """Unpickles arrays, sparse matrices and dictionaries of lists, and refuses everything else."""

    ALLOWED = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("scipy.sparse.csr", "csr_matrix"): SparseRows,
        ("collections", "defaultdict"): collections.defaultdict,
        ("__builtin__", "list"): list,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The class or function with this name, if it is allowed."""
        if (module_name, global_name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"the pickle asks for {module_name}.{global_name}, which is not allowed")
        return self.ALLOWED[module_name, global_name]


def unpickled(content: bytes) -> Any:
    """The object in a pickle of Python 2."""
    return Unpickler(io.BytesIO(content), encoding="latin1").load()
