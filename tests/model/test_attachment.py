"""The model's own life cycle is enough: whatever is done to it, the right weights are in it and come out of it."""

import copy
import itertools
import pickle
import warnings
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import torch
from models import ADAMW, Net, at_average, backward, fit, trained
from problems import copies, equal, includes, through_a_file, train
from registry import OptimizerInfo, optimizers
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, SGDScheduleFree, averaged_state_dict
from unscheduled.optimizer import weights

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
        assert includes(dict(model.named_parameters()), {name: x[name] for name, _ in model.named_parameters()})
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


@pytest.mark.parametrize("hooked", [False, True])
def test_a_step_while_the_model_is_in_eval_mode_warns(hooked: bool) -> None:
    model, optimizer = trained(ADAMW)
    if hooked:
        optimizer.register_step_pre_hook(lambda *_: None)
    model.eval()
    optimizer.train()
    backward(model, 0)
    with pytest.warns(UserWarning, match=r"the attached model is in eval mode.* call model.train\(\)") as said:
        optimizer.step()
    assert [warning.filename for warning in said] == [__file__]


def test_a_flag_that_could_not_be_followed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained(ADAMW)
    y = copies(model.parameters())
    with monkeypatch.context() as patch:
        patch.setattr(weights, "put_averages", lambda *_: pytest.fail("out of memory"))
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
    assert includes(dict(model.named_parameters()), {"first.bias": x["first.bias"], "second.bias": x["second.bias"]})


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
    assert includes(dict(model.named_parameters()), {"first.weight": x["first.weight"], "first.bias": x["first.bias"]})
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


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("training", [True, False])
def test_state_dict_gives_the_average_in_either_mode(info: OptimizerInfo, training: bool) -> None:
    model, optimizer = trained(info)
    x, y = at_average(model, optimizer), copies(model.parameters())
    model.train(training)
    present = copies(model.parameters())
    saved = model.state_dict()
    assert list(saved) == list(Net().state_dict())
    assert includes(saved, x)
    assert saved["first.weight"].data_ptr() == saved["second.weight"].data_ptr()
    assert not any(value.requires_grad for value in saved.values())
    assert includes(model.second.state_dict(prefix="second."), {"second.bias": x["second.bias"]})
    assert includes(nn.Sequential(model).state_dict(), {f"0.{name}": value for name, value in x.items()})
    assert includes(
        through_a_file(torch.compile(model, backend="eager").state_dict()), {"_orig_mod.frozen": x["frozen"]}
    )
    assert includes(averaged_state_dict(model, optimizer), x)
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
    assert includes(saved, {name: value for name, value in x.items() if name != "frozen"})


@pytest.mark.parametrize("training", [True, False])
def test_safetensors_takes_tied_weights(training: bool, tmp_path: Path) -> None:
    model, optimizer = trained(ADAMW)
    x = at_average(model, optimizer)
    model.train(training)
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    again = Net()
    safetensors.torch.load_model(again, tmp_path / "model.safetensors")
    assert includes(dict(again.named_parameters(remove_duplicate=False)), x)


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
    with pytest.warns(UserWarning, match=r"parameters of the optimizer \(2, from 1.weight on\) are no longer"):
        getattr(model, notice)()
    model.train()
    model.eval()
    model.state_dict()


@pytest.mark.parametrize("closure", [False, True])
def test_a_first_step_without_gradients_tells_of_parameters_that_are_others(closure: bool) -> None:
    """As after sharding a model that was attached before."""
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    model[0] = nn.Linear(4, 4)

    def loss() -> torch.Tensor:
        (value := model(torch.ones(4)).sum()).backward()
        return value

    with pytest.warns(UserWarning, match=r"parameters of the optimizer \(2, from 0.weight on\) are no longer"):
        optimizer.step(loss) if closure else (loss(), optimizer.step())
    optimizer.step()  # it is said once


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


# Copies.


@pytest.mark.covering(2)
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
    assert includes(dict(copied.named_parameters(remove_duplicate=False)), x)
    assert copied.first.weight is copied.second.weight
    assert not copied.frozen.requires_grad
    assert not any(module._state_dict_hooks or module._load_state_dict_pre_hooks for module in copied.modules())
    copied.eval()
    assert optimizer.training is training
    model.train()
    assert equal(model.parameters(), y)
    assert model.state_dict().keys() == copied.state_dict().keys()
    assert includes(model.state_dict(), x)


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
        assert includes(dict(copied.named_parameters()), x)
        copied.eval()
        assert optimizer.training
    with pytest.raises(
        RuntimeError, match="Serialization of parametrized modules is only supported through state_dict"
    ):
        pickle.dumps(model)
    model.eval()
    assert includes(dict(model.named_parameters()), x)


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
    assert includes(wrapper[0].state_dict(), at_average(model, optimizer))


def test_an_optimizer_that_was_pickled_with_its_model_says_that_it_trains_nothing() -> None:
    """The model comes out as a plain one at x, with parameters of its own."""
    pair = trained(ADAMW)
    model, optimizer = pickle.loads(pickle.dumps(pair))
    backward(model, 6)
    with pytest.raises(RuntimeError, match="no parameter of this optimizer has a gradient: it was copied from one"):
        optimizer.step()
    again = AdamWScheduleFree(model.parameters()).attach(model)
    again.load_state_dict(optimizer.state_dict())
    fit(*pair, range(2))
    fit(model, again, range(2))
    assert includes(dict(model.named_parameters()), dict(pair[0].named_parameters()))


def test_a_deep_copy_of_a_model_and_its_optimizer_trains_on() -> None:
    pair = trained(ADAMW)
    model, optimizer = copy.deepcopy(pair)
    optimizer.attach(model).zero_grad()
    optimizer.step()  # without any gradient, as ever
    fit(model, optimizer, range(2))
    pair[1].zero_grad()
    pair[1].step()
    fit(*pair, range(2))
    assert equal(model.parameters(), pair[0].parameters())


def test_a_copy_whose_parameters_had_gradients_once_may_step_without_any() -> None:
    model, optimizer = copy.deepcopy(trained(ADAMW))
    optimizer.train()
    fit(model, optimizer, range(1))
    optimizer.zero_grad()
    before = copies(model.parameters())
    optimizer.step()
    assert equal(model.parameters(), before)


def test_a_model_saved_whole_is_at_the_average() -> None:
    model, optimizer = trained(ADAMW)
    assert includes(through_a_file(model, weights_only=False).state_dict(), at_average(model, optimizer))


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
    assert includes(dict(model.named_parameters()), {"first.bias": x["first.bias"]})
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
    with pytest.raises(TypeError, match=r"takes the torch.nn.Module that has the parameters, but got"):
        AdamWScheduleFree(nn.Linear(2, 2).parameters()).attach(wrong)


def test_attaching_to_another_model_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Linear holds none of this optimizer's parameters"):
        AdamWScheduleFree(nn.Linear(2, 2).parameters()).attach(model)
    assert type(model) is nn.Linear
