"""Everything public says what it is, and shows it: the examples run, since pytest collects them."""

import doctest
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import unscheduled
from unscheduled.lab.task import OptimizerSettings, Task

PUBLIC = {
    name: value for name, value in vars(unscheduled).items() if not name.startswith("_") and not inspect.ismodule(value)
} | {"Task": Task, "OptimizerSettings": OptimizerSettings}


def own_members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class that are defined in this package."""
    for name in dir(cls):
        owner = next((kind for kind in cls.__mro__ if name in vars(kind)), None)
        if owner and owner.__module__.startswith("unscheduled") and not name.startswith("_"):
            member = vars(owner)[name]
            if isinstance(member, (classmethod, staticmethod, property)) or inspect.isfunction(member):
                yield name, member


MEMBERS = {
    f"{name}.{member}": value
    for name, cls in PUBLIC.items()
    if inspect.isclass(cls)
    for member, value in own_members(cls)
}


def test_there_is_something_to_look_at() -> None:
    assert {"AdamWScheduleFree", "update_bn", "Iterates", "PolyakStep"} <= set(PUBLIC)
    assert {"SGDScheduleFree.attach", "SGDScheduleFree.training", "PolynomialAveraging.river"} <= set(MEMBERS)


@pytest.mark.parametrize("name", PUBLIC)
def test_it_is_described_and_has_an_example(name: str) -> None:
    docstring = inspect.cleandoc(PUBLIC[name].__doc__ or "")
    summary = docstring.partition("\n")[0]
    assert summary.endswith((".", "!", "?"))
    assert "\nExample:\n" in docstring
    assert doctest.DocTestParser().get_examples(docstring)


@pytest.mark.parametrize("name", MEMBERS)
def test_every_method_is_described(name: str) -> None:
    docstring = inspect.cleandoc(MEMBERS[name].__doc__ or "")
    assert docstring.partition("\n")[0].rstrip()


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in ("Averaging", "Interpolation", "Iterates")])
def test_every_argument_is_described(name: str) -> None:
    described = {line.strip().partition(":")[0] for line in (PUBLIC[name].__doc__ or "").splitlines()}
    assert set(inspect.signature(PUBLIC[name]).parameters) - described - {"self"} == set()
