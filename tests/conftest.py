"""What every test gets."""

from collections.abc import Hashable, Iterator
from itertools import groupby
from typing import Any

import pytest
import torch
from covering import covering
from hypothesis import settings

from unscheduled.kernels import compiled

collect_ignore_glob = ["*_run.py"]  # what processes run has no examples, and torch warns of some of its own modules

settings.register_profile("no deadline", settings(), deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--products", action="store_true", help="run all cases of the tests that are marked `covering`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("products"):
        return
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for _, cases in groupby(items, key=lambda item: (item.parent, getattr(item, "originalname", item.name))):
        of_one_test = list(cases)
        chosen = range(len(of_one_test))
        mark = of_one_test[0].get_closest_marker("covering")
        if mark is not None:
            chosen = covering([values(item) for item in of_one_test], *mark.args)
        for place, item in enumerate(of_one_test):
            (kept if place in chosen else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def values(item: Any) -> dict[str, Hashable]:
    """The values of the parameters of a case; of one with a description, that."""
    return {name: getattr(value, "desc", repr(value)) for name, value in item.callspec.params.items()}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def graphs() -> Iterator[dict[str, int]]:
    """What torch counts of its compilations, from nothing."""
    from torch._dynamo.utils import counters  # here, since it imports the compiler

    torch._dynamo.reset()
    compiled._graph.cache_clear()  # pyright: ignore[reportPrivateUsage]
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()
    compiled._graph.cache_clear()  # pyright: ignore[reportPrivateUsage]
