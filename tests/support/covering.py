"""Covering sets: of a product of parameters, a few cases that hold every combination of so many values.

Most faults show with one value of one parameter or with two values together. ``@pytest.mark.covering(2)`` above a test
keeps, of all its cases, a few in which every two values still meet that meet in some case; ``covering(1)`` keeps every
value. ``pytest --products`` runs all cases.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations


def covering(cases: Sequence[Mapping[str, Hashable]], strength: int) -> list[int]:
    """The places of a few cases that together hold every combination of ``strength`` values of any case.

    It takes the case with most combinations that are still missing, and of several the one whose values were taken
    least, so that the values of each parameter are about evenly spread.
    """
    held = [set(combinations(sorted(case.items(), key=lambda item: item[0]), strength)) for case in cases]
    missing = set[tuple[tuple[str, Hashable], ...]]().union(*held)
    taken = Counter[tuple[str, Hashable]]()
    chosen: list[int] = []
    while missing:
        best = max(
            range(len(cases)),
            key=lambda place: (len(held[place] & missing), -sum(taken[item] for item in cases[place].items())),
        )
        chosen.append(best)
        missing -= held[best]
        taken.update(cases[best].items())
    return sorted(chosen)
