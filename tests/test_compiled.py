"""The compiled implementation: the same as the loop, in one graph over steps whose numbers change."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from problems import make_params, train
from registry import OptimizerInfo, optimizers
from torch._dynamo.utils import counters
from torch.nn import Parameter

from unscheduled import AdamWScheduleFree, AnnealedInterpolation
from unscheduled.kernels import compiled


@pytest.fixture
def graphs() -> Iterator[dict[str, int]]:
    """What torch counts of its compilations, from nothing."""
    torch._dynamo.reset()
    compiled._graph.cache_clear()  # pyright: ignore[reportPrivateUsage]
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()
    compiled._graph.cache_clear()  # pyright: ignore[reportPrivateUsage]


def compare(info: OptimizerInfo, params: list[Parameter], steps: int = 50) -> None:
    """Warmup, a scheduled lr and an annealed beta: every number of the step changes."""
    others = [Parameter(param.detach().clone()) for param in params]
    arguments = {"warmup_steps": 20, "weight_decay": 0.1, "interpolation": AnnealedInterpolation(0.95, 30), "r": 1.0}
    ours = info.make(params, implementation="compiled", **arguments)
    loop = info.make(others, implementation="loop", **arguments)
    for step in range(steps):
        ours.param_groups[0]["lr"] = loop.param_groups[0]["lr"] = info.lr * (1 + step % 3)
        train(ours, [step])
        train(loop, [step])
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(ours.iterates(param), loop.iterates(other), rtol=2e-5, atol=2e-6)


@optimizers
def test_it_is_the_loop_in_one_graph(
    info: OptimizerInfo, graphs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAdam has one more for the first steps, which cannot be rectified, Muon one for its matrices."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compare(info, make_params())
    assert graphs["unique_graphs"] == (2 if info.rule in ("radam", "muon") else 1)


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
    assert graphs["unique_graphs"] == (2 if info.rule in ("radam", "muon") else 1)


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
