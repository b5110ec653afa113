"""Several optimizers of the same parameters, one after the other: the one that trains decides what is evaluated."""

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import ADAMW, Net, at_average, backward, fit, trained
from problems import copies, equal, includes, through_a_file, train
from registry import OptimizerInfo, optimizers
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from unscheduled import AdamWScheduleFree, ScheduleFreeWrapper, SGDScheduleFree

# Weights that are written before another optimizer takes over.


def reset(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def put(model: nn.Module, values: Callable[[Tensor], Tensor], how: str) -> None:
    for param in model.parameters():
        value = values(param)
        if how == "copy_":
            with torch.no_grad():
                param.copy_(value)
        elif how == "detach":
            param.detach().copy_(value)
        elif how == "data":
            param.data = value
        elif how == "set_":
            with torch.no_grad():
                param.set_(value)
        elif how == "index":
            with torch.no_grad():
                param[...] = value
        elif how == "add_":
            with torch.no_grad():
                param.add_(value)


def random(param: Tensor) -> Tensor:
    return torch.randn(param.shape, generator=torch.Generator().manual_seed(3))


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "reset_parameters": reset,
    "init": lambda model: [nn.init.normal_(param) for param in model.parameters()],
    "load_state_dict": lambda model: model.load_state_dict(nn.Linear(4, 4).state_dict()),
    "vector": lambda model: vector_to_parameters(torch.randn(20), model.parameters()),
    "the average, by hand": lambda model: put(model, lambda param: param.detach() * 0.5, "copy_"),
    **{
        how: lambda model, how=how: put(model, random, how)
        for how in ("copy_", "detach", "data", "set_", "index", "add_")
    },
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("steps", [1, 2, 9], ids=["one step", "two steps", "nine steps"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("attach", ["attached", "only stepped"])
@pytest.mark.parametrize("way", WAYS)
def test_weights_that_were_written_are_where_the_next_run_starts(
    way: str, attach: str, training: bool, steps: int
) -> None:
    model = nn.Linear(4, 4)
    first = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(first, range(steps))
    model.train(training)
    WAYS[way](model)
    written = list(model.state_dict().values()) if way == "load_state_dict" else copies(model.parameters())
    second = SGDScheduleFree(model.parameters(), lr=0.5)
    model.train()
    if attach == "attached":
        second.attach(model)
        assert equal(model.parameters(), written)
    else:
        written = copies(model.parameters())  # where the gradients are taken
        with pytest.warns(UserWarning, match="SGDScheduleFree trains parameters that another AdamWScheduleFree is"):
            train(second, range(1))
        second.attach(model)
    reference_params = [nn.Parameter(each.clone()) for each in written]
    reference = SGDScheduleFree(reference_params, lr=0.5)
    train(second, range(1 if attach == "only stepped" else 0, 5))
    train(reference, range(5))
    assert equal(model.parameters(), reference_params)
    model.eval()
    assert equal(model.parameters(), reference.eval().param_groups[0]["params"])


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_only_what_was_written_is_kept_and_the_rest_goes_to_the_average(steps: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    first = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(first, range(steps))
    x = copies(at_average(model, first).values())
    model[1].reset_parameters()
    written = copies(model[1].parameters())
    SGDScheduleFree(model.parameters(), lr=0.5).attach(model)
    assert equal(model.parameters(), [*x[:2], *written])


@pytest.mark.covering(1)
@pytest.mark.parametrize("between", ["nothing", "an evaluation", "a save", "a copy", "a load of itself", "more steps"])
@optimizers
def test_weights_that_nobody_wrote_go_to_the_average(info: OptimizerInfo, between: str) -> None:
    """Switches, saves and copies write to them, or look at them, but on the optimizer's own behalf."""
    model, first = trained(info, steps=12 if between == "more steps" else 3)
    if between == "an evaluation":
        model.eval()
        model.train()
    elif between == "a save":
        model.state_dict(), first.state_dict()
    elif between == "a copy":
        copy.deepcopy(model)
    elif between == "a load of itself":
        saved = through_a_file([model.state_dict(), first.state_dict()])
        model.load_state_dict(saved[0])
        first.load_state_dict(saved[1])
    x = at_average(model, first)
    SGDScheduleFree(model.parameters(), lr=0.5).attach(model)
    assert includes(dict(model.named_parameters()), {name: x[name] for name, _ in model.named_parameters()})


def test_parameters_that_had_no_gradient_in_the_last_steps_were_not_written() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    first = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(first, range(3))
    for step in range(6):
        first.zero_grad()
        for param in model[0].parameters():
            param.grad = torch.full_like(param, 1.0 + step)
        first.step()
    x = copies(at_average(model, first).values())
    SGDScheduleFree(model.parameters(), lr=0.5).attach(model)
    assert equal(model.parameters(), x)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("implementation", ["auto", "loop"])
def test_weights_that_were_written_before_the_last_step_go_to_the_average(implementation: Any, steps: int) -> None:
    """They are a part of the run by then."""
    model = nn.Linear(4, 4)
    first = AdamWScheduleFree(model.parameters(), lr=0.1, implementation=implementation).attach(model)
    train(first, range(6))
    model.reset_parameters()
    train(first, range(6, 6 + steps))
    x = copies(at_average(model, first).values())
    SGDScheduleFree(model.parameters(), lr=0.5).attach(model)
    assert equal(model.parameters(), x)


# Which one decides.


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_an_optimizer_that_steps_ends_the_attachment_of_another(info: OptimizerInfo, training: bool) -> None:
    model, first = trained(ADAMW)
    model.train(training)
    held = copies(model.parameters())
    second = info.make(model.parameters())
    assert len(first._attachments.models) == 1  # it may never be used
    model.train()
    model.train(training)
    assert equal(model.parameters(), held)
    backward(model, 6)
    with pytest.warns(UserWarning, match="which is detached from them now: call attach") as said:
        second.step()
    assert [warning.filename for warning in said] == [__file__]
    fit(model, second, range(7, 10))
    assert first._attachments.models == []
    second.eval()
    x = copies(model.parameters())
    model.eval()
    model.train()
    assert equal(model.parameters(), x)
    assert equal([model.state_dict()[name] for name, _ in model.named_parameters()], x)
    second.attach(model)
    fit(model, second.train(), range(10, 12))
    x = at_average(model, second)
    assert includes(model.state_dict(), x)


@pytest.mark.parametrize("steps", [1, 9])
def test_a_part_that_another_trains_is_its_own_and_the_rest_stays(steps: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    whole = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(whole, range(4))
    x = list(at_average(model, whole).values())
    y = copies(model.parameters())
    head = SGDScheduleFree(model[1].parameters(), lr=0.5)
    with pytest.warns(UserWarning, match="SGDScheduleFree trains parameters that another AdamWScheduleFree"):
        train(head, range(1))
    train(head, range(1, steps))
    head_y = copies(model[1].parameters())
    model.eval()
    assert equal(model[0].parameters(), x[:2])
    assert equal(model[1].parameters(), head_y)  # it is attached to nothing
    model.train()
    assert equal(model.parameters(), [*y[:2], *head_y])
    with pytest.raises(RuntimeError, match=r"another optimizer has taken parameters of this one \(2, from .* \(4, 4\)"):
        whole.step()
    head.attach(model)
    model.eval()
    assert equal(model[1].parameters(), [head.iterates(param).x for param in head.param_groups[0]["params"]])
    assert equal(model[0].parameters(), x[:2])
    saved = model.state_dict()
    assert equal(saved.values(), model.parameters())


def test_the_first_takes_its_parameters_back_when_it_is_attached_again() -> None:
    model, first = trained(ADAMW)
    second = SGDScheduleFree(model.parameters(), lr=0.5).attach(model)
    fit(model, second, range(5, 8))
    x = at_average(model, second)
    with pytest.raises(RuntimeError, match=r"attach\(\) this again to take them back"):
        first.step()
    first.attach(model)
    for name, param in model.named_parameters():
        if param.requires_grad:
            torch.testing.assert_close(first.iterates(param).x, x[name])
    fit(model, first, range(8, 10))
    assert includes(model.state_dict(), at_average(model, first))
    with pytest.raises(RuntimeError, match="another optimizer has taken"):
        second.step()


def test_an_optimizer_that_was_there_first_takes_over_from_one_that_is_attached_later() -> None:
    """It makes the next step, whoever was made when."""
    model = Net()
    earlier = SGDScheduleFree(model.parameters(), lr=0.5)
    fit(model, earlier, range(5))
    later = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    backward(model, 5)
    with pytest.warns(UserWarning, match="SGDScheduleFree trains parameters that another AdamWScheduleFree"):
        earlier.step()
    assert later._attachments.models == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, earlier, range(6, 9))


def test_a_group_that_is_added_is_looked_at() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    first = AdamWScheduleFree(model[0].parameters(), lr=0.1).attach(model)
    second = SGDScheduleFree(model[1].parameters(), lr=0.5).attach(model)
    for optimizer in (first, second):
        train(optimizer, range(4))
    second.add_param_group({"params": model[0].parameters()})
    with pytest.warns(UserWarning, match="SGDScheduleFree trains parameters that another AdamWScheduleFree"):
        train(second, range(4, 5))
    x = [second.iterates(param).x for param in model.parameters()]
    assert equal(model.eval().parameters(), x)


@pytest.mark.parametrize("second", ["attached", "stepped"])
def test_copies_and_files_are_those_of_the_one_that_trains(second: str) -> None:
    model, _ = trained(ADAMW)
    optimizer = SGDScheduleFree(model.parameters(), lr=0.5)
    if second == "attached":
        optimizer.attach(model)
    else:
        backward(model, 5)
        with pytest.warns(UserWarning, match="trains parameters that another"):
            optimizer.step()
        optimizer.attach(model)
    fit(model, optimizer, range(6, 9))
    x = at_average(model, optimizer)
    assert includes(model.state_dict(), x)
    assert includes(dict(copy.deepcopy(model).named_parameters(remove_duplicate=False)), x)


# Optimizers of other kinds.


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD])
def test_another_kind_of_optimizer_on_attached_parameters_is_warned_of_once(cls: Any) -> None:
    model, optimizer = trained(ADAMW)
    other = cls(model.parameters(), lr=0.1)
    backward(model, 6)
    with pytest.warns(
        UserWarning, match=f"torch's {cls.__name__} moves parameters that AdamWScheduleFree is attached to"
    ) as said:
        other.step()
    assert [warning.filename for warning in said] == [__file__]
    other.step()
    optimizer.detach()
    again = SGDScheduleFree(model.parameters(), lr=0.1).attach(model)
    with pytest.warns(
        UserWarning, match=f"torch's {cls.__name__} moves parameters that SGDScheduleFree is attached to"
    ):
        other.step()
    again.detach()
    cls(model.parameters(), lr=0.1).step()


def test_other_kinds_of_optimizers_are_left_alone_where_they_may_be() -> None:
    """On other parameters, after detach(), and as the base of a wrapper."""
    model, optimizer = trained(ADAMW)
    apart = nn.Parameter(torch.ones(2))
    plain = torch.optim.AdamW([apart])
    apart.grad = torch.ones(2)
    plain.step()
    optimizer.eval().detach()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    wrapper = ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), lr=0.1)).attach(model)
    fit(model, wrapper, range(3))
    with pytest.warns(UserWarning, match="torch's SGD moves parameters that ScheduleFreeWrapper is attached to"):
        torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_a_base_that_steps_by_itself_is_warned_of() -> None:
    model = Net()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    ScheduleFreeWrapper(base).attach(model)
    backward(model, 0)
    with pytest.warns(UserWarning, match="torch's SGD moves parameters that ScheduleFreeWrapper is attached to"):
        base.step()


def test_another_kind_of_optimizer_that_gets_attached_parameters_later_is_warned_of() -> None:
    model, _ = trained(ADAMW)
    apart = nn.Parameter(torch.ones(2))
    other = torch.optim.SGD([apart], lr=0.1)
    apart.grad = torch.ones(2)
    other.step()
    other.add_param_group({"params": list(model.parameters())})
    with pytest.warns(UserWarning, match="torch's SGD moves parameters that AdamWScheduleFree is attached to"):
        other.step()


def test_parameters_that_are_taken_out_of_the_groups_are_told_of_once() -> None:
    model, optimizer = trained(ADAMW)
    group = optimizer.param_groups[0]
    group["params"] = [param for param in group["params"] if param is not model.first.weight]
    with pytest.warns(UserWarning, match=r"\(1, from first.weight on\) were taken out of the groups"):
        model.eval()
    model.train()
    model.state_dict()


def test_a_layer_that_two_attached_models_share_is_told_of() -> None:
    shared = nn.Linear(3, 3)
    first, second = nn.Sequential(shared, nn.Linear(3, 3)), nn.Sequential(shared, nn.Linear(3, 3))
    optimizer = AdamWScheduleFree(first.parameters(), lr=0.1).attach(first)
    other = SGDScheduleFree(second[1].parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"Sequential has parameters of AdamWScheduleFree, which does not follow it"):
        other.attach(second)
    optimizer.attach(second)
    train(optimizer, range(3))
    second.eval()
    assert torch.equal(shared.weight, optimizer.iterates(shared.weight).x)


def test_a_part_that_is_attached_by_itself_is_no_shared_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    SGDScheduleFree(model[0].parameters()).attach(model[0])
    AdamWScheduleFree(model[1].parameters()).attach(model)


def test_parameters_that_are_gone_are_not_kept() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = SGDScheduleFree([param], lr=0.1)
    references = []
    for _ in range(4):
        train(optimizer, range(2))
        references.append(weakref.ref(param))
        new = nn.Parameter(param.detach().clone())
        optimizer.state[new] = optimizer.state.pop(param)
        optimizer.param_groups[0]["params"] = [new]
        param = new
    train(optimizer, range(2))
    gc.collect()
    assert [reference() for reference in references] == [None] * 4
