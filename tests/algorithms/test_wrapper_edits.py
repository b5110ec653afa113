"""Edits of param_groups and of the state, past the methods for it: what is in the wrapper's groups is trained."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bases import BASES, Base, CapturableSGD, dtypes, kept
from features import needs_adagrad_to_make_its_state_in_a_step
from problems import copies, equal, make_params, same, set_gradients, train
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer

from unscheduled import ScheduleFreeWrapper, to_torch

bases = pytest.mark.parametrize(
    "base",
    [
        pytest.param(base, id=name, marks=[needs_adagrad_to_make_its_state_in_a_step] * (name == "Adagrad"))
        for name, base in BASES.items()
        if name not in ("Muon", "Prodigy")
    ],
)


def of_base(optimizer: ScheduleFreeWrapper) -> list[list[Tensor]]:
    return [group["params"] for group in optimizer.base.param_groups]


def is_same(some: Any, other: Any) -> bool:
    return len(some) == len(other) and all(a is b for a, b in zip(some, other, strict=True))


def append(params: list[Tensor], old: Parameter, new: Parameter) -> list[Tensor]:
    params.append(new)
    return params


EDITS: dict[str, Callable[[list[Tensor], Parameter, Parameter], Any]] = {
    "appended": append,
    "inserted": lambda params, old, new: [new, *params],
    "replaced": lambda params, old, new: [new if param is old else param for param in params],
    "alone": lambda params, old, new: [new],
    "a tuple": lambda params, old, new: (new, *params),
}


@pytest.mark.covering(2)
@bases
@dtypes
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("started", [True, False])
def test_what_is_put_into_a_group_is_trained_as_in_a_new_group(
    base: Base, dtype: torch.dtype, edit: Callable[..., Any], started: bool
) -> None:
    """The others go on as they would have."""
    old, other, new = make_params((4, 3), (7,), (5,), dtype=dtype)
    twins = [Parameter(param.detach().clone()) for param in (old, other, new)]
    optimizer, reference = ScheduleFreeWrapper(base.make([old, other])), ScheduleFreeWrapper(base.make(twins[:2]))
    for each in (optimizer, reference):
        train(each, range(4 * started))
    optimizer.param_groups[0]["params"] = edit(optimizer.param_groups[0]["params"], old, new)
    reference.add_param_group({"params": [twins[2]]})
    counters = {name: value for name, value in reference.param_groups[0].items() if name != "params"}
    reference.param_groups[1].update(counters)
    for step in range(4, 8):
        for each in (optimizer, reference):
            set_gradients([param for group in each.param_groups for param in group["params"]], step)
            each.step()
    assert is_same(of_base(optimizer)[0], optimizer.param_groups[0]["params"])
    pairs = zip((old, other, new), twins, strict=True)
    trained = [pair for pair in pairs if any(pair[0] is param for param in optimizer.param_groups[0]["params"])]
    for param, twin in trained:
        assert equal(optimizer.iterates(param), reference.iterates(twin))
    assert any(param is new for param, _ in trained)


def test_a_parameter_that_leaves_and_comes_back_goes_on() -> None:
    first, second = make_params()
    twins = make_params()
    optimizer, reference = (
        ScheduleFreeWrapper(SGD(params, lr=0.1, momentum=0.9)) for params in ([first, second], twins)
    )
    for each in (optimizer, reference):
        train(each, range(3))
    params = list(optimizer.param_groups[0]["params"])
    optimizer.param_groups[0]["params"].clear()
    optimizer.param_groups[0]["params"].append(second)
    set_gradients([second], 3)
    optimizer.step()
    assert is_same(of_base(optimizer)[0], [second])
    twins[0].grad = None
    set_gradients(twins[1:], 3)
    reference.step()
    optimizer.param_groups[0]["params"] = params
    for each in (optimizer, reference):
        train(each, range(4, 7))
    assert equal((first, second), twins)
    assert equal(tensors(optimizer.base), tensors(reference.base))


def tensors(optimizer: Optimizer) -> list[Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [value for param in params for value in optimizer.state[param].values() if isinstance(value, Tensor)]


def test_reordered_or_moved_parameters_go_on() -> None:
    params, twins = make_params((2,), (3,), (4,)), make_params((2,), (3,), (4,))

    def grouped(params: list[Parameter]) -> Any:
        return [{"params": params[:2]}, {"params": params[2:]}]

    optimizer, reference = (ScheduleFreeWrapper(Adam(grouped(each), lr=0.01)) for each in (params, twins))
    for each in (optimizer, reference):
        train(each, range(3))
    first, second = (group["params"] for group in optimizer.param_groups)
    first.reverse()
    second.append(first.pop())
    for each in (optimizer, reference):
        train(each, range(3, 6))
    assert [len(each) for each in of_base(optimizer)] == [1, 2]
    assert equal(params, twins)
    assert optimizer.base.state[params[0]]["step"] == 6


@pytest.mark.covering(1)
@bases
@pytest.mark.parametrize("whole", [True, False])
def test_where_the_state_was_dropped_that_of_the_base_begins_anew(base: Base, whole: bool) -> None:
    params = base.params()
    optimizer = ScheduleFreeWrapper(base.make(params))
    train(optimizer, range(4))
    if whole:
        optimizer.state.clear()
    else:
        del optimizer.state[params[0]]
    fresh = Parameter(params[0].detach().clone())
    alone = base.make([fresh])
    train(optimizer, [4])
    set_gradients([fresh], 4)
    alone.step()
    torch.testing.assert_close(optimizer.iterates(params[0]).z, fresh.detach())
    assert equal(
        [value for value in optimizer.base.state[params[0]].values() if isinstance(value, Tensor)],
        [value for value in alone.state[fresh].values() if isinstance(value, Tensor)],
    )
    assert optimizer.state[params[0]]["step"] == 1
    assert optimizer.state[params[1]]["step"] == (1 if whole else 5)


def test_a_state_that_was_loaded_is_not_taken_for_one_that_was_dropped() -> None:
    params, others = make_params(), make_params()
    optimizer, resumed = ScheduleFreeWrapper(Adam(params)), ScheduleFreeWrapper(Adam(others))
    set_gradients(params[:1], 0)
    optimizer.step()
    train(resumed, range(2))
    resumed.load_state_dict(optimizer.state_dict())
    train(resumed, range(1, 3))
    train(optimizer, range(1, 3))
    assert optimizer.base.state[params[0]]["step"] == resumed.base.state[others[0]]["step"] == 3
    resumed.load_state_dict(optimizer.state_dict())
    resumed.state.clear()
    train(resumed, [3])
    assert resumed.base.state[others[0]]["step"] == 1


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
def test_a_copy_between_an_edit_and_the_step_trains_it_too(duplicate: Callable[[Any], Any]) -> None:
    first, second, new = make_params((2,), (3,), (4,))
    optimizer = ScheduleFreeWrapper(Adam([first, second], lr=0.01))
    train(optimizer, range(3))
    optimizer.param_groups[0]["params"][0] = new
    others, copied = duplicate(([new, second], optimizer))
    for each in (optimizer, copied):
        train(each, range(3, 6))
    assert equal((new, second), others)
    assert not torch.equal(new, make_params((2,), (3,), (4,))[2])


def test_files_between_an_edit_and_the_step_are_of_the_parameters_that_are_there() -> None:
    first, second, new = make_params((2,), (3,), (4,))
    optimizer = ScheduleFreeWrapper(Adam([("first", first), ("second", second)], lr=0.01))
    train(optimizer, range(3))
    optimizer.param_groups[0]["params"].append(new)
    optimizer.param_groups[0]["param_names"].append("new")
    state = optimizer.state_dict()
    assert [sorted(each) for each in state["state"].values()] == [["base", "gap", "step", "y"]] * 2
    assert optimizer.base.param_groups[0]["param_names"] == ["first", "second", "new"]
    entries = list(zip(("first", "second", "new"), make_params((2,), (3,), (4,)), strict=True))
    resumed = ScheduleFreeWrapper(Adam(entries[:2], lr=0.01))
    resumed.param_groups[0]["params"].append(entries[2][1])
    resumed.param_groups[0]["param_names"].append("new")
    resumed.load_state_dict(state)
    for (_, param), weights in zip(entries, (first, second, new), strict=True):
        param.data.copy_(weights)
    for each in (optimizer, resumed):
        train(each, range(3, 6))
    assert equal([param for _, param in entries], (first, second, new))


def test_a_parameter_that_was_put_in_is_in_the_base_that_a_run_is_handed_to() -> None:
    first, new = make_params()
    optimizer = ScheduleFreeWrapper(Adam([first]))
    train(optimizer, range(2))
    optimizer.param_groups[0]["params"].append(new)
    assert is_same(to_torch(optimizer).param_groups[0]["params"], [first, new])


def test_groups_that_are_removed_from_or_reordered_in_both_keep_their_rates() -> None:
    params = make_params((2,), (3,), (4,))
    base = SGD([{"params": [param], "lr": 0.1 * (at + 1)} for at, param in enumerate(params)])
    optimizer = ScheduleFreeWrapper(base)
    train(optimizer, range(2))
    for each in (optimizer, base):
        del each.param_groups[0]
        each.param_groups.reverse()
    train(optimizer, range(2, 4))
    assert [group["lr"] for group in base.param_groups] == [pytest.approx(0.3), 0.2]
    optimizer.add_param_group({"params": [Parameter(torch.ones(5))], "lr": 0.5})
    train(optimizer, range(4, 6))
    assert [group["lr"] for group in base.param_groups] == [pytest.approx(0.3), 0.2, 0.5]


def test_a_list_of_the_base_with_the_same_parameters_is_the_same() -> None:
    params = make_params()
    optimizer = ScheduleFreeWrapper(Adam(params))
    train(optimizer, range(2))
    optimizer.base.param_groups[0]["params"] = list(params)
    train(optimizer, range(2, 4))
    assert optimizer.base.state[params[0]]["step"] == 4


# What is refused.


class Within(Optimizer):
    """Steps on groups of another optimizer, as ZeRO does."""

    def __init__(self, params: list[Parameter]) -> None:
        self.optim = SGD(params, lr=0.1)
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optim.step()


def groups_of_one(params: list[Parameter]) -> Any:
    return [{"params": [param]} for param in params]


Case = tuple[Callable[[list[Parameter]], Optimizer], Callable[[ScheduleFreeWrapper, Parameter], object], str]
REFUSED: dict[str, Case] = {
    "parameters of the base": (
        Adam,
        lambda optimizer, new: optimizer.base.param_groups[0]["params"].append(new),
        "^the parameters of group 0 of the wrapped Adam were edited, which the ScheduleFreeWrapper does not train",
    ),
    "parameters of both, differently": (
        Adam,
        lambda optimizer, new: (
            optimizer.base.param_groups[0]["params"].append(new),
            optimizer.param_groups[0]["params"].pop(),
        ),
        "^the parameters of group 0 of the wrapped Adam were edited",
    ),
    "a group that is appended": (
        Adam,
        lambda optimizer, new: optimizer.param_groups.append({"params": [new]}),
        r"has 1 parameter groups, this ScheduleFreeWrapper has 2: add groups to this by add_param_group\(\)",
    ),
    "a group that is removed": (
        lambda params: AdamW(groups_of_one(params)),
        lambda optimizer, new: optimizer.param_groups.pop(),
        "has 2 parameter groups, this ScheduleFreeWrapper has 1: .* remove them from both",
    ),
    "groups in another order": (
        lambda params: AdamW(groups_of_one(params)),
        lambda optimizer, new: optimizer.param_groups.reverse(),
        "^the parameter groups of the ScheduleFreeWrapper are in another order .* reorder both alike",
    ),
    "twice": (
        Adam,
        lambda optimizer, new: optimizer.param_groups[0]["params"].extend([new, new]),
        "^a parameter stands twice",
    ),
    "no list": (
        Adam,
        lambda optimizer, new: optimizer.param_groups[0].update(params=new),
        "^parameter group 0: its params are no list",
    ),
    "no tensor": (
        Adam,
        lambda optimizer, new: optimizer.param_groups[0]["params"].append(("name", new)),
        "^parameter group 0: its params are no list of tensors",
    ),
    "what the base has elsewhere": (
        Within,
        lambda optimizer, new: optimizer.param_groups[0]["params"].append(new),
        "^parameters of param_groups were edited, but the wrapped Within steps on groups of a SGD within it",
    ),
    "state of what the base has elsewhere": (
        Within,
        lambda optimizer, new: optimizer.state.clear(),
        "^the state of parameters was dropped, but the wrapped Within steps on groups of a SGD",
    ),
}


@pytest.mark.parametrize(("make", "edit", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_base_cannot_be_given_is_refused_at_the_next_step(
    make: Callable[..., Optimizer], edit: Callable[..., object], message: str
) -> None:
    first, second, new = make_params((4, 3), (7,), (5,))
    optimizer = ScheduleFreeWrapper(make([first, second]))
    train(optimizer, range(2))
    set_gradients([first, second, new], 2)
    edit(optimizer, new)
    before, base = copies([first, second, new]), repr(optimizer.base.state)
    lists = [list(params) for params in of_base(optimizer)]
    with pytest.raises((RuntimeError, ValueError), match=message):
        optimizer.step()
    assert equal([first, second, new], before)
    assert repr(optimizer.base.state) == base
    assert all(map(is_same, of_base(optimizer), lists))


def test_a_parameter_of_which_the_state_cannot_be_compact_is_refused() -> None:
    params = make_params()
    optimizer = ScheduleFreeWrapper(Adam(params), state_precision="compact")
    train(optimizer, range(2))
    optimizer.param_groups[0]["params"].append(Parameter(torch.ones(2, dtype=torch.float64)))
    set_gradients(params, 2)
    with pytest.raises(ValueError, match=r"^parameter group 0: state_precision = 'compact'"):
        optimizer.step()


def test_if_the_base_refuses_a_parameter_all_is_as_before() -> None:
    class Strict(Adam):
        def add_param_group(self, param_group: dict[str, Any]) -> None:
            super().add_param_group(param_group)
            if any(param.numel() == 5 for param in param_group["params"]):
                raise ValueError("five elements")

    first, second, new = make_params((4, 3), (7,), (5,))
    optimizer = ScheduleFreeWrapper(Strict([first, second]))
    train(optimizer, range(2))
    before = kept(optimizer)
    optimizer.param_groups[0]["params"].append(new)
    set_gradients([first, second, new], 2)
    with pytest.raises(ValueError, match="five elements"):
        optimizer.step()
    optimizer.param_groups[0]["params"].pop()
    assert same(kept(optimizer), before)
    train(optimizer, [2])


class SeesWhatItMoves(SGD):
    """Knows its parameters by what they are, as optimizers do that keep a table of their own beside their state."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.moved: list[list[int]] = []

    def step(self, closure: Any = None) -> Any:
        self.moved.append([id(param) for group in self.param_groups for param in group["params"]])
        return super().step(closure)


def test_the_base_sees_the_same_parameters_after_a_load() -> None:
    params = [Parameter(torch.ones(3, dtype=torch.bfloat16))]
    base = SeesWhatItMoves(params, lr=0.1)
    optimizer = ScheduleFreeWrapper(base)
    train(optimizer, range(2))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, range(2, 4))
    assert base.moved == [base.moved[0]] * 4


@pytest.mark.parametrize("of_base", [{}, {"capturable": False}], ids=["default", "given"])
def test_an_added_group_has_to_be_capturable_in_the_base_too(of_base: dict[str, Any]) -> None:
    groups = [{"params": make_params(), "capturable": True}]
    optimizer = ScheduleFreeWrapper(CapturableSGD(groups, lr=0.1, capturable=False), capturable=True)
    with pytest.raises(ValueError, match="the base CapturableSGD keeps numbers of its step on the host"):
        optimizer.add_param_group({"params": make_params(), "base": of_base})
    assert (len(optimizer.param_groups), len(optimizer.base.param_groups)) == (1, 1)
