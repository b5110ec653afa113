"""What is changed between two steps is noticed: tensors that were replaced or moved, options, other gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import copies, equal, make_params, set_gradients, train
from torch import Tensor
from torch.nn import Parameter

from unscheduled import AdamWScheduleFree, AnnealedInterpolation, ScheduleFreeOptimizer

SHAPES = ((4, 3), (7,), (1,), (), (3, 3), (7,), (70_000,))
Change = Callable[[ScheduleFreeOptimizer, list[Parameter]], object]


def bits(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> list[Tensor]:
    states = [optimizer.state[param] for param in params]
    kept = [value.clone() for state in states for value in state.values() if isinstance(value, Tensor)]
    return [*copies(params), *kept]


def replace_buffer(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
    optimizer.state[params[1]]["gap"] = optimizer.state[params[1]]["gap"] + 0.5


def move_buffer(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
    gap = optimizer.state[params[1]]["gap"]
    gap.data = gap + 0.5


def exchange_states(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
    optimizer.state[params[1]]["gap"].mul_(3.0)
    optimizer.state[params[1]], optimizer.state[params[5]] = optimizer.state[params[5]], optimizer.state[params[1]]


def exchange_parameters(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
    """The same states in the same order, of other parameters."""
    optimizer.state[params[1]]["gap"].mul_(3.0)
    pairs = list(optimizer.state.items())
    pairs[1], pairs[5] = (pairs[5][0], pairs[1][1]), (pairs[1][0], pairs[5][1])
    optimizer.state.clear()
    optimizer.state.update(pairs)


def replace_parameter(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
    state = optimizer.state.pop(params[1])
    params[1] = optimizer.param_groups[0]["params"][1] = Parameter(params[1].detach() + 0.5)
    optimizer.state[params[1]] = state


def move_parameter(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
    params[1].data = params[1].data + 0.5


def transpose_parameter(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
    params[4].data = params[4].data.t()


def exchange_header(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
    torch.utils.swap_tensors(params[1], Parameter(params[1].detach() + 0.5))


def count_otherwise(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
    optimizer.state[params[1]]["step"] = 100


def reload(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def add_group(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
    params.append(Parameter(torch.ones(3)))
    optimizer.add_param_group({"params": params[-1:], "lr": 0.2})


def numbers(**changes: Any) -> Change:
    return lambda optimizer, params: optimizer.param_groups[0].update(changes)


CHANGES: dict[str, Change] = {
    "a buffer replaced": replace_buffer,
    "a buffer elsewhere": move_buffer,
    "states exchanged": exchange_states,
    "parameters of states exchanged": exchange_parameters,
    "a parameter replaced": replace_parameter,
    "a parameter elsewhere": move_parameter,
    "a parameter transposed": transpose_parameter,
    "a parameter with another header": exchange_header,
    "another count": count_otherwise,
    "the state reloaded": reload,
    "a group added": add_group,
    "learning rate": numbers(lr=0.3),
    "decay": numbers(weight_decay=0.5, decay_at="z", maximize=True),
    "interpolation": numbers(interpolation=AnnealedInterpolation(beta_max=0.99, steps=10)),
    "average frozen": lambda optimizer, params: optimizer.freeze_averaging(),
    "average restarted": lambda optimizer, params: optimizer.restart_averaging(),
}


def assert_is_the_loop_after(change: Change) -> None:
    """The fused kernel makes the steps after a change as the loop does."""
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = make_params(*SHAPES)
        optimizer = AdamWScheduleFree(params, lr=0.01, implementation=implementation)
        train(optimizer, range(4))
        change(optimizer, params)
        train(optimizer, range(4, 9))
        results.append(bits(optimizer, params))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_between_steps_is_noticed(change: Change) -> None:
    assert_is_the_loop_after(change)


def no_gradient(params: list[Parameter]) -> None:
    params[1].grad = None


def transposed_gradient(params: list[Parameter]) -> None:
    params[4].grad = torch.arange(9.0).view(3, 3).t()


def gradient_of_another_kind(params: list[Parameter]) -> None:
    params[1].grad = torch.ones(7).as_subclass(type("Other", (Tensor,), {}))


def negative_gradient(params: list[Parameter]) -> None:
    params[2].grad = torch._neg_view(torch.ones(1))  # pyright: ignore


def gradient_of_bfloat16(params: list[Parameter]) -> None:
    params[1].grad_dtype = None  # pyright: ignore
    params[1].grad = torch.ones(7, dtype=torch.bfloat16)


def gradient_without_memory(params: list[Parameter]) -> None:
    params[1].grad = torch._efficientzerotensor(7)  # pyright: ignore


GRADIENTS = (
    no_gradient,
    transposed_gradient,
    gradient_of_another_kind,
    negative_gradient,
    gradient_of_bfloat16,
    gradient_without_memory,
)


@pytest.mark.parametrize("put", GRADIENTS)
def test_gradients_of_another_kind_are_noticed(put: Callable[[list[Parameter]], None]) -> None:
    if put is gradient_of_bfloat16 and not hasattr(Parameter, "grad_dtype"):
        pytest.skip("this version of torch has gradients of the parameter's dtype only")

    def step(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
        set_gradients(params, 3)
        put(params)
        optimizer.step()

    assert_is_the_loop_after(step)


def test_a_parameter_that_has_no_gradient_any_more_follows_beta() -> None:
    """Its y is formed anew in each step."""
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = make_params(*SHAPES)
        interpolation = AnnealedInterpolation(beta_max=0.99, steps=30)
        optimizer = AdamWScheduleFree(params, lr=0.01, implementation=implementation, interpolation=interpolation)
        train(optimizer, range(4))
        for step in range(4, 10):
            set_gradients(params, step)
            params[1].grad = None
            optimizer.step()
        results.append(bits(optimizer, params))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference, rtol=2e-5, atol=2e-6)


def test_what_is_beside_a_parameter_that_became_narrow_is_noticed() -> None:
    """The rest of y comes into the state at a switch, after the kernel has met the parameter; then it is replaced."""
    results: list[Tensor] = []
    for implementation in ("fused", "loop"):
        params = make_params((7,))
        optimizer = AdamWScheduleFree(params, lr=0.01, implementation=implementation)
        train(optimizer, range(2))
        params[0].data = params[0].data.bfloat16()
        train(optimizer, range(2, 4))
        optimizer.eval().train()
        train(optimizer, range(4, 5))
        optimizer.state[params[0]]["low"] = optimizer.state[params[0]]["low"].clone()
        train(optimizer, range(5, 8))
        results.append(optimizer.iterates(params[0]).y)
    torch.testing.assert_close(*results, rtol=2e-5, atol=2e-6)


def test_a_refused_step_changes_nothing() -> None:
    params = make_params(*SHAPES)
    optimizer = AdamWScheduleFree(params, lr=0.01, implementation="fused")
    train(optimizer, range(4))
    before, group = bits(optimizer, params), dict(optimizer.param_groups[0])
    set_gradients(params, 4)
    for name, value, match in (("lr", float("nan"), "lr = nan"), ("inner_momentum", 0.9, "exp_avg")):
        optimizer.param_groups[0][name] = value
        with pytest.raises(ValueError, match=f"parameter group 0: .*{match}"):
            optimizer.step()
        optimizer.param_groups[0][name] = group[name]
    params[0].grad = None
    torch.nn.functional.embedding(torch.tensor([1, 2]), params[0], sparse=True).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    params[0].grad = torch.ones(4, 3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert equal(bits(optimizer, params), before)
    assert optimizer.param_groups[0] == group
    set_gradients(params, 4)
    optimizer.step()


def test_autograd_notices_a_step() -> None:
    params = make_params(*SHAPES)
    optimizer = AdamWScheduleFree(params, lr=0.01, implementation="fused")
    train(optimizer, range(4))
    loss = (params[0] ** 3).sum()
    train(optimizer, range(4, 5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
