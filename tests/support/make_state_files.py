"""Writes the files of ``state_files``: a checkpoint of every optimizer, in the format of the present version.

Every later version has to load them, bit for bit (``test_state_files.py``). When the format changes, run
``python tests/support/make_state_files.py NUMBER`` once, with the new number of the format. Existing files are never
written again.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from registry import OPTIMIZERS
from torch import Tensor, nn

from unscheduled import (
    AdamWScheduleFree,
    AutoScheduleFree,
    DistanceStep,
    GrowingInterpolation,
    LionScheduleFree,
    MuonScheduleFree,
    RAdamScheduleFree,
    ScheduleFreeOptimizer,
    ScheduleFreePlus,
    ScheduleFreeWrapper,
    SGDScheduleFree,
)

FOLDER = Path(__file__).parent / "state_files"

Maker = Callable[..., ScheduleFreeOptimizer]


class Subject(NamedTuple):
    """An optimizer under test: ``save`` makes the saved one, ``load`` one of the same class with other options."""

    save: Maker
    load: Maker
    is_compact: bool = True  # whether its buffers can be stored narrow

    @property
    def cases(self) -> list[str]:
        return [case for case in CASES if self.is_compact or "compact" not in case]


def wrapped(params: Iterable[Tensor], lr: float, **options: Any) -> ScheduleFreeOptimizer:
    return ScheduleFreeWrapper(torch.optim.AdamW(params, lr=lr, betas=(0.8, 0.9)), **options)


def subject(cls: Maker, lr: float, axes: dict[str, Any] | None = None, is_compact: bool = True, **own: Any) -> Subject:
    def save(params: Iterable[Tensor], **storage: Any) -> ScheduleFreeOptimizer:
        return cls(params, lr=lr, r=0.75, warmup_steps=3, **(axes or {}), **own, **storage)

    def load(params: Iterable[Tensor], **storage: Any) -> ScheduleFreeOptimizer:
        return cls(params, lr=0.5, **(axes or {}), **storage)

    return Subject(save, load, is_compact)


SUBJECTS = {
    "SGDScheduleFree": subject(SGDScheduleFree, 0.1, weight_decay=0.1, decay_at="z", momentum=0.8),
    "AdamWScheduleFree": subject(AdamWScheduleFree, 0.01, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-7),
    "AdamWScheduleFree with momentum": subject(
        AdamWScheduleFree, 0.01, {"interpolation": GrowingInterpolation(0.7, 10)}, inner_momentum=0.8
    ),
    "RAdamScheduleFree": subject(RAdamScheduleFree, 0.01, silent_sgd_phase=False, maximize=True),
    "LionScheduleFree": subject(LionScheduleFree, 0.003, inner_momentum=0.9, weight_decay=0.1),
    "MuonScheduleFree": subject(MuonScheduleFree, 0.01, weight_decay=0.1, inner_momentum=0.9, ns_steps=4),
    "ScheduleFreePlus": subject(ScheduleFreePlus, 0.5, weight_decay=5.0),
    "ScheduleFreeWrapper": subject(wrapped, 0.01, weight_decay_at_y=0.1),
}
OF_ALL_FORMATS = frozenset(SUBJECTS)
"""A later optimizer has files from the next format on."""

SUBJECTS |= {
    info.cls.__name__: subject(info.cls, info.lr, is_compact=info.compact is not None, weight_decay=0.1)
    for info in OPTIMIZERS
    if info.cls.__name__ not in OF_ALL_FORMATS
}
SUBJECTS["AutoScheduleFree"] = Subject(
    lambda params, **storage: AutoScheduleFree(params, r=0.75, weight_decay=0.1, **storage),
    lambda params, **storage: AutoScheduleFree(params, 0.5, step_size=DistanceStep(factor=9.0), **storage),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CASES = (
    "float32 train",
    "float32 eval",
    "float32 attached",
    "bfloat16 train",
    "bfloat16 eval",
    "float16 train",
    "float32 compact train",
    "float32 compact eval",
    "bfloat16 compact attached",
)


def numbers(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Net(nn.Module):
    """A matrix of more than one block of codes, and a bias whose first gradient comes at the third step."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        super().__init__()
        self.matrix = nn.Parameter(numbers((2, 65), seed, dtype))
        self.bias = nn.Parameter(numbers((3,), seed + 1, dtype))


def train(model: Net, optimizer: ScheduleFreeOptimizer, steps: range) -> None:
    for step in steps:
        model.matrix.grad = numbers((2, 65), 10 + step, model.matrix.dtype)
        model.bias.grad = numbers((3,), 100 + step, model.bias.dtype) if step > 1 else None
        optimizer.step(loss=torch.tensor(2.0))


def storage_of(case: str) -> dict[str, str]:
    return {"state_precision": "compact"} if "compact" in case else {}


def saved(subject: Subject, case: str) -> dict[str, Any]:
    """The saved state dicts of a run, and its x, y and z."""
    model = Net(DTYPES[case.partition(" ")[0]])
    optimizer = subject.save(model.parameters(), **storage_of(case))
    train(model, optimizer, range(5))
    if "attached" in case:
        optimizer.attach(model)
    elif "eval" in case:
        optimizer.eval()
    iterates = {name: list(optimizer.iterates(param)) for name, param in model.named_parameters()}
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iterates": iterates}


def main(number: str) -> None:
    """Write a file for every optimizer."""
    folder = FOLDER / number
    folder.mkdir(parents=True)
    for name, each in SUBJECTS.items():
        torch.save({case: saved(each, case) for case in each.cases}, folder / f"{name}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
