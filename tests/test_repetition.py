"""Steps like the one before, which are not planned anew: the same bits, and whatever has changed is noticed."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
import torch
from problems import copies, equal, make_params, set_gradients, train
from registry import Configuration, OptimizerInfo, configurations
from torch import Tensor
from torch.nn import Parameter

from unscheduled import AdamWScheduleFree, AnnealedInterpolation, ScheduleFreeOptimizer, ScheduleFreeWrapper, kernels
from unscheduled.kernels import headers
from unscheduled.kernels.headers import Headers
from unscheduled.repetition import Repetition

SHAPES = ((4, 3), (7,), (1,), (), (3, 3), (7,), (70_000,))
BOTH_WAYS = pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
Change = Callable[[ScheduleFreeOptimizer, list[Parameter]], object]


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each step, whether it was a repetition."""
    found: list[bool] = []
    step = ScheduleFreeOptimizer._repeated  # pyright: ignore[reportPrivateUsage]

    def noted(self: Any) -> bool:
        found.append(step(self))
        return found[-1]

    monkeypatch.setattr(ScheduleFreeOptimizer, "_repeated", noted)
    return found


def bits(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> list[Tensor]:
    states = [optimizer.state[param] for param in params]
    kept = [value.clone() for state in states for value in state.values() if isinstance(value, Tensor)]
    return [*copies(params), *kept]


def put_gradients(params: Iterable[Tensor], grads: Iterable[Tensor], seen: bool) -> None:
    """Give gradients that Python has seen, or that a backward pass has made and nobody has looked at."""
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad if seen else None
        if not seen:
            (param * grad).sum().backward()


def step_on_unseen_gradients(optimizer: ScheduleFreeOptimizer, steps: Iterable[int]) -> None:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in steps:
        set_gradients(params, step)
        put_gradients(params, [param.grad for param in params], seen=False)
        optimizer.step()


@configurations
@BOTH_WAYS
def test_repetitions_have_the_same_bits(
    info: OptimizerInfo, configuration: Configuration, seen: bool, repeated: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = train if seen else step_on_unseen_gradients
    results: list[list[Tensor]] = []
    for repeats in (True, False):
        if not repeats:
            monkeypatch.setattr(Repetition, "of", lambda *_: None)
        params = make_params(*SHAPES)
        optimizer = info.make(params, implementation="fused", **configuration.arguments)
        go(optimizer, range(8))
        optimizer.eval().train()
        go(optimizer, range(8, 12))
        results.append(bits(optimizer, params))
        if not repeats:
            assert not any(repeated)
        repeated.clear()
    assert equal(*results)


def test_the_third_step_is_a_repetition_and_those_after_it(repeated: list[bool]) -> None:
    """The first makes the buffers, the second finds that it is like the first."""
    params = make_params(*SHAPES)
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.1, "weight_decay": 0.1, "decay_at": "z"}]
    optimizer = AdamWScheduleFree(groups, lr=0.01, implementation="fused", warmup_steps=3)
    train(optimizer, range(6))
    assert repeated == [False, False, True, True, True, True]
    optimizer.eval().train()
    train(optimizer, range(3))
    assert all(repeated[6:])


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


def assert_is_the_loop_after(change: Change, repeated: list[bool]) -> None:
    """In the steps after a change to a run of repetitions."""
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = make_params(*SHAPES)
        optimizer = AdamWScheduleFree(params, lr=0.01, implementation=implementation)
        train(optimizer, range(4))
        assert repeated[-1] == (implementation == "fused")
        change(optimizer, params)
        train(optimizer, range(4, 9))
        results.append(bits(optimizer, params))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_between_steps_is_noticed(change: Change, repeated: list[bool]) -> None:
    assert_is_the_loop_after(change, repeated)


def test_another_implementation_makes_the_step_if_it_is_asked_to(repeated: list[bool]) -> None:
    params = make_params(*SHAPES)
    optimizer = AdamWScheduleFree(params, lr=0.01, implementation="fused")
    train(optimizer, range(4))
    optimizer.implementation = "loop"
    train(optimizer, range(4, 6))
    optimizer.implementation = "fused"
    train(optimizer, range(6, 7))
    assert repeated == [False, False, True, True, False, False, True]


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
def test_gradients_of_another_kind_are_noticed(put: Callable[[list[Parameter]], None], repeated: list[bool]) -> None:
    if put is gradient_of_bfloat16 and not hasattr(Parameter, "grad_dtype"):
        pytest.skip("this version of torch has gradients of the parameter's dtype only")

    def step(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> None:
        set_gradients(params, 3)
        put(params)
        optimizer.step()
        assert not repeated[-1]

    assert_is_the_loop_after(step, repeated)


def test_a_parameter_that_has_no_gradient_any_more_follows_beta(repeated: list[bool]) -> None:
    """Its y is formed anew in each step, and so in a repetition."""
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
        assert repeated[-1] == (implementation == "fused")
        results.append(bits(optimizer, params))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference, rtol=2e-5, atol=2e-6)


def test_a_refused_repetition_changes_nothing(repeated: list[bool]) -> None:
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
    with pytest.raises(RuntimeError, match="sparse"):  # which Python has not seen
        optimizer.step()
    params[0].grad = torch.ones(4, 3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert equal(bits(optimizer, params), before)
    assert optimizer.param_groups[0] == group
    set_gradients(params, 4)
    optimizer.step()
    assert repeated[-1]


def test_autograd_notices_a_repetition(repeated: list[bool]) -> None:
    params = make_params(*SHAPES)
    optimizer = AdamWScheduleFree(params, lr=0.01, implementation="fused")
    train(optimizer, range(4))
    loss = (params[0] ** 3).sum()
    set_gradients(params, 4)
    optimizer.step()
    assert repeated[-1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_wrapped_optimizer_is_no_repetition(repeated: list[bool]) -> None:
    optimizer = ScheduleFreeWrapper(torch.optim.SGD(make_params(*SHAPES), lr=0.1), implementation="fused")
    train(optimizer, range(5))
    assert not any(repeated)


def test_a_torch_that_does_not_tell_is_planned_for_in_every_step(
    repeated: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[list[Tensor]] = []
    for functions, methods in (((), ()), ((), ("none",)), (("none",), ())):
        with monkeypatch.context() as patch:
            patch.setattr(headers, "FUNCTIONS", (*headers.FUNCTIONS, *functions))
            patch.setattr(headers, "METHODS", (*headers.METHODS, *methods))
            forget_functions()
            params = make_params(*SHAPES)
            step_on_unseen_gradients(AdamWScheduleFree(params, lr=0.01, implementation="fused"), range(5))
            results.append(copies(params))
    forget_functions()
    assert repeated == 2 * [False, False, True, True, True] + 5 * [False]  # without methods, Python is asked
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


def forget_functions() -> None:
    headers._functions.cache_clear()  # pyright: ignore[reportPrivateUsage]
    headers._methods.cache_clear()  # pyright: ignore[reportPrivateUsage]


@BOTH_WAYS
def test_headers_tell_what_has_changed(seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    params: list[Tensor] = [Parameter(torch.ones(3, 3)), Parameter(torch.ones(2))]
    lasting = [torch.ones(3, 3), torch.ones(2)]
    put_gradients(params, lasting, seen=True)
    told = Headers(params, lasting)

    def same(grad: Tensor | None = None) -> bool:
        put_gradients(params, [torch.zeros(3, 3), torch.zeros(2)], seen)
        if grad is not None:
            params[0].grad_dtype = None  # pyright: ignore (of any)
            params[0].grad = grad
        return told.same()

    with monkeypatch.context() as patch:
        if not seen:
            patch.setattr(headers, "GRAD", None)  # nobody asks Python
        assert same()
    assert told.addresses[:2].tolist() == [param.grad.data_ptr() for param in params if param.grad is not None]
    for other in (
        torch.ones(3, 3).double(),
        torch.ones(3, 3).as_subclass(type("Other", (Tensor,), {})),
        torch.ones(3, 3).t(),
    ):
        assert not same(other)
        assert same()
    params[0].grad = None
    assert not told.same()
    assert same()
    params[0].data = torch.ones(3, 3)
    assert not same()


@pytest.mark.parametrize(
    "other",
    [torch.ones(3, 1), torch.ones(1, 3), torch.ones(3, 3, 1), torch.ones(9), torch.ones(3, 3).t()],
    ids=lambda other: str(tuple(other.shape)),
)
def test_headers_tell_another_layout(other: Tensor) -> None:
    params: list[Tensor] = [Parameter(torch.ones(3, 3))]
    put_gradients(params, [torch.ones(3, 3)], seen=True)
    told = Headers(params, [])
    assert told.same()
    params[0].data = other
    assert not told.same()


def test_headers_tell_where_lasting_tensors_are() -> None:
    params, lasting = [Parameter(torch.ones(2))], [torch.ones(3, 3), torch.ones(2)]
    put_gradients(params, [torch.ones(2)], seen=True)
    told = Headers(cast(list[Tensor], params), lasting)
    assert told.same()
    header = torch.ones(2)
    torch.utils.swap_tensors(lasting[1], header)
    assert not told.same()
    torch.utils.swap_tensors(lasting[1], header)
    assert told.same()
    lasting[1].data = torch.ones(2)
    assert not told.same()


def test_what_no_single_call_makes_is_looked_at_once(monkeypatch: pytest.MonkeyPatch, repeated: list[bool]) -> None:
    looked: list[object] = []
    repeatable = kernels.repeatable
    monkeypatch.setattr(kernels, "repeatable", lambda *of: (looked.append(of), repeatable(*of))[1])
    for params in ([Parameter(torch.ones(3, dtype=torch.complex64))], [Parameter(torch.ones(3).double())]):
        looked.clear()
        train(AdamWScheduleFree(params, implementation="fused"), range(5))
        assert len(looked) == 1
    mixed = [Parameter(torch.ones(3)), Parameter(torch.ones(3, dtype=torch.bfloat16))]
    train(AdamWScheduleFree(mixed, implementation="fused"), range(5))
    assert not any(repeated)
