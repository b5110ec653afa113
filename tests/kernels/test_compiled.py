"""The compiled implementation, and compiled steps: the same as the loop, in one graph while the numbers change."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from problems import make_params, set_gradients, train
from registry import OptimizerInfo, optimizers
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters
from torch.nn import Parameter

from unscheduled import AdamWScheduleFree, AnnealedInterpolation, PolyakStep, ScheduleFreeOptimizer


def compare(
    info: OptimizerInfo,
    params: list[Parameter],
    implementation: str = "compiled",
    of_step: Callable[[Any], Any] = lambda step: step,
) -> None:
    """Warmup, a scheduled lr and an annealed beta: every number of the step changes."""
    others = [Parameter(param.detach().clone()) for param in params]
    arguments = {"warmup_steps": 20, "weight_decay": 0.1, "interpolation": AnnealedInterpolation(0.95, 30), "r": 1.0}
    ours = info.make(params, implementation=implementation, **arguments)
    loop = info.make(others, implementation="loop", **arguments)
    our_step = of_step(ours.step)
    for step in range(50):
        ours.param_groups[0]["lr"] = loop.param_groups[0]["lr"] = info.lr * (1 + step % 3)
        set_gradients(params, step)
        our_step()
        train(loop, [step])
    assert_equal(ours, loop)


def assert_equal(ours: ScheduleFreeOptimizer, loop: ScheduleFreeOptimizer) -> None:
    """All the sequences of two optimizers, to rounding."""
    for param, other in zip(ours.param_groups[0]["params"], loop.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(ours.iterates(param), loop.iterates(other), rtol=2e-5, atol=2e-6)


@optimizers
def test_it_is_the_loop_in_one_graph(
    info: OptimizerInfo, graphs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each rule, and for each phase of a run."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compare(info, make_params())
    assert graphs["unique_graphs"] == info.rules * info.phases


def test_many_optimizers_do_not_use_up_each_others_graphs(
    graphs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch compiles the same function for some layouts only, and then no more."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for size in range(1, 14):
        train(AdamWScheduleFree(make_params((size,)), implementation="compiled"), range(3))
    assert graphs["unique_graphs"] == 13


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler has some of its own
@optimizers
def test_with_the_compiler_of_torch(info: OptimizerInfo, graphs: dict[str, int]) -> None:
    compare(info, make_params((4, 3), (70,)))
    assert graphs["unique_graphs"] == info.rules * info.phases


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parameters_of_another_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    params = make_params(dtype=dtype)
    others = [Parameter(param.detach().clone()) for param in params]
    ours = AdamWScheduleFree(params, lr=0.01, implementation="compiled")
    loop = AdamWScheduleFree(others, lr=0.01, implementation="loop")
    train(ours, range(10))
    train(loop, range(10))
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(ours.iterates(param), loop.iterates(other), rtol=2e-5, atol=2e-6)


# Compiled steps, of any implementation.

eagerly: Callable[..., Any] = partial(torch.compile, backend="eager")


@pytest.mark.covering(1)
@pytest.mark.parametrize("implementation", ["loop", "foreach", "compiled"])
@optimizers
def test_a_compiled_step_is_the_loop_in_one_graph(
    info: OptimizerInfo, implementation: str, graphs: dict[str, int]
) -> None:
    compare(info, make_params(), implementation, eagerly)
    assert graphs["unique_graphs"] == info.phases


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
@optimizers
def test_a_compiled_step_with_the_compiler_of_torch(info: OptimizerInfo, graphs: dict[str, int]) -> None:
    compare(info, make_params((4, 3), (70,)), "foreach", torch.compile)
    assert graphs["unique_graphs"] == info.phases


Train = Callable[[Tensor], object]


def loss_of(model: nn.Module, optimizer: ScheduleFreeOptimizer, inputs: Tensor) -> Tensor:
    """The loss, with its gradients."""
    optimizer.zero_grad()
    loss = model(inputs).square().mean()
    loss.backward()
    return loss


def by_hand(model: nn.Module, optimizer: ScheduleFreeOptimizer) -> Train:
    def train_once(inputs: Tensor) -> None:
        loss_of(model, optimizer, inputs)
        optimizer.step()

    return train_once


def compiled_whole(model: nn.Module, optimizer: ScheduleFreeOptimizer) -> Train:
    return eagerly(by_hand(model, optimizer))


def compiled_step(model: nn.Module, optimizer: ScheduleFreeOptimizer) -> Train:
    optimizer.step = eagerly(optimizer.step)
    return by_hand(model, optimizer)


def compiled_with_closure(model: nn.Module, optimizer: ScheduleFreeOptimizer) -> Train:
    step = eagerly(optimizer.step)
    return lambda inputs: step(lambda: loss_of(model, optimizer, inputs))


def compiled_with_grad_scaler(model: nn.Module, optimizer: ScheduleFreeOptimizer) -> Train:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer.step = eagerly(optimizer.step)

    def train_once(inputs: Tensor) -> None:
        optimizer.zero_grad()
        scaler.scale(model(inputs).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()

    return train_once


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's, of a backward
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize(
    ("way", "count"),
    [(compiled_step, 1), (compiled_with_grad_scaler, 1), (compiled_with_closure, 2), (compiled_whole, 2)],
)
def test_nothing_is_compiled_anew_in_a_run(
    way: Callable[[nn.Module, ScheduleFreeOptimizer], Train], count: int, attached: bool, graphs: dict[str, int]
) -> None:
    """With evaluations and loaded checkpoints; the second graph is the forward pass, where that is compiled too."""
    torch.manual_seed(0)
    runs: list[tuple[nn.Module, ScheduleFreeOptimizer, Train]] = []
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    for each, implementation, its_way in ((copy.deepcopy(model), "foreach", way), (model, "loop", by_hand)):
        axes: dict[str, Any] = {"warmup_steps": 15, "interpolation": AnnealedInterpolation(0.95, 20)}
        optimizer = AdamWScheduleFree(each.parameters(), implementation=implementation, **axes)
        if attached:
            optimizer.attach(each)
        runs.append((each, optimizer, its_way(each, optimizer)))
    frames: list[int] = []
    for step in range(50):
        inputs = torch.randn(5, 3)
        for each, optimizer, train_once in runs:
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + step % 3)
            train_once(inputs)
            if step % 7 == 3:
                (each if attached else optimizer).eval()
                each.load_state_dict(copy.deepcopy(each.state_dict()))
                (each if attached else optimizer).train()
            if step % 7 == 5:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        frames.append(counters["frames"]["total"])
    assert graphs["unique_graphs"] == count
    assert frames[1] == frames[-1]
    assert_equal(runs[0][1], runs[1][1])


@pytest.mark.filterwarnings("ignore:Graph break due to unsupported builtin")  # of torch 2.6, at a Generator
def test_a_compiled_step_from_eval_mode_with_a_closure(graphs: dict[str, int]) -> None:
    params, others = make_params(), make_params()
    ours, loop = (AdamWScheduleFree(of, lr=0.01, implementation="loop").eval() for of in (params, others))
    step = eagerly(ours.step)
    for number in range(5):
        step(lambda number=number: set_gradients(params, number))
        loop.step(lambda number=number: set_gradients(others, number))
        assert not ours.training
    assert graphs["unique_graphs"] == 1
    assert_equal(ours, loop)


@pytest.mark.parametrize(
    ("dtype", "state_precision"),
    [
        (torch.bfloat16, "float32"),
        (torch.float64, "float32"),
        (torch.complex64, "float32"),
        (torch.float32, "compact"),
        (torch.bfloat16, "compact"),
    ],
)
def test_a_compiled_step_of_another_precision(dtype: torch.dtype, state_precision: Any, graphs: dict[str, int]) -> None:
    params, others = make_params((300,), dtype=dtype), make_params((300,), dtype=dtype)
    ours, loop = (
        AdamWScheduleFree(of, lr=0.01, state_precision=state_precision, implementation="loop")
        for of in (params, others)
    )
    step = eagerly(ours.step)
    for number in range(10):
        set_gradients(params, number)
        step()
        train(loop, [number])
    assert graphs["unique_graphs"] == 1
    assert_equal(ours, loop)


def test_a_compiled_step_has_a_graph_for_each_set_of_gradients(graphs: dict[str, int]) -> None:
    params, others = make_params(), make_params()
    ours, loop = (
        AdamWScheduleFree(of, lr=0.01, implementation=name) for of, name in ((params, "foreach"), (others, "loop"))
    )
    step = eagerly(ours.step)
    for number in range(30):
        for of, make_step in ((params, step), (others, loop.step)):
            set_gradients(of, number)
            if number % 3 == 1:
                of[0].grad = None
            make_step()
    assert graphs["unique_graphs"] <= 3  # both together until their counts of gradients differ, then apart
    assert_equal(ours, loop)


def test_a_compiled_step_is_given_a_loss(graphs: dict[str, int]) -> None:
    params, others = make_params(), make_params()
    ours, loop = (
        AdamWScheduleFree(of, step_size=PolyakStep(), implementation=name)
        for of, name in ((params, "foreach"), (others, "loop"))
    )
    step = eagerly(ours.step)
    for number in range(20):
        loss = torch.tensor(1.0 + number)
        set_gradients(params, number)
        step(loss=loss)
        set_gradients(others, number)
        loop.step(loss=loss)
    assert graphs["unique_graphs"] == 1
    assert_equal(ours, loop)


def test_a_compiled_step_refuses_what_a_step_does(graphs: dict[str, int]) -> None:
    optimizer = AdamWScheduleFree(make_params(), implementation="foreach").eval()
    with pytest.raises(RuntimeError, match=r"step\(\) in eval mode"):
        eagerly(optimizer.step)()


def test_a_compiled_step_cannot_be_one_whole_graph(graphs: dict[str, int]) -> None:
    optimizer = AdamWScheduleFree(make_params(), implementation="foreach")
    with pytest.raises(Unsupported, match="outside_the_graph"):
        eagerly(optimizer.step, fullgraph=True)()
