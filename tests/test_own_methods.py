"""Models that copy, save or load themselves, and parts that come unseen: what comes out is x, and what goes in."""

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import same, through_a_file
from problems import copies, equal, train
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
    assert same(dict(copied.named_parameters()), x)
    assert not any(issubclass(type(each), type(module)) and type(each) is not cls for each in copied.modules())
    assert type(copied) in (cls, Reduces)
    copied.eval()
    root.train()
    assert equal(root.parameters(), y)
    train(optimizer, range(4, 6))
    assert same(root.state_dict(), {name: optimizer.iterates(param).x for name, param in root.named_parameters()})


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
    assert same(dict(copied.named_parameters()), x)
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
    assert same(shallow.state_dict(), x)
    shallow.eval()
    assert same(dict(module.named_parameters()), x)
    shallow.train()
    assert equal(module.parameters(), y)
    module.eval()
    assert same(dict(shallow.named_parameters()), x)
    module.train()
    deep = copy.deepcopy(shallow)
    assert type(deep) is cls
    assert same(dict(deep.named_parameters()), x)
    assert same(module.state_dict(), x)
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
    assert same(module.state_dict(), loaded)
    for name, param in module.named_parameters():
        assert torch.equal(optimizer.iterates(param).x, loaded[name])
        torch.testing.assert_close(optimizer.iterates(param).z - loaded[name], gaps[name], rtol=1e-4, atol=1e-6)
    assert optimizer.training is training
    root.train()
    for name, param in module.named_parameters():
        torch.testing.assert_close(param.detach(), loaded[name] + 0.1 * gaps[name])
    root.eval()
    assert same(dict(module.named_parameters()), loaded)


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
    assert same(module.state_dict(), {"inner.weight": torch.zeros(3, 3), "inner.bias": x["inner.bias"]})
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
    assert same(model.state_dict(), x)
    assert equal(part.state_dict().values(), [x for x, _, _ in map(optimizer.iterates, part.parameters())])
    model, part, optimizer = grown(how)
    assert same(dict(copy.deepcopy(model).named_parameters()), average_of(model, optimizer))


@pytest.mark.parametrize("how", UNSEEN)
def test_modules_that_come_unseen_are_switched_and_loaded(how: Any) -> None:
    model, part, optimizer = grown(how)
    y, x = copies(model.parameters()), average_of(model, optimizer)
    model.eval()
    assert same(dict(model.named_parameters()), x)
    assert equal(part.state_dict().values(), part.parameters())
    model.train()
    assert equal(model.parameters(), y)
    model, part, optimizer = grown(how)
    loaded = {name: torch.randn_like(param) for name, param in model.named_parameters()}
    model.load_state_dict(loaded)
    assert same(model.state_dict(), loaded)
    assert optimizer.training
    model.eval()
    assert same(dict(model.named_parameters()), loaded)


def test_a_file_written_whole_and_read_elsewhere_is_a_plain_model() -> None:
    module, _, optimizer = run_of(HasState, inside=True)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert type(read) is HasState
    assert same(dict(read.named_parameters()), average_of(module, optimizer))
