"""What the oldest torch that is supported lacks: a test of it is skipped there."""

from functools import cache

import pytest
import torch
from torch import nn

needs_torch_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")


def adagrad_makes_its_state_in_a_step() -> bool:
    """Whether Adagrad takes parameters that it has not been constructed with."""
    param = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adagrad([param])
    optimizer.state.clear()
    param.grad = torch.ones(1)
    try:
        optimizer.step()
    except KeyError:
        return False
    return True


needs_adagrad_to_make_its_state_in_a_step = pytest.mark.skipif(
    not adagrad_makes_its_state_in_a_step(), reason="Adagrad of this torch makes its state when it is constructed"
)


@cache
def compiles_containers_with_untraced_hooks() -> bool:
    """Whether a container of torch's own, such as Sequential, is compiled if it has a hook that is not to be traced."""
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    model = nn.Sequential(nn.Linear(1, 1))
    model.register_forward_pre_hook(torch.compiler.disable(lambda *_: None))
    torch.compile(model, backend=backend)(torch.ones(1))
    return bool(compiled)


needs_gradients_of_other_dtypes = pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="gradients of this torch have their parameter's dtype"
)
