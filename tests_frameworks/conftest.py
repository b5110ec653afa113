"""What every test of a framework gets."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside the tests
import torchvision_on_cpu  # noqa: F401


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
