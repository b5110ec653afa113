"""Parsers of data sets, on a few rows in the form of the original files."""

import codecs
import gzip
import io
import pickle
import struct
import sys
import types
import zlib
from typing import Any

import numpy as np
import pytest

from unscheduled.lab.data import DATA_SETS
from unscheduled.lab.data.graphs import Unpickler, unpickled

POSSESSIVE = "God\u2019s"


def parsed(name: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {key: array.tolist() for key, array in DATA_SETS[name].parse(files).items()}


def test_classes_are_in_the_order_of_their_numbers_or_names() -> None:
    assert parsed("wine", {"wine": b"1.5, 10\n2, 9\n3, 10\n"}) == {
        "features": [[1.5], [2.0], [3.0]],
        "labels": [1, 0, 1],
    }
    assert parsed("letter", {"letter": b"1,B\n2,A\n"})["labels"] == [1, 0]


def test_columns_that_are_no_features_are_left_out() -> None:
    assert parsed("vowel", {"vowel": b"1,7,0,-3.5,0.5,4\n"})["features"] == [[-3.5, 0.5]]
    assert parsed("glass", {"glass": b"17,1.5,13.0,4.5,2\n"})["features"] == [[1.5, 13.0, 4.5]]


def test_dna_letters_become_bits_and_rows_with_others_are_left_out() -> None:
    arrays = parsed("dna", {"splice": b"A, C, EI\nG, T, N\nG, N, IE\nC, G, IE\n"})
    assert arrays == {"features": [[1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1]], "labels": [0, 2, 1]}


def test_images() -> None:
    pixels = np.arange(2 * 784) % 256
    rows = np.column_stack([pixels.reshape(2, 784), (7, 3)])
    lines = "\n".join(",".join(map(str, row)) for row in rows)
    mnist = DATA_SETS["mnist-5k"].parse({"mnist": gzip.compress(lines.encode())})
    assert np.array_equal(mnist["images"], pixels.reshape(2, 28, 28).astype(np.uint8))
    assert mnist["labels"].tolist() == [7, 3]
    images = gzip.compress(bytes(16) + pixels.astype(np.uint8).tobytes())
    labels = gzip.compress(bytes(8) + bytes([7, 3]))
    fashion = DATA_SETS["fashion-mnist"].parse(
        {
            f"{part}-{kind}-ubyte.gz": content
            for part in ("train", "t10k")
            for kind, content in (("images-idx3", images), ("labels-idx1", labels))
        }
    )
    assert np.array_equal(fashion["test_images"], mnist["images"])
    assert fashion["train_labels"].tolist() == [7, 3]


def test_shakespeare_is_joined_in_alphabetical_order() -> None:
    assert bytes(DATA_SETS["shakespeare"].parse({"lear": b"Blow", "hamlet": b"To be"})["text"]) == b"To be\nBlow"


def test_movielens() -> None:
    arrays = parsed(
        "movielens",
        {
            "x.inter": b"user\titem\trating\ttime\n2\t1\t5\t100\n1\t2\t3\t200\n",
            "x.user": b"user\tage\tgender\toccupation\tzip\n1\t24\tM\twriter\t85711\n2\t53\tF\tartist\t94043\n",
            "x.item": b"item\ttitle\tyear\tclass\n1\tToy Story\t1995\tComedy Animation\n2\tunknown\tunknown\tunknown\n",
        },
    )
    assert arrays == {
        "user": [1, 0],
        "item": [0, 1],
        "rating": [5, 3],
        "timestamp": [100, 200],
        "user_age": [24, 53],
        "user_sex": [1, 0],
        "user_occupation": [1, 0],
        "item_genres": [[1, 1, 0], [0, 0, 1]],
        "item_year": [1995, 0],
    }


def test_cora() -> None:
    subjects = ["Theory", "Rules"] * 25
    content = "\n".join(f"{100 + paper}\t{paper % 2}\t1\t{subject}" for paper, subject in enumerate(subjects))
    files = {"cora.content": content.encode(), "cora.cites": b"105\t101\n101\t105\n103\t103\n100\t149\n"}
    arrays = parsed("cora", files)
    assert arrays["edges"] == [[0, 1], [49, 5]]
    assert arrays["features"][:2] == [[0, 1], [1, 1]]
    assert arrays["labels"] == [1, 0] * 25
    assert (arrays["train"], arrays["validation"], arrays["test"]) == ([*range(40)], [*range(40, 50)], [])


def pickle_of_matrix(rows: list[list[float]], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """In the form of scipy's old pickles."""
    module: Any = types.ModuleType("scipy.sparse.csr")
    module.csr_matrix = type("csr_matrix", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    matrix = module.csr_matrix()
    dense = np.array(rows, np.float32)
    matrix.data, matrix.indices = dense[dense > 0], np.nonzero(dense)[1]
    matrix.indptr, matrix._shape = np.cumsum([0, *(dense > 0).sum(1)]), dense.shape
    return pickle_of(matrix)


def pickle_of(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_planetoid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Unpickler.ALLOWED, ("_codecs", "encode"), codecs.encode)  # only Python 3 writes bytes with it
    arrays = parsed(
        "pubmed",
        {
            "ind.allx": pickle_of_matrix([[1, 0], [0, 2]], monkeypatch),
            "ind.ally": pickle_of(np.array([[1, 0], [0, 1]])),
            "ind.tx": pickle_of_matrix([[3, 0], [0, 4]], monkeypatch),
            "ind.ty": pickle_of(np.array([[0, 1], [1, 0]])),
            "ind.y": pickle_of(np.array([[1, 0]])),
            "ind.graph": pickle_of({0: [1, 1, 0], 1: [0], 2: [3], 3: [2]}),
            "ind.test.index": b"3\n2\n",
        },
    )
    assert arrays["features"] == [[1, 0], [0, 2], [0, 4], [3, 0]]
    assert arrays["labels"] == [0, 1, 0, 1]
    assert arrays["edges"] == [[0, 2], [1, 3]]
    assert (arrays["train"], arrays["test"]) == ([0], [2, 3])


def test_a_pickle_that_asks_for_anything_else_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"the pickle asks for __builtin__\.eval, which is not allowed"):
        unpickled(pickle.dumps(eval, protocol=2))


def sword_files(module: str, testament: str, entries: list[str]) -> dict[str, bytes]:
    """A testament in one block."""
    content, index = b"", io.BytesIO()
    for entry in map(str.encode, entries):
        index.write(struct.pack("<IIH", 0, len(content), len(entry)))
        content += entry
    compressed = zlib.compress(content)
    blocks = struct.pack("<III", 0, len(compressed), len(content))
    folder = f"usr/share/sword/modules/texts/ztext/{module}/{testament}"
    return {f"{folder}.bzs": blocks, f"{folder}.bzv": index.getvalue(), f"{folder}.bzz": compressed}


def test_bible_verses() -> None:
    def word(number: str, text: str) -> str:
        return f'<w lemma="strong:{number}">{text}</w>'

    chapter = ['<milestone n="x"/>', '<chapter n="1" osisID="Gen.1" sID="Gen.1"/>']
    note = "<note>Or <w lemma='strong:H9'>x</w></note>"
    english = [f"{word('H1', POSSESSIVE)} light,{word('H2', 'light')}{note}. "] * 3
    spanish = [f"{word('H1', 'Luz')}<transChange>de</transChange>{word('H2', 'Dios')}: "] * 3
    files: dict[str, bytes] = {}
    for module, verses, end in (("engWEB2015eb", english, "H7"), ("spaRV1909eb", spanish, "H8")):
        other = word(end, "other")
        long = word("H1", "long " * 26)
        files |= sword_files(module, "ot", ["", *chapter, *verses, other, long, ""])
        files |= sword_files(module, "nt", ["", '<chapter n="1" osisID="Matt.1"/>', word("G1", "Amen")])
    arrays = parsed("bible-verses", files)
    assert arrays["english_words"] == ["<pad>", "<start>", "<end>", "<unknown>", "light", ",", ".", POSSESSIVE.lower()]
    assert arrays["spanish_words"] == ["<pad>", "<start>", "<end>", "<unknown>", ":", "de", "dios", "luz"]
    assert arrays["english"] == [[1, 7, 4, 5, 4, 6, 2]] * 3 + [[1, 3, 2, 0, 0, 0, 0]]
    assert arrays["spanish"] == [[1, 7, 5, 6, 4, 2]] * 3 + [[1, 3, 2, 0, 0, 0]]


def test_census_income() -> None:
    def row(age: int, worker: str, income: str) -> str:
        cells = ["x"] * 42
        for column in (0, 5, 16, 17, 18, 30, 39):
            cells[column] = str(age + column)
        cells[1], cells[24], cells[41] = worker, "1700.09", income
        return ", ".join(cells)

    arrays = parsed(
        "census-income",
        {
            "census-income.data.gz": gzip.compress(f"{row(1, 'b', '- 50000.')}\n{row(2, 'c', '50000+.')}\n".encode()),
            "census-income.test.gz": gzip.compress(f"{row(3, 'a', '- 50000.')}\n".encode()),
        },
    )
    assert arrays["category_sizes"] == [3] + [1] * 32
    assert arrays["train_categories"] == [[1] + [0] * 32, [2] + [0] * 32]
    assert arrays["test_categories"] == [[0] * 33]
    assert arrays["train_numbers"][0] == [1, 6, 17, 18, 19, 31, 40]
    assert (arrays["train_labels"], arrays["test_labels"]) == ([0, 1], [0])
