"""What the limitations say of weights that a forward pass or a constraint writes, and what works in its place."""

from typing import Any

import pytest
import torch
from problems import copies, equal
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from unscheduled import AdamWScheduleFree


class Renormalised(nn.Embedding):
    """An embedding with a largest norm, which leaves its weight alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        vectors = functional.embedding(inputs, self.weight)
        return vectors * (1.0 / vectors.norm(dim=-1, keepdim=True).clamp_min(1.0))


class Normalised(nn.Linear):
    """A layer whose weight is divided by its norm in the forward pass, out of place."""

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, functional.normalize(self.weight), self.bias)


def run(make: Any, inputs: Tensor, evaluate: bool) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = make()
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.5).attach(model)
    for step in range(12):
        optimizer.zero_grad()
        (model(inputs) * (-1) ** (step // 3)).sum().backward()
        optimizer.step()
        if evaluate:
            model.eval()
            model(inputs)
            model.train()
    return model, optimizer


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: Renormalised(3, 2), torch.arange(3)),
        (lambda: Normalised(3, 2), torch.ones(4, 3)),
        (lambda: parametrizations.weight_norm(nn.Linear(3, 2)), torch.ones(4, 3)),
    ],
    ids=["largest norm", "normalised", "weight_norm"],
)
def test_a_forward_pass_that_computes_what_it_needs_leaves_training_alone(make: Any, inputs: Tensor) -> None:
    often, never = (run(make, inputs, evaluate)[0] for evaluate in (True, False))
    assert equal(often.parameters(), never.parameters())


def test_a_forward_pass_that_writes_its_weights_makes_evaluations_a_part_of_training() -> None:
    """As the limitations say."""
    often, never = (run(lambda: nn.Embedding(3, 2, max_norm=1.0), torch.arange(3), each)[0] for each in (True, False))
    assert not equal(often.parameters(), never.parameters())


def small_run() -> tuple[nn.Sequential, AdamWScheduleFree]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    fit(model, optimizer, 5)
    return model, optimizer


def fit(model: nn.Module, optimizer: AdamWScheduleFree, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("within", ["eval", "averaged_parameters"])
def test_a_constraint_put_on_the_average_holds_for_it(within: str) -> None:
    model, optimizer = small_run()

    def clamp() -> None:
        with torch.no_grad():
            for param in model.parameters():
                param.clamp_(0.0, 0.2)

    if within == "eval":
        model.eval()
        clamp()
        expected = copies(model.parameters())
        model.train()
    else:
        with optimizer.averaged_parameters():
            clamp()
            expected = copies(model.parameters())
    assert equal(model.state_dict().values(), expected)
    fit(model, optimizer, 3)
    model.eval()
    clamp()
    assert all(0.0 <= value.min() <= value.max() <= 0.2 for value in model.state_dict().values())


def test_pruning_made_permanent_in_eval_mode_is_in_the_saved_weights() -> None:
    model, optimizer = small_run()
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    prune.custom_from_mask(model[0], "weight", mask)
    fit(model, optimizer, 3)
    model.eval()
    prune.remove(model[0], "weight")
    saved = model.state_dict()["0.weight"]
    assert torch.equal(saved == 0.0, mask == 0.0)
    model.train()
    model.eval()
    assert torch.equal(model[0].weight, saved)
