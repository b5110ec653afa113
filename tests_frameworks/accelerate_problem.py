"""A loop with Accelerate as a user writes it, and the loop without Accelerate to compare with."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from models import Net
from torch import Tensor

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, ScheduleFreeWrapper

STEPS, MICRO = 8, 2
Make = Callable[[torch.nn.Module], ScheduleFreeOptimizer]


def adamw(model: torch.nn.Module) -> ScheduleFreeOptimizer:
    return AdamWScheduleFree(model.parameters(), lr=0.1, weight_decay=0.1)


def wrapped(model: torch.nn.Module) -> ScheduleFreeOptimizer:
    return ScheduleFreeWrapper(torch.optim.RMSprop(model.parameters(), lr=0.01))


def make_model() -> Net:
    torch.manual_seed(1)
    return Net()


def loss_of(model: torch.nn.Module, step: int, micro: int, part: int = 0) -> Tensor:
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(MICRO * step + micro + 1000 * part))
    return model(inputs).float().square().mean()


def plain_loop(make: Make, steps: int = STEPS, bf16: bool = False, parts: int = 1) -> tuple[Net, ScheduleFreeOptimizer]:
    """The loop by hand, of an optimizer that is attached to nothing and never evaluates; on the data of all parts."""
    model = make_model()
    optimizer = make(model)
    trained = [param for param in model.parameters() if param.requires_grad]
    for step in range(steps):
        gradients: list[list[Tensor]] = []
        for part in range(parts):
            for micro in range(MICRO):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = loss_of(model, step, micro, part)
                (loss / MICRO).backward()
            gradients.append([cast(Tensor, param.grad) for param in trained])
            optimizer.zero_grad()
        for param, *of_parts in zip(trained, *gradients, strict=True):
            param.grad = torch.stack(of_parts).sum(0) / parts
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def fit(
    accelerator: Accelerator, model: Any, optimizer: Any, steps: Iterable[int], by_hand: bool = True, part: int = 0
) -> None:
    """With an evaluation after every micro-batch; ``by_hand`` with the switches of the optimizer itself, too."""
    for step in steps:
        for micro in range(MICRO):
            model.train()
            if by_hand:
                optimizer.train()
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, step, micro, part))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
            model.eval()
            if by_hand:
                optimizer.eval()


def prepared(accelerator: Accelerator, make: Make, attach: str = "before") -> tuple[Any, AcceleratedOptimizer]:
    model = make_model()
    optimizer = make(model)
    if attach == "before":
        optimizer.attach(model)
    accelerated = accelerator.prepare(model, optimizer)
    if attach == "after":
        optimizer.attach(accelerated[0])
    return accelerated
