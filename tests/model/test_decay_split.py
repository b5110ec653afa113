"""Which parameters weight decay is for."""

import pytest
import torch
from torch import nn

from unscheduled import AdamWScheduleFree, MuonScheduleFree, param_groups


class Net(nn.Module):
    """Every kind of parameter: kernels, embeddings, tied and frozen ones, normalisations of any shape, scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.convolution = nn.Conv1d(4, 4, 3)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norms = nn.ModuleList([nn.LayerNorm((2, 4)), nn.RMSNorm((2, 4)), nn.GroupNorm(2, 4), nn.BatchNorm1d(4)])
        self.temperature = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight


def test_matrices_decay_and_what_has_one_dimension_or_normalises_does_not() -> None:
    model = Net()
    decayed, spared = param_groups(model, weight_decay=0.1)
    names = [[name for name, _ in group["params"]] for group in (decayed, spared)]
    attention = ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert sorted(names[0]) == sorted(["frozen", "embedding.weight", "convolution.weight", *attention])
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert sorted(names[0] + names[1]) == sorted(name for name, _ in model.named_parameters())
    assert all(param is model.get_parameter(name) for group in (decayed, spared) for name, param in group["params"])


def test_the_order_is_that_of_the_model() -> None:
    names = [name for name, _ in Net().named_parameters()]
    for group in param_groups(Net(), weight_decay=0.1):
        positions = [names.index(name) for name, _ in group["params"]]
        assert positions == sorted(positions)


def test_a_group_that_would_be_empty_is_left_out() -> None:
    (only,) = param_groups(nn.Linear(3, 2, bias=False), weight_decay=0.1)
    assert only["weight_decay"] == 0.1
    (only,) = param_groups(nn.LayerNorm((2, 3)), weight_decay=0.1)
    assert only["weight_decay"] == 0.0


@pytest.mark.parametrize("cls", [AdamWScheduleFree, MuonScheduleFree, torch.optim.AdamW])
def test_any_optimizer_takes_them(cls: type[torch.optim.Optimizer]) -> None:
    """Without a gradient to speak of, decay alone moves the weights: those of the first group."""
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = cls(param_groups(model, weight_decay=0.5), lr=0.1)  # pyright: ignore[reportCallIssue]
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer.step()
    for name, param in model.named_parameters():
        factor = 1.0 - 0.1 * 0.5 if name == "0.weight" else 1.0
        torch.testing.assert_close(param.detach(), before[name] * factor)


@pytest.mark.parametrize("weight_decay", [-0.1, float("nan"), float("inf")])
def test_a_decay_out_of_range_is_refused(weight_decay: float) -> None:
    with pytest.raises(ValueError, match=r"weight_decay = .* is outside \[0, inf\)"):
        param_groups(nn.Linear(2, 2), weight_decay=weight_decay)


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="ReLU has no parameters: build it before its optimizer"):
        param_groups(nn.ReLU(), weight_decay=0.1)
