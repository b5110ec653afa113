"""What people put into their training loops, all of it at once and each by itself: evaluating anywhere changes no bit.

Every loop is run twice: plainly, and attached, with an evaluation at every place between a backward and the next
forward pass. The weights that are evaluated are those of a plain copy at x, computed with afresh.
"""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from models import ADAMW
from problems import copies, equal
from registry import OptimizerInfo, optimizers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unscheduled import ScheduleFreeOptimizer, param_groups

STEPS, MICRO_BATCHES = 6, 2


class Net(nn.Module):
    """Convolutions with BatchNorm, and dropout; its first block can be computed anew in the backward pass."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Dropout(0.2)
        )
        self.head = nn.Linear(4, 3)
        self.recompute = recompute

    def forward(self, images: Tensor) -> Tensor:
        features = checkpoint(self.block, images, use_reentrant=False) if self.recompute else self.block(images)
        return self.head(features.mean((2, 3)))


def images(seed: int) -> Tensor:
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def autocast(precision: str | None) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", getattr(torch, precision)) if precision else nullcontext()


def outputs(model: nn.Module, precision: str | None) -> Tensor:
    with torch.no_grad(), autocast(precision):
        return model(images(0)).float()


def run(
    info: OptimizerInfo,
    evaluate: bool,
    precision: str | None = None,
    scale: float | None = None,
    clip: bool = False,
    compiled: bool = False,
    channels_last: bool = False,
    recompute: bool = False,
    split: bool = False,
) -> tuple[nn.Module, ScheduleFreeOptimizer]:
    """Train, with or without an evaluation at every place."""
    torch.manual_seed(0)
    model: nn.Module = Net(recompute)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = info.make(param_groups(model, weight_decay=0.1) if split else model.parameters())
    called = torch.compile(model, backend="aot_eager") if compiled else model
    if evaluate:
        optimizer.attach(called)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)

    def evaluation() -> None:
        if evaluate:
            called.eval()
            assert torch.equal(outputs(called, precision), outputs(copy.deepcopy(model), precision))
            called.train()

    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(MICRO_BATCHES):
            torch.manual_seed(100 * step + part)  # of dropout
            inputs = images(100 * step + part).contiguous(
                memory_format=torch.channels_last if channels_last else torch.contiguous_format
            )
            with autocast(precision):
                loss = called(inputs).square().mean() / MICRO_BATCHES
                scaler.scale(loss).backward()
                evaluation()  # inside the autocast of training, too, with its casts of y
        scaler.unscale_(optimizer)
        evaluation()
        if clip:
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            assert norm > 0.05
        evaluation()
        scaler.step(optimizer)
        scaler.update()
        evaluation()
    return model, optimizer


OVERFLOWING = 2.0**18
LOOPS: dict[str, dict[str, Any]] = {
    "accumulation": {},
    "clipping": {"clip": True},
    "autocast bfloat16": {"precision": "bfloat16"},
    "autocast float16, scaled": {"precision": "float16", "scale": 2.0**10},
    "autocast float16, skipped steps": {"precision": "float16", "scale": OVERFLOWING},
    "channels last": {"channels_last": True},
    "activation checkpointing": {"recompute": True},
    "decay split": {"split": True},
    "compiled": {"compiled": True},
    "all": {"precision": "bfloat16", "clip": True, "channels_last": True, "recompute": True, "split": True},
}


@pytest.mark.parametrize("options", LOOPS.values(), ids=LOOPS)
@optimizers
def test_evaluating_anywhere_changes_no_bit(info: OptimizerInfo, options: dict[str, Any]) -> None:
    plain, reference = run(info, evaluate=False, **options)
    model, optimizer = run(info, evaluate=True, **options)
    assert equal(model.parameters(), plain.parameters())
    assert equal(model.buffers(), plain.buffers())
    assert optimizer.metrics() == reference.metrics()
    steps = max(group["step"] for group in optimizer.param_groups)
    assert (0 < steps < STEPS) if options.get("scale") == OVERFLOWING else steps == STEPS
    kernels = [param for param in model.parameters() if param.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels) == (
        "channels_last" in options
    )


@optimizers
def test_scaling_by_a_power_of_two_changes_no_bit(info: OptimizerInfo) -> None:
    """The scaler's gradients are those without it; an independent truth for what it is given."""
    plain, _ = run(info, evaluate=False)
    scaled, _ = run(info, evaluate=True, scale=2.0**10)
    assert equal(scaled.parameters(), plain.parameters())


@optimizers
def test_steps_within_the_backward_pass(info: OptimizerInfo) -> None:
    """An optimizer for each parameter, which steps as soon as its gradient is there, and gives its memory back."""
    plain, within = make_small(), make_small()
    reference = info.make(plain.parameters())
    optimizers = {param: info.make([param]).attach(within) for param in within.parameters()}

    def step(param: Tensor) -> None:
        optimizers[param].step()
        param.grad = None

    for param in within.parameters():
        param.register_post_accumulate_grad_hook(step)
    for seed in range(STEPS):
        reference.zero_grad()
        plain(images(seed)).square().mean().backward()
        reference.step()
        within(images(seed)).square().mean().backward()
        assert [param.grad for param in within.parameters()] == [None] * 4
        assert equal(within.parameters(), plain.parameters())
        within.eval()
        x = [reference.iterates(param).x for param in plain.parameters()]
        assert equal(within.parameters(), x)
        within.train()
        assert equal(within.state_dict().values(), x)


def make_small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))


def test_recomputing_changes_no_bit() -> None:
    """What activation checkpointing computes anew in the backward pass is computed at y."""
    (plain, _), (recomputed, _) = (run(ADAMW, evaluate=True, recompute=recompute) for recompute in (False, True))
    assert equal(recomputed.parameters(), plain.parameters())


def test_a_backward_pass_that_recomputes_at_x_is_not_stepped_with() -> None:
    """Autograd's own check of the weights' versions does not see it: the forward pass has kept the inputs alone."""
    model, optimizer = run(ADAMW, evaluate=True)
    optimizer.zero_grad()
    before = copies(model.parameters())
    loss = checkpoint(model, images(1), use_reentrant=False).square().mean()
    model.training = False  # which moves the parameters, but leaves BatchNorm and dropout as they are
    loss.backward()
    model.train()
    with pytest.raises(RuntimeError, match="was taken in eval mode"):
        optimizer.step()
    assert equal(model.parameters(), before)
