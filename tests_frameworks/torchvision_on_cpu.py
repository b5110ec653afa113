"""Beside a CPU build of torch, the torchvision of the package index, which is built for CUDA, cannot load its kernels.

Its import then fails, and with it Lightning's, for want of two operators: they are declared here, without kernels.
Models and transforms are plain torch, and need none. Import this before anything that imports torchvision.
"""

from importlib.util import find_spec
from pathlib import Path

import torch


def kernels_fail_to_load() -> bool:
    """Whether torchvision is there, and its kernels are of another build than torch."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    try:
        for file in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(str(file))
    except OSError:
        return True
    return False


if kernels_fail_to_load() and not hasattr(torch.ops.torchvision, "nms"):
    torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
