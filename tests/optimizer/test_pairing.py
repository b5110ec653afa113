"""Weights and states find each other, in whatever order, mode and number of parts they are loaded."""

import copy
import itertools
import pickle
from typing import Any

import pytest
import schedulefree
import torch
from models import ADAMW, Net, at_average, fit, trained
from problems import copies, equal, includes, through_a_file, train
from registry import OptimizerInfo, optimizers
from torch import nn

from unscheduled import AdamWScheduleFree, averaged_state_dict
from unscheduled.formulas.iterates import averaged


@pytest.mark.covering(3)
@optimizers
@pytest.mark.parametrize("saved_in", [True, False])
@pytest.mark.parametrize("loaded_in", [True, False])
@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("attached_when_saved", [True, False])
@pytest.mark.parametrize("attached_when_loaded", [True, False])
def test_resume_is_bit_exact_in_every_combination(
    info: OptimizerInfo,
    saved_in: bool,
    loaded_in: bool,
    model_first: bool,
    attached_when_saved: bool,
    attached_when_loaded: bool,
) -> None:
    model, optimizer = trained(info, attach=attached_when_saved)
    model.train(saved_in)
    if not attached_when_saved:
        optimizer.train(saved_in)
    weights, state = through_a_file(model.state_dict()), through_a_file(optimizer.state_dict())

    resumed = Net()
    again = info.make(resumed.parameters())
    if attached_when_loaded:
        again.attach(resumed)
        resumed.train(loaded_in)
    for load_model in (model_first, not model_first):
        if load_model:
            resumed.load_state_dict(weights)
        else:
            again.load_state_dict(state)
    if attached_when_loaded:
        assert again.training == loaded_in
        assert includes(resumed.state_dict(), at_average(model, optimizer))
    for net, each in ((model, optimizer), (resumed, again)):
        net.train()
        each.train()
    assert equal(resumed.parameters(), model.parameters())
    for net, each in ((model, optimizer), (resumed, again)):
        fit(net, each, range(5, 8))
    assert equal(resumed.parameters(), model.parameters())
    assert equal(at_average(resumed, again).values(), at_average(model, optimizer).values())
    assert equal(resumed.buffers(), model.buffers())


@pytest.mark.covering(3)
@optimizers
@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("attached_when_saved", [True, False])
@pytest.mark.parametrize("saved_in", [True, False])
def test_going_back_to_a_checkpoint_in_the_same_process_is_bit_exact(
    info: OptimizerInfo, model_first: bool, attached_when_saved: bool, saved_in: bool
) -> None:
    model, optimizer = trained(info, attach=attached_when_saved)
    (model if attached_when_saved else optimizer).train(saved_in)
    weights, state = through_a_file(model.state_dict()), through_a_file(optimizer.state_dict())
    model.train()
    optimizer.train()
    y = copies(model.parameters())
    if not attached_when_saved:
        optimizer.attach(model)
    fit(model, optimizer, range(5, 9))
    for load_model in (model_first, not model_first):
        if load_model:
            model.load_state_dict(weights)
        else:
            optimizer.load_state_dict(state)
    assert optimizer.training
    assert equal(model.parameters(), y)


SWITCHES: list[list[tuple[bool, ...]]] = [
    [(), (False,)],  # before both loads
    [(), (False,), (True,), (False, True), (True, False)],  # between them
    [(), (False,)],  # after both
]


def load_between(switches: Any, loads: list[tuple[Any, Any]], switched: Any) -> None:
    """The two loads with the switches before, between and after them; train mode in the end."""
    for index, modes in enumerate(switches):
        for mode in modes:
            switched.train(mode)
        if index < len(loads):
            each, saved = loads[index]
            each.load_state_dict(saved)
    switched.train()


@pytest.mark.covering(3)
@optimizers
@pytest.mark.parametrize("saved_in", [True, False])
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("going_on", [True, False])
@pytest.mark.parametrize("model_first", [True, False])
def test_switches_before_between_and_after_the_loads_cost_no_bit(
    info: OptimizerInfo, saved_in: bool, attached: bool, going_on: bool, model_first: bool
) -> None:
    model, optimizer = trained(info, attach=attached)
    (model if attached else optimizer).train(saved_in)
    weights, state = through_a_file(model.state_dict()), through_a_file(optimizer.state_dict())
    (model if attached else optimizer).train()

    for switches in itertools.product(*SWITCHES):
        resumed = Net()
        again = info.make(resumed.parameters())
        if attached:
            again.attach(resumed)
        if going_on:  # from a run of its own
            fit(resumed, again, range(20, 22))
        loads = [(resumed, weights), (again, state)]
        load_between(switches, loads if model_first else loads[::-1], resumed if attached else again)
        resumed.train()
        assert equal(resumed.parameters(), model.parameters()), switches
        fit(resumed, again, range(1))
        assert all(not set(state) & {"y", "z", "kept"} for state in again.state.values())


@pytest.mark.parametrize("saved_in", [True, False])
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("going_on", [True, False])
@pytest.mark.parametrize("model_first", [True, False])
def test_a_run_of_the_schedulefree_package_goes_on_however_it_is_switched_between_the_loads(
    saved_in: bool, attached: bool, going_on: bool, model_first: bool
) -> None:
    torch.manual_seed(7)
    model = Net().double()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.01)
    optimizer.train()
    fit(model, optimizer, range(8))
    (optimizer.train if saved_in else optimizer.eval)()
    weights, state = through_a_file(model.state_dict()), through_a_file(optimizer.state_dict())
    optimizer.train()
    z = [optimizer.state[param]["z"] for param in model.parameters() if param.requires_grad]

    for switches in itertools.product(*SWITCHES):
        resumed = Net().double()
        again = AdamWScheduleFree(resumed.parameters(), lr=0.01)
        if attached:
            again.attach(resumed)
        if going_on:  # from a run of its own
            fit(resumed, again, range(20, 22))
        loads = [(resumed, weights), (again, state)]
        load_between(switches, loads if model_first else loads[::-1], resumed if attached else again)
        torch.testing.assert_close(list(resumed.parameters()), list(model.parameters()), msg=str(switches))
        found = [again.iterates(param).z for param in resumed.parameters() if param.requires_grad]
        torch.testing.assert_close(found, z, msg=str(switches))


def test_parts_of_a_model_are_loaded_one_by_one_beside_a_state_of_the_schedulefree_package() -> None:
    def pair() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()

    model = pair()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.01)
    optimizer.train()
    fit(model, optimizer, range(8))
    resumed = pair()
    again = AdamWScheduleFree(resumed.parameters()).attach(resumed)
    resumed.eval()
    again.load_state_dict(optimizer.state_dict())
    for part, its in zip(resumed, model, strict=True):
        part.load_state_dict(its.state_dict())
    resumed.load_state_dict(resumed.state_dict())  # as it is
    resumed.train()
    torch.testing.assert_close(list(resumed.parameters()), list(model.parameters()))
    z = [optimizer.state[param]["z"] for param in model.parameters()]
    torch.testing.assert_close([again.iterates(param).z for param in resumed.parameters()], z)


def test_a_copy_made_between_the_loads_finds_its_weights_too() -> None:
    model = Net()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.01)
    optimizer.train()
    fit(model, optimizer, range(8))
    resumed = Net()
    again = AdamWScheduleFree(resumed.parameters(), lr=0.01)
    again.load_state_dict(optimizer.state_dict())
    net, copied = copy.deepcopy((resumed, again))
    net.load_state_dict(model.state_dict())
    z = copied.iterates(net.first.weight).z
    torch.testing.assert_close(z, optimizer.state[model.first.weight]["z"])
    fit(net, copied, range(1))
    assert not any({"y", "z"} & set(state) for state in copied.state.values())


def test_averaged_weights_beside_a_state_of_the_schedulefree_package_are_not_trained_as_y() -> None:
    model = Net()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.01)
    optimizer.train()
    fit(model, optimizer, range(8))
    optimizer.eval()
    resumed = Net()
    again = AdamWScheduleFree(resumed.parameters(), lr=0.01)
    again.load_state_dict(optimizer.state_dict())
    again.train()
    resumed.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="average x, but were trained on as y"):
        fit(resumed, again, range(1))


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("switch", [True, False])
def test_a_state_that_belongs_to_other_weights_takes_those_that_were_loaded_as_its_average(
    info: OptimizerInfo, switch: bool
) -> None:
    """And one that is loaded after it, and belongs to them, finds them."""
    model, optimizer = trained(info)
    weights, state = through_a_file(model.state_dict()), through_a_file(optimizer.state_dict())
    y = copies(model.parameters())
    fit(model, optimizer, range(5, 8))
    other = through_a_file(optimizer.state_dict())
    resumed = Net()
    again = info.make(resumed.parameters()).attach(resumed)
    fit(resumed, again, range(20, 22))
    resumed.load_state_dict(weights)
    if switch:
        resumed.eval()
    again.load_state_dict(other)
    resumed.train()
    torch.testing.assert_close(dict(resumed.state_dict()), weights)
    again.load_state_dict(state)
    assert equal(resumed.parameters(), y)


def test_weights_that_belong_to_no_state_are_evaluated_without_changing_training() -> None:
    """The y of a state that was loaded beside them goes on waiting, and does not take the place of theirs."""
    model, optimizer = trained(ADAMW)
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    model.load_state_dict(Net().state_dict())
    y = copies(model.parameters())
    model.eval()
    model.train()
    assert equal(model.parameters(), y)


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("training", [True, False])
def test_rewinding_to_the_best_weights_makes_them_the_new_average(info: OptimizerInfo, training: bool) -> None:
    model, optimizer = trained(info)
    best = copy.deepcopy(model.state_dict())
    fit(model, optimizer, range(5, 10))
    gap = optimizer.iterates(model.first.weight).z - optimizer.iterates(model.first.weight).x
    model.train(training)
    model.load_state_dict(best)
    model.train()
    x, y, z = optimizer.iterates(model.first.weight)
    torch.testing.assert_close(x, best["first.weight"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(z - x, gap, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(y, 0.9 * x + 0.1 * z, rtol=1e-6, atol=1e-7)
    fit(model, optimizer, range(10, 12))


@optimizers
def test_loading_what_was_just_saved_changes_no_bit(info: OptimizerInfo) -> None:
    model, optimizer = trained(info)
    y = copies(model.parameters())
    model.load_state_dict(through_a_file(model.state_dict()))
    model.second.load_state_dict(model.second.state_dict())
    assert optimizer.training
    assert equal(model.parameters(), y)


@pytest.mark.covering(2)
@optimizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_weights_that_were_loaded_come_out_to_the_last_bit_until_the_next_step(
    info: OptimizerInfo, training: bool, dtype: torch.dtype
) -> None:
    """Though the y that training goes on from does not tell the x that it was formed from to the last bit."""
    model, reference = Net().to(dtype), Net().to(dtype)
    reference.load_state_dict(model.state_dict())
    optimizer, plain = info.make(model.parameters()).attach(model), info.make(reference.parameters()).attach(reference)
    fit(model, optimizer, range(5))
    fit(reference, plain, range(5))
    weights = {name: (value * 0.01).to(value.dtype) for name, value in model.state_dict().items()}
    model.train(training).load_state_dict(weights)
    reference.load_state_dict(weights)
    for _ in range(2):
        assert includes(model.state_dict(), weights)
        assert includes(model.eval().state_dict(), weights)
        assert includes(dict(model.named_parameters()), {name: weights[name] for name, _ in model.named_parameters()})
        assert includes(model.train().state_dict(), weights)
        assert includes(copy.deepcopy(model).state_dict(), weights)
        assert equal(model.parameters(), reference.parameters())
    fit(model, optimizer, range(5, 6))
    fit(reference, plain, range(5, 6))
    assert equal(model.parameters(), reference.parameters())
    assert includes(model.state_dict(), at_average(reference, plain))


def test_loading_a_part_leaves_the_rest() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(optimizer, range(5))
    y = model[0].weight.detach().clone()
    model[1].load_state_dict(nn.Linear(3, 3).state_dict())
    assert optimizer.training
    assert torch.equal(model[0].weight, y)


def test_a_load_that_fails_leaves_the_mode() -> None:
    model, optimizer = trained(ADAMW)
    y = copies(model.parameters())
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({"first.weight": torch.zeros(9, 9)}, strict=False)
    assert optimizer.training
    assert equal(model.parameters(), y)
    model.load_state_dict(model.state_dict())


class Checked(nn.Linear):
    """It refuses weights only after they were put in."""

    refuses = True

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if self.refuses:
            raise ValueError("the user's")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("part", [True, False])
def test_a_load_that_raises_in_between_leaves_the_mode_and_no_trace(training: bool, part: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), Checked(4, 4)))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    fit(model, optimizer, range(5))
    y, best = copies(model.parameters()), {name: value + 1.0 for name, value in model.state_dict().items()}
    model.train(training)
    handle = model[1].register_load_state_dict_pre_hook(lambda *_: pytest.fail("the user's"))
    loaded = model[1] if part else model
    with pytest.raises(pytest.fail.Exception):
        loaded.load_state_dict(loaded.state_dict())
    handle.remove()
    assert optimizer.training is training
    assert equal(model.parameters(), y) is training
    with pytest.raises(ValueError, match="the user's"):
        loaded.load_state_dict(
            {name.removeprefix("1.") if part else name: value for name, value in best.items()}, False
        )
    assert optimizer.training is training
    assert torch.equal(model[0].weight, y[0]) is (training and part)
    Checked.refuses = False
    try:
        model.load_state_dict(best)
    finally:
        Checked.refuses = True
    torch.testing.assert_close(dict(model.state_dict()), best)
    model.train()
    fit(model, optimizer, range(5, 7))


@pytest.mark.parametrize("training", [True, False])
def test_hooks_of_users_may_look_at_the_state_dict_while_it_is_loaded(training: bool) -> None:
    model, optimizer = trained(ADAMW)
    before = model.state_dict()
    best = {name: value + 1 for name, value in before.items()}
    model.train(training)
    looks: list[Any] = []
    model.second.register_load_state_dict_pre_hook(lambda *_: looks.append(model.state_dict()))
    model.load_state_dict(best)
    assert optimizer.training is training
    torch.testing.assert_close(dict(model.state_dict()), best)
    assert torch.equal(looks[0]["first.bias"], best["first.bias"])
    assert torch.equal(looks[0]["second.bias"], before["second.bias"])


def test_assigning_other_parameters_is_refused() -> None:
    model, optimizer = trained(ADAMW)
    y = copies(model.parameters())
    with pytest.raises(RuntimeError, match=r"assign=True.* assign=False"):
        model.load_state_dict(model.state_dict(), assign=True)
    assert equal(model.parameters(), y)
    fit(model, optimizer, range(2))


def test_averaged_weights_beside_a_state_of_train_mode_are_noticed() -> None:
    """Without attach: recognised if the model is loaded first, refused at the step if it is loaded last."""
    model, optimizer = trained(ADAMW, attach=False)
    weights, state = through_a_file(averaged_state_dict(model, optimizer)), through_a_file(optimizer.state_dict())
    for model_first in (True, False):
        resumed = Net()
        again = ADAMW.make(resumed.parameters())
        if model_first:
            resumed.load_state_dict(weights)
        again.load_state_dict(state)
        if model_first:
            assert equal(resumed.parameters(), model.parameters())
            fit(resumed, again, range(1))
            continue
        resumed.load_state_dict(weights)
        with pytest.raises(
            RuntimeError, match=r"the weights of parameter \d of group 0.* average x, but were trained on"
        ):
            fit(resumed, again, range(1))


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("pickled", [True, False])
def test_a_copy_of_weights_that_were_loaded_trains_on_from_the_same_bits(info: OptimizerInfo, pickled: bool) -> None:
    model, optimizer = trained(info, steps=8)  # RAdam's first ones are silent
    weights = {name: (value * 0.01).to(value.dtype) for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    net, copied = pickle.loads(pickle.dumps((model, optimizer))) if pickled else copy.deepcopy((model, optimizer))
    if pickled:  # its parameters are others
        again = info.make(net.parameters()).attach(net)
        again.load_state_dict(copied.state_dict())
    else:
        again = copied.attach(net)
    assert equal(net.parameters(), model.parameters())
    assert includes(net.state_dict(), weights)
    fit(model, optimizer, range(5, 7))
    fit(net, again, range(5, 7))
    assert equal(net.parameters(), model.parameters())


@optimizers
def test_averaged_weights_that_were_loaded_are_told_from_y_beside_a_state_of_train_mode(info: OptimizerInfo) -> None:
    model, optimizer = trained(info, steps=8)  # RAdam's first ones are silent
    model.load_state_dict({name: value * 0.01 for name, value in model.state_dict().items()})
    weights, y = model.state_dict(), copies(model.parameters())
    state = through_a_file(optimizer.detach().state_dict())
    for switch in (True, False):
        resumed = Net()
        again = info.make(resumed.parameters())
        resumed.load_state_dict(weights)
        if switch:
            fit(resumed, again, range(20, 21))
            resumed.load_state_dict(weights)
            again.eval()
        again.load_state_dict(state)
        assert again.training
        assert equal(resumed.parameters(), y)
        assert includes(averaged_state_dict(resumed, again), weights)
    again.load_state_dict(state)
    resumed.load_state_dict(weights)
    with pytest.raises(RuntimeError, match="average x, but were trained on as y"):
        fit(resumed, again, range(1))


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_iterates_of_weights_that_were_loaded_are_the_same_from_either_mode(
    info: OptimizerInfo, dtype: torch.dtype
) -> None:
    model = Net().to(dtype)
    optimizer = info.make(model.parameters()).attach(model)
    fit(model, optimizer, range(5))
    weights = {name: (value * 0.01).to(value.dtype) for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    for mode in (True, False, True):
        model.train(mode)
        assert torch.equal(optimizer.iterates(model.first.weight).x, weights["first.weight"].float())


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_iterates_stay_as_they_are_if_the_present_weights_are_loaded(
    info: OptimizerInfo, dtype: torch.dtype
) -> None:
    """And not those that the file tells with fewer bits."""
    model = Net().to(dtype)
    optimizer = info.make(model.parameters()).attach(model)
    fit(model, optimizer, range(8))
    before = optimizer.iterates(model.first.weight)
    model.load_state_dict(model.state_dict())
    assert equal(optimizer.iterates(model.first.weight), before)


@pytest.mark.parametrize("by_hand", [True, False])
def test_weights_that_differ_by_rounding_from_those_that_were_loaded_take_their_place(by_hand: bool) -> None:
    """They are the x that y tells."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(optimizer, range(5))
    weights = {name: value * 0.01 for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    named = dict(model.named_parameters())
    near = {name: averaged(y.detach(), optimizer.state[y]["gap"], 0.9) for name, y in named.items()}
    assert not includes(near, weights)
    if by_hand:
        model.eval()
        with torch.no_grad():
            for name, param in named.items():
                param.copy_(near[name])
        model.train()
    else:
        model.load_state_dict(near)
    assert includes(model.state_dict(), near)
    assert includes(model.eval().state_dict(), near)


@optimizers
def test_a_copy_of_an_unattached_run_keeps_the_weights_that_were_loaded(info: OptimizerInfo) -> None:
    model, optimizer = trained(info, steps=8)  # RAdam's first ones are silent
    weights = {name: (value * 0.01).to(value.dtype) for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    net, copied = copy.deepcopy((model, optimizer.detach()))
    assert includes(averaged_state_dict(net, copied), weights)
    copied.eval()
    assert includes(net.state_dict(), weights)


@pytest.mark.covering(2)
@optimizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [8, 0])
def test_weights_of_32_and_16_bits_are_found_again_if_they_were_switched_before_their_state_came(
    info: OptimizerInfo, dtype: torch.dtype, steps: int
) -> None:
    """Without attach, also if their state is that of no step."""
    model = Net().to(dtype)
    optimizer = info.make(model.parameters())
    fit(model, optimizer, range(steps))
    weights, state = (
        through_a_file(averaged_state_dict(model, optimizer)),
        through_a_file(optimizer.eval().state_dict()),
    )
    optimizer.train()
    y = copies(model.parameters())
    fit(model, optimizer, range(20, 28))
    model.load_state_dict(weights)
    optimizer.eval()
    optimizer.load_state_dict(state)
    assert equal(model.parameters(), (weights[name] for name, _ in model.named_parameters()))
    optimizer.train()
    assert equal(model.parameters(), y)


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("resumed", [True, False])
def test_weights_that_were_there_already_are_loaded_before_the_state_of_no_step(
    info: OptimizerInfo, resumed: bool
) -> None:
    """A run that starts anew from its own x, which y tells already."""
    fresh = info.make(Net().parameters()).state_dict()
    model, optimizer = trained(info, steps=8)
    weights = through_a_file(model.state_dict())
    if resumed:
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    model.load_state_dict(weights)
    optimizer.load_state_dict(fresh)
    assert equal(model.parameters(), (weights[name] for name, _ in model.named_parameters()))


@pytest.mark.parametrize("training", [True, False])
def test_in_eval_mode_the_state_dict_is_what_was_written_last(training: bool) -> None:
    """Also if it is the x that the y of what was loaded before tells."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(optimizer, range(5))
    model.load_state_dict({name: value * 0.01 for name, value in model.state_dict().items()})
    named = dict(model.named_parameters())
    near = {name: averaged(y.detach(), optimizer.state[y]["gap"], 0.9) for name, y in named.items()}
    model.eval()
    with torch.no_grad():
        for name, param in named.items():
            param.copy_(near[name])
    assert includes(model.train(training).state_dict(), near)
