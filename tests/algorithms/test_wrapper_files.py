"""A wrapped optimizer is saved, loaded and copied with what wraps it; what does not fit is refused."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from bases import BASES, Base, bases, dtypes, kept
from problems import copies, equal, make_params, same, through_a_file, train
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn import Parameter
from torch.optim import Adam, Adamax, AdamW, Optimizer, RAdam

from unscheduled import ScheduleFreeWrapper, SGDScheduleFree

SUPPORT = Path(__file__).parents[1] / "support"


def fresh(params: Iterable[Tensor]) -> list[Parameter]:
    return [Parameter(torch.zeros_like(param)) for param in params]


def put(params: Iterable[Tensor], weights: Iterable[Tensor]) -> None:
    for param, weight in zip(params, weights, strict=True):
        param.data.copy_(weight)


def go_on(optimizers: Iterable[ScheduleFreeWrapper]) -> None:
    for optimizer in optimizers:
        train(optimizer.train(), range(10, 20))
        optimizer.eval()


def tensors_of(optimizer: Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


@pytest.mark.covering(2)
@bases
@dtypes
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model_first", [True, False])
def test_resume_is_bit_exact(base: Base, dtype: torch.dtype, training: bool, model_first: bool) -> None:
    params = base.params(dtype)
    optimizer = ScheduleFreeWrapper(base.make(params), weight_decay_at_y=0.1, warmup_steps=12)
    train(optimizer, range(10))
    optimizer.train(training)
    weights, state = through_a_file(copies(params)), through_a_file(optimizer.state_dict())
    others = fresh(params)
    resumed = ScheduleFreeWrapper(base.make(others), weight_decay_at_y=0.1, warmup_steps=12)
    if model_first:
        put(others, weights)
    resumed.load_state_dict(state)
    if not model_first:
        put(others, weights)
    assert resumed.training == training
    go_on((optimizer, resumed))
    assert equal(others, params)
    assert equal(tensors_of(resumed.base), tensors_of(optimizer.base))
    assert {value.dtype for value in tensors_of(resumed.base)} == {torch.float32}
    assert resumed.base.param_groups[0].keys() == optimizer.base.param_groups[0].keys()


@pytest.mark.covering(2)
@bases
@pytest.mark.parametrize("saved_as", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loaded_as", [torch.float64, torch.float32, torch.bfloat16])
def test_a_state_goes_into_parameters_of_another_precision(
    base: Base, saved_as: torch.dtype, loaded_as: torch.dtype
) -> None:
    params, others = base.params(saved_as), base.params(loaded_as)
    optimizer, resumed = ScheduleFreeWrapper(base.make(params)), ScheduleFreeWrapper(base.make(others))
    train(optimizer, range(5))
    weights, state = copies(params), through_a_file(optimizer.state_dict())
    put(others, weights)
    resumed.load_state_dict(state)
    expected = torch.promote_types(loaded_as, torch.float32)
    for param, saved in zip(others, params, strict=True):
        for name, value in resumed.base.state[param].items():
            if isinstance(value, Tensor) and value.dim():
                assert value.dtype == expected
                torch.testing.assert_close(value, optimizer.base.state[saved][name].to(expected))
    train(resumed, range(5, 8))


def test_resume_in_a_new_process_is_bit_exact(tmp_path: Path) -> None:
    made = (
        "import sys, torch\n"
        "from bases import BASES\n"
        "from problems import train\n"
        "from unscheduled import ScheduleFreeWrapper\n"
        "file = sys.argv[1]\n"
        "params = {name: base.params(torch.bfloat16) for name, base in BASES.items()}\n"
        "made = {name: ScheduleFreeWrapper(base.make(params[name]), warmup_steps=12) for name, base in BASES.items()}\n"
    )
    first = "for each in made.values():\n    train(each, range(10))\n    each.eval()\n"
    save = "states = {name: each.state_dict() for name, each in made.items()}\ntorch.save((params, states), file)\n"
    load = (
        "weights, states = torch.load(file, weights_only=True)\n"
        "for name, each in made.items():\n"
        "    each.load_state_dict(states[name])\n"
        "    for param, weight in zip(params[name], weights[name]):\n"
        "        param.data.copy_(weight)\n"
    )
    second = "for each in made.values():\n    train(each.train(), range(10, 20))\n"

    def run(*parts: str, file: str) -> Any:
        command = [sys.executable, "-c", "".join((made, *parts, save)), str(tmp_path / file)]
        subprocess.run(command, cwd=SUPPORT, check=True)
        return torch.load(tmp_path / file, weights_only=True)[0]

    expected = run(first, second, file="whole.pt")
    run(first, file="half.pt")
    found = run(load, second, file="half.pt")
    assert list(expected) == list(BASES)
    for name, weights in expected.items():
        assert equal(found[name], weights)


class Counting(torch.optim.SGD):
    """Has a state of its own beside that of the parameters, as MADGRAD, and one of parameters without gradients."""

    calls = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.state.setdefault("k", torch.tensor([0])).add_(1)  # type: ignore[call-overload]
        self.calls += 1
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param].setdefault("seen", torch.tensor(0.0)).add_(1.0)
        super().step()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"calls": self.calls}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.calls = state_dict["calls"]


def test_what_the_base_keeps_beside_the_state_of_trained_parameters_is_saved() -> None:
    params = make_params()
    optimizer = ScheduleFreeWrapper(Counting(params, lr=0.1))
    for _ in range(3):
        params[0].grad = torch.ones_like(params[0])
        optimizer.step()
    state = through_a_file(optimizer.state_dict())
    others = [Parameter(param.detach().clone()) for param in params]
    resumed = ScheduleFreeWrapper(Counting(others, lr=0.1))
    resumed.load_state_dict(state)
    assert isinstance(resumed.base, Counting)
    assert resumed.base.calls == 3
    assert resumed.base.state["k"] == torch.tensor([3])  # type: ignore[index, comparison-overlap]
    assert [resumed.base.state[other]["seen"].item() for other in others] == [3.0, 3.0]
    assert others[1] not in resumed.state
    state["base"]["state"]["k"].zero_()
    assert resumed.base.state["k"] == torch.tensor([3])  # type: ignore[index, comparison-overlap]
    go_on((optimizer, resumed))
    assert equal(others, params)


class Nested(torch.optim.SGD):
    """Keeps lists and dictionaries of tensors, as Shampoo and SOAP."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                factors = self.state[param].setdefault("factors", [torch.zeros(2), {"gram": torch.zeros_like(param)}])
                factors[0].add_(0.001)
                factors[1]["gram"].add_(param.grad * param.grad)
        super().step()


def test_lists_of_the_base_keep_their_precision() -> None:
    params = make_params(dtype=torch.bfloat16)
    optimizer = ScheduleFreeWrapper(Nested(params, lr=0.1))
    train(optimizer, range(5))
    state, others = through_a_file(optimizer.state_dict()), [Parameter(param.detach().clone()) for param in params]
    resumed = ScheduleFreeWrapper(Nested(others, lr=0.1))
    resumed.load_state_dict(state)
    for param, other in zip(params, others, strict=True):
        kept, loaded = (each.base.state[which]["factors"] for each, which in ((optimizer, param), (resumed, other)))
        assert loaded[0].dtype == loaded[1]["gram"].dtype == torch.float32
        assert equal([loaded[0], loaded[1]["gram"]], [kept[0], kept[1]["gram"]])
    go_on((optimizer, resumed))


@bases
def test_a_file_shares_no_memory_with_what_was_loaded(base: Base) -> None:
    optimizer, twin = (ScheduleFreeWrapper(base.make(base.params())) for _ in range(2))
    train(optimizer, range(5))
    twin.load_state_dict(optimizer.state_dict())
    before = copies(tensors_of(optimizer.base))
    train(twin, range(5, 8))
    assert equal(tensors_of(optimizer.base), before)


@pytest.mark.parametrize("training", [True, False])
def test_parameters_are_found_by_name_in_another_order_and_grouping(training: bool) -> None:
    names = ("embedding", "hidden", "head")
    some = dict(zip(names, make_params((4, 3), (4, 3), (4, 3)), strict=True))
    optimizer = ScheduleFreeWrapper(Adam(some.items(), lr=0.01))
    for step in range(5):
        for scale, param in enumerate(some.values()):
            param.grad = (scale + 1 + step % 2) * param.detach().clone()
        optimizer.step()
    optimizer.train(training)
    weights, state = copies(some.values()), through_a_file(optimizer.state_dict())
    others = dict(zip(names, fresh(some.values()), strict=True))
    entries = [(f"module.{name}", param) for name, param in others.items()]
    resumed = ScheduleFreeWrapper(Adam([{"params": entries[2:]}, {"params": entries[1::-1]}], lr=0.01))
    resumed.load_state_dict(state)
    put(others.values(), weights)
    for name, param in some.items():
        assert torch.equal(resumed.base.state[others[name]]["exp_avg"], optimizer.base.state[param]["exp_avg"])
    for each in (optimizer.train(), resumed.train()):
        for group in each.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        each.step()
    assert equal(some.values(), others.values())
    assert resumed.base.param_groups[1]["param_names"] == ["module.hidden", "module.embedding"]
    back = ScheduleFreeWrapper(Adam(dict(zip(names, fresh(some.values()), strict=True)).items()))
    back.load_state_dict(resumed.state_dict())
    assert equal(tensors_of(back.base), tensors_of(optimizer.base))
    resumed.base.param_groups[1]["eps"] = 1e-4
    with pytest.raises(ValueError, match="embedding and head, which had base"):
        back.load_state_dict(resumed.state_dict())


@pytest.mark.covering(2)
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("base", [base for base in BASES.values() if base.copies], ids=lambda base: base.cls.__name__)
def test_a_copy_goes_on_by_itself(base: Base, duplicate: Callable[[Any], Any], training: bool) -> None:
    params = base.params()
    optimizer = ScheduleFreeWrapper(base.make(params), warmup_steps=12)
    train(optimizer, range(10))
    optimizer.train(training)
    others, resumed = duplicate((params, optimizer))
    assert resumed.base is not optimizer.base
    assert resumed.base.param_groups[0]["params"][0] is resumed.param_groups[0]["params"][0] is others[0]
    before = copies(tensors_of(optimizer.base))
    train(resumed.train(), range(10, 20))
    assert equal(tensors_of(optimizer.base), before)
    train(optimizer.train(), range(10, 20))
    assert equal(others, params)


@pytest.mark.covering(1)
@bases
@dtypes
def test_dcp_files_go_into_a_fresh_optimizer(base: Base, dtype: torch.dtype, tmp_path: Path) -> None:
    model, other = nn.ParameterList(base.params(dtype)), nn.ParameterList([param + 1 for param in base.params(dtype)])
    optimizer, resumed = (
        ScheduleFreeWrapper(base.make(model.parameters())),
        ScheduleFreeWrapper(base.make(other.parameters())),
    )
    train(optimizer, range(10))
    saved = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(saved, checkpoint_id=tmp_path)
    loaded = {"model": other.state_dict(), "optimizer": get_optimizer_state_dict(other, resumed)}
    dcp.load(loaded, checkpoint_id=tmp_path)
    other.load_state_dict(loaded["model"])
    set_optimizer_state_dict(other, resumed, loaded["optimizer"])
    go_on((optimizer, resumed))
    assert equal(other.parameters(), model.parameters())


@pytest.mark.covering(1)
@bases
@dtypes
def test_to_be_asked_for_its_state_by_dcp_before_the_first_step_changes_nothing(base: Base, dtype: torch.dtype) -> None:
    asked, plain = nn.ParameterList(base.params(dtype)), base.params(dtype)
    optimizer, reference = ScheduleFreeWrapper(base.make(asked.parameters())), ScheduleFreeWrapper(base.make(plain))
    state = get_optimizer_state_dict(asked, optimizer)["state"]
    assert all("base" in state[name] for name in ("0", "1"))
    copied = copy.deepcopy((asked, optimizer)) if base.copies else (asked, optimizer)
    for each in (optimizer, reference, *copied[1:]):
        if each.param_groups[0]["step"] == 0:
            train(each, range(5))
    assert equal(asked, plain)
    assert equal(copied[0], plain)


# What is refused.


def wrapped(make: Callable[..., Optimizer], *groups: int) -> ScheduleFreeWrapper:
    params = iter(make_params(*[(3, 2)] * sum(groups or (2,))))
    optimizer = ScheduleFreeWrapper(
        make([{"params": [next(params) for _ in range(size)]} for size in groups or (2,)], lr=0.01)
    )
    train(optimizer, range(3))
    return optimizer


def damaged(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    state = copy.deepcopy(wrapped(Adam).state_dict())
    inner = state
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return state


FOREIGN: dict[str, tuple[Callable[[], Any], str]] = {
    "AdamW's": (
        lambda: wrapped(AdamW).state_dict(),
        "group 0 was made over AdamW, and not over Adam: wrap an optimizer",
    ),
    "RAdam's": (lambda: wrapped(RAdam).state_dict(), "was made over RAdam, and not over Adam"),
    "Adamax's": (lambda: wrapped(Adamax).state_dict(), "was made over Adamax, and not over Adam"),
    "no wrapper's": (
        lambda: SGDScheduleFree(make_params()).state_dict(),
        "was made over no optimizer, and not over Adam",
    ),
    "torch's": (lambda: Adam(make_params((3, 2), (3, 2))).state_dict(), "made over no optimizer, and not over Adam"),
    "more groups": (lambda: wrapped(Adam, 1, 1).state_dict(), "has 2 parameter groups, this optimizer has 1"),
    "more parameters": (lambda: wrapped(Adam, 3).state_dict(), "has 3 parameters, this optimizer's has 2"),
    "fewer parameters": (lambda: wrapped(Adam, 1).state_dict(), "has 1 parameters, this optimizer's has 2"),
    "base": (lambda: damaged(("param_groups", 0, "base"), None), "damaged"),
    "state of the base": (lambda: damaged(("state", 1, "base"), None), "damaged"),
    "state": (lambda: damaged(("state", 1), None), "damaged"),
    "gap": (lambda: damaged(("state", 1, "gap"), torch.ones(9)), r"'gap' of shape \(9,\)"),
    "beta": (lambda: damaged(("param_groups", 0, "momentum"), 2.0), r"momentum = 2\.0 is outside"),
}


@pytest.mark.parametrize(("state", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(state: Callable[[], Any], message: str) -> None:
    optimizer, theirs = wrapped(Adam), state()
    train(optimizer, [3])
    before = kept(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(theirs)
    assert same(kept(optimizer), before)
    train(optimizer, [4])


@pytest.mark.parametrize("make", [RAdam, Adamax])
def test_a_state_over_adam_is_no_state_over_its_relatives(make: Callable[..., Optimizer]) -> None:
    """Their options are among Adam's."""
    with pytest.raises(ValueError, match=f"was made over Adam, and not over {make.__name__}"):
        wrapped(make).load_state_dict(wrapped(Adam).state_dict())


def test_an_option_that_a_newer_torch_has_more_is_as_it_is_here() -> None:
    optimizer, state = wrapped(AdamW), wrapped(AdamW).state_dict()
    del state["param_groups"][0]["base"]["fused"]
    optimizer.base.param_groups[0]["fused"] = False
    state["param_groups"][0]["base"]["eps"] = 1e-4
    optimizer.load_state_dict(state)
    assert optimizer.base.param_groups[0]["fused"] is False
    assert optimizer.base.param_groups[0]["eps"] == 1e-4
    assert "optimizer" not in optimizer.base.param_groups[0]


class Upgraded(torch.optim.SGD):
    """It fills in what files of older versions of it do not have."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for each in self.state.values():
            each.setdefault("trust", 1.0)


def test_a_state_of_an_older_version_of_the_base_is_filled_in_by_the_base() -> None:
    params = make_params((3,))
    optimizer = ScheduleFreeWrapper(Upgraded(params, lr=0.1, momentum=0.9))
    train(optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    again = ScheduleFreeWrapper(Upgraded(params, lr=0.1, momentum=0.9))
    again.load_state_dict(state)
    momentum = optimizer.base.state[params[0]]["momentum_buffer"]
    assert torch.equal(again.base.state[params[0]]["momentum_buffer"], momentum)
    assert again.base.state[params[0]]["trust"] == 1.0
