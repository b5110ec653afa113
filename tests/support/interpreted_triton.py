"""The Triton kernel in Triton's interpreter, against the definition: bit for bit. See tests/kernels/test_triton.py.

Triton decides when it is imported whether functions are interpreted, so this runs in a process of its own:
``TRITON_INTERPRET=1 pytest tests/support/interpreted_triton.py``.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from problems import equal, set_gradients, train
from registry import ALL, OptimizerInfo, optimizers
from torch import Tensor
from torch.nn import Parameter

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, SGDScheduleFree, kernels
from unscheduled.kernels.triton import fused
from unscheduled.kernels.triton.jit import INTERPRETED

SIZES = ((1,), (129,), (), (0,), (2, 512), (1025,), (4097,))
BEGIN = 3  # of a view whose address is no multiple of 16 bytes

pytestmark = pytest.mark.filterwarnings(  # where a tile has no numbers: there all is 0
    "ignore:(divide by zero|invalid value) encountered in divide:RuntimeWarning"
)


@pytest.fixture(autouse=True)
def triton_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of the fused kernel by Triton, and how many parameters each of them has left to another implementation."""
    assert INTERPRETED
    left: list[int] = []

    def update(*arguments: Any) -> Any:
        works = fused.update(*arguments)
        left.append(sum(len(batch.params) for batch, _ in works))
        return works

    monkeypatch.setattr(kernels, "import_fused", lambda device_type: SimpleNamespace(update=update))
    return left


@pytest.fixture(autouse=True)
def exact_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The correctly rounded root, which torch's own of float32 tensors is not with AVX-512."""
    root: Callable[[Tensor], Tensor] = Tensor.sqrt
    monkeypatch.setattr(
        Tensor, "sqrt", lambda tensor: root(tensor.double()).float() if tensor.dtype == torch.float32 else root(tensor)
    )


def params_of(dtype: torch.dtype) -> list[Parameter]:
    generator = torch.Generator().manual_seed(1)
    whole = [torch.randn(shape, generator=generator) for shape in SIZES]
    unaligned = torch.randn(BEGIN + 1100, generator=generator).to(dtype)[BEGIN:]
    return [*(Parameter(tensor.to(dtype)) for tensor in whole), Parameter(unaligned)]


def everything(optimizer: ScheduleFreeOptimizer) -> list[Tensor]:
    """The parameters and all tensors of their states."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    states = [value for param in params for value in optimizer.state[param].values() if isinstance(value, Tensor)]
    return [*(param.detach() for param in params), *states]


def runs() -> list[Any]:
    """Every rule with each dtype and precision of its states."""
    found: list[Any] = []
    for info in ALL:
        for arguments in [{}, info.with_all_buffers] if info.with_all_buffers else [{}]:
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                for precision in ("float32", "compact") if info.compact else ("float32",):
                    name = f"{info.desc}{'-'.join(['', *arguments])}-{str(dtype)[6:]}-{precision}"
                    found.append(pytest.param(info, arguments, dtype, precision, id=name))
    return found


@pytest.mark.parametrize(("info", "arguments", "dtype", "precision"), runs())
def test_it_is_the_definition(
    info: OptimizerInfo, arguments: dict[str, Any], dtype: torch.dtype, precision: Any, triton_on_the_cpu: list[int]
) -> None:
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = params_of(dtype)
        optimizer = info.make(params[::2], implementation=implementation, state_precision=precision, **arguments)
        if info in ALL[:-1]:  # the base of the wrapper has its own groups
            optimizer.add_param_group(
                {"params": params[1::2], "lr": 2 * info.lr, "weight_decay": 0.1, "decay_at": "z", "maximize": True}
            )
        train(optimizer, range(5))
        results.append(everything(optimizer))
    assert equal(*results)
    assert triton_on_the_cpu == [0] * 5 * info.rules


@pytest.mark.parametrize("is_captured", [False, True])
@optimizers
def test_scalars_on_the_device(info: OptimizerInfo, is_captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``capturable=True``, also where parameters have seen gradients of different number."""
    monkeypatch.setattr(fused, "is_capturing", lambda device: is_captured)
    monkeypatch.setattr(kernels, "check_capturable", lambda *_: None)  # which refuses it on the CPU
    if not info.capturable:
        pytest.skip("a wrapper is capturable with its base")
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = params_of(torch.float32)
        optimizer = info.make(params, warmup_steps=3, weight_decay=0.1, capturable=True)
        optimizer.implementation = implementation
        for step in range(4):
            set_gradients(params, step)
            if step < 2:
                params[1].grad = None
            optimizer.step()
        results.append(everything(optimizer))
    assert equal(*results)


def test_gradients_that_move_and_groups_that_change() -> None:
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = params_of(torch.float32)
        optimizer = AdamWScheduleFree(params[:4], lr=0.01, implementation=implementation)
        kept: list[Any] = []  # so that no memory is used again
        for step in range(6):
            if step == 3:
                optimizer.add_param_group({"params": params[4:]})
            train(optimizer, [step])
            kept.append([param.grad for param in params])
            if step == 4:
                optimizer.load_state_dict(optimizer.state_dict())
        results.append(everything(optimizer))
    assert equal(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite(dtype: torch.dtype) -> None:
    """NaN and infinity pass as in the definition."""
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        param = Parameter(torch.linspace(-3.0, 3.0, 300).to(dtype))
        optimizer = AdamWScheduleFree([param], lr=0.01, implementation=implementation)
        train(optimizer, range(2))
        assert param.grad is not None
        param.grad[5], param.grad[200] = float("nan"), float("inf")
        optimizer.step()
        results.append(everything(optimizer))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_numbers_at_the_ends_of_float16() -> None:
    """y beyond the largest float16, among the smallest, and between these."""
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        param = Parameter(torch.tensor([65_504.0, -65_504.0, 6e-8, 6.1e-5, 3e-5, -1e-7, 0.0, 2048.5]).half())
        optimizer = SGDScheduleFree([param], lr=1.0, implementation=implementation)
        for size in (1e-7, 1e-5, 0.3, 1e3):
            param.grad = size * torch.tensor([-1.0, 1.0, 0.3, -0.7, 0.11, 0.9, -1.0, 1.0]).half()
            optimizer.step()
        results.append(everything(optimizer))
    assert equal(*results)
