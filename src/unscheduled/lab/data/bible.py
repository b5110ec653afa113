"""The parser of the Bible in English and Spanish: pairs of verses, and the vocabularies."""

import collections
import re
import struct
import zlib
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from unscheduled.lab.data.arrays import Arrays
from unscheduled.lab.data.contents import Files

ENGLISH, SPANISH = "engWEB2015eb", "spaRV1909eb"
LEAST_OVERLAP = 0.3
MOST_WORDS = 25
LEAST_COUNT = 3
SPECIAL_WORDS = ("<pad>", "<start>", "<end>", "<unknown>")
PAD, START, END, UNKNOWN = range(4)

CHAPTER = re.compile(r'<chapter [^>]*osisID="([^"]+)"')
ASIDE = re.compile(r"<(note|title)\b.*?</\1>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")
STRONGS_NUMBER = re.compile(r"strong:([GH]\d+)")
TOKEN = re.compile(r"\w+(?:[\u2019-]\w+)*|[^\w\s]")
"""A word, with its apostrophes and hyphens, or a punctuation mark."""

Verses = dict[tuple[str, int], str]
"""The markup of verses by the name of their chapter and their number in it."""


def bible_verses(files: Files) -> Arrays:
    """English and Spanish verses as rows of word numbers, and the words by number.

    A row is START, the words and punctuation marks in lower case, END, and PAD up to the length of the longest row. A
    word that occurs less than three times is UNKNOWN. A pair is the same verse in the two translations. The arrays have
    the pairs of which at least one side has a number of Strong's concordance (which numbers the words of the original
    texts), both sides share more than 0.3 of all their numbers, and neither side has more than 25 words.
    """
    english, spanish = (verses(files, module) for module in (ENGLISH, SPANISH))
    pairs = [
        (tokens(english[place]), tokens(spanish[place]))
        for place in english
        if place in spanish and overlap(english[place], spanish[place]) > LEAST_OVERLAP
    ]
    short = [pair for pair in pairs if all(word_count(side) <= MOST_WORDS for side in pair)]
    arrays: Arrays = {}
    for name, sentences in zip(("english", "spanish"), zip(*short, strict=True), strict=True):
        words = vocabulary(sentences)
        arrays |= {name: numbered(sentences, words), f"{name}_words": np.array(words)}
    return arrays


def verses(files: Files, module: str) -> Verses:
    """The verses of the Old and the New Testament in a module of the SWORD project.

    An entry with a chapter mark begins a chapter; the entries that follow are its verses.
    """
    found: Verses = {}
    for testament in ("ot", "nt"):
        chapter, number = "", 0
        for entry in entries(files, module, testament):
            opened = CHAPTER.findall(entry)
            chapter, number = (opened[-1], 0) if opened else (chapter, number + 1)
            if number:
                found[chapter, number] = entry
    return found


def entries(files: Files, module: str, testament: str) -> list[str]:
    """The entries of a testament, decoded from the format zText.

    ``.bzs`` has the place and the compressed size of each block in ``.bzz`` (and its size); ``.bzv`` has for each
    entry the number of its block, the place in the block, and the size.
    """
    blocks_index, entries_index, compressed = (
        next(content for path, content in files.items() if path.endswith(f"/{module}/{testament}.{suffix}"))
        for suffix in ("bzs", "bzv", "bzz")
    )
    blocks = [
        zlib.decompress(compressed[start : start + size]) for start, size, _ in struct.iter_unpack("<III", blocks_index)
    ]
    places = struct.iter_unpack("<IIH", entries_index)
    return [blocks[block][start : start + size].decode("utf-8") if size else "" for block, start, size in places]


def overlap(english: str, spanish: str) -> float:
    """The share of the Strong's numbers of two verses that are in both verses."""
    one, other = (set(STRONGS_NUMBER.findall(ASIDE.sub(" ", verse))) for verse in (english, spanish))
    return len(one & other) / len(one | other) if one or other else 0.0


def tokens(verse: str) -> list[str]:
    """The words and punctuation marks of a verse, without its notes and titles, in lower case."""
    return TOKEN.findall(TAG.sub(" ", ASIDE.sub(" ", verse)).lower())


def word_count(sentence: Sequence[str]) -> int:
    """The number of words of a sentence, without punctuation marks."""
    return sum(token[0].isalnum() for token in sentence)


def vocabulary(sentences: Sequence[Sequence[str]]) -> list[str]:
    """The special words, then the words that occur at least three times, the most frequent first."""
    counts = collections.Counter(chain.from_iterable(sentences))
    frequent = [word for word, count in counts.items() if count >= LEAST_COUNT]
    return [*SPECIAL_WORDS, *sorted(frequent, key=lambda word: (-counts[word], word))]


def numbered(sentences: Sequence[Sequence[str]], words: Sequence[str]) -> NDArray[np.int32]:
    """The sentences as rows of word numbers."""
    number = {word: position for position, word in enumerate(words)}
    rows = np.full((len(sentences), max(map(len, sentences)) + 2), PAD, np.int32)
    for row, sentence in zip(rows, sentences, strict=True):
        row[: len(sentence) + 2] = [START, *(number.get(word, UNKNOWN) for word in sentence), END]
    return rows
