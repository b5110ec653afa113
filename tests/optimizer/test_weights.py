"""The parts that know what the parameters hold, each without an optimizer round it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unscheduled.model.follower import Follower
from unscheduled.optimizer.attachments import Attachments
from unscheduled.optimizer.reconciliation import Reconciliation
from unscheduled.optimizer.weights import Weights
from unscheduled.state.parameter import Entry

BETA = 0.75


def entry(y: float = 1.0, gap: float = 4.0) -> Entry:
    """A parameter at y with a gap: its x is y - (1 - beta) gap, that is 0 at the defaults."""
    return Entry(nn.Parameter(torch.tensor([y, -y])), {"step": 1, "gap": torch.tensor([gap, -gap])}, BETA)


def values(each: Entry) -> list[float]:
    return each.param.detach().tolist()


@torch.no_grad()
def write(each: Entry, value: float) -> None:
    each.param.fill_(value)


@pytest.fixture(autouse=True)
def without_grad() -> object:
    with torch.no_grad():
        yield


# Weights.


def test_a_switch_puts_x_there_and_y_back() -> None:
    weights, first, second = Weights(), entry(), entry(3.0)
    assert weights.training
    weights.switch({first.param}, [first, second])
    assert (values(first), values(second)) == ([0.0, 0.0], [3.0, -3.0])
    assert not weights.training
    assert weights.at_x == {first.param}
    weights.switch(set(), [first, second])
    assert (values(first), values(second)) == ([1.0, -1.0], [3.0, -3.0])
    assert weights.training
    assert "kept" not in first.state


def test_the_parameters_are_where_they_were_switched_to() -> None:
    weights, first = Weights(), entry()
    assert weights.are_at(set())
    weights.switch({first.param}, [first])
    assert weights.are_at({first.param})
    assert not weights.are_at(set())
    write(first, 5.0)
    weights.switch({first.param}, [first])
    assert values(first) == [5.0, 5.0]


def test_a_switch_that_fails_halfway_changes_nothing() -> None:
    weights, first, broken = Weights(), entry(), entry()
    del broken.state["gap"]
    with pytest.raises(KeyError):
        weights.switch({first.param, broken.param}, [first, broken])
    assert (values(first), values(broken)) == ([1.0, -1.0], [1.0, -1.0])
    assert weights.training
    assert "kept" not in first.state


def test_a_switch_both_ways_that_fails_on_the_way_back_undoes_the_way_there() -> None:
    weights, first, second = Weights(), entry(), entry()
    weights.switch({second.param}, [first, second])
    write(second, 9.0)  # so that y has to be formed
    del second.state["gap"]
    with pytest.raises(KeyError):
        weights.switch({first.param}, [first, second])
    assert values(first) == [1.0, -1.0]
    assert weights.at_x == {second.param}


def test_what_is_written_at_x_is_the_new_x() -> None:
    weights, first = Weights(), entry()
    weights.switch({first.param}, [first])
    write(first, 5.0)
    weights.switch(set(), [first])
    assert values(first) == [6.0, 4.0]  # 5 + (1 - beta) gap
    assert weights.iterates(*first).x.tolist() == [5.0, 5.0]
    weights.switch({first.param}, [first])
    assert values(first) == [5.0, 5.0]


def test_parameters_that_are_given_up_stay_at_x() -> None:
    weights, first, second = Weights(), entry(), entry()
    weights.switch({first.param}, [first, second])
    weights.given_up |= {first.param}
    assert weights.are_at(set())
    weights.switch(set(), [first, second])
    assert values(first) == [0.0, 0.0]


def test_a_parameter_that_replaces_one_at_x_is_noticed_by_its_state() -> None:
    weights, old = Weights(), entry()
    weights.switch({old.param}, [old])
    new = Entry(nn.Parameter(old.param.detach().clone()), old.state, BETA)
    states = {new.param: new.state}
    assert weights.notice_replaced([new.param], states, lambda: [new.param])
    assert weights.at_x == {new.param}
    assert not weights.notice_replaced([new.param], states, lambda: [new.param])
    weights.switch(set(), [new])
    assert values(new) == [1.0, -1.0]


def test_a_reader_gives_one_snapshot_of_x_in_either_mode() -> None:
    weights, first = Weights(), entry()
    read = weights.average_reader([first])
    found = read(first.param)
    assert found is not None
    assert found.tolist() == [0.0, 0.0]
    write(first, 7.0)
    assert read(first.param) is found
    assert read(entry().param) is None
    weights.switch({first.param}, [first])
    at_x = weights.average_reader([first])(first.param)
    assert at_x is not None
    assert at_x.tolist() == values(first)


def test_a_gradient_taken_at_x_is_refused_and_one_taken_at_y_is_not() -> None:
    weights, first = Weights(), entry()
    weights.switch({first.param}, [first])
    with torch.enable_grad():
        first.param.sum().backward()
    weights.switch(set(), [first])
    with pytest.raises(RuntimeError, match="the gradient of the weight was taken in eval mode"):
        weights.check_before_step(lambda: [first], lambda _: "the weight")
    first.param.grad = None
    with torch.enable_grad():
        first.param.sum().backward()
    weights.check_before_step(lambda: [first], lambda _: "the weight")


def test_a_copy_knows_the_mode_and_goes_its_own_way() -> None:
    weights, first = Weights(), entry()
    weights.switch({first.param}, [first])
    write(first, 5.0)
    weights.switch(set(), [first])
    copied = weights.of_copy()
    assert copied.reconciliation.written.keys() == {first.param}
    copied.note({first.param})
    copied.reconciliation.written.clear()
    assert weights.training
    assert weights.reconciliation.written.keys() == {first.param}


# Reconciliation.


def loaded(y: float = 1.0) -> Entry:
    """A parameter at 0 beside a state that was loaded: its y is known, and x is 0 at the default."""
    each = entry(y)
    each.state["y"] = each.param.detach().clone()
    write(each, 0.0)
    return each


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("holds_y", [True, False])
def test_a_state_finds_its_weights_in_either_mode(training: bool, holds_y: bool) -> None:
    each, found = loaded(), Reconciliation()
    if holds_y:
        each.param.copy_(each.state["y"])
    found.adopt(training, [each], {}, attached=False)
    assert found.is_open
    averaged: set[Tensor] = set() if training else {each.param}
    assert found.settle([each], averaged) == []
    assert values(each) == ([1.0, -1.0] if training else [0.0, 0.0])
    found.close({each.param: each.state})
    assert not found.is_open
    assert "y" not in each.state


def test_weights_of_another_run_beside_a_state_of_train_mode_stay() -> None:
    each, found = loaded(), Reconciliation()
    write(each, 8.0)
    found.adopt(True, [each], {}, attached=False)
    found.settle([each], set())
    assert values(each) == [8.0, 8.0]
    assert found.average_in_place_of_y([each]) is None


def test_weights_at_x_that_come_after_the_state_are_told() -> None:
    each, found = loaded(), Reconciliation()
    each.param.copy_(each.state["y"])
    found.adopt(True, [each], {}, attached=False)
    found.settle([each], set())
    write(each, 0.0)
    assert found.average_in_place_of_y([each]) is each.param


def test_weights_from_before_the_switch_come_back_if_they_are_of_the_state() -> None:
    each, found = entry(), Reconciliation()
    weights = Weights()
    weights.switch({each.param}, [each])
    before = found.weights_before_switches([each], {each.param})
    assert before[each.param].tolist() == [1.0, -1.0]
    of_file = Entry(each.param, {"step": 2, "gap": each.state["gap"], "y": torch.tensor([1.0, -1.0])}, BETA)
    found.adopt(True, [of_file], before, attached=True)
    assert values(each) == [1.0, -1.0]


def test_weights_that_are_loaded_while_training_are_the_new_x() -> None:
    each, found = entry(), Reconciliation()
    module, call = nn.Linear(1, 1), object()
    found.begin_load(module, call, [each], set())
    assert found.is_loading
    assert found.is_of(call)
    assert found.ends_with(module, call)
    assert not found.ends_with(nn.Linear(1, 1), call)
    write(each, 5.0)
    assert found.settle([each], set()) == [each.param]
    assert values(each) == [6.0, 4.0]
    assert found.written[each.param].tolist() == [5.0, 5.0]
    assert not found.is_open


def test_a_load_that_brings_the_present_x_restores_the_exact_y() -> None:
    each, found = entry(), Reconciliation()
    found.begin_load(nn.Linear(1, 1), object(), [each], set())
    write(each, 0.0)
    found.settle([each], set())
    assert values(each) == [1.0, -1.0]


# Attachments.


def follower_of(params: list[Tensor], moved: list[str]) -> Follower:
    def note(what: str) -> object:
        return lambda *_: moved.append(what)

    return Follower(
        optimizer="an optimizer",
        params=lambda: params,
        follow=note("follow"),
        averages=lambda: lambda _: None,
        steps=lambda: 1,
        before_load=note("before_load"),
        after_load=note("after_load"),
        end_load=note("end_load"),
        give_up=note("give_up"),
    )


def test_a_model_that_is_attached_moves_its_follower() -> None:
    model, attachments, moved = nn.Linear(2, 1), Attachments(), list[str]()
    params: list[Tensor] = list(model.parameters())
    tie = attachments.tie_to(model, set(params))
    assert tie is not None
    attachments.add(tie, follower_of(params, moved), 0, set(params))
    assert attachments.tie_to(model, set(params)) is None
    assert attachments.flags() == [True]
    assert attachments.wanted_at_x(params) == set()
    model.eval()
    assert moved == ["follow"]
    assert attachments.flags() == [False]
    assert attachments.wanted_at_x(params) == set(params)
    assert attachments.names([{"params": params}]) == {model.weight: "weight", model.bias: "bias"}
    assert attachments.names([{"params": [*params, nn.Parameter(torch.zeros(1))]}]) == {}
    attachments.detach()
    model.train()
    assert moved == ["follow"]
    assert type(model) is nn.Linear


def test_of_two_models_each_asks_for_its_own_parameters() -> None:
    models, attachments, moved = (nn.Linear(2, 1), nn.Linear(2, 1)), Attachments(), list[str]()
    alone = nn.Parameter(torch.zeros(1))
    params: list[Tensor] = [alone, *models[0].parameters(), *models[1].parameters()]
    follower = follower_of(params, moved)
    for model in models:
        tie = attachments.tie_to(model, set(params))
        assert tie is not None
        attachments.add(tie, follower, 0, set(params))
    models[1].eval()
    assert attachments.wanted_at_x(params) == {alone, *models[1].parameters()}
    attachments.detach()


def test_another_optimizer_of_the_same_parameters_gives_way() -> None:
    model, first, second, moved = nn.Linear(2, 1), Attachments(), Attachments(), list[str]()
    params: list[Tensor] = list(model.parameters())
    for attachments in (first, second):
        tie = attachments.tie_to(model, set(params))
        assert tie is not None
        attachments.add(tie, follower_of(params, moved), 0, set(params))
    assert moved == ["give_up"]
    second.detach()
    first.detach()


def test_a_copy_without_gradients_says_that_its_model_is_another() -> None:
    attachments = Attachments()
    attachments.look_for_other_parameters()
    attachments.was_copied = True
    with pytest.raises(RuntimeError, match="no parameter of this optimizer has a gradient: it was copied"):
        attachments.look_for_other_parameters()
