"""What people write around an optimizer, as they do with torch's own: it changes no bit, or it is refused in words."""

import copy
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from problems import make_params, set_gradients
from registry import ALL, OPTIMIZERS, OptimizerInfo
from torch import Tensor, nn
from torch.nn import Parameter

from unscheduled import (
    AdamWScheduleFree,
    LionScheduleFree,
    MuonScheduleFree,
    PolyakStep,
    ScheduleFreeOptimizer,
    ScheduleFreePlus,
    SGDScheduleFree,
    averaged_state_dict,
    export_adamw_state_dict,
    export_schedulefree_state_dict,
    to_torch,
    update_bn,
)
from unscheduled.kernels import compiled, has_numba, headers

IMPLEMENTATIONS = ["auto", "loop", "foreach", "compiled"]
SHAPES = ((4, 3), (7,), (130,), ())

Around = Callable[[], AbstractContextManager[Any]]


@pytest.fixture
def quick_graphs(graphs: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled by a compiler that takes less time."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: original(*args, **{"backend": "eager"} | kwargs))


def every_tensor(found: Any) -> list[Tensor]:
    return [each for each in torch.utils._pytree.tree_leaves(found) if isinstance(each, Tensor)]


def assert_same_bits(some: Any, other: Any) -> None:
    assert repr(some) == repr(other)
    for one, two in zip(every_tensor(some), every_tensor(other), strict=True):
        assert one.dtype == two.dtype
        assert one.device == two.device
        assert torch.equal(one.nan_to_num(0.5), two.nan_to_num(0.5))


# A default device or a default dtype.


@contextmanager
def default_dtype(dtype: torch.dtype) -> Generator[None, None, None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Generator[None, None, None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


AROUND = [
    pytest.param(lambda: torch.device("meta"), id="with a device"),
    pytest.param(lambda: default_device("meta"), id="default device"),
    pytest.param(lambda: default_dtype(torch.float64), id="default float64"),
    pytest.param(lambda: default_dtype(torch.bfloat16), id="default bfloat16"),
]
around_all = pytest.mark.parametrize("around", AROUND)

MAKERS: dict[str, Callable[[Any], ScheduleFreeOptimizer]] = {
    **{f"{info.cls.__name__}": lambda params, info=info: info.make(params) for info in ALL},
    **{
        f"{info.cls.__name__} {name}={value}": lambda params, info=info, name=name, value=value: info.make(
            params, **{name: value}
        )
        for info in OPTIMIZERS
        for name, value in (
            ("implementation", "loop"),
            ("implementation", "foreach"),
            ("implementation", "compiled"),
            ("state_precision", "compact"),
        )
    },
    **{
        f"{info.cls.__name__} capturable": lambda params, info=info: info.make(params, capturable=True, warmup_steps=3)
        for info in OPTIMIZERS
    },
    "a Polyak step": lambda params: AdamWScheduleFree(params, step_size=PolyakStep(norm_beta=0.5)),
    "a Polyak step of SGD": lambda params: SGDScheduleFree(params, step_size=PolyakStep()),
    "ScheduleFreePlus": ScheduleFreePlus,
    "a learning rate that is a tensor": lambda params: AdamWScheduleFree(
        params, lr=torch.tensor(0.01, dtype=torch.float32, device="cpu")
    ),
}


def life(
    make: Callable[[Any], ScheduleFreeOptimizer],
    around: Around,
    grads: list[list[Tensor]],
    params: list[Parameter],
    closing: Callable[[ScheduleFreeOptimizer], Any] | None = None,
) -> Any:
    """What comes of a run, all of whose calls stand within a context."""

    def gradients(step: int) -> None:
        for param, grad in zip(params, grads[step], strict=True):
            param.grad = grad.clone()

    needs_loss = False
    with around():
        optimizer = make([{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}])
        needs_loss = isinstance(optimizer.param_groups[0]["step_size"], PolyakStep)
    found: list[Any] = []
    for step in range(8):
        gradients(step)
        if step == 6:
            params[1].grad = None
        with around():
            optimizer.step(**({"loss": 1.5, "grad_norm": 9.0} if needs_loss else {}))
            if step == 3:
                found.extend([optimizer.metrics(), [optimizer.iterates(param) for param in params]])
                saved = copy.deepcopy(optimizer.eval().state_dict())
                found.append(saved)
                optimizer.load_state_dict(saved)
                optimizer.train()
            if step == 5 and closing is None:  # a run that has done so cannot be exported
                optimizer.restart_averaging()
    with around():
        found.extend([list(map(optimizer.averages(), params)), optimizer.metrics(), optimizer.state_dict()])
        found.append(closing(optimizer) if closing else None)
    return found, [param.detach() for param in params]


def runs(make: Any, around: Around, *closing: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The run by itself, and within the context; each finds nothing that an earlier one has kept."""
    params = make_params(*SHAPES, dtype=dtype)
    grads: list[list[Tensor]] = []
    for step in range(8):
        set_gradients(params, step)
        grads.append([param.grad.clone() for param in params if param.grad is not None])
    results: list[Any] = []
    for each in (nullcontext, around):
        for cached in (headers._functions, headers._methods, headers._offset):  # pyright: ignore[reportPrivateUsage]
            cached.cache_clear()
        compiled._graph.cache_clear()  # pyright: ignore[reportPrivateUsage]
        results.append(life(make, each, grads, [Parameter(param.detach().clone()) for param in params], *closing))
    return results[0], results[1]


@pytest.mark.usefixtures("quick_graphs")
@around_all
@pytest.mark.parametrize("name", MAKERS)
def test_a_default_device_or_dtype_changes_no_bit(name: str, around: Around) -> None:
    assert_same_bits(*runs(MAKERS[name], around))


@around_all
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_a_default_device_or_dtype_changes_no_bit_of_other_parameters(dtype: torch.dtype, around: Around) -> None:
    assert_same_bits(*runs(lambda params: AdamWScheduleFree(params, lr=0.01), around, dtype=dtype))


@around_all
@pytest.mark.parametrize(
    "closing",
    [export_adamw_state_dict, export_schedulefree_state_dict, lambda optimizer: to_torch(optimizer).state_dict()],
    ids=["AdamW", "schedulefree", "to_torch"],
)
def test_a_default_device_or_dtype_changes_no_export(closing: Any, around: Around) -> None:
    assert_same_bits(*runs(lambda params: AdamWScheduleFree(params, lr=0.01), around, closing))


@pytest.mark.skipif(not has_numba(), reason="there is no such step without Numba")
@around_all
def test_a_step_is_not_planned_anew_under_a_default_device(around: Around) -> None:
    params = make_params()
    for cached in (headers._functions, headers._methods, headers._offset):  # pyright: ignore[reportPrivateUsage]
        cached.cache_clear()
    with around():
        optimizer = AdamWScheduleFree(params)
        for _ in range(3):
            for param in params:
                param.grad = torch.ones_like(param)
            optimizer.step()
        assert optimizer._repetition is not None  # pyright: ignore[reportPrivateUsage]


@around_all
def test_a_default_device_or_dtype_changes_no_statistics(around: Around) -> None:
    results: list[Any] = []
    for each in (nullcontext, around):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).float()
        inputs = [torch.randn(5, 3) for _ in range(6)]
        with each():
            optimizer = AdamWScheduleFree(model.parameters(), lr=0.01).attach(model, bn_batches=2)
            for batch in inputs:
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
            model.eval()
            kept = copy.deepcopy(model.state_dict())
            update_bn(inputs, model, optimizer)
            results.append((kept, model.state_dict(), averaged_state_dict(model, optimizer)))
    assert_same_bits(*results)
