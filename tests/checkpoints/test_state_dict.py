"""Saving and loading: bit for bit in either mode, and nothing is changed by what does not fit."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from problems import copies, equal, make_params, through_a_file, train
from registry import OPTIMIZERS, OptimizerInfo, configurations, optimizers
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.nn import Parameter

from unscheduled import (
    AdamWScheduleFree,
    AnnealedInterpolation,
    ExponentialAveraging,
    PolynomialAveraging,
    SGDScheduleFree,
)


@configurations
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model_first", [True, False])
def test_resume_is_bit_exact(info: OptimizerInfo, configuration: Any, training: bool, model_first: bool) -> None:
    uninterrupted = make_params()
    optimizer = info.make(uninterrupted, **configuration.arguments)
    train(optimizer, range(10))
    optimizer.train(training)
    weights, state = through_a_file([param.data for param in uninterrupted]), through_a_file(optimizer.state_dict())

    resumed_params = [Parameter(torch.zeros_like(param)) for param in uninterrupted]
    resumed = info.make(resumed_params, **configuration.arguments)
    for load_model in (model_first, not model_first):
        if load_model:
            for param, weight in zip(resumed_params, weights, strict=True):
                param.data.copy_(weight)
        else:
            resumed.load_state_dict(state)
    assert resumed.training == training
    assert equal(resumed_params, uninterrupted)
    for each in (optimizer, resumed):
        each.train()
    assert equal(resumed_params, uninterrupted)
    for each in (optimizer, resumed):
        train(each, range(10, 20))
        each.eval()
    assert equal(resumed_params, uninterrupted)


@optimizers
def test_a_checkpoint_made_while_evaluating_costs_nothing(info: OptimizerInfo) -> None:
    """Saving in eval mode and going on is going on."""
    params, plain = make_params(), make_params()
    optimizer, reference = info.make(params), info.make(plain)
    for step in range(10):
        train(optimizer, [step])
        train(reference, [step])
        optimizer.eval()
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        optimizer.train()
    assert equal(params, plain)


@optimizers
def test_loaded_with_other_weights_they_become_the_average(info: OptimizerInfo) -> None:
    params = make_params(dtype=torch.float64)
    optimizer = info.make(params)
    train(optimizer, range(10))
    state = optimizer.eval().state_dict()
    others = [Parameter(torch.randn_like(param)) for param in params]
    expected = copies(others)
    resumed = info.make(others)
    resumed.load_state_dict(state)
    resumed.train()
    for param, x in zip(others, expected, strict=True):
        torch.testing.assert_close(resumed.iterates(param).x, x, rtol=1e-14, atol=1e-15)


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_stays_float32_under_narrow_parameters(info: OptimizerInfo, dtype: torch.dtype) -> None:
    params = make_params(dtype=dtype)
    optimizer = info.make(params)
    train(optimizer, range(10))
    loaded = info.make(params)
    loaded.load_state_dict(through_a_file(optimizer.eval().state_dict()))
    for param in params:
        for name in info.buffers_of(param):
            assert loaded.state[param][name].dtype == torch.float32
            assert torch.equal(loaded.state[param][name], optimizer.state[param][name])
        assert loaded.state[param]["y"].dtype == torch.float32


@optimizers
def test_the_file_holds_what_the_documentation_says(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params)
    train(optimizer, range(3))
    assert set(optimizer.state_dict()["state"][0]) == info.buffers | {"step", "y"}
    assert torch.equal(optimizer.state_dict()["state"][0]["y"], params[0])
    assert set(optimizer.eval().state_dict()["state"][0]) == info.buffers | {"step", "y"}
    assert optimizer.state_dict()["param_groups"][0]["training"] is False


@optimizers
def test_loading_does_not_share_memory_with_the_state_dict(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params)
    train(optimizer, range(3))
    state = optimizer.state_dict()
    twin = info.make(make_params())
    twin.load_state_dict(state)
    bits = copy.deepcopy(state)
    train(twin, range(3, 6))
    assert torch.equal(state["state"][0]["gap"], bits["state"][0]["gap"])


@optimizers
def test_hooks_of_users_see_a_whole_optimizer(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params)
    train(optimizer, range(3))
    seen = []
    loaded = info.make(make_params())
    loaded.register_load_state_dict_pre_hook(lambda _, state_dict: state_dict["inner"])
    loaded.register_load_state_dict_post_hook(lambda self: seen.append(len(self.state)))
    loaded.load_state_dict({"inner": optimizer.state_dict()})
    assert seen == [len(params)]


def test_numbers_of_the_groups_come_from_the_file() -> None:
    """As in torch: lr, betas and the powers of the averaging; a scheduler's own entries stay."""
    optimizer = AdamWScheduleFree(make_params(), lr=0.5, betas=(0.8, 0.9), r=2.0)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    other = AdamWScheduleFree(make_params(), lr=0.1)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    (group,) = other.param_groups
    assert (group["lr"], group["betas"], group["initial_lr"]) == (0.5, (0.8, 0.9), 0.5)
    assert group["averaging"] == PolynomialAveraging(r=2.0)


def test_resume_in_a_new_process(tmp_path: Path) -> None:
    runs = {info.desc: info.make(make_params()) for info in OPTIMIZERS}
    saved: dict[str, Any] = {}
    for name, optimizer in runs.items():
        train(optimizer, range(10))
        weights = copies(optimizer.eval().param_groups[0]["params"])
        saved[name] = {"params": weights, "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "checkpoints")
    script = """
import torch, unscheduled
from problems import copies, train
results = {}
for name, checkpoint in torch.load("checkpoints", weights_only=True).items():
    params = [torch.nn.Parameter(param) for param in checkpoint["params"]]
    optimizer = getattr(unscheduled, name)(params)
    optimizer.load_state_dict(checkpoint["optimizer"])
    train(optimizer.train(), range(10, 15))
    results[name] = copies(params)
torch.save(results, "results")
"""
    environment = {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    results = torch.load(tmp_path / "results", weights_only=True)
    for name, optimizer in runs.items():
        train(optimizer.train(), range(10, 15))
        assert equal(results[name], optimizer.param_groups[0]["params"]), name


MODEL = {"embedding": (5, 2), "hidden": (4, 3), "head": (3, 4)}


def named(shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, Parameter]]:
    return [(name, Parameter(torch.ones(shape))) for name, shape in shapes.items()]


def reshape_buffer(name: str) -> Any:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        state["state"][1][name] = state["state"][1][name].reshape(3, 4)
        return state

    return change


def spoil(name: str, value: Any) -> Any:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        state["param_groups"][0][name] = value
        return state

    return change


def drop_gap(state: dict[str, Any]) -> dict[str, Any]:
    del state["state"][1]["gap"]
    return state


@pytest.mark.parametrize(
    ("shapes", "change", "match"),
    [
        (
            MODEL | {"extra": (1,)},
            lambda s: s,
            r"of other parameters: it has extra, which this optimizer does not have",
        ),
        (
            {"embedding": (5, 2), "hidden": (4, 3)},
            lambda s: s,
            r"of other parameters: it has no head, which this optimizer has",
        ),
        (MODEL | {"hidden": (9, 3)}, lambda s: s, r"'gap' of shape \(9, 3\) for hidden \(shape \(4, 3\)\)"),
        (
            MODEL,
            drop_gap,
            r"\['exp_avg_sq', 'step'\] for hidden .*, this optimizer keeps \['exp_avg_sq', 'gap', 'step'\]",
        ),
        (MODEL, reshape_buffer("exp_avg_sq"), r"'exp_avg_sq' of shape \(3, 4\) for hidden \(shape \(4, 3\)\)"),
        (MODEL, reshape_buffer("y"), r"'y' of shape \(3, 4\) for hidden \(shape \(4, 3\)\)"),
        (MODEL, spoil("lr", float("nan")), r"parameter group 0: lr = nan is outside \[0, inf\)"),
        (MODEL, spoil("beta", 7.0), r"parameter group 0: beta = 7\.0 is outside \[0, 1\]"),
        (
            MODEL,
            spoil("weight_sum", float("nan")),
            r"weight_sum = nan is outside \[0, inf\): the state dict is damaged",
        ),
        (MODEL, spoil("step", -3), r"step = -3 is no integer >= 0"),
    ],
    ids=["more", "fewer", "shape", "buffer", "square", "y", "lr", "beta", "sum", "step"],
)
def test_a_state_dict_of_other_parameters_is_refused(shapes: Any, change: Any, match: str) -> None:
    theirs = AdamWScheduleFree(named(shapes))
    train(theirs, range(3))
    refused(named(MODEL), change(theirs.eval().state_dict()), match)


def refused(params: list[tuple[str, Parameter]], state: dict[str, Any], match: str) -> None:
    """``state`` raises ValueError, and everything is as before."""
    optimizer = AdamWScheduleFree(params, lr=0.5)
    train(optimizer, range(3))
    weights, before = copies(param for _, param in params), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert optimizer.training
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(after["state"][i]["gap"], before["state"][i]["gap"]) for i in range(3))
    assert equal((param for _, param in params), weights)
    optimizer.load_state_dict(before)  # and a right one still loads


def age_averaging(state: dict[str, Any]) -> dict[str, Any]:
    """As a version with one field less, or with one more that is off, writes it."""
    arguments = state["param_groups"][0]["averaging"]["arguments"]
    del arguments["cooldown_start"]
    arguments["window"] = None
    return state


def test_a_state_dict_of_another_age_is_loaded() -> None:
    theirs = AdamWScheduleFree(named(MODEL))
    train(theirs, range(3))
    optimizer = AdamWScheduleFree(named(MODEL))
    optimizer.load_state_dict(age_averaging(theirs.eval().state_dict()))
    assert optimizer.param_groups[0]["averaging"] == theirs.param_groups[0]["averaging"]


def test_the_state_of_other_optimizers_is_refused() -> None:
    params = named(MODEL)
    plain = torch.optim.SGD(params)
    sgd = SGDScheduleFree(params)
    momentum = AdamWScheduleFree(params, inner_momentum=0.9)
    exponential = AdamWScheduleFree(params, averaging=ExponentialAveraging(0.1))
    annealed = AdamWScheduleFree(params, interpolation=AnnealedInterpolation(0.99, 10))
    for each in (sgd, momentum, exponential, annealed):
        train(each, range(2))
    refused(named(MODEL), {"model": {}}, r"not that of an optimizer: it has \['model'\]")
    refused(named(MODEL), plain.state_dict(), r"another kind of optimizer: parameter group 0 has no 'averaging'")
    refused(named(MODEL), sgd.state_dict(), r"parameter group 0: momentum = 0\.9 is unknown here: .* by another kind")
    refused(
        named(MODEL),
        exponential.state_dict(),
        r"made with averaging = ExponentialAveraging\(c\), .* PolynomialAveraging",
    )
    refused(named(MODEL), annealed.state_dict(), r"made with interpolation = AnnealedInterpolation")
    AdamWScheduleFree(named(MODEL)).load_state_dict(momentum.state_dict())  # a number of the group, so the file's holds


def test_another_number_of_groups_is_refused() -> None:
    split = [{"params": [param]} for _, param in named(MODEL)]
    with pytest.raises(ValueError, match=r"has 1 parameter groups, this optimizer has 3"):
        AdamWScheduleFree(split).load_state_dict(AdamWScheduleFree(named(MODEL)).state_dict())


def test_without_names_a_message_counts() -> None:
    with pytest.raises(ValueError, match=r"the first without a counterpart is parameter 1 of group 0 \(shape \(2,\)\)"):
        AdamWScheduleFree(make_params((3,), (2,))).load_state_dict(AdamWScheduleFree(make_params((3,))).state_dict())


def test_without_names_another_order_shows_in_the_shapes() -> None:
    theirs = AdamWScheduleFree(make_params((4, 3), (3, 4)))
    train(theirs, range(2))
    with pytest.raises(
        ValueError, match=r"'.*' of shape \(4, 3\) for parameter 0 of group 0 \(shape \(3, 4\)\).* order"
    ):
        AdamWScheduleFree(make_params((3, 4), (4, 3))).load_state_dict(theirs.state_dict())


def test_a_step_kept_as_a_tensor_is_a_number() -> None:
    """As torch's own optimizers keep it, and some savers turn it into."""
    optimizer = AdamWScheduleFree(make_params())
    train(optimizer, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["step"] = torch.tensor(3.0)
    optimizer.load_state_dict(state)
    train(optimizer, [3])
    assert [each["step"] for each in optimizer.state.values()] == [4, 4]


@optimizers
def test_hooks_of_users_see_and_may_replace_a_whole_state_dict(info: OptimizerInfo) -> None:
    optimizer = info.make(make_params())
    train(optimizer, range(3))
    seen = []

    def wrap(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        seen.append(through_a_file(state_dict))
        return {"inner": state_dict}

    optimizer.register_state_dict_post_hook(wrap)
    wrapped = optimizer.state_dict()
    assert set(wrapped) == {"inner"}
    info.make(make_params()).load_state_dict(seen[0])


@optimizers
def test_state_goes_to_the_device_of_the_parameters(info: OptimizerInfo) -> None:
    optimizer = info.make(make_params())
    train(optimizer, range(3))
    elsewhere = [Parameter(torch.empty_like(param, device="meta")) for param in make_params()]
    loaded = info.make(elsewhere)
    loaded.load_state_dict(optimizer.eval().state_dict())
    for param in elsewhere:
        assert {loaded.state[param][name].device.type for name in (*info.buffers_of(param), "y")} == {"meta"}


@optimizers
def test_dcp_carries_the_mode_of_a_checkpoint_made_in_eval_mode(info: OptimizerInfo) -> None:
    """Flattened or not, into a fresh optimizer in train mode: weights saved at x are not trained as y."""
    for flat in (False, True) if info.flattens else (False,):
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        model, other = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
        optimizer, resumed = info.make(model.parameters()), info.make(other.parameters())
        train(optimizer, range(10))
        optimizer.eval()
        saved = get_optimizer_state_dict(model, optimizer, options=options)
        other.load_state_dict(model.state_dict())
        set_optimizer_state_dict(other, resumed, copy.deepcopy(saved), options=options)
        assert not resumed.training
        optimizer.train()
        resumed.train()
        torch.testing.assert_close(list(other.parameters()), list(model.parameters()), rtol=1e-6, atol=1e-7)


@optimizers
def test_dcp_restores_every_buffer_into_a_fresh_optimizer(info: OptimizerInfo) -> None:
    model, other = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    optimizer, resumed = info.make(model.parameters()), info.make(other.parameters())
    train(optimizer, range(10))
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, resumed, saved)
    train(optimizer, range(10, 15))
    train(resumed, range(10, 15))
    assert equal(other.parameters(), model.parameters())


def two_alike() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False))


def train_apart(models: list[torch.nn.Module], optimizer: AdamWScheduleFree, steps: range) -> None:
    """Step on other gradients for each parameter, also for those of one shape."""
    for step in steps:
        for index, param in enumerate(param for model in models for param in model.parameters()):
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(100 * step + index))
        optimizer.step()


def over(model: torch.nn.Module, kind: str, *, backwards: bool = False) -> AdamWScheduleFree:
    """An optimizer of a model's parameters, by their order, by their names or others, or attached to it."""
    params = [*model.named_parameters()][:: -1 if backwards else 1]
    called = {"named": params, "renamed": [(f"weight {name[0]}", param) for name, param in params]}
    optimizer = AdamWScheduleFree(called.get(kind, [param for _, param in params]), lr=0.1)
    return optimizer.attach(model) if kind == "attached" else optimizer


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("kind", ["plain", "named", "renamed", "attached"])
def test_dcp_finds_the_parameters_in_another_order(kind: str, flat: bool) -> None:
    """Two weights of one shape: nothing but their names tells them apart."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, other = two_alike(), two_alike()
    optimizer, resumed = over(model, kind), over(other, kind, backwards=True)
    train_apart([model], optimizer, range(4))
    weights, saved = copy.deepcopy(get_state_dict(model, optimizer, options=options))
    set_state_dict(other, resumed, model_state_dict=weights, optim_state_dict=saved, options=options)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert equal([optimizer.state[mine]["gap"]], [resumed.state[theirs]["gap"]])
        assert equal([optimizer.state[mine]["exp_avg_sq"]], [resumed.state[theirs]["exp_avg_sq"]])
    assert equal(model.parameters(), other.parameters())


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(("saved_by", "loaded_by"), [("plain", "attached"), ("attached", "plain")])
def test_dcp_files_are_the_same_attached_or_not(saved_by: str, loaded_by: str, flat: bool, tmp_path: Path) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, other = two_alike(), two_alike()
    optimizer, resumed = over(model, saved_by), over(other, loaded_by)
    train(optimizer, range(4))
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=tmp_path)
    weights, state = get_state_dict(other, resumed, options=options)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=tmp_path)
    set_state_dict(other, resumed, model_state_dict=weights, optim_state_dict=state, options=options)
    for each in (model, optimizer, other, resumed):
        each.train()
    for each in (optimizer, resumed):
        train(each, range(4, 8))
    assert equal(model.parameters(), other.parameters())


@pytest.mark.parametrize("kind", ["plain", "named", "attached"])
def test_dcp_gives_and_takes_full_state_dicts(kind: str) -> None:
    """It leaves out what is empty: the axes of the family have no arguments here."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, other = two_alike(), two_alike()
    optimizer, resumed = over(model, kind), over(other, kind)
    train(optimizer, range(4))
    weights, state = through_a_file(get_state_dict(model, optimizer, options=options))
    set_state_dict(other, resumed, model_state_dict=weights, optim_state_dict=state, options=options)
    for each in (optimizer, resumed):
        train(each, range(4, 8))
    assert equal(model.parameters(), other.parameters())


def test_the_names_of_the_parameters_stay_ours() -> None:
    """A compiled model has others, and an optimizer without names gets none."""
    saved = AdamWScheduleFree([(f"_orig_mod.{name}", param) for name, param in named(MODEL)]).state_dict()
    with_names, without = AdamWScheduleFree(named(MODEL)), AdamWScheduleFree([param for _, param in named(MODEL)])
    with_names.load_state_dict(saved)
    without.load_state_dict(saved)
    assert with_names.param_groups[0]["param_names"] == list(MODEL)
    assert "param_names" not in without.param_groups[0]


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("kind", ["named", "attached"])
def test_a_state_dict_of_dcp_given_to_the_optimizer_itself_finds_the_parameters_in_another_order(
    kind: str, full: bool
) -> None:
    model, other = two_alike(), two_alike()
    optimizer, resumed = over(model, kind), over(other, kind, backwards=True)
    train_apart([model], optimizer, range(4))
    weights = through_a_file(model.state_dict())
    state = through_a_file(get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=full)))
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert equal([optimizer.state[mine]["gap"]], [resumed.state[theirs]["gap"]])
    assert equal(model.parameters(), other.parameters())


@pytest.mark.parametrize("kind", ["plain", "named", "attached"])
@pytest.mark.parametrize("groups", [(1, 2), (2, 1)])
def test_flattened_files_of_dcp_go_into_another_number_of_groups(
    kind: str, groups: tuple[int, int], tmp_path: Path
) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    (model, optimizer), (other, resumed) = [in_groups(number, kind) for number in groups]
    train_apart([model], optimizer, range(4))
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=tmp_path)
    weights, state = get_state_dict(other, resumed, options=options)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=tmp_path)
    set_state_dict(other, resumed, model_state_dict=weights, optim_state_dict=state, options=options)
    train_apart([model], optimizer.train(), range(4, 8))
    train_apart([other], resumed.train(), range(4, 8))
    assert equal(model.parameters(), other.parameters())


def in_groups(number: int, kind: str) -> tuple[torch.nn.Module, AdamWScheduleFree]:
    model = two_alike()
    params = [*model.named_parameters()] if kind == "named" else [*model.parameters()]
    groups = [{"params": params}] if number == 1 else [{"params": [each]} for each in params]
    optimizer = AdamWScheduleFree(groups, lr=0.1)
    return model, optimizer.attach(model) if kind == "attached" else optimizer


@optimizers
def test_dcp_initialises_an_optimizer_in_eval_mode(info: OptimizerInfo) -> None:
    model = torch.nn.Linear(3, 2)
    before = copies(model.parameters())
    optimizer = info.make(model.parameters()).eval()
    assert set(get_optimizer_state_dict(model, optimizer)["state"]["weight"]) == info.buffers | {"step", "y"}
    assert not optimizer.training
    assert equal(optimizer.train().param_groups[0]["params"], before)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a nested dictionary or list."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, entry in entries for place in places(entry, (*path, key))]


DAMAGES = (None, "text", -1, float("nan"), [], {}, torch.zeros(9, 9, 9), torch.tensor(float("nan")))


@pytest.mark.parametrize("names", [True, False])
def test_a_damaged_state_dict_is_refused_or_harmless(names: bool) -> None:
    """Whatever entry is missing or replaced: a ValueError and nothing is changed, or it loads whole."""
    theirs = AdamWScheduleFree(named(MODEL) if names else make_params())
    train(theirs, range(3))
    whole = theirs.state_dict()
    optimizer = AdamWScheduleFree(named(MODEL) if names else make_params())
    train(optimizer, range(2))
    refused = 0
    for place in places(whole):
        for damage in (KeyError, *DAMAGES):
            damaged = copy.deepcopy(whole)
            inner = damaged
            for key in place[:-1]:
                inner = inner[key]
            if damage is KeyError:
                del inner[place[-1]]
            else:
                inner[place[-1]] = damage
            before = copy.deepcopy(optimizer.state_dict())
            weights = copies(param for group in optimizer.param_groups for param in group["params"])
            try:
                optimizer.load_state_dict(damaged)
            except ValueError:
                refused += 1
                assert str(optimizer.state_dict()) == str(before)
                assert equal((param for group in optimizer.param_groups for param in group["params"]), weights)
            else:
                train(optimizer.train(), [3])
    assert refused > 100


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("training", [True, False])
def test_parameters_with_names_are_found_in_another_order_and_grouping(info: OptimizerInfo, training: bool) -> None:
    first, second = named(MODEL), named(MODEL)
    one = info.make(first)
    train(one, range(5))
    one.train(training)
    weights, state = {name: param.detach().clone() for name, param in first}, through_a_file(one.state_dict())
    embedding, hidden, head = [(f"module.{name}", param) for name, param in second]  # as in data parallelism
    regrouped = [{"params": [head], "weight_decay": 0.0}, {"params": [hidden, embedding]}]
    other = info.make(regrouped)
    other.load_state_dict(state)
    for name, param in second:
        param.data.copy_(weights[name])
    for each in (one, other):
        train(each.train(), range(5, 8))
        each.eval()
    assert equal((param for _, param in second), (param for _, param in first))
    assert other.param_groups[1]["param_names"] == ["module.hidden", "module.embedding"]
    back = info.make(named(MODEL))
    back.load_state_dict(other.state_dict())  # two groups into one
    other.param_groups[1]["weight_decay"] = 0.5
    with pytest.raises(ValueError, match=r"has embedding and head, which had weight_decay = 0\.5 and 0\.0 there"):
        back.load_state_dict(other.state_dict())


def test_attached_models_give_the_names() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    optimizer = AdamWScheduleFree(model.parameters()).attach(model)
    train(optimizer, range(3))
    other = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    backwards = AdamWScheduleFree(list(other.parameters())[::-1]).attach(other)
    backwards.load_state_dict(through_a_file(optimizer.state_dict()))
    other.load_state_dict(through_a_file(model.state_dict()))
    assert equal(other.parameters(), model.parameters())
    assert "param_names" not in optimizer.param_groups[0]


def pair(*, attach_backwards: bool = False, backwards: bool = False) -> tuple[list[torch.nn.Module], AdamWScheduleFree]:
    """Two models of the same names and shapes, and one optimizer over both."""
    models: list[torch.nn.Module] = [two_alike(), two_alike()]
    params = [param for model in models for param in model.parameters()]
    optimizer = AdamWScheduleFree(params[::-1] if backwards else params, lr=0.1)
    for model in models[::-1] if attach_backwards else models:
        optimizer.attach(model)
    return models, optimizer


@pytest.mark.parametrize("attach_backwards", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_one_optimizer_over_two_alike_models_resumes_in_whatever_order_they_are_attached(
    attach_backwards: bool, training: bool
) -> None:
    models, optimizer = pair()
    others, resumed = pair(attach_backwards=attach_backwards)
    train_apart(models, optimizer, range(4))
    for model in models:
        model.train(training)
    weights, state = through_a_file([model.state_dict() for model in models]), through_a_file(optimizer.state_dict())
    resumed.load_state_dict(state)
    for other, saved in zip(others, weights, strict=True):
        other.load_state_dict(saved)
    for model, other in zip(models, others, strict=True):
        model.train()
        other.train()
        assert equal(model.parameters(), other.parameters())
    train_apart(models, optimizer, range(4, 8))
    train_apart(others, resumed, range(4, 8))
    for model, other in zip(models, others, strict=True):
        assert equal(model.eval().parameters(), other.eval().parameters())


def test_names_that_stand_for_two_parameters_have_to_be_in_the_same_order() -> None:
    models, optimizer = pair()
    train_apart(models, optimizer, range(4))
    _, resumed = pair(backwards=True)
    with pytest.raises(ValueError, match="some names twice, and in another order than this optimizer"):
        resumed.load_state_dict(optimizer.state_dict())
    both = torch.nn.ModuleDict({"first": two_alike(), "second": two_alike()})
    container = AdamWScheduleFree(both.parameters(), lr=0.1).attach(both)
    container.load_state_dict(optimizer.state_dict())
    params = [param for model in models for param in model.parameters()]
    assert all(
        torch.equal(container.state[mine]["gap"], optimizer.state[theirs]["gap"])
        for mine, theirs in zip(both.parameters(), params, strict=True)
    )


class Wrapper(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model


@pytest.mark.parametrize("wrapped_when_saved", [True, False])
def test_a_wrapper_may_put_a_prefix_before_all_names(wrapped_when_saved: bool) -> None:
    model, other = two_alike(), two_alike()
    roots = (Wrapper(model), other) if wrapped_when_saved else (model, Wrapper(other))
    optimizer, resumed = over(roots[0], "attached"), over(roots[1], "attached", backwards=True)
    train_apart([model], optimizer, range(4))
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    other.load_state_dict(through_a_file(model.state_dict()))
    assert equal(model.parameters(), other.parameters())


def test_another_part_of_the_same_form_is_not_the_same() -> None:
    """Encoder and decoder alike, an optimizer each."""
    encoder, decoder = [named({f"{part}.{name}": shape for name, shape in MODEL.items()}) for part in ("en", "de")]
    with pytest.raises(ValueError, match=r"it has no de\.embedding, which this optimizer has"):
        AdamWScheduleFree(decoder).load_state_dict(AdamWScheduleFree(encoder).state_dict())


def test_a_model_may_call_a_part_module() -> None:
    """As data parallelism calls the whole; a weight beside it has the same name as the weight in it."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = torch.nn.Linear(4, 4, bias=False)
            self.weight = Parameter(torch.randn(4, 4))

    model, other = Net(), Net()
    optimizer, resumed = over(model, "attached"), over(other, "attached", backwards=True)
    train_apart([model], optimizer, range(4))
    other.load_state_dict(through_a_file(model.state_dict()))
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert equal(model.parameters(), other.parameters())
    assert all(
        torch.equal(optimizer.state[mine]["gap"], resumed.state[theirs]["gap"])
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True)
    )
