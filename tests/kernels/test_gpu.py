"""The fused kernel on a GPU, where there is one: ``pytest tests/kernels/test_gpu.py``."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from problems import make_params, set_gradients, train
from registry import ALL, OptimizerInfo, optimizers
from torch import Tensor
from torch.nn import Parameter

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, kernels

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(not kernels.has_compiler("cuda"), reason="needs Triton"),
]

SHAPES = ((1,), (127,), (129,), (), (0,), (2, 512), (1025,), (4097,), (300, 70))
CLOSE = {"rtol": 4 * 2.0**-23, "atol": 1e-6}
"""A division of the kernel is 2 units off, and what follows rounds anew."""


def on_gpu(params: list[Parameter], device: str = "cuda") -> list[Parameter]:
    return [Parameter(param.detach().to(device)) for param in params]


def iterates_of(optimizer: ScheduleFreeOptimizer, params: list[Parameter]) -> list[Tensor]:
    return [each.cpu() for param in params for each in optimizer.iterates(param)]


@pytest.fixture(autouse=True)
def all_is_fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every step was made by the kernel, and left no parameter to another implementation."""
    module: Any = kernels.import_fused("cuda")
    if isinstance(module, Exception):
        pytest.skip(str(module))
    update, left = module.update, []

    def counted(*arguments: Any) -> Any:
        works = update(*arguments)
        left.append(sum(len(batch.params) for batch, _ in works))
        return works

    monkeypatch.setattr(module, "update", counted)
    yield
    assert left
    assert not any(left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@optimizers
def test_it_is_the_loop(info: OptimizerInfo, dtype: torch.dtype) -> None:
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = on_gpu(make_params(*SHAPES, dtype=dtype))
        optimizer = info.make(params, implementation=implementation, weight_decay=0.1)
        train(optimizer, range(5))
        results.append(iterates_of(optimizer, params))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference, **CLOSE)


@pytest.mark.parametrize("info", [info for info in ALL if info.compact], ids=lambda info: info.desc)
def test_compact_states(info: OptimizerInfo) -> None:
    """A code may be another where a division was rounded otherwise, so single numbers differ by a step of the codes."""
    results: list[Tensor] = []
    for implementation in ("fused", "loop"):
        params = on_gpu(make_params((100_000,)))
        optimizer = info.make(params, implementation=implementation, state_precision="compact")
        train(optimizer, range(5))
        results.append(params[0].detach().cpu())
    assert (results[0] - results[1]).norm() <= 1e-3 * (results[1] - make_params((100_000,))[0].detach()).norm()


def test_gradients_that_move_and_streams() -> None:
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = on_gpu(make_params(*SHAPES))
        optimizer = AdamWScheduleFree(params, lr=0.01, implementation=implementation)
        kept: list[Any] = []  # so that no memory is used again
        for step in range(6):
            stream = torch.cuda.Stream() if step % 2 else torch.cuda.current_stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                train(optimizer, [step])
            torch.cuda.current_stream().wait_stream(stream)
            kept.append([param.grad for param in params])
        results.append(iterates_of(optimizer, params))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference, **CLOSE)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_devices() -> None:
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = [*on_gpu(make_params(*SHAPES), "cuda:0"), *on_gpu(make_params(*SHAPES), "cuda:1")]
        optimizer = AdamWScheduleFree(params, lr=0.01, implementation=implementation)
        train(optimizer, range(5))
        results.append(iterates_of(optimizer, params))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference, **CLOSE)


@pytest.mark.parametrize("info", [info for info in ALL if info.capturable], ids=lambda info: info.desc)
def test_a_graph_that_is_replayed(info: OptimizerInfo) -> None:
    """A captured step that is replayed 1,000 times makes 1,000 steps; other gradients meanwhile change nothing."""
    replays = 1000
    results: list[list[Tensor]] = []
    for is_captured in (True, False):
        params = on_gpu(make_params(*SHAPES))
        optimizer = info.make(params, implementation="fused", capturable=True, warmup_steps=20)
        set_gradients(params, 0)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        if is_captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
            for _ in range(replays):
                graph.replay()
        else:
            for _ in range(replays):
                optimizer.step()
        results.append(iterates_of(optimizer, params))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference, rtol=0.0, atol=0.0)


def test_a_graph_outlives_steps_with_other_gradients() -> None:
    """The tables of a graph are its own: steps between the replays make others."""
    results: list[list[Tensor]] = []
    for is_captured in (True, False):
        params = on_gpu(make_params(*SHAPES))
        optimizer = AdamWScheduleFree(params, lr=0.01, implementation="fused", capturable=True)
        set_gradients(params, 0)
        own = [param.grad for param in params]
        optimizer.step()
        graph = torch.cuda.CUDAGraph()
        if is_captured:
            with torch.cuda.graph(graph):
                optimizer.step()
        for step in range(20):
            set_gradients(params, step)
            for param in params[step % 3 :: 3]:
                param.grad = None
            optimizer.step()
            junk = [torch.full((4096,), -1, device="cuda") for _ in range(50)]
            del junk
            for param, grad in zip(params, own, strict=True):
                param.grad = grad
            if is_captured:
                graph.replay()
            else:
                optimizer.step()
        results.append(iterates_of(optimizer, params))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference, rtol=0.0, atol=0.0)
