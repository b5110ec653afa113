"""Models that copy, save or load themselves, and parts that come unseen: what comes out is x, and what goes in."""

import copy
import gc
import io
import pickle
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import copies, equal, includes, through_a_file, train
from torch import Tensor, nn

from unscheduled import AdamWScheduleFree, SGDScheduleFree

# Copies.


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.notes = ["of its own"]


class CopiesByFile(Plain):
    def __deepcopy__(self, memo: Any) -> Any:
        new = CopiesByFile()
        new.load_state_dict(self.state_dict())
        return new


class CopiesByHand(Plain):
    def __deepcopy__(self, memo: Any) -> Any:
        new = CopiesByHand()
        for own, other in zip(self.parameters(), new.parameters(), strict=True):
            other.data = own.data.clone()
        return new


def rebuilt(weights: dict[str, Tensor]) -> Any:
    new = Reduces()
    new.load_state_dict(weights)
    return new


class Reduces(Plain):
    def __reduce__(self) -> Any:
        return rebuilt, ({name: param.detach().clone() for name, param in self.named_parameters()},)


class ReducesByFile(Plain):
    def __reduce__(self) -> Any:
        return rebuilt, (dict(self.state_dict()),)


class HasState(Plain):
    def __getstate__(self) -> Any:
        return vars(self) | {"packed": {name: param.detach().clone() for name, param in self.named_parameters()}}

    def __setstate__(self, state: Any) -> None:
        packed = state.pop("packed")
        super().__setstate__(state)
        for name, param in self.named_parameters():
            assert torch.equal(param, packed[name])


class ReducesEx(Plain):
    def __reduce_ex__(self, protocol: Any) -> Any:
        return rebuilt, ({name: param.detach().clone() for name, param in self.named_parameters()},)


COPYING = [Plain, CopiesByFile, CopiesByHand, Reduces, ReducesByFile, HasState, ReducesEx]


def run_of(cls: Any, inside: bool = False) -> tuple[nn.Module, Any, Any]:
    """A model, or a part of one, of a class; the root; and its optimizer."""
    module = cls()
    root = nn.Sequential(nn.Linear(3, 3), module) if inside else module
    optimizer = AdamWScheduleFree(root.parameters(), lr=0.1).attach(root)
    train(optimizer, range(4))
    return module, root, optimizer


def average_of(module: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    return {name: optimizer.iterates(param).x for name, param in module.named_parameters()}


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "a file": lambda module: through_a_file(module, weights_only=False),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("what", ["the model", "a part by itself", "a part within the model", "in a list"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", COPYING)
def test_copies_hold_the_average_whatever_their_class_does(cls: Any, way: str, what: str, training: bool) -> None:
    module, root, optimizer = run_of(cls, inside="part" in what)
    x, y = average_of(module, optimizer), copies(root.parameters())
    if not training or (cls is Plain and what == "a part by itself"):  # which is copied as it is
        root.eval()
    if what == "in a list":
        copied = WAYS[way]([module])[0]
    elif what == "a part within the model":
        copied = WAYS[way](root)[1]
    else:
        copied = WAYS[way](module)
    assert includes(dict(copied.named_parameters()), x)
    assert not any(issubclass(type(each), type(module)) and type(each) is not cls for each in copied.modules())
    assert type(copied) in (cls, Reduces)
    copied.eval()
    root.train()
    assert equal(root.parameters(), y)
    train(optimizer, range(4, 6))
    assert includes(root.state_dict(), {name: optimizer.iterates(param).x for name, param in root.named_parameters()})


def test_a_copy_between_forward_and_backward_of_a_class_without_ways_of_its_own_is_harmless() -> None:
    module, _, _ = run_of(Plain)
    loss = module.inner(torch.ones(3)).sum()
    copy.deepcopy(module)
    loss.backward()


class Labelled(nn.Parameter):
    """A class of parameters, which others may be told by."""


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("way", WAYS)
def test_copies_keep_the_class_of_parameters_and_the_notes_on_them(way: str, training: bool) -> None:
    model = nn.Linear(3, 3)
    model.weight = Labelled(torch.ones(3, 3))
    model.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    model.weight._no_weight_decay = True
    model.bias.tags = ["bias", {"of": model.weight}]
    model.frozen.note = "frozen"
    optimizer = AdamWScheduleFree([model.weight, model.bias], lr=0.1).attach(model)
    train(optimizer, range(4))
    x = average_of(nn.ParameterDict({"weight": model.weight, "bias": model.bias}), optimizer)
    model.train(training)
    copied = WAYS[way](model)
    assert type(copied.weight) is (Labelled if way == "deepcopy" else nn.Parameter)  # torch pickles none of others
    assert isinstance(copied.bias, nn.Parameter)
    assert copied.weight._no_weight_decay is True
    assert copied.frozen.note == "frozen"
    assert copied.bias.tags[0] == "bias"
    assert copied.bias.tags[1]["of"] is copied.weight
    assert not hasattr(model.frozen, "_no_weight_decay")
    assert includes(dict(copied.named_parameters()), x)
    assert [param.requires_grad for param in copied.parameters()] == [True, True, False]


def test_a_note_that_names_the_model_is_that_of_the_copy() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].weight.owner = model
    AdamWScheduleFree(model.parameters()).attach(model)
    copied = copy.deepcopy(model)
    assert copied[0].weight.owner is copied


@pytest.mark.parametrize("cls", [Plain, HasState, CopiesByHand])
def test_a_shallow_copy_shares_the_parameters_and_the_optimizer(cls: Any) -> None:
    module, _, optimizer = run_of(cls)
    x, y = average_of(module, optimizer), copies(module.parameters())
    shallow = copy.copy(module)
    assert shallow.inner is module.inner
    assert shallow.inner.weight is module.inner.weight
    assert includes(shallow.state_dict(), x)
    shallow.eval()
    assert includes(dict(module.named_parameters()), x)
    shallow.train()
    assert equal(module.parameters(), y)
    module.eval()
    assert includes(dict(shallow.named_parameters()), x)
    module.train()
    deep = copy.deepcopy(shallow)
    assert type(deep) is cls
    assert includes(dict(deep.named_parameters()), x)
    assert includes(module.state_dict(), x)
    optimizer.detach()
    shallow.eval()
    assert equal(module.parameters(), y)
    assert type(copy.deepcopy(shallow)) is cls


# Files.


class SavesByHand(Plain):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {"w": self.inner.weight.detach().clone(), "all": [param.detach().clone() for param in self.parameters()]}


class SavesItsMemory(Plain):
    """What is saved is the parameter's own memory, which holds y again later."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict(w=self.inner.weight.data, all=[self.inner.weight.detach(), self.inner.bias])


class SavesNarrow(Plain):
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "packed"] = self.inner.weight.detach().to(torch.float64) * 2


class SavesThroughSuper(Plain):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        found = super().state_dict(*args, **kwargs)
        found[kwargs.get("prefix", "") + "sum"] = self.inner.weight.detach().sum()
        return found


SAVING = [SavesByHand, SavesItsMemory, SavesNarrow, SavesThroughSuper]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("inside", [True, False], ids=["a part", "the model"])
@pytest.mark.parametrize("cls", SAVING)
def test_files_hold_the_average_whatever_their_class_does(cls: Any, inside: bool, training: bool) -> None:
    module, root, optimizer = run_of(cls, inside and cls in (SavesNarrow, SavesThroughSuper))
    with optimizer.averaged_parameters():
        expected = through_a_file(cls.state_dict(module))
    y = copies(root.parameters())
    root.train(training)
    saved = [module.state_dict()]
    if root is not module:
        whole = root.state_dict()
        saved.append({name.removeprefix("1."): value for name, value in whole.items() if name.startswith("1.")})
    root.train()
    train(optimizer, range(4, 5))  # what was saved stays what it was
    for each in saved:
        assert each.keys() == expected.keys()
        assert equal(flat(each), flat(expected))
    assert not equal(root.parameters(), y)


def flat(value: Any) -> list[Tensor]:
    entries = value.values() if isinstance(value, dict) else value
    return [each for entry in entries for each in (flat(entry) if isinstance(entry, (dict, list)) else [entry])]


def test_keep_vars_gives_the_parameters_themselves() -> None:
    module, _, _ = run_of(SavesThroughSuper)
    assert module.state_dict(keep_vars=True)["inner.weight"] is module.inner.weight


def test_one_own_state_dict_of_a_part_alone_is_the_average() -> None:
    """Though the model is not asked, whose hooks would be called."""
    module, root, optimizer = run_of(SavesByHand, inside=True)
    x = average_of(module, optimizer)
    assert torch.equal(module.state_dict()["w"], x["inner.weight"])
    optimizer.detach()
    assert type(module) is SavesByHand
    assert type(root) is nn.Sequential
    assert torch.equal(module.state_dict()["w"], module.inner.weight)


# Loading.


class LoadsByHand(Plain):
    def load_state_dict(self, state: Any, strict: bool = True) -> Any:
        with torch.no_grad():
            for name, param in self.named_parameters():
                param.copy_(state[name])


class LoadsData(Plain):
    def load_state_dict(self, state: Any, strict: bool = True) -> Any:
        for name, param in self.named_parameters():
            param.data = state[name].clone()


class LoadsInPlace(Plain):
    def load_state_dict(self, state: Any, strict: bool = True) -> Any:
        for name, param in self.named_parameters():
            param.data.copy_(state[name])


class LoadsThroughSuper(Plain):
    """It doubles what it has read."""

    def load_state_dict(self, state: Any, strict: bool = True) -> Any:
        found = super().load_state_dict({name: value / 2 for name, value in state.items()}, strict)
        for param in self.parameters():
            param.data.mul_(2)
        return found


LOADING = [LoadsByHand, LoadsData, LoadsInPlace, LoadsThroughSuper]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("inside", [True, False], ids=["a part", "the model"])
@pytest.mark.parametrize("cls", LOADING)
def test_what_is_loaded_is_the_average_whatever_the_class_does(cls: Any, inside: bool, training: bool) -> None:
    module, root, optimizer = run_of(cls, inside)
    loaded = {name: torch.randn_like(param) for name, param in module.named_parameters()}
    gaps = {name: optimizer.state[param]["gap"].clone() for name, param in module.named_parameters()}
    root.train(training)
    module.load_state_dict(loaded)
    assert includes(module.state_dict(), loaded)
    for name, param in module.named_parameters():
        assert torch.equal(optimizer.iterates(param).x, loaded[name])
        torch.testing.assert_close(optimizer.iterates(param).z - loaded[name], gaps[name], rtol=1e-4, atol=1e-6)
    assert optimizer.training is training
    root.train()
    for name, param in module.named_parameters():
        torch.testing.assert_close(param.detach(), loaded[name] + 0.1 * gaps[name])
    root.eval()
    assert includes(dict(module.named_parameters()), loaded)


@pytest.mark.parametrize("cls", LOADING)
def test_a_checkpoint_resumes_bit_for_bit_whatever_the_class_does(cls: Any) -> None:
    module, _, optimizer = run_of(cls)
    weights, state = through_a_file(dict(module.state_dict())), through_a_file(optimizer.state_dict())
    for model_first in (True, False):
        other = cls()
        resumed = AdamWScheduleFree(other.parameters()).attach(other)
        for load_model in (model_first, not model_first):
            if load_model:
                other.load_state_dict(weights)
            else:
                resumed.load_state_dict(state)
        if cls is not LoadsThroughSuper or model_first:  # it halves and doubles, which is exact
            assert equal(other.parameters(), module.parameters())


def test_a_load_that_fails_midway_takes_what_was_written() -> None:
    class Fails(LoadsByHand):
        def load_state_dict(self, state: Any, strict: bool = True) -> Any:
            with torch.no_grad():
                self.inner.weight.copy_(state["inner.weight"])
            raise KeyError("inner.bias")

    module, _, optimizer = run_of(Fails)
    x = average_of(module, optimizer)
    with pytest.raises(KeyError):
        module.load_state_dict({"inner.weight": torch.zeros(3, 3)})
    assert includes(module.state_dict(), {"inner.weight": torch.zeros(3, 3), "inner.bias": x["inner.bias"]})
    assert optimizer.training
    train(optimizer, range(4, 6))


# Modules that come unseen.


def insert(model: nn.Sequential, part: nn.Module) -> None:
    model.insert(1, part)


def put_into_modules(model: nn.Sequential, part: nn.Module) -> None:
    model._modules["late"] = part


def into_a_list_of_it(model: nn.Sequential, part: nn.Module) -> None:
    model[0].layers.insert(0, part)


def over_another(model: nn.Sequential, part: nn.Module) -> None:
    model[0]._modules["deep"] = nn.Sequential(part)


UNSEEN = [insert, put_into_modules, into_a_list_of_it, over_another]


def grown(how: Callable[[nn.Sequential, nn.Module], None]) -> tuple[nn.Sequential, nn.Linear, SGDScheduleFree]:
    model, part = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 3)
    model[0].layers = nn.ModuleList([nn.Linear(3, 3)])
    optimizer = SGDScheduleFree([*model.parameters(), *part.parameters()], lr=0.5).attach(model)
    how(model, part)
    train(optimizer, range(4))
    return model, part, optimizer


@pytest.mark.parametrize("how", UNSEEN)
def test_modules_that_come_unseen_are_saved_at_the_average(how: Any) -> None:
    model, part, optimizer = grown(how)
    x = average_of(model, optimizer)
    assert includes(model.state_dict(), x)
    assert equal(part.state_dict().values(), [x for x, _, _ in map(optimizer.iterates, part.parameters())])
    model, part, optimizer = grown(how)
    assert includes(dict(copy.deepcopy(model).named_parameters()), average_of(model, optimizer))


@pytest.mark.parametrize("how", UNSEEN)
def test_modules_that_come_unseen_are_switched_and_loaded(how: Any) -> None:
    model, part, optimizer = grown(how)
    y, x = copies(model.parameters()), average_of(model, optimizer)
    model.eval()
    assert includes(dict(model.named_parameters()), x)
    assert equal(part.state_dict().values(), part.parameters())
    model.train()
    assert equal(model.parameters(), y)
    model, part, optimizer = grown(how)
    loaded = {name: torch.randn_like(param) for name, param in model.named_parameters()}
    model.load_state_dict(loaded)
    assert includes(model.state_dict(), loaded)
    assert optimizer.training
    model.eval()
    assert includes(dict(model.named_parameters()), loaded)


def test_a_file_written_whole_and_read_elsewhere_is_a_plain_model() -> None:
    module, _, optimizer = run_of(HasState, inside=True)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert type(read) is HasState
    assert includes(dict(read.named_parameters()), average_of(module, optimizer))


# What was found by trying to break it.


CONTAINERS: dict[str, Callable[[Any, Any], Any]] = {
    "the optimizer first": lambda model, optimizer: copy.deepcopy({"optimizer": optimizer, "model": model})["model"],
    "a part first": lambda model, _: copy.deepcopy([model[0], model])[1],
    "the parameters first": lambda model, _: copy.deepcopy([list(model.parameters()), model])[1],
    "the model first": lambda model, optimizer: copy.deepcopy({"model": model, "optimizer": optimizer})["model"],
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CONTAINERS)
def test_a_copy_holds_the_average_whatever_was_copied_before_it(case: str, training: bool) -> None:
    module, root, optimizer = run_of(Plain, inside=True)
    x = average_of(root, optimizer)
    root.train(training)
    assert includes(dict(CONTAINERS[case](root, optimizer).named_parameters()), x)
    assert module is root[1]


def test_a_copy_that_shares_a_parameter_leaves_it_alone() -> None:
    module, _, _ = run_of(Plain)
    y = copies(module.parameters())
    weight = module.inner.weight
    assert copy.deepcopy(module, {id(weight): weight}).inner.weight is weight
    assert equal(module.parameters(), y)


def test_model_and_optimizer_copied_together_in_any_order_go_on_bit_for_bit() -> None:
    module, _, optimizer = run_of(Plain)
    other, net = copy.deepcopy((optimizer, module))
    other.attach(net)
    for each in (optimizer, other):
        train(each, range(4, 7))
    assert equal(net.parameters(), module.parameters())


class Transposed(nn.Linear):
    """What stands in its files under the name of its weight is another tensor."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = destination[prefix + "weight"].t().contiguous()

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        state[prefix + "weight"] = state[prefix + "weight"].t()
        super()._load_from_state_dict(state, prefix, *args)


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"quantized": (self.weight * 127).round()}

    def set_extra_state(self, state: Any) -> None:
        pass


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_what_a_class_makes_of_its_weights_is_that_of_the_average(training: bool) -> None:
    model = nn.Sequential(Transposed(4, 4), Extra(4, 4))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(optimizer, range(4))
    x = average_of(model, optimizer)
    model.train(training)
    saved = model.state_dict()
    assert torch.equal(saved["0.weight"], x["0.weight"].t())
    assert torch.equal(saved["1._extra_state"]["quantized"], (x["1.weight"] * 127).round())
    y = copies(model.parameters())
    model.load_state_dict(saved)
    assert equal(model.parameters(), y)


class SavesATuple(Plain):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return (self.inner.weight.data, {"nested": (self.inner.bias.data, [self.inner.weight])}, None, "text")


def test_tuples_that_a_class_saves_are_copied_too() -> None:
    module, _, optimizer = run_of(SavesATuple)
    x = average_of(module, optimizer)
    weight, nested, nothing, text = module.state_dict()
    train(optimizer, range(4, 6))
    found = [weight, nested["nested"][0], nested["nested"][1][0]]
    assert equal(found, [x["inner.weight"], x["inner.bias"], x["inner.weight"]])
    assert (nothing, text) == (None, "text")


def test_a_note_that_cannot_be_copied_is_shared() -> None:
    module, _, _ = run_of(Plain)
    module.inner.weight.lock = threading.Lock()
    assert copy.deepcopy(module).inner.weight.lock is module.inner.weight.lock


def test_any_number_of_shallow_copies_save_the_average_and_are_forgotten() -> None:
    module, _, optimizer = run_of(Plain)
    x, count = average_of(module, optimizer), len(module._state_dict_hooks)
    shallow = [copy.copy(module) for _ in range(4)]
    assert all(includes(each.state_dict(), x) for each in (*shallow, *shallow))
    assert len(module._state_dict_hooks) == count
    references = [weakref.ref(each) for each in shallow]
    del shallow
    gc.collect()
    assert [reference() for reference in references] == [None] * 4


def test_parts_that_are_scripted_are_left_alone_or_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates its own
        scripted, late = torch.jit.script(nn.Linear(3, 3)), torch.jit.script(nn.Tanh())
    model = nn.Sequential(nn.Linear(3, 3), scripted)
    with pytest.raises(TypeError, match="1 in Sequential is scripted and has parameters of this optimizer"):
        AdamWScheduleFree(model.parameters()).attach(model)
    assert type(model) is nn.Sequential
    optimizer = AdamWScheduleFree(model[0].parameters(), lr=0.1).attach(model)
    model.append(late)
    train(optimizer, range(4))
    x, y = average_of(model[0], optimizer), copies(model[0].parameters())
    assert includes(model[0].state_dict(), x)
    model.eval()
    assert includes(dict(model[0].named_parameters()), x)
    model.train()
    assert equal(model[0].parameters(), y)


def test_modules_that_are_replaced_are_forgotten() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = AdamWScheduleFree(model[0].parameters(), lr=0.1).attach(model)
    train(optimizer, range(2))
    references = []
    for _ in range(3):
        references.append(weakref.ref(model[1]))
        model[1] = HasState()
        model.eval()
        model.train()
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_many_parts_with_ways_of_their_own_are_saved_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would put x into all parameters, and look at all of them."""
    model = nn.Sequential(*(SavesNarrow() for _ in range(12)))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
    train(optimizer, range(2))
    puts: list[Any] = []
    switch = optimizer._weights.switch

    def counted(averaged: set[Any], entries: list[Any]) -> None:
        puts.append(averaged)
        switch(averaged, entries)

    monkeypatch.setattr(optimizer._weights, "switch", counted)
    model.state_dict()
    assert len(puts) == 2
