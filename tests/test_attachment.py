"""The model's own life cycle is enough: whatever is done to it, the right weights are in it and come out of it."""

import copy
import io
import itertools
import pickle
import warnings
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import schedulefree
import torch
from problems import copies, equal, train
from registry import OptimizerInfo, optimizers
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, SGDScheduleFree, averaged_state_dict


class Net(nn.Module):
    """Two layers, a tied weight, BatchNorm and a weight without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.norm(self.first(inputs)))) * self.frozen


def backward(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 4, generator=generator).to(next(model.parameters()).dtype)
    model(inputs).square().mean().backward()


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def trained(info: OptimizerInfo, steps: int = 5, attach: bool = True) -> tuple[Net, ScheduleFreeOptimizer]:
    torch.manual_seed(7)
    model = Net()
    optimizer = info.make(model.parameters())
    if attach:
        assert optimizer.attach(model) is optimizer
    fit(model, optimizer, range(steps))
    return model, optimizer


def at_average(model: nn.Module, optimizer: ScheduleFreeOptimizer) -> dict[str, Any]:
    with optimizer.averaged_parameters():
        return copy.deepcopy(dict(model.named_parameters(remove_duplicate=False)))


def same(some: dict[str, Any], expected: dict[str, Any]) -> bool:
    return all(torch.equal(some[name], expected[name]) for name in expected)


def through_a_file(value: Any, weights_only: bool = True) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


# The mode.


@optimizers
def test_the_flag_moves_the_parameters_however_it_is_set(info: OptimizerInfo) -> None:
    model, optimizer = trained(info)
    y, x = copies(model.parameters()), at_average(model, optimizer)
    for to_eval, to_train in [
        (model.eval, model.train),
        (lambda: model.train(False), lambda: model.train(True)),
        (lambda: setattr(model, "training", False), lambda: setattr(model, "training", True)),
        (nn.Sequential(model).eval, nn.Sequential(model).train),
    ]:
        to_eval()
        assert not optimizer.training
        assert not model.training
        assert same(dict(model.named_parameters()), {name: x[name] for name, _ in model.named_parameters()})
        to_train()
        assert optimizer.training
        assert equal(model.parameters(), y)


@optimizers
def test_evaluating_often_changes_nothing(info: OptimizerInfo) -> None:
    often, optimizer = trained(info)
    never, plain = trained(info, attach=False)
    for step in range(5, 25):
        often.eval()
        with torch.inference_mode():
            often(torch.randn(3, 4))
        often.state_dict()
        often.train()
        often.state_dict()
        fit(often, optimizer, range(step, step + 1))
        fit(never, plain, range(step, step + 1))
    assert equal(often.parameters(), never.parameters())


def test_flags_of_submodules_do_not_move_the_parameters() -> None:
    model, optimizer = trained(ADAMW)
    model.norm.eval()
    model.first.train(False)
    assert optimizer.training


def test_a_model_in_eval_mode_is_at_the_average_from_the_moment_it_is_attached() -> None:
    model, optimizer = trained(ADAMW, attach=False)
    x = at_average(model, optimizer)
    model.eval()
    assert optimizer.training
    optimizer.attach(model)
    assert not optimizer.training
    assert torch.equal(model.first.bias, x["first.bias"])


def test_an_explicit_switch_holds_until_the_flag_next_changes() -> None:
    model, optimizer = trained(ADAMW)
    optimizer.eval()
    model.train()  # as it is
    assert not optimizer.training
    with pytest.raises(RuntimeError, match=r"step\(\) in eval mode.* call optimizer.train\(\)"):
        optimizer.step()
    model.eval()
    model.train()
    assert optimizer.training


def test_a_step_in_eval_mode_says_to_call_the_models_train() -> None:
    model, optimizer = trained(ADAMW)
    model.eval()
    with pytest.raises(RuntimeError, match=r"step\(\) in eval mode.* call model.train\(\)"):
        optimizer.step()


def test_a_step_while_the_model_is_in_eval_mode_warns() -> None:
    model, optimizer = trained(ADAMW)
    model.eval()
    optimizer.train()
    backward(model, 0)
    with pytest.warns(UserWarning, match=r"the attached model is in eval mode.* call model.train\(\)"):
        optimizer.step()


def test_a_flag_that_could_not_be_followed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained(ADAMW)
    y = copies(model.parameters())
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", lambda *_: pytest.fail("out of memory"))
        with pytest.raises(pytest.fail.Exception):
            model.eval()
    assert model.training
    assert optimizer.training
    assert equal(model.parameters(), y)


@pytest.mark.parametrize("training", [True, False])
def test_closures_leave_the_mode_that_the_flag_asks_for(training: bool) -> None:
    model, optimizer = trained(ADAMW)
    reference, plain = trained(ADAMW, attach=False)
    model.train(training)

    def closure() -> float:
        optimizer.zero_grad()
        model.train()
        backward(model, 5)
        model.eval()
        return 0.0

    optimizer.step(closure)
    fit(reference, plain, range(5, 6))
    assert not optimizer.training
    model.train()
    assert equal(model.parameters(), reference.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_a_switch_within_averaged_parameters_holds_afterwards(training: bool) -> None:
    model, optimizer = trained(ADAMW)
    y, x = copies(model.parameters()), at_average(model, optimizer)
    model.train(training)
    with optimizer.averaged_parameters():
        model.train(not training)
        model.train(training)
        model.train(not training)
    assert optimizer.training is not training
    assert equal(model.parameters(), y) is not training
    model.eval()
    assert same(dict(model.named_parameters()), {"first.bias": x["first.bias"], "second.bias": x["second.bias"]})


def test_a_forward_pass_and_a_step_do_what_they_do_unattached() -> None:
    """No hook, copy or other operation of torch comes to them."""

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found.append(str(func))
            return func(*args, **(kwargs or {}))

    lists = []
    for attach in (True, False):
        model, optimizer = trained(ADAMW, attach=attach)
        found: list[str] = []
        model.eval()
        model.train()
        optimizer.train()
        with Operations():
            fit(model, optimizer, range(5, 8))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        lists.append(found)
    assert lists[0] == lists[1] != []


# Several models, several optimizers.


def test_one_optimizer_over_two_models_follows_each() -> None:
    generator, discriminator = nn.Linear(3, 3), nn.Linear(3, 1)
    optimizer = AdamWScheduleFree([*generator.parameters(), *discriminator.parameters()], lr=0.1)
    optimizer.attach(generator).attach(discriminator)
    train(optimizer, range(5))
    (x, _), (_, y) = (optimizer.iterates(model.weight)[:2] for model in (generator, discriminator))
    generator.eval()
    assert torch.equal(generator.weight, x)
    assert torch.equal(discriminator.weight, y)
    with pytest.raises(RuntimeError, match=r"eval mode.* call model.train\(\)"):
        optimizer.step()
    both = optimizer.state_dict()
    discriminator.eval()
    assert not torch.equal(discriminator.weight, y)
    assert torch.equal(optimizer.state_dict()["state"][2]["y"], both["state"][2]["y"])
    generator.train()
    assert not optimizer.training
    assert generator.state_dict()["weight"].data_ptr() != generator.weight.data_ptr()
    assert torch.equal(discriminator.state_dict()["weight"], discriminator.weight)
    discriminator.train()
    assert torch.equal(discriminator.weight, y)
    train(optimizer, range(5, 7))


def test_a_loss_with_weights_of_its_own_goes_with_the_model() -> None:
    model, loss = nn.Linear(3, 3), nn.Linear(3, 1)
    optimizer = AdamWScheduleFree([*model.parameters(), *loss.parameters()], lr=0.1).attach(model)
    train(optimizer, range(5))
    x = optimizer.iterates(loss.weight).x
    model.eval()
    assert torch.equal(loss.weight, x)


def test_two_optimizers_on_one_model_follow_it_both() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    some = AdamWScheduleFree(model[0].parameters(), lr=0.1).attach(model)
    other = SGDScheduleFree(model[1].parameters(), lr=0.1).attach(model)
    for optimizer in (some, other):
        train(optimizer, range(5))
    x = [some.iterates(model[0].weight).x, other.iterates(model[1].weight).x]
    assert equal([model.state_dict()[name] for name in ("0.weight", "1.weight")], x)
    model.eval()
    assert equal([model[0].weight, model[1].weight], x)
    some.detach()
    model.train()
    assert (some.training, other.training) == (False, True)


def test_a_second_optimizer_of_the_same_parameters_starts_from_the_average() -> None:
    model, first = trained(ADAMW)
    x = at_average(model, first)
    second = SGDScheduleFree(model.parameters()).attach(model)
    assert same(dict(model.named_parameters()), {"first.weight": x["first.weight"], "first.bias": x["first.bias"]})
    model.eval()
    model.train()
    assert not first.training
    assert second.training
    fit(model, second, range(2))


@pytest.mark.parametrize("whole_first", [True, False])
def test_a_second_optimizer_of_a_part_or_the_whole_detaches_the_first(whole_first: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    whole, part = AdamWScheduleFree(model.parameters(), lr=0.1), SGDScheduleFree(model[1].parameters(), lr=0.1)
    pairs = [(whole, model), (part, model[1])]
    (first, its), (second, others) = pairs if whole_first else reversed(pairs)
    first.attach(its)
    train(first, range(5))
    x = first.iterates(model[1].weight).x
    second.attach(others)
    assert not first.training
    assert torch.equal(model[1].weight, x)
    train(second, range(5, 10))
    y, x = model[1].weight.detach().clone(), second.iterates(model[1].weight).x
    model.eval()
    assert torch.equal(model[1].weight, x)
    model.train()
    assert torch.equal(model[1].weight, y)


def test_two_models_of_one_optimizer_are_saved_and_resumed_in_any_order() -> None:
    def pair() -> tuple[nn.Linear, nn.Linear, ScheduleFreeOptimizer]:
        generator, discriminator = nn.Linear(3, 3), nn.Linear(3, 1)
        optimizer = AdamWScheduleFree([*generator.parameters(), *discriminator.parameters()], lr=0.1)
        return generator, discriminator, optimizer.attach(generator).attach(discriminator)

    saved = pair()
    train(saved[2], range(5))
    states = [through_a_file(each.state_dict()) for each in saved]
    for order in itertools.permutations(range(3)):
        resumed = pair()
        train(resumed[2], range(9, 11))
        for index in order:
            resumed[index].load_state_dict(states[index])
            resumed[0].eval()
            resumed[0].train()
        for some, other in zip(resumed[:2], saved[:2], strict=True):
            assert equal(some.parameters(), other.parameters())


def test_a_model_attached_with_a_part_of_it_loads_as_one() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model).attach(model[0])
    train(optimizer, range(5))
    y = copies(model.parameters())
    for module in (model, model[0], nn.Sequential(model)):
        module.load_state_dict(through_a_file(module.state_dict()))
        assert optimizer.training
        assert equal(model.parameters(), y)


def test_attaching_twice_is_attaching_once() -> None:
    model, optimizer = trained(ADAMW)
    cls = type(model)
    optimizer.attach(model)
    assert type(model) is cls
    optimizer.detach()
    assert type(model) is Net


def test_detached_the_model_is_plain() -> None:
    model, optimizer = trained(ADAMW)
    plain = Net()
    assert isinstance(model, Net)
    assert type(model).__name__ == "Net"
    optimizer.detach()
    assert type(model) is Net
    assert set(vars(model)) == set(vars(plain))
    for module in model.modules():
        hooks = module._state_dict_hooks, module._load_state_dict_pre_hooks, module._state_dict_pre_hooks
        assert hooks == ({}, {}, {})
    model.eval()
    assert optimizer.training


@pytest.mark.parametrize("mode", ["train", "eval", "gradients at x"])
def test_an_optimizer_and_its_model_can_be_forgotten(mode: str) -> None:
    model, optimizer = trained(ADAMW)
    if mode != "train":
        model.eval()
        backward(model, 5)
    if mode == "gradients at x":
        model.train()
    references = weakref.ref(model), weakref.ref(optimizer)
    del model, optimizer
    import gc

    gc.collect()
    assert [reference() for reference in references] == [None, None]


# Saving.


@optimizers
@pytest.mark.parametrize("training", [True, False])
def test_state_dict_gives_the_average_in_either_mode(info: OptimizerInfo, training: bool) -> None:
    model, optimizer = trained(info)
    x, y = at_average(model, optimizer), copies(model.parameters())
    model.train(training)
    present = copies(model.parameters())
    saved = model.state_dict()
    assert list(saved) == list(Net().state_dict())
    assert same(saved, x)
    assert saved["first.weight"].data_ptr() == saved["second.weight"].data_ptr()
    assert not any(value.requires_grad for value in saved.values())
    assert same(model.second.state_dict(prefix="second."), {"second.bias": x["second.bias"]})
    assert same(nn.Sequential(model).state_dict(), {f"0.{name}": value for name, value in x.items()})
    assert same(through_a_file(torch.compile(model, backend="eager").state_dict()), {"_orig_mod.frozen": x["frozen"]})
    assert same(averaged_state_dict(model, optimizer), x)
    assert model.state_dict(keep_vars=True)["first.bias"] is model.first.bias
    assert equal(model.parameters(), present)
    model.train()
    assert equal(model.parameters(), y)


@pytest.mark.parametrize("training", [True, False])
def test_state_dict_is_a_snapshot_of_the_parameters(training: bool) -> None:
    """Neither a switch nor a step changes what was taken before, as it is written to the file."""
    model, optimizer = trained(ADAMW)
    x = at_average(model, optimizer)
    model.train(training)
    saved = model.state_dict()
    model.train()
    fit(model, optimizer, range(5, 7))
    assert same(saved, {name: value for name, value in x.items() if name != "frozen"})


@pytest.mark.parametrize("training", [True, False])
def test_safetensors_takes_tied_weights(training: bool, tmp_path: Path) -> None:
    model, optimizer = trained(ADAMW)
    x = at_average(model, optimizer)
    model.train(training)
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    again = Net()
    safetensors.torch.load_model(again, tmp_path / "model.safetensors")
    assert same(dict(again.named_parameters(remove_duplicate=False)), x)


def test_hooks_of_users_see_the_average_whenever_they_came() -> None:
    class Renaming(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.register_state_dict_post_hook(self.rename)

        @staticmethod
        def rename(_: nn.Module, state_dict: dict[str, Any], prefix: str, __: Any) -> None:
            state_dict[prefix + "kernel"] = state_dict.pop(prefix + "weight")

    def halve(_: nn.Module, state_dict: dict[str, Any], prefix: str, __: Any) -> None:
        state_dict[prefix + "bias"] = state_dict[prefix + "bias"].half()

    model = nn.Sequential(Renaming())
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(optimizer, range(5))
    model[0].register_state_dict_post_hook(halve)
    x = optimizer.iterates(model[0].weight).x, optimizer.iterates(model[0].bias).x.half()
    for _ in range(2):
        saved = model.state_dict()
        assert list(saved) == ["0.bias", "0.kernel"]
        assert torch.equal(saved["0.kernel"], x[0])
        assert saved["0.bias"].dtype == torch.float16
        assert torch.equal(saved["0.bias"], x[1])
        copy.deepcopy(model)  # takes the hooks off meanwhile


def test_tied_weights_are_one_tensor_within_a_call_and_two_in_two() -> None:
    model, optimizer = trained(ADAMW)
    into: OrderedDict[str, Any] = OrderedDict()
    first = model.state_dict(destination=into)["first.weight"]
    fit(model, optimizer, range(5, 6))
    again = model.state_dict(destination=into)
    assert again["first.weight"] is again["second.weight"]
    assert not torch.equal(again["first.weight"], first)
    fit(model, optimizer, range(6, 7))
    beside = model.state_dict(destination=into, prefix="other.")
    assert torch.equal(beside["other.first.weight"], optimizer.iterates(model.first.weight).x)
    assert torch.equal(beside["first.weight"], again["first.weight"])
    assert model.state_dict()["first.weight"] is not model.state_dict()["first.weight"]


def test_saving_between_forward_and_backward_is_harmless() -> None:
    model, optimizer = trained(ADAMW)
    reference, plain = trained(ADAMW)
    optimizer.zero_grad()
    loss = model(torch.ones(8, 4)).square().mean()
    model.state_dict()
    optimizer.state_dict()
    loss.backward()
    optimizer.step()
    plain.zero_grad()
    reference(torch.ones(8, 4)).square().mean().backward()
    plain.step()
    assert equal(model.parameters(), reference.parameters())


def test_modules_that_came_later_are_saved_right() -> None:
    model, optimizer = trained(ADAMW)
    model.head = nn.Linear(4, 2)
    optimizer.add_param_group({"params": model.head.parameters()})
    train(optimizer, range(5))
    assert torch.equal(model.head.state_dict()["weight"], optimizer.iterates(model.head.weight).x)
    model.eval()
    assert torch.equal(model.head.weight, optimizer.iterates(model.head.weight).x)
    model.tail = nn.Linear(4, 2)
    optimizer.add_param_group({"params": model.tail.parameters()})
    model.train()
    train(optimizer, range(5))
    assert not torch.equal(model.state_dict()["tail.weight"], model.tail.weight)


class Adapter(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.extra = nn.Parameter(torch.ones(4, 4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base(inputs) + inputs @ self.extra


def test_modules_put_round_or_into_others_are_saved_and_loaded_right_by_themselves() -> None:
    adapter = Adapter(nn.Linear(4, 4))
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4))
    optimizer = AdamWScheduleFree([*model.parameters(), adapter.extra], lr=0.1).attach(model)
    adapter.base = model[1]
    model[1] = adapter
    parametrize.register_parametrization(model[0][0], "weight", nn.Identity())
    train(optimizer, range(5))
    x = [optimizer.iterates(adapter.extra).x, optimizer.iterates(model[0][0].parametrizations.weight.original).x]
    saved = model[1].state_dict()["extra"], model[0].state_dict()["0.parametrizations.weight.original"]
    assert equal(saved, x)
    best = {name: value + 1.0 for name, value in adapter.state_dict().items()}
    adapter.load_state_dict(best)
    assert optimizer.training
    torch.testing.assert_close(optimizer.iterates(adapter.extra).x, best["extra"])
    model.eval()
    torch.testing.assert_close(adapter.extra.detach(), best["extra"])


@pytest.mark.parametrize("notice", ["eval", "state_dict"])
def test_parameters_replaced_under_the_optimizer_are_told_of_once(notice: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    fit(model, optimizer, range(2))
    model[1] = nn.Linear(4, 4)
    with pytest.warns(UserWarning, match=r"1.weight of the attached model is no longer the parameter .* 2 in all"):
        getattr(model, notice)()
    model.train()
    model.eval()
    model.state_dict()


def test_parameters_replaced_in_the_optimizer_too_are_no_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    fit(model, optimizer, range(2))
    model[1] = nn.Linear(4, 4)
    optimizer.add_param_group({"params": model[1].parameters()})
    fit(model, optimizer, range(2))
    model.eval()
    del model[1]
    model.train()


# Loading.


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
        assert same(resumed.state_dict(), at_average(model, optimizer))
    for net, each in ((model, optimizer), (resumed, again)):
        net.train()
        each.train()
    assert equal(resumed.parameters(), model.parameters())
    for net, each in ((model, optimizer), (resumed, again)):
        fit(net, each, range(5, 8))
    assert equal(resumed.parameters(), model.parameters())
    assert equal(at_average(resumed, again).values(), at_average(model, optimizer).values())
    assert equal(resumed.buffers(), model.buffers())


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

    for switches in itertools.product([(), (False,), (True,), (False, True), (True, False)], repeat=3):
        resumed = Net()
        again = info.make(resumed.parameters())
        if attached:
            again.attach(resumed)
        if going_on:  # from a run of its own
            fit(resumed, again, range(20, 22))
        for index, modes in enumerate(switches):
            for mode in modes:
                (resumed if attached else again).train(mode)
            if index < 2 and model_first == (index == 0):
                resumed.load_state_dict(weights)
            elif index < 2:
                again.load_state_dict(state)
        (resumed if attached else again).train()
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

    for switches in itertools.product([(), (False,), (True,), (False, True), (True, False)], repeat=3):
        resumed = Net().double()
        again = AdamWScheduleFree(resumed.parameters(), lr=0.01)
        if attached:
            again.attach(resumed)
        if going_on:  # from a run of its own
            fit(resumed, again, range(20, 22))
        for index, modes in enumerate(switches):
            for mode in modes:
                (resumed if attached else again).train(mode)
            if index < 2 and model_first == (index == 0):
                resumed.load_state_dict(weights)
            elif index < 2:
                again.load_state_dict(state)
        (resumed if attached else again).train()
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


def test_weights_that_belong_to_no_state_are_evaluated_without_changing_training() -> None:
    """The y of a state that was loaded beside them goes on waiting, and does not take the place of theirs."""
    model, optimizer = trained(ADAMW)
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    model.load_state_dict(Net().state_dict())
    y = copies(model.parameters())
    model.eval()
    model.train()
    assert equal(model.parameters(), y)


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


# Copies.


@optimizers
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_a_plain_model_that_holds_the_average(info: OptimizerInfo, training: bool, way: Any) -> None:
    model, optimizer = trained(info)
    x, y = at_average(model, optimizer), copies(model.parameters())
    model.train(training)
    copied = way(model)
    assert type(copied) is Net
    assert copied.training is training
    assert same(dict(copied.named_parameters(remove_duplicate=False)), x)
    assert copied.first.weight is copied.second.weight
    assert not copied.frozen.requires_grad
    assert not any(module._state_dict_hooks or module._load_state_dict_pre_hooks for module in copied.modules())
    copied.eval()
    assert optimizer.training is training
    model.train()
    assert equal(model.parameters(), y)
    assert model.state_dict().keys() == copied.state_dict().keys()
    assert same(model.state_dict(), x)


def test_new_objects_of_its_class_are_plain() -> None:
    model, optimizer = trained(ADAMW)
    other = type(model)()
    assert type(other) is Net
    other.load_state_dict(model.state_dict())
    other.eval()
    assert optimizer.training
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    AdamWScheduleFree(layers.parameters()).attach(layers)
    part = layers[:2]
    assert type(part) is nn.Sequential
    assert part[0] is layers[0]
    assert type(pickle.loads(pickle.dumps(part))) is nn.Sequential


def test_a_model_with_parametrizations_of_its_own_is_copied_at_the_average() -> None:
    model = nn.Linear(4, 4)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    parametrize.register_parametrization(model, "weight", nn.Identity())
    fit(model, optimizer, range(5))
    x = at_average(model, optimizer)
    for copied in (copy.deepcopy(model), copy.deepcopy(copy.deepcopy(model))):
        assert same(dict(copied.named_parameters()), x)
        copied.eval()
        assert optimizer.training
    with pytest.raises(
        RuntimeError, match="Serialization of parametrized modules is only supported through state_dict"
    ):
        pickle.dumps(model)
    model.eval()
    assert same(dict(model.named_parameters()), x)


def test_what_its_class_does_with_its_subclasses_is_not_done() -> None:
    class Registered(nn.Linear):
        names: ClassVar[list[str]] = []

        def __init_subclass__(cls, *, name: str) -> None:
            cls.names.append(name)

    class Named(Registered, name="named"):
        pass

    model = Named(4, 4)
    AdamWScheduleFree(model.parameters()).attach(model)
    assert Registered.names == ["named"]


def test_it_is_scripted_traced_and_exported_in_eval_mode() -> None:
    model, _ = trained(ADAMW)
    model.eval()
    inputs = torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates its own
        made = [torch.jit.script(model), torch.jit.trace(model, inputs), torch.export.export(model, (inputs,)).module()]
    for each in made:
        torch.testing.assert_close(each(inputs), model(inputs))


def test_a_copy_of_a_part_or_a_wrapper_is_plain() -> None:
    model, optimizer = trained(ADAMW)
    part = pickle.loads(pickle.dumps(model.first))
    copy.deepcopy(model.first).load_state_dict(part.state_dict())
    wrapper = copy.deepcopy(nn.Sequential(model))
    assert type(wrapper[0]) is Net
    assert same(wrapper[0].state_dict(), at_average(model, optimizer))


def test_a_model_saved_whole_is_at_the_average() -> None:
    model, optimizer = trained(ADAMW)
    assert same(through_a_file(model, weights_only=False).state_dict(), at_average(model, optimizer))


def test_an_averaged_model_of_it_is_an_ordinary_one() -> None:
    model, optimizer = trained(ADAMW)
    average = torch.optim.swa_utils.AveragedModel(model)
    assert type(average.module) is Net
    average.update_parameters(model)
    assert torch.equal(average.module.first.weight, model.first.weight)
    average.eval()
    assert optimizer.training


def test_model_and_optimizer_copied_together_go_on_together() -> None:
    model, optimizer = trained(ADAMW)
    net, copied = copy.deepcopy((model, optimizer))
    copied.attach(net)
    assert equal(net.parameters(), model.parameters())
    for some, each in ((model, optimizer), (net, copied)):
        fit(some, each, range(5, 8))
    assert equal(net.parameters(), model.parameters())


def test_a_copied_optimizer_that_is_not_attached_does_not_train_the_average() -> None:
    net, copied = copy.deepcopy(trained(ADAMW))
    with pytest.raises(RuntimeError, match="average x, but were trained on as y"):
        fit(net, copied, range(1))


# Other life forms.


def test_a_compiled_model_is_one_graph_in_each_mode() -> None:
    torch._dynamo.reset()
    model, optimizer = trained(ADAMW)
    x = at_average(model, optimizer)
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    inputs = torch.randn(8, 4)
    for _ in range(3):
        compiled.train()
        assert optimizer.training
        compiled(inputs)
        compiled.eval()
        assert not optimizer.training
        torch.testing.assert_close(compiled(inputs), model(inputs))
    assert len(graphs) == 2
    assert same(dict(model.named_parameters()), {"first.bias": x["first.bias"]})
    torch._dynamo.reset()


def test_attached_through_a_compiled_model() -> None:
    model = nn.Linear(3, 2)
    compiled = torch.compile(model, backend="eager")
    optimizer = AdamWScheduleFree(compiled.parameters(), lr=0.1).attach(compiled)
    train(optimizer, range(5))
    for each in (model, compiled):
        each.eval()
        assert not optimizer.training
        each.train()
        assert optimizer.training
    assert list(optimizer.state_dict()["param_names"].values()) == ["weight", "bias"]


@pytest.mark.parametrize("wrong", ["model", None, 3])
def test_attaching_to_no_module_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"takes the torch.nn.Module that the parameters are of, but got"):
        AdamWScheduleFree(nn.Linear(2, 2).parameters()).attach(wrong)


def test_attaching_to_another_model_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Linear holds none of this optimizer's parameters"):
        AdamWScheduleFree(nn.Linear(2, 2).parameters()).attach(model)
    assert type(model) is nn.Linear


# Gradients of the wrong weights.


@pytest.mark.parametrize("attach", [True, False])
def test_gradients_taken_at_the_average_are_not_stepped_with(attach: bool) -> None:
    model, optimizer = trained(ADAMW, attach=attach)
    switch = model if attach else optimizer
    optimizer.zero_grad()
    switch.eval()
    backward(model, 3)
    switch.train()
    before = copies(model.parameters())
    with pytest.raises(
        RuntimeError, match=r"the gradient of parameter \d of group 0 .* was taken in eval mode.* call zero_grad"
    ):
        optimizer.step()
    assert equal(model.parameters(), before)
    fit(model, optimizer, range(2))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_at_y_survive_an_evaluation_between_micro_batches(set_to_none: bool) -> None:
    model, optimizer = trained(ADAMW)
    reference, plain = trained(ADAMW, attach=False)
    for net, each in ((model, optimizer), (reference, plain)):
        each.zero_grad(set_to_none=set_to_none)
        backward(net, 1)
        if net is model:
            model.eval()
            model(torch.randn(2, 4))
            model.train()
        backward(net, 2)
        each.step()
    assert equal(model.parameters(), reference.parameters())


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("in_eval_mode", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
        lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9),
        lambda model: backward(model, 4),
        lambda model: [param.grad.div_(2.0) for param in model.parameters() if param.grad is not None],
        lambda model: model.eval().train(),
    ],
    ids=["clipped", "not clipped", "accumulated", "divided", "switched"],
)
def test_gradients_taken_at_the_average_are_known_whatever_is_done_to_them(
    attach: bool, in_eval_mode: bool, change: Any
) -> None:
    model, optimizer = trained(ADAMW, attach=attach)
    switch = model if attach else optimizer
    optimizer.zero_grad()
    switch.eval()
    backward(model, 3)
    if in_eval_mode:
        change(model)
        switch.eval()
    switch.train()
    if not in_eval_mode:
        change(model)
    with pytest.raises(RuntimeError, match=r"was taken in eval mode.* call zero_grad"):
        optimizer.step()
    fit(model, optimizer, range(2))


def test_scaled_gradients_taken_at_the_average_are_known() -> None:
    model, optimizer = trained(ADAMW)
    scaler = torch.amp.GradScaler("cpu")
    optimizer.zero_grad()
    model.eval()
    scaler.scale(model(torch.ones(2, 4)).square().mean()).backward()
    model.train()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="was taken in eval mode"):
        scaler.step(optimizer)


def test_gradients_at_y_that_are_clipped_in_eval_mode_are_stepped_with() -> None:
    (model, optimizer), (reference, plain) = trained(ADAMW), trained(ADAMW, attach=False)
    for net, each in ((model, optimizer), (reference, plain)):
        each.zero_grad()
        backward(net, 1)
        if net is model:
            net.eval()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-2)
        net.train()
        each.step()
    assert equal(model.parameters(), reference.parameters())
    assert not any(param._post_accumulate_grad_hooks or param._backward_hooks for param in model.parameters())


def test_gradients_that_wait_while_a_state_is_loaded_are_no_error() -> None:
    model, optimizer = trained(ADAMW)
    backward(model, 1)
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    optimizer.step()


def test_gradients_at_the_average_that_were_zeroed_are_forgotten() -> None:
    model, optimizer = trained(ADAMW)
    model.eval()
    backward(model, 3)
    model.train()
    model.zero_grad(set_to_none=False)
    backward(model, 4)
    optimizer.step()


ADAMW = OptimizerInfo(AdamWScheduleFree, "adamw", 0.1, None, (), (), frozenset())
