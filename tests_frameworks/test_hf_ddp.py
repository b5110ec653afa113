"""Transformers and Accelerate in two processes, which train as one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORLD, PATIENCE = 2, 240


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(WORLD)}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parent / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(here / "hf_ddp_run.py"), str(tmp_path)]
    processes = [
        subprocess.Popen(
            command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(WORLD)
    ]
    try:
        errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * WORLD, "\n".join(error[-3000:] for error in errors)
