"""Run an example as a script: ``python example_run.py EXAMPLE ARGUMENTS…``."""

import runpy
import sys

import torchvision_on_cpu  # noqa: F401

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
