"""The numbers that change from step to step, on the device, where a captured step reads and writes them.

With ``capturable=True``, ``step()`` may be captured in a CUDA graph. A replay then makes the next step, and nothing in
it waits for the device. As in ``torch.optim``, the counters of a group and the ``"step"`` of each parameter's state are
tensors of no dimensions (float64) on the device of the parameters, which a step changes in place. As always with such
graphs, what is no tensor is what it was at the capture:

- A learning rate that is to change has to be a tensor on the device.
- Numbers on the device are not checked: that the learning rate is >= 0, and c and beta are in [0, 1].
- The other options of a group, its averaging and its interpolation are those of the capture. What
  ``restart_averaging()`` and ``freeze_averaging()`` do holds for the replays too.
- Parameters with gradients are those of the capture. Before the first capture, make a step with the gradients of each:
  it makes the buffers, and compiles what has to be compiled.
- The state has to stay where it is: capture anew after ``load_state_dict()`` and ``add_param_group()``.
- Replay a step in train mode. ``eval()``, ``train()``, ``state_dict()``, ``metrics()`` and whatever else needs a number
  on the host waits for the device, and cannot be captured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from unscheduled.state import param_groups
from unscheduled.state.param_groups import Group, numbers_of
from unscheduled.state.parameter import State


@torch.inference_mode(False)  # else no step could change them
def bring_to_device(group: Group, params: Iterable[Tensor], states: Iterable[State]) -> None:
    """Make the counters of a group, and those of parameters with a state, tensors where the parameters are.

    Raises:
        ValueError: if the learning rate is a tensor elsewhere.
        RuntimeError: if there is something to do while a step is captured.
    """
    for param in group["params"][:1]:
        check_lr(group["lr"], param.device)
        param_groups.put_on_device(group, numbers_of(group), param.device)
    for param, state in zip(params, states, strict=True):
        if state:
            param_groups.put_on_device(state, ("step",), param.device)


def check(group: Group, params: Iterable[Tensor]) -> None:
    """Raise ValueError unless the numbers of a group can be on the device of its parameters."""
    devices = {param.device for param in params}
    if len(devices) > 1:
        raise ValueError(
            f"capturable = True, but the parameters are on {' and '.join(sorted(map(str, devices)))}: "
            "make a group for each device"
        )
    for device in devices:
        check_lr(group["lr"], device)


def check_lr(lr: float | Tensor, device: torch.device) -> None:
    """Raise ValueError if a learning rate is a tensor elsewhere than on this device."""
    if isinstance(lr, Tensor) and lr.device != device:
        raise ValueError(
            f"capturable = True, but lr = a tensor on {lr.device}, the parameters are on {device}: "
            "put it there, or give a float"
        )


def refuse_branches(group: Group, counters_after: Callable[[Group, float], Any]) -> None:
    """Raise ValueError if the formulas of a group ask for numbers that are on a device.

    They are tried with a tensor of the meta device, which has none.
    """
    unknown = torch.zeros((), dtype=torch.float64, device="meta")
    try:
        counters_after(group | dict.fromkeys(param_groups.NUMBERS, unknown) | {"lr": 1.0}, 1.0)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            "an averaging or an interpolation decides by if, min or max, or with a function of Python, on a number of "
            "the device: use where, minimum and maximum of unscheduled.formulas.scalar_math, or capturable=False"
        ) from error
