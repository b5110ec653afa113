"""Two processes take the same distance step: that of one process on their joint batch."""

from pathlib import Path

import distance_run
import pytest
from processes import spawn

pytestmark = pytest.mark.slow


def test_replicas_have_the_sums_already(tmp_path: Path) -> None:
    spawn(distance_run.data_parallel, tmp_path)


def test_the_sums_are_reduced_over_the_mesh_of_shards(tmp_path: Path) -> None:
    """Of all parameters but one, which every process has."""
    spawn(distance_run.fully_sharded, tmp_path)


def test_the_sums_on_other_meshes(tmp_path: Path) -> None:
    spawn(distance_run.meshes, tmp_path, processes=4)


def test_the_sums_are_those_of_all_partitions(tmp_path: Path) -> None:
    spawn(distance_run.partitioned, tmp_path)


def test_what_one_process_has_wrong_is_refused_in_both(tmp_path: Path) -> None:
    spawn(distance_run.refused, tmp_path)
