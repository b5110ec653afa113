"""Leaves out what needs Triton where it is not installed, as off Linux, or too old, as beside torch 2.6."""

from importlib.metadata import PackageNotFoundError, version

OF_TRITON = ["src/unscheduled/kernels/triton/*", "tests/support/interpreted_triton.py", "tests/kernels/test_triton.py"]


def has_triton() -> bool:
    try:
        return tuple(map(int, version("triton").split(".")[:2])) >= (3, 4)
    except PackageNotFoundError:
        return False


collect_ignore_glob = [] if has_triton() else OF_TRITON
