"""What every test gets."""

import pytest
import torch
from hypothesis import settings

collect_ignore_glob = ["*_run.py"]  # what processes run has no examples, and torch warns of some of its own modules

settings.register_profile("no deadline", settings(), deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
