"""Parameters that share memory are refused; those that take the place of others hold what the others held."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import ADAMW, trained
from problems import equal, train
from registry import OptimizerInfo, optimizers
from torch import Tensor, nn
from torch.nn import Parameter

from unscheduled import AdamWScheduleFree, SGDScheduleFree


def pair(first: Tensor, second: Tensor) -> list[Parameter]:
    params = [Parameter(torch.ones(1)), Parameter(first), Parameter(second)]
    params[1].data, params[2].data = first, second
    return params


def of_one(make: Callable[[Tensor], tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return pair(*make(torch.randn(8, 8).to(dtype)))


OVERLAPPING: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "the same": lambda whole: (whole, whole.detach()),
    "another shape": lambda whole: (whole, whole.view(64)),
    "transposed": lambda whole: (whole, whole.t()),
    "a part": lambda whole: (whole, whole[3]),
    "one element": lambda whole: (whole.view(-1)[:10], whole.view(-1)[9:]),
    "rows and columns": lambda whole: (whole[2], whole[:, 5]),
    "every second and every third": lambda whole: (whole.view(-1)[::2], whole.view(-1)[::3]),
    "another dtype": lambda whole: (whole, whole.view(torch.int32).view(torch.float32)),
}
APART: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "halves": lambda whole: (whole[:4], whole[4:]),
    "even and odd": lambda whole: (whole.view(-1)[::2], whole.view(-1)[1::2]),
    "columns": lambda whole: (whole[:, :3], whole[:, 3:]),
    "empty": lambda whole: (whole, whole[:0]),
    "copies": lambda whole: (whole, whole.clone()),
}


@pytest.mark.covering(1)
@pytest.mark.parametrize("groups", [1, 2], ids=["one group", "two groups"])
@pytest.mark.parametrize("case", OVERLAPPING)
@optimizers
def test_parameters_over_one_memory_are_refused(info: OptimizerInfo, case: str, groups: int) -> None:
    params = of_one(OVERLAPPING[case])
    given = params if groups == 1 else [{"params": params[:2]}, {"params": params[2:]}]
    with pytest.raises(ValueError, match=r"share memory, .*: share the Parameter itself, as in head.weight = "):
        info.make(given)


@pytest.mark.covering(1)
@pytest.mark.parametrize("case", APART)
@optimizers
def test_parameters_side_by_side_are_trained(info: OptimizerInfo, case: str) -> None:
    """As data parallelism and flat buffers lay them out."""
    params = of_one(APART[case])
    others = [Parameter(param.detach().clone()) for param in params]
    for some in (params, others):
        optimizer = info.make(some)
        train(optimizer, range(4))
        optimizer.eval()
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-6, atol=1e-6)


def test_the_message_names_both() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight.data = model[0].weight.data
    with pytest.raises(ValueError, match=r"0\.weight \(shape \(2, 2\)\) and 1\.weight \(shape \(2, 2\)\) share memory"):
        SGDScheduleFree(model.named_parameters())


def test_a_group_that_is_added_is_looked_at_and_nothing_is_changed() -> None:
    param = Parameter(torch.ones(4))
    optimizer = SGDScheduleFree([param])
    other = Parameter(torch.ones(1))
    other.data = param.data[1:2]
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 .* and one to add \(shape \(1,\)\) share memory"):
        optimizer.add_param_group({"params": [other]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_parameters_without_memory_share_none(device: str) -> None:
    shape = (3,) if device == "meta" else (0,)
    AdamWScheduleFree([Parameter(torch.empty(shape, device=device)) for _ in range(3)])


def test_one_parameter_shared_by_two_modules_is_fine() -> None:
    model, optimizer = trained(ADAMW)
    assert model.first.weight is model.second.weight
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


# Parameters that take the place of others.


def replace(optimizer: Any, old: Tensor, new: Tensor, group: int = 0) -> None:
    optimizer.state[new] = optimizer.state.pop(old)
    params = optimizer.param_groups[group]["params"]
    params[[param is old for param in params].index(True)] = new


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ask", ["train", "model.train", "iterates", "state_dict", "eval"])
@optimizers
def test_a_parameter_that_replaces_another_at_the_average_holds_the_average(
    info: OptimizerInfo, ask: str, dtype: torch.dtype
) -> None:
    model = nn.Linear(3, 3).to(dtype)
    optimizer = info.make(model.parameters())
    if ask == "model.train":
        optimizer.attach(model)
    train(optimizer, range(4))
    known, y, bias = optimizer.iterates(model.weight), model.weight.detach().clone(), model.bias.detach().clone()
    optimizer.eval()
    if ask == "model.train":
        model.eval()
    new = Parameter(model.weight.detach().clone())
    replace(optimizer, model.weight, new)
    model.weight = new
    if ask == "iterates":
        assert equal(optimizer.iterates(new), known)
    elif ask == "state_dict":
        index = [param is new for param in optimizer.param_groups[0]["params"]].index(True)
        assert torch.equal(optimizer.state_dict()["state"][index]["y"].to(dtype), y)
    elif ask == "eval":
        optimizer.eval()
        assert torch.equal(new, known.x.to(dtype))
    (model if ask == "model.train" else optimizer).train()
    assert torch.equal(new, y)
    assert torch.equal(model.bias, bias)
    assert equal(optimizer.iterates(new), known)
    assert "kept" not in optimizer.state[new]
    train(optimizer, range(4, 6))


@pytest.mark.parametrize("attach", [True, False])
def test_trained_on_without_a_switch_it_is_refused(attach: bool) -> None:
    """As where the state of one optimizer was given to another that is in train mode."""
    old, new = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    optimizer = SGDScheduleFree([old], lr=0.5)
    train(optimizer, range(3))
    optimizer.eval()
    other = SGDScheduleFree([new], lr=0.5)
    if attach:
        other.attach(nn.ParameterList([new]))
    new.data.copy_(old.data)
    other.state[new] = optimizer.state[old]
    new.grad = torch.ones(3)
    before = new.detach().clone()
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0 .* holds the average x, since it replaced another"):
        other.step()
    assert torch.equal(new, before)
    other.train()
    other.step()
