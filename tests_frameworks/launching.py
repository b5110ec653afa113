"""Scripts that start processes of their own, which are killed together if they hang."""

import os
import signal
import subprocess
import sys
from pathlib import Path

PATIENCE = 240  # seconds
TESTS = Path(__file__).parents[1] / "tests" / "support"


def launch(*arguments: str | Path) -> None:
    """Run Python with these arguments to its end, which has to be a good one."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        env=os.environ
        | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors[-5000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
