"""Covering sets hold what they say, and are small."""

from itertools import combinations, product
from typing import Any

import pytest
from covering import covering
from hypothesis import given
from hypothesis import strategies as st


def held(cases: list[dict[str, Any]], strength: int) -> set[Any]:
    return {some for case in cases for some in combinations(sorted(case.items()), strength)}


@given(
    cases=st.lists(st.fixed_dictionaries({name: st.integers(0, 3) for name in "abcd"}), max_size=60),
    strength=st.integers(1, 4),
)
def test_every_combination_that_occurs_is_held(cases: list[dict[str, Any]], strength: int) -> None:
    chosen = [cases[place] for place in covering(cases, strength)]
    assert held(chosen, strength) == held(cases, strength)


@pytest.mark.parametrize(("strength", "at_most"), [(1, 7), (2, 16), (3, 44)])
def test_of_a_product_few_are_taken(strength: int, at_most: int) -> None:
    names, levels = "abcdef", (7, 2, 2, 2, 2, 2)
    cases = [dict(zip(names, values, strict=True)) for values in product(*map(range, levels))]
    assert len(covering(cases, strength)) <= at_most


def test_the_values_are_evenly_spread() -> None:
    cases = [{"a": a, "b": b} for a, b in product(range(40), range(4))]
    chosen = [cases[place] for place in covering(cases, 1)]
    assert [sum(case["b"] == b for case in chosen) for b in range(4)] == [10, 10, 10, 10]
