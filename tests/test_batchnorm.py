"""BatchNorm's running statistics at the average: those of all the data as one, and nothing else is touched."""

import copy
from typing import Any

import pytest
import torch
from problems import copies, equal
from torch import Tensor, nn

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, update_bn

CHANNELS = 3


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, CHANNELS), nn.Dropout(0.5), nn.BatchNorm1d(CHANNELS), nn.Linear(CHANNELS, 1))


def batches(count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(size + 3, 4, generator=generator) for size in range(count)]


def trained(attach: bool = False, **options: Any) -> tuple[nn.Sequential, ScheduleFreeOptimizer]:
    model = net()
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1)
    if attach:
        optimizer.attach(model, **options)
    fit(model, optimizer)
    return model, optimizer


def fit(model: nn.Module, optimizer: ScheduleFreeOptimizer) -> None:
    for batch in batches():
        optimizer.zero_grad()
        model(batch).square().sum().backward()
        optimizer.step()


def pooled(model: nn.Sequential, x: dict[str, Tensor], inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The statistics of all inputs after the first layer at x, in float64."""
    hidden = torch.cat(inputs).double() @ x["0.weight"].double().T + x["0.bias"].double()
    return hidden.mean(0), hidden.var(0, unbiased=True)


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_they_are_those_of_all_the_data_at_the_average(attach: bool, training: bool, momentum: float | None) -> None:
    model, optimizer = trained(attach)
    model[2].momentum = momentum
    x = {name: optimizer.iterates(param).x for name, param in model.named_parameters()}
    (model if attach else optimizer).train(training)
    weights, rng = copies(model.parameters()), torch.get_rng_state()
    flags = [module.training for module in model.modules()]
    update_bn(batches(), model, optimizer)
    mean, var = pooled(model, x, batches())
    torch.testing.assert_close(model[2].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[2].running_var.double(), var, rtol=1e-5, atol=1e-6)
    assert model[2].num_batches_tracked == 5
    assert model[2].momentum is momentum
    assert optimizer.training is training
    assert equal(model.parameters(), weights)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in model.modules()] == flags


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm2d, (6, 3, 4, 5)), (nn.BatchNorm3d, (6, 3, 2, 4, 5))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_every_number_of_dimensions_and_precision(norm: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model = norm(CHANNELS).to(dtype)
    data = torch.randn(shape, dtype=dtype) * 3 + 1000
    optimizer = AdamWScheduleFree(model.parameters()).attach(model)
    update_bn([(data[:2], "label"), [data[2:]]], model, optimizer)
    flat = data.double().transpose(0, 1).flatten(1)
    assert model.running_mean.dtype == dtype
    torch.testing.assert_close(model.running_mean, flat.mean(1).to(dtype))
    torch.testing.assert_close(model.running_var, flat.var(1).to(dtype))
    assert optimizer.training


def test_training_goes_on_as_if_they_had_never_been_estimated() -> None:
    (model, optimizer), (reference, plain) = trained(), trained()
    update_bn(batches(), model, optimizer)
    for net, each in ((model, optimizer), (reference, plain)):
        torch.manual_seed(1)
        fit(net, each)
    assert equal(model.parameters(), reference.parameters())


def test_a_loader_that_fails_leaves_all_as_it_was() -> None:
    model, optimizer = trained(attach=True)
    before = copy.deepcopy(dict(model.named_buffers()))
    weights = copies(model.parameters())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        update_bn([*batches(), torch.zeros(2, 9)], model, optimizer)
    with pytest.raises(ValueError, match="the loader has no batch"):
        update_bn([], model, optimizer)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert equal(model.parameters(), weights)
    assert model.training
    assert not model[2]._forward_pre_hooks


def test_keyword_batches_and_modules_that_see_no_data() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, *, first: Tensor, second: Tensor) -> Tensor:
            return self.used(first).sum() + self.used(second).sum()

    model = Named()
    optimizer = AdamWScheduleFree(model.parameters())
    first, second = torch.randn(5, 2), torch.randn(4, 2)
    update_bn([{"first": first, "second": second}], model, optimizer)
    torch.testing.assert_close(model.used.running_var, torch.cat([first, second]).var(0))
    assert torch.equal(model.unused.running_mean, torch.zeros(2))


def test_without_batch_norm_the_loader_is_not_run() -> None:
    model = nn.Linear(2, 2)
    update_bn((pytest.fail("run") for _ in range(1)), model, AdamWScheduleFree(model.parameters()))


@pytest.mark.parametrize("forward", [True, False])
def test_attached_they_are_estimated_before_the_next_evaluation(forward: bool) -> None:
    """By a forward pass in eval mode or by saving there; from the last two batches, once."""
    model, optimizer = trained(attach=True, bn_batches=2)
    model.eval()
    x = {name: param.detach().clone() for name, param in model.named_parameters()}
    with torch.inference_mode():
        mean, var = pooled(model, x, batches()[-2:])
        saved = model.state_dict() if not forward else (model(batches()[0]), model.state_dict())[1]
    torch.testing.assert_close(saved["2.running_mean"].double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(saved["2.running_var"].double(), var, rtol=1e-5, atol=1e-6)
    model[2].running_mean.zero_()
    model(batches()[0])
    assert torch.equal(model[2].running_mean, torch.zeros(CHANNELS))
    model.train()
    torch.manual_seed(1)
    fit(model, optimizer)
    plain, reference = trained()
    torch.manual_seed(1)
    fit(plain, reference)
    assert equal(model.parameters(), plain.parameters())
    assert not copy.deepcopy(model)._forward_pre_hooks
    optimizer.detach()
    assert not model._forward_pre_hooks


def test_inputs_are_kept_without_their_graph() -> None:
    model = net()
    AdamWScheduleFree(model.parameters()).attach(model, bn_batches=2)
    inputs = (torch.ones(3, 4, requires_grad=True) * 2.0,)
    model(*inputs)
    ((kept,), _) = model._unscheduled_attachments[0]._recent._inputs[0]
    assert not kept.requires_grad
    assert kept.data_ptr() == inputs[0].data_ptr()


def test_a_number_of_batches_that_cannot_be() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"bn_batches = -1 is no integer >= 0"):
        AdamWScheduleFree(model.parameters()).attach(model, bn_batches=-1)
    assert type(model) is nn.Sequential
