"""Accelerate, by itself and within the Trainer of Transformers, in two processes, which train as one."""

from pathlib import Path

import pytest
from launching import launch


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    script = Path(__file__).parent / "accelerate_ddp_run.py"
    launch("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, tmp_path)
