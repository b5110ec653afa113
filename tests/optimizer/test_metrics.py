"""What there is to log: the loss at x against the loss at y, on request."""

from collections.abc import Callable

import pytest
import torch
from models import ADAMW, Net, fit, trained
from problems import same
from registry import OptimizerInfo, optimizers
from torch import Tensor, nn

from unscheduled import ScheduleFreeOptimizer


def loss_of(model: nn.Module) -> Tensor:
    return model(torch.ones(8, 4)).square().mean()


def expected(model: Net, optimizer: ScheduleFreeOptimizer, name: str) -> float:
    """The loss of a model that was given the weights by hand."""
    other = Net().eval()
    with torch.no_grad():
        other.load_state_dict(model.state_dict())
        for param, mine in zip(other.parameters(), model.parameters(), strict=True):
            param.copy_(getattr(optimizer.iterates(mine), name))
        return float(loss_of(other))


@optimizers
def test_the_loss_at_x_and_at_y(info: OptimizerInfo) -> None:
    model, optimizer = trained(info, steps=8)  # RAdam's first ones are silent
    model.eval()
    metrics = optimizer.metrics(lambda: loss_of(model))
    assert metrics["loss_at_x"] == expected(model, optimizer, "x")
    assert metrics["loss_at_y"] == expected(model, optimizer, "y")
    assert metrics["loss_at_x"] != metrics["loss_at_y"]
    assert {name: value for name, value in metrics.items() if "loss" not in name} == optimizer.metrics()
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("attach", [True, False])
def test_it_changes_no_bit_and_gives_the_mode_back(attach: bool) -> None:
    (model, optimizer), (reference, plain) = (trained(ADAMW, attach=attach) for _ in range(2))
    for training in (True, False):
        model.eval()
        if not attach:
            optimizer.train(training)
        optimizer.metrics(lambda: loss_of(model))
        assert optimizer.training is (training and not attach)
    model.train()
    optimizer.train()
    assert same(model.state_dict(), reference.state_dict())
    fit(model, optimizer, range(2))
    fit(reference, plain, range(2))
    assert same(model.state_dict(), reference.state_dict())


def test_no_gradient_is_taken() -> None:
    model, optimizer = trained(ADAMW)
    model.eval()
    optimizer.zero_grad()
    asked: list[bool] = []
    optimizer.metrics(lambda: asked.append(torch.is_grad_enabled()) or loss_of(model))
    assert asked == [False, False]


def test_a_model_in_train_mode_is_refused() -> None:
    """Its BatchNorm would learn from the batches."""
    model, optimizer = trained(ADAMW)
    with pytest.raises(RuntimeError, match=r"in train mode: call model\.eval\(\) before"):
        optimizer.metrics(lambda: loss_of(model))
    assert optimizer.training


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("closure", ["validates", "goes to y"])
def test_a_closure_that_switches_the_modes_is_refused(attach: bool, closure: str) -> None:
    model, optimizer = trained(ADAMW, attach=attach)

    def validates() -> Tensor:
        model.eval()
        optimizer.eval()
        value = loss_of(model)
        model.train()
        optimizer.train()
        return value

    def goes_to_y() -> Tensor:
        optimizer.train()
        return loss_of(model)

    closures: dict[str, Callable[[], Tensor]] = {"validates": validates, "goes to y": goes_to_y}
    model.eval()
    if not attach:
        optimizer.eval()
    with pytest.raises(RuntimeError, match="has switched the modes: it may only compute a loss"):
        optimizer.metrics(closures[closure])
    assert optimizer.training is (attach and model.training)


def test_with_several_groups_the_loss_is_one() -> None:
    model = nn.Linear(4, 2)
    optimizer = ADAMW.make([{"params": [model.weight]}, {"params": [model.bias]}])
    metrics = optimizer.metrics(lambda: loss_of(model))
    assert metrics["loss_at_x"] == metrics["loss_at_y"] == float(loss_of(model).detach())
    assert {"group0/lr", "group1/lr"} < set(metrics)
