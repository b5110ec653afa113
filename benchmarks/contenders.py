"""The optimizers that are compared, and the reasons why some of them are not available."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.workloads import equal_tensors, fresh_parameters

Family = Literal["AdamW", "SGD"]
Role = Literal["ours", "torch", "peer", "limit"]
Make = Callable[[list[Tensor]], Optimizer]

EXACT = 1e-4
"""The tolerance for float32 rounding: each step rounds weights of about 1, and moves them by about 0.01."""
NARROW = 0.1
"""The tolerance for an implementation whose state has 16 and 8 bits."""

ADAMW: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9}


@dataclass(frozen=True)
class Contender:
    """One optimizer.

    Args:
        name: its name in tables and on the command line.
        family: the update that it computes, or the plain optimizer that it replaces.
        role: ours, PyTorch's own, another library, or the limit of the machine.
        make: makes the optimizer for a list of parameters.
        tolerance: the largest distance of its average x from that of the definition, as a share of the distance of x
            from its start, over all tensors; None for an optimizer that is not Schedule-Free.
    """

    name: str
    family: Family
    role: Role
    make: Make = field(repr=False)
    tolerance: float | None = None


def _of(module: str, name: str, **options: Any) -> Make:
    """A function that makes an optimizer of a library, which it imports when it is called."""

    def make(params: list[Tensor]) -> Optimizer:
        optimizer = getattr(importlib.import_module(module), name)(params, **options)
        if hasattr(optimizer, "train"):
            optimizer.train()  # other libraries refuse to step before train()
        return optimizer

    return make


_ours_adamw = partial(_of, "unscheduled", "AdamWScheduleFree", **ADAMW)
_ours_sgd = partial(_of, "unscheduled", "SGDScheduleFree", **SGD)

CONTENDERS = (
    Contender("unscheduled AdamW fused", "AdamW", "ours", _ours_adamw(implementation="fused"), EXACT),
    Contender("unscheduled AdamW foreach", "AdamW", "ours", _ours_adamw(implementation="foreach"), EXACT),
    Contender("unscheduled AdamW compiled", "AdamW", "ours", _ours_adamw(implementation="compiled"), EXACT),
    Contender(
        "unscheduled AdamW compact",
        "AdamW",
        "ours",
        _ours_adamw(implementation="fused", state_precision="compact"),
        NARROW,
    ),
    Contender("torch AdamW fused", "AdamW", "torch", _of("torch.optim", "AdamW", fused=True, **ADAMW)),
    Contender("torch AdamW foreach", "AdamW", "torch", _of("torch.optim", "AdamW", foreach=True, **ADAMW)),
    Contender("schedulefree AdamW", "AdamW", "peer", _of("schedulefree", "AdamWScheduleFree", **ADAMW), EXACT),
    Contender(
        "pytorch_optimizer AdamW", "AdamW", "peer", _of("pytorch_optimizer", "ScheduleFreeAdamW", **ADAMW), EXACT
    ),
    Contender("heavyball AdamW", "AdamW", "peer", _of("heavyball", "SFAdamW", **ADAMW), EXACT),
    Contender("stream (Numba)", "AdamW", "limit", _of("benchmarks.stream", "NumbaStream")),
    Contender("stream (torch)", "AdamW", "limit", _of("benchmarks.stream", "TorchStream")),
    Contender("unscheduled SGD fused", "SGD", "ours", _ours_sgd(implementation="fused"), EXACT),
    Contender("torch SGD fused", "SGD", "torch", _of("torch.optim", "SGD", fused=True, **SGD)),
    Contender("schedulefree SGD", "SGD", "peer", _of("schedulefree", "SGDScheduleFree", **SGD), EXACT),
)

DEFINITION: dict[Family, Make] = {
    "AdamW": _ours_adamw(implementation="loop"),
    "SGD": _ours_sgd(implementation="loop"),
}
"""The optimizers with which the averages of the others are compared."""
FUSED: dict[Family, str] = {"AdamW": "torch AdamW fused", "SGD": "torch SGD fused"}
"""The contenders by whose times those of all others are divided."""
SCHEDULEFREE: dict[Family, str] = {"AdamW": "schedulefree AdamW", "SGD": "schedulefree SGD"}
"""The contenders by whose times those of this library are divided too."""

BY_NAME = {contender.name: contender for contender in CONTENDERS}


def available() -> tuple[list[Contender], dict[str, str]]:
    """The contenders that can make a step of one small tensor, and the reason by name why the others cannot."""
    found: list[Contender] = []
    reasons: dict[str, str] = {}
    for contender in CONTENDERS:
        params = fresh_parameters(equal_tensors(1, 64))
        try:
            optimizer = contender.make(params)
            params[0].grad = torch.ones(64)
            optimizer.step()
        except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reasons[contender.name] = f"{type(error).__name__}: {_first_line(error)}"
        else:
            found.append(contender)
    return found, reasons


def _first_line(error: Exception) -> str:
    """The first line of an error's message, without the folders of paths."""
    line = (str(error).splitlines() or [""])[0]
    return re.sub(r"/(?:[^\s/'\"]+/)+", "", line)[:200]
