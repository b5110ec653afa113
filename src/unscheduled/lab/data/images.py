"""Parsers of images of 28 x 28 pixels from 0 to 255."""

import gzip
from pathlib import PurePosixPath

import numpy as np

from unscheduled.lab.data.arrays import Arrays
from unscheduled.lab.data.contents import Files

SIDE = 28
IDX_IMAGES_HEADER, IDX_LABELS_HEADER = 16, 8
"""The sizes in bytes of the header of an IDX file of images, and of a file of labels."""


def mnist_5k(files: Files) -> Arrays:
    """The images and labels of a file with a line for each image: its 784 pixels, then its digit."""
    (content,) = files.values()
    lines = gzip.decompress(content).decode("ascii").split()
    numbers = np.array([line.split(",") for line in lines], np.int64)
    return {
        "images": np.reshape(numbers[:, :-1].astype(np.uint8), (-1, SIDE, SIDE)),
        "labels": numbers[:, -1].astype(np.int64),
    }


def fashion_mnist(files: Files) -> Arrays:
    """The images and labels in the IDX files of the official split."""
    by_name = {PurePosixPath(path).name: gzip.decompress(content) for path, content in files.items()}
    arrays: Arrays = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels = np.frombuffer(by_name[f"{prefix}-images-idx3-ubyte.gz"], np.uint8, offset=IDX_IMAGES_HEADER)
        labels = np.frombuffer(by_name[f"{prefix}-labels-idx1-ubyte.gz"], np.uint8, offset=IDX_LABELS_HEADER)
        arrays |= {f"{split}_images": np.reshape(pixels, (-1, SIDE, SIDE)), f"{split}_labels": labels.astype(np.int64)}
    return arrays
