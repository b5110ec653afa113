"""Bases that know their parameters by something of their own: by id, by object, weakly, or by notes on them."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import copies, equal, make_params, set_gradients, train
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from unscheduled import ScheduleFreeWrapper

SHAPES = {"different": ((4, 3), (7,), (2, 5)), "same": ((3,),) * 4}


class Keyed(Optimizer):
    """Momentum that is kept for a key of each parameter; ``kept`` has it."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})
        self.kept: Any = {}

    def buffer(self, param: Tensor) -> Tensor:
        return self.kept.setdefault(id(param), torch.zeros_like(param))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    buffer = self.buffer(param).mul_(0.9).add_(param.grad)
                    param.sub_(buffer, alpha=group["lr"])


class ByObject(Keyed):
    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()  # torch's copies have no attributes of a subclass

    def buffer(self, param: Tensor) -> Tensor:
        return self.kept.setdefault(param, torch.zeros_like(param))


class Weakly(Keyed):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.kept = WeakTensorKeyDictionary()

    def buffer(self, param: Tensor) -> Tensor:
        return self.kept.setdefault(param, torch.zeros_like(param))


class ByNote(Keyed):
    def buffer(self, param: Any) -> Tensor:
        if not hasattr(param, "momentum"):
            param.momentum = torch.zeros_like(param)
        return param.momentum


class ByLastGradient(Keyed):
    """Adds the gradient before, which it keeps by reference."""

    def buffer(self, param: Tensor) -> Tensor:
        last = self.kept.get(id(param))
        self.kept[id(param)] = param.grad
        return torch.zeros_like(param) if last is None else last.clone()


BASES = (Keyed, ByObject, Weakly, ByNote, ByLastGradient)


@pytest.mark.covering(2)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", BASES)
def test_over_narrow_parameters_it_is_as_over_their_masters(
    make: Callable[[Any], Optimizer], dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...]
) -> None:
    params = make_params(*shapes, dtype=dtype)
    masters = [Parameter(param.detach().float()) for param in params]
    optimizer, reference = ScheduleFreeWrapper(make(params)), ScheduleFreeWrapper(make(masters))
    generator = torch.Generator().manual_seed(1)
    for step in range(12):
        for param, master in zip(params, masters, strict=True):
            param.grad = torch.randn(param.shape, generator=generator).to(dtype)
            master.grad = param.grad.float()
        if step % 4 == 3:
            params[1].grad = masters[1].grad = None
        optimizer.step()
        reference.step()
        garbage = [Parameter(torch.zeros(3)) for _ in range(20)]  # which takes the ids of what is gone
        del garbage
        if step == 6:
            optimizer.eval().train()
            reference.eval().train()
    for param, master in zip(params, masters, strict=True):
        ours, theirs = optimizer.iterates(param), reference.iterates(master)
        if dtype == torch.bfloat16:
            assert equal(ours, theirs)
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_stands_in_has_no_memory_between_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    params = make_params(dtype=torch.bfloat16)
    base = Keyed(params)
    optimizer = ScheduleFreeWrapper(base)
    seen: list[list[Tensor]] = []
    base.register_step_pre_hook(lambda base, *_: seen.append(list(base.param_groups[0]["params"])))
    train(optimizer, range(3))
    assert all(some is other for some, other in zip(seen[0], seen[-1], strict=True))
    assert all(param.numel() == 0 and param.grad is None and param.dtype == torch.float32 for param in seen[0])
    monkeypatch.setattr(base, "buffer", lambda param: param.momentum)
    set_gradients(params, 3)
    with pytest.raises(AttributeError):
        optimizer.step()
    assert all(param.numel() == 0 and param.grad is None for param in seen[0])


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
def test_a_copy_over_a_base_that_keeps_its_parameters_goes_on(duplicate: Callable[[Any], Any]) -> None:
    params = make_params(dtype=torch.bfloat16)
    optimizer = ScheduleFreeWrapper(ByObject(params))
    train(optimizer, range(5))
    others, copied = duplicate((params, optimizer))
    before = copies(params)
    train(copied, range(5, 9))
    assert equal(params, before)
    train(optimizer, range(5, 9))
    assert equal(params, others)
    assert len(copied.base.kept) == len(optimizer.base.kept) == len(params)  # type: ignore[attr-defined]
