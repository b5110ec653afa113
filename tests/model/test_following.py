"""When the parameters follow the flags: x before any module hears of eval(), y once all have heard of train()."""

import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from models import at_average
from problems import copies, equal, train
from registry import OptimizerInfo, optimizers
from torch import Tensor, nn

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, SGDScheduleFree
from unscheduled.state import parameter
from unscheduled.state.parameter import Entry

MERGES = ["after super", "before super", "without super", "in eval()"]


class Merged(nn.Module):
    """A frozen weight, into which the product of two others is put in eval mode, and taken out in train mode."""

    def __init__(self, order: str = "after super") -> None:
        super().__init__()
        self.base = nn.Parameter(torch.randn(4, 4), requires_grad=False)
        self.down, self.up = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))
        self.order, self.merged = order, False

    def merge(self, mode: bool) -> None:
        if self.merged == mode:
            self.base.data += (-1 if mode else 1) * (self.up @ self.down).detach()
            self.merged = not mode

    def train(self, mode: bool = True) -> Any:
        if self.order == "before super":
            self.merge(mode)
        if self.order == "without super":
            self.training = mode
        else:
            super().train(mode)
        if self.order != "in eval()" or mode:
            self.merge(mode)
        return self

    def eval(self) -> Any:
        super().eval()
        self.merge(False)
        return self


PLACES: dict[str, Callable[[Merged], nn.Module]] = {
    "the model itself": lambda layer: layer,
    "a part": lambda layer: nn.Sequential(nn.Linear(4, 4), nn.Sequential(layer, nn.Linear(4, 4))),
    "the last part": lambda layer: nn.Sequential(nn.Linear(4, 4), layer),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("order", MERGES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("outside", [False, True], ids=["itself", "by a module round it"])
@optimizers
def test_layers_that_merge_in_eval_mode_take_out_what_they_put_in(
    info: OptimizerInfo, order: str, place: str, outside: bool
) -> None:
    layer = Merged(order)
    model = PLACES[place](layer)
    optimizer = info.make([param for param in model.parameters() if param.requires_grad]).attach(model)
    base = layer.base.detach().clone()
    switched: nn.Module = nn.ModuleList([model]) if outside else model
    for step in range(3):
        train(optimizer, range(3 * step, 3 * step + 3))
        x = at_average(model, optimizer)
        y = copies(model.parameters())
        switched.eval()
        if order != "in eval()" or layer is switched:  # a parent calls the train() of its parts alone
            product = (layer.up @ layer.down).detach()
            assert equal([layer.up, layer.down], [x[name] for name in x if name.endswith(("up", "down"))][::-1])
            torch.testing.assert_close(layer.base.detach(), base + product)
        switched.train()
        torch.testing.assert_close(layer.base.detach(), base)
        y[[param is layer.base for param in model.parameters()].index(True)] = layer.base.detach()
        assert equal(model.parameters(), y)


def trained_pair() -> tuple[nn.Sequential, ScheduleFreeOptimizer]:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(optimizer, range(4))
    return model, optimizer


class Listener(nn.Module):
    """It notes what a weight holds when it hears of a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.heard: list[tuple[bool, Tensor]] = []

    def train(self, mode: bool = True) -> Any:
        self.heard.append((mode, self.weight.detach().clone()))
        super().train(mode)
        self.heard.append((mode, self.weight.detach().clone()))
        return self


@pytest.mark.parametrize("attached_to", ["the whole", "the part", "both"])
def test_all_modules_hear_of_both_modes_at_the_average(attached_to: str) -> None:
    """Also where a part is attached beside the whole."""
    model = nn.Sequential(Listener(), Listener())
    optimizer = SGDScheduleFree(model.parameters(), lr=0.5)
    for module in {"the whole": [model], "the part": [model[0]], "both": [model, model[0]]}[attached_to]:
        optimizer.attach(module)
    train(optimizer, range(4))
    x, y = [[getattr(optimizer.iterates(layer.weight), name) for layer in model] for name in "xy"]
    model.eval()
    model.train()
    at_x = model if attached_to != "the part" else model[:1]
    for layer, average in zip(at_x, x, strict=False):
        assert [mode for mode, _ in layer.heard] == [False, False, True, True]
        assert all(torch.equal(held, average) for _, held in layer.heard)
    assert equal(model.parameters(), y)


def test_a_class_that_stays_in_one_mode_is_followed_as_it_is() -> None:
    class Frozen(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            return super().train(False)

    model = Frozen(3, 3)
    model.train()
    optimizer = SGDScheduleFree(model.parameters(), lr=0.5).attach(model)
    assert not optimizer.training
    model.train()
    assert not optimizer.training
    model.training = True
    assert optimizer.training
    model.eval()
    assert not optimizer.training


def test_a_class_that_stays_in_train_mode_keeps_y() -> None:
    class Training(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            return super().train(True)

    model = Training(3, 3)
    optimizer = SGDScheduleFree(model.parameters(), lr=0.5).attach(model)
    train(optimizer, range(4))
    y = copies(model.parameters())
    model.eval()
    assert model.training
    assert optimizer.training
    assert equal(model.parameters(), y)


@pytest.mark.parametrize("mode", [True, False])
def test_a_train_that_fails_leaves_a_mode_from_which_both_can_be_reached(mode: bool) -> None:
    class Failing(nn.Linear):
        fails = False

        def train(self, mode: bool = True) -> Any:
            if self.fails:
                raise KeyError("a part of it")
            return super().train(mode)

    model = nn.Sequential(nn.Linear(3, 3), Failing(3, 3))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(optimizer, range(4))
    y, x = copies(model.parameters()), list(at_average(model, optimizer).values())
    model.train(not mode)
    model[1].fails = True
    with pytest.raises(KeyError):
        model.train(mode)
    with pytest.raises(RuntimeError, match=r"step\(\) in eval mode.* call model.train\(\)"):
        optimizer.step()
    model[1].fails = False
    model.train()
    assert equal(model.parameters(), y)
    model.eval()
    assert equal(model.parameters(), x)


def test_flags_that_are_set_directly_count_while_a_train_is_put_off() -> None:
    """As a class does that sets them for all its modules."""

    class Direct(nn.Sequential):
        def train(self, mode: bool = True) -> Any:
            for module in self.modules():
                module.training = mode
            return self

    model = Direct(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(optimizer, range(4))
    y, x = copies(model.parameters()), list(at_average(model, optimizer).values())
    for _ in range(2):
        model.eval()
        assert equal(model.parameters(), x)
        model.train()
        assert equal(model.parameters(), y)
        for flag in (False, True):
            model.training = flag
            assert optimizer.training is flag


def test_evaluating_within_train_is_followed() -> None:
    class Reporting(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            if mode:
                nn.Module.train(self, False)
                nn.Module.train(self, True)
            return self

    model = Reporting(3, 3)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(optimizer, range(4))
    y = copies(model.parameters())
    model.eval()
    model.train()
    assert optimizer.training
    assert equal(model.parameters(), y)


# Classes that cannot be attached, or only just.


class OwnProperty(nn.Module):
    """Its flag is that of a part."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    @property
    def training(self) -> bool:
        return self._modules["inner"].training if "inner" in vars(self).get("_modules", {}) else True

    @training.setter
    def training(self, mode: bool) -> None:
        pass


class OwnSuper(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super(self.__class__, self).forward(inputs)


class OwnSuperOfType(nn.Linear):
    def extra_repr(self) -> str:
        return super(type(self), self).extra_repr()


class SetsItself(nn.Linear):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":
            vars(self)[name] = value
        else:
            super().__setattr__(name, value)


class RefusesToBeSet(nn.Linear):
    sealed = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self.sealed:
            raise AttributeError(f"{name} is sealed")
        super().__setattr__(name, value)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (OwnProperty, "it defines 'training' itself"),
        (OwnSuper, r"its forward\(\) calls super\(\) with the class of the object.* Write super\(\).forward\(\)"),
        (OwnSuperOfType, r"its extra_repr\(\) calls super\(\) with the class of the object"),
        (SetsItself, "it keeps its flag 'training' in its own way"),
        (RefusesToBeSet, "it keeps its flag 'training' in its own way"),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_a_class_that_cannot_be_followed_is_refused_whole(cls: Any, reason: str) -> None:
    model = cls() if cls is OwnProperty else cls(2, 2)
    first = SGDScheduleFree(model.parameters(), lr=0.5)
    vars(model)["sealed"] = True
    before = dict(vars(model))
    optimizer = AdamWScheduleFree(model.parameters())
    with pytest.raises(TypeError, match=f"{cls.__name__} cannot be attached: {reason}"):
        optimizer.attach(model)
    assert type(model) is cls
    assert vars(model) == before
    assert not any(module._state_dict_hooks for module in model.modules())
    assert optimizer._attachments.models == []
    assert first.training
    outer = nn.Sequential(model)  # which is the remedy
    optimizer.attach(outer)
    train(optimizer, range(3))
    assert equal(outer.state_dict().values(), [optimizer.iterates(param).x for param in model.parameters()])


class Strict(nn.Linear):
    """Only what it knows may be set."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("__class__", "_unscheduled_attachments"):
            raise AttributeError(f"{name} is no attribute of {type(self).__name__}")
        super().__setattr__(name, value)


class SuperOfTheFirstClassInInit(nn.Linear):
    def __init__(self, *arguments: int) -> None:
        super(self.__class__, self).__init__(*arguments)

    def __repr__(self) -> str:
        return f"{super().__repr__()} of {self.__class__.__name__} {type(self)}"


@pytest.mark.parametrize("cls", [Strict, SuperOfTheFirstClassInInit])
def test_a_class_that_can_be_followed_is(cls: Any) -> None:
    model = cls(3, 3)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(optimizer, range(3))
    y, x = copies(model.parameters()), list(at_average(model, optimizer).values())
    repr(model)
    model.eval()
    assert equal(model.parameters(), x)
    model.training = True
    assert equal(model.parameters(), y)
    optimizer.detach()
    assert type(model) is cls


# Many optimizers.


def test_hooks_are_there_once_however_many_optimizers_are_attached() -> None:
    def hooks(count: int) -> list[int]:
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
        params = list(model.parameters())
        parts = [params[index::count] for index in range(count)]
        optimizers = [SGDScheduleFree(part, lr=0.5).attach(model) for part in parts]
        found = [
            len(module._state_dict_hooks) + len(module._state_dict_pre_hooks) + len(module._load_state_dict_pre_hooks)
            for module in model.modules()
        ]
        for optimizer in optimizers:
            optimizer.detach()
        assert type(model) is nn.Sequential
        assert not any(module._state_dict_hooks for module in model.modules())
        return found

    assert hooks(12) == hooks(1)


def test_switches_saves_and_loads_walk_through_the_model_as_often_as_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each optimizer: with one for each parameter, that would be parameters times modules."""
    walk = nn.Module.named_modules
    walks: list[nn.Module] = []

    def counted(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        walks.append(self)
        return walk(self, *arguments, **options)

    def count(optimizers: int) -> list[int]:
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
        params = list(model.parameters())
        each = [SGDScheduleFree(params[index::optimizers], lr=0.5).attach(model) for index in range(optimizers)]
        for optimizer in each:
            train(optimizer, range(3))
        saved = model.state_dict()
        owner = {param: optimizer for optimizer in each for param in optimizer.state}
        assert equal(saved.values(), [owner[param].iterates(param).x for param in params])
        found = []
        for action in (model.eval, model.train, model.state_dict, partial(model.load_state_dict, saved)):
            walks.clear()
            with monkeypatch.context() as patch:
                patch.setattr(nn.Module, "named_modules", counted)
                action()
            found.append(len(walks))
        return found

    assert count(8) == count(3) == count(1)


def test_an_optimizer_that_cannot_switch_leaves_the_others_in_the_former_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizers = [AdamWScheduleFree(part.parameters(), lr=0.1).attach(model) for part in model]
    for optimizer in optimizers:
        train(optimizer, range(4))
    y = copies(model.parameters())
    switch = optimizers[1]._weights.switch

    def fail(averaged: set[Tensor], entries: list[Entry]) -> None:
        if averaged:
            raise MemoryError
        switch(averaged, entries)

    monkeypatch.setattr(optimizers[1]._weights, "switch", fail)
    with pytest.raises(MemoryError):
        model.eval()
    assert model.training
    assert [optimizer.training for optimizer in optimizers] == [True, True]
    assert equal(model.parameters(), y)


def test_one_of_several_optimizers_detaches_alone() -> None:
    model, optimizer = trained_pair()
    other = SGDScheduleFree([nn.Parameter(torch.ones(2))], lr=0.5)
    model.extra = other.param_groups[0]["params"][0]
    other.attach(model)
    train(other, range(4))
    optimizer.detach()
    y = copies(model[0].parameters())
    model.eval()
    assert equal(model[0].parameters(), y)
    assert not other.training
    assert torch.equal(model.state_dict()["extra"], other.iterates(model.extra).x)
    other.detach()
    assert type(model) is nn.Sequential


# What fails or is interrupted in the middle.


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_load_for_which_there_is_no_memory_leaves_the_average(
    dtype: torch.dtype, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(dtype)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(optimizer, range(4))
    saved, y = model.state_dict(), copies(model.parameters())
    clone, count = Tensor.clone, 0

    def failing(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == fails_at:
            raise torch.OutOfMemoryError("out of memory")
        return clone(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "clone", failing)
        with pytest.raises(torch.OutOfMemoryError):
            model.load_state_dict(saved)
    assert equal(model.parameters(), y)
    assert equal(model.state_dict().values(), saved.values())
    train(optimizer, range(4, 5))


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_switch_to_y_for_which_there_is_no_memory_leaves_all_at_the_average(
    dtype: torch.dtype, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(dtype)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1, implementation="loop").attach(model)
    train(optimizer, range(4))
    y = copies(model.parameters())
    model.eval()
    x, put, count = copies(model.parameters()), parameter.put_y, 0

    def failing(param: Tensor, *arguments: Any) -> None:
        nonlocal count
        count += 1
        put(param, *arguments)
        if count == fails_at:
            raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(parameter, "put_y", failing)
        with pytest.raises(torch.OutOfMemoryError):
            model.train()
    assert not model.training
    assert equal(model.parameters(), x)
    model.train()
    assert equal(model.parameters(), y)


@pytest.mark.parametrize("within", ["averaged_parameters", "a closure"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_detaching_within_leaves_the_parameters_as_they_were(within: str, training: bool) -> None:
    model, optimizer = trained_pair()
    model.train(training)
    held = copies(model.parameters())
    if within == "averaged_parameters":
        with optimizer.averaged_parameters():
            optimizer.detach()
        assert equal(model.parameters(), held)
    else:
        optimizer.zero_grad()
        optimizer.step(lambda: optimizer.detach() and 0.0)
    assert optimizer.training is training


@pytest.mark.parametrize("mode", [True, False])
def test_an_interruption_while_a_mode_is_told_does_not_stop_it_from_being_followed(mode: bool) -> None:
    """At every line of ours that runs."""
    model, optimizer = trained_pair()
    y, x = copies(model.parameters()), list(at_average(model, optimizer).values())
    at, lines = 0, 1
    while at < lines:
        model.train(not mode)
        lines, interrupted = interrupted_at(at, lambda: model.train(mode))
        assert interrupted or at >= lines
        for flag, held in ((False, x), (True, y), (False, x)):
            model.train(flag)
            assert equal(model.parameters(), held), at
        model.train()
        at += 1


def interrupted_at(at: int, action: Callable[[], Any]) -> tuple[int, bool]:
    """How many lines of the hooks and the class ran, and whether the action was interrupted before such a line."""
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_globals["__name__"] not in ("unscheduled.model.attached_module", "unscheduled.model.attachment"):
            return trace
        if event == "line":
            count += 1
            if count == at + 1:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        return count + 1, True
    finally:
        sys.settrace(before)
    return count, False
