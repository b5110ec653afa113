"""Two processes take the same Polyak step: that of one process on their joint batch."""

from pathlib import Path

import polyak_run
import pytest
import torch
from problems import same
from processes import spawn

pytestmark = pytest.mark.slow


def test_the_loss_is_averaged_over_replicas(tmp_path: Path) -> None:
    spawn(polyak_run.data_parallel, tmp_path)


def test_the_sums_are_reduced_over_the_mesh_of_shards(tmp_path: Path) -> None:
    """Of all parameters but one, which every process has."""
    spawn(polyak_run.fully_sharded, tmp_path)


def test_the_norm_of_shards_before_clipping(tmp_path: Path) -> None:
    spawn(polyak_run.fully_sharded_and_clipped, tmp_path)


def test_a_loss_and_a_norm_that_are_to_be_reduced_yet(tmp_path: Path) -> None:
    spawn(polyak_run.partial_numbers, tmp_path)


def test_independent_runs_stay_independent(tmp_path: Path) -> None:
    """They are what they would be without torch.distributed."""
    spawn(polyak_run.independent, tmp_path)
    for rank in range(polyak_run.WORLD):
        runs = torch.load(tmp_path / str(rank))
        for name in polyak_run.RULES:
            step_sizes, params = polyak_run.single_process(name, rank=rank, steps=len(runs[name][0]))
            assert len(step_sizes) == polyak_run.STEPS + 3 * rank
            assert runs[name][0] == step_sizes
            assert same(runs[name][1], params)


def test_what_one_process_is_given_wrong_is_refused_in_both(tmp_path: Path) -> None:
    spawn(polyak_run.refused, tmp_path)


def test_processes_that_have_no_gradient_in_common_are_refused(tmp_path: Path) -> None:
    spawn(polyak_run.different, tmp_path)
