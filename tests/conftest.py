"""What every test gets."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from unscheduled.kernels import compiled

collect_ignore_glob = ["*_run.py"]  # what processes run has no examples, and torch warns of some of its own modules

settings.register_profile("no deadline", settings(), deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")


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
