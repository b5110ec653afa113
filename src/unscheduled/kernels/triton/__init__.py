"""The fused kernel for CUDA and HIP, compiled by Triton."""

import triton  # pyright: ignore[reportMissingTypeStubs]

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 4):
    raise ImportError(
        f"triton = {triton.__version__} cannot compile definitions that return tuples: install 3.4 or newer"
    )
