"""Leaves out the modules that need Triton where it is not installed, as off Linux."""

from importlib.util import find_spec

OF_TRITON = ["src/unscheduled/kernels/triton/*", "tests/support/interpreted_triton.py"]

collect_ignore_glob = [] if find_spec("triton") else OF_TRITON
