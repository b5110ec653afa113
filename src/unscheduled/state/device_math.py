"""Numbers that stand on a device, in float64 tensors of no dimensions: the functions of the formulas for them."""

import torch
from torch import Tensor

from unscheduled.formulas import scalar_math


def as_tensor(number: float, device: torch.device) -> Tensor:
    """A number, or a condition as 0 or 1, in float64 on a device: filled there, since a copy would wait for it."""
    return torch.full((), number, dtype=torch.float64, device=device)


def on_host(number: float | Tensor) -> float:
    """A number of the host or a device as a plain one, which waits for the device.

    Raises:
        RuntimeError: while what the device does is captured.
    """
    if not isinstance(number, Tensor):
        return number
    if is_capturing(number.device):
        raise RuntimeError("the numbers of the step are asked for while it is captured: ask after the capture")
    return float(number)


def is_capturing(device: torch.device) -> bool:
    """Whether what is done on a device is recorded in a CUDA graph."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def where(condition: Tensor, some: float | Tensor, other: float | Tensor) -> Tensor:
    """``some`` where the condition holds (is not 0), else ``other``: numbers, or tensors of any dimensions."""
    device = condition.device
    tensors = [each if isinstance(each, Tensor) else as_tensor(each, device) for each in (some, other)]
    return torch.where(condition.bool(), tensors[0], tensors[1])


scalar_math.KINDS.append((Tensor, where))
scalar_math.sqrt.register(Tensor, torch.sqrt)
scalar_math.expm1.register(Tensor, torch.expm1)
