"""Saving and loading of narrow states: bit for bit, into another precision, and what is damaged."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schedulefree
import torch
from models import Net, fit
from problems import copies, equal, make_params, set_gradients, through_a_file, train
from registry import NARROW, OptimizerInfo, compactable, implementations, narrow, optimizers
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import Parameter

import unscheduled
from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, averaged_state_dict
from unscheduled.cli import main
from unscheduled.state.buffers import wide

SHAPES = ((40, 30), (129,), (7,), (), (0,))


def params_of(optimizer: ScheduleFreeOptimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def whole(optimizer: ScheduleFreeOptimizer) -> list[Tensor]:
    """All bits of a run: the parameters and what is kept beside them, but for the y of a file."""
    found: list[Tensor] = []
    for param in params_of(optimizer):
        state = optimizer.state[param]
        found += [param, *(state[name] for name in sorted(state) if name not in ("step", "y"))]
    return found


def shuffled(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Parameter]:
    """Parameters that have nothing to do with those of a run."""
    return [Parameter(torch.full_like(param, 3.0)) for param in make_params(*shapes, dtype=dtype)]


def put(params: list[Tensor], weights: list[Tensor]) -> None:
    for param, weight in zip(params, weights, strict=True):
        param.data.copy_(weight)


# The same precision.


@pytest.mark.covering(2)
@implementations
@narrow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model_first", [True, False])
def test_resume_is_bit_exact(
    info: OptimizerInfo,
    implementation: str,
    dtype: torch.dtype,
    state_precision: str,
    training: bool,
    model_first: bool,
) -> None:
    arguments = {"implementation": implementation, "state_precision": state_precision, "weight_decay": 0.1}
    params, others = make_params(*SHAPES, dtype=dtype), shuffled(*SHAPES, dtype=dtype)
    optimizer, resumed = info.make(params, **arguments), info.make(others, **arguments)
    train(optimizer, range(7))
    optimizer.train(training)
    weights, state = through_a_file([param.data for param in params]), through_a_file(optimizer.state_dict())
    if model_first:
        put(others, weights)
    resumed.load_state_dict(state)
    if not model_first:
        put(others, weights)
    assert resumed.training == training
    for each in (optimizer, resumed):
        train(each.train(), range(7, 10))
    assert equal(whole(optimizer), whole(resumed))


@pytest.mark.covering(2)
@narrow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model_first", [True, False])
def test_attached_models_resume_bit_for_bit(
    info: OptimizerInfo, dtype: torch.dtype, state_precision: str, training: bool, model_first: bool
) -> None:
    runs: list[tuple[Net, ScheduleFreeOptimizer]] = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = Net().to(dtype)
        runs.append((model, info.make(model.parameters(), state_precision=state_precision).attach(model)))
    (model, optimizer), (other, resumed) = runs
    fit(model, optimizer, range(7))
    model.train(training)
    weights, state = through_a_file(model.state_dict()), through_a_file(optimizer.state_dict())
    for load_model in (model_first, not model_first):
        if load_model:
            other.load_state_dict(weights)
        else:
            resumed.load_state_dict(state)
    for each, its in runs:
        each.train()
        fit(each, its, range(7, 10))
    assert equal(model.parameters(), other.parameters())
    assert equal(model.eval().parameters(), other.eval().parameters())


@pytest.mark.covering(2)
@narrow
def test_copies_train_on_alike(info: OptimizerInfo, dtype: torch.dtype, state_precision: str) -> None:
    optimizer = info.make(make_params(*SHAPES, dtype=dtype), state_precision=state_precision)
    train(optimizer, range(7))
    twin = copy.deepcopy(optimizer)
    for each in (optimizer, twin):
        train(each, range(7, 10))
    assert equal(whole(optimizer), whole(twin))


@pytest.mark.covering(1)
@compactable
@implementations
def test_another_implementation_may_take_over_and_give_back(info: OptimizerInfo, implementation: str) -> None:
    """What it loads and saves is bit for bit the same, so that the first goes on as if there had been no other."""
    params, between, back = make_params(*SHAPES), shuffled(*SHAPES), shuffled(*SHAPES)
    first = info.make(params, implementation="loop", state_precision="compact")
    other = info.make(between, implementation=implementation, state_precision="compact")
    again = info.make(back, implementation="loop", state_precision="compact")
    train(first, range(7))
    for giver, taker in ((first, other), (other, again)):
        put(params_of(taker), copies(params_of(giver)))
        taker.load_state_dict(through_a_file(giver.state_dict()))
        assert equal(whole(giver), whole(taker))
    train(first, range(7, 10))
    train(again, range(7, 10))
    assert equal(whole(first), whole(again))
    train(other, range(7, 10))
    for param, reference in zip(between, params, strict=True):
        torch.testing.assert_close(param, reference, rtol=0.02, atol=2 * info.lr)


@pytest.mark.covering(1)
@compactable
@pytest.mark.parametrize("layout", ["channels last", "permuted", "strided"])
def test_memory_in_another_order(info: OptimizerInfo, layout: str) -> None:
    def laid_out(tensor: Tensor) -> Parameter:
        if layout == "channels last":
            return Parameter(tensor.contiguous(memory_format=torch.channels_last))
        if layout == "permuted":
            return Parameter(tensor.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0))
        return Parameter(torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])[..., ::2].copy_(tensor))

    start = torch.randn(5, 6, 4, 3)
    params = [laid_out(start)]
    optimizer = info.make(params, state_precision="compact")
    train(optimizer, range(7))
    weights, state = copies(params), through_a_file(optimizer.state_dict())
    alike, contiguous = [laid_out(torch.ones_like(start))], [Parameter(torch.ones(start.shape))]
    for others in (alike, contiguous):
        resumed = info.make(others, state_precision="compact")
        put(others, weights)
        resumed.load_state_dict(state)
        before, after = optimizer.iterates(params[0]), resumed.iterates(others[0])
        assert torch.equal(before.y, after.y)
        spread = float((before.z - before.x).abs().max())
        torch.testing.assert_close(before.z, after.z, rtol=0.0, atol=0.51 * spread / 32767 + 1e-6)
        if others is alike:
            train(resumed, range(7, 10))
            train(optimizer, range(7, 10))
            assert equal(whole(optimizer), whole(resumed))
            optimizer.load_state_dict(state)
            put(params, weights)


# Another precision.


@pytest.mark.covering(1)
@compactable
@pytest.mark.parametrize("training", [True, False])
def test_float32_goes_into_compact_and_back(info: OptimizerInfo, training: bool) -> None:
    """The weights bit for bit, the gap and the second moments within half a step of their codes."""
    all_params = [make_params(*SHAPES), shuffled(*SHAPES), shuffled(*SHAPES)]
    precisions = ("float32", "compact", "float32")
    runs = [info.make(params, state_precision=each) for params, each in zip(all_params, precisions, strict=True)]
    train(runs[0], range(8))
    runs[0].train(training)
    for giver, taker in itertools.pairwise(runs):
        taker.load_state_dict(through_a_file(giver.state_dict()))
        put(params_of(taker), copies(params_of(giver)))
    for params in zip(*all_params, strict=True):
        first, second, third = (run.iterates(param) for run, param in zip(runs, params, strict=True))
        assert equal(
            [first.y, first.y] if training else [first.x, first.x],
            (second.y, third.y) if training else (second.x, third.x),
        )
        states = [run.state[param] for run, param in zip(runs, params, strict=True)]
        gaps = [wide(state, "gap") for state in states]
        assert torch.equal(gaps[1], gaps[2])
        if gaps[0].numel():
            assert float((gaps[1] - gaps[0]).abs().max()) <= 0.51 * float(gaps[0].abs().max()) / 32767
        if "exp_avg_sq" in info.buffers:
            moments = [wide(state, "exp_avg_sq") for state in states]
            assert torch.equal(moments[1], moments[2])
            torch.testing.assert_close(moments[1], moments[0], rtol=0.05, atol=0.0)
    for run in runs:
        train(run.train(), range(8, 10))


@pytest.mark.covering(2)
@optimizers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_a_float32_run_goes_into_narrow_parameters_and_back(
    info: OptimizerInfo, dtype: torch.dtype, training: bool
) -> None:
    """The weights are cast on the way: where they are wide again they are taken as they are."""
    params, cast, back = make_params(*SHAPES), shuffled(*SHAPES, dtype=dtype), shuffled(*SHAPES)
    first, second, third = info.make(params), info.make(cast), info.make(back)
    train(first, range(8))
    first.train(training)
    put(list(cast), copies(params))
    second.load_state_dict(through_a_file(first.state_dict()))
    second.train(training)
    for one, two in zip(params, cast, strict=True):
        expected, found = first.iterates(one), second.iterates(two)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0 if dtype == torch.bfloat16 else 1e-11)
    put(list(back), copies(cast))
    third.load_state_dict(through_a_file(second.state_dict()))
    for two, three in zip(cast, back, strict=True):
        torch.testing.assert_close(third.iterates(three), second.iterates(two), rtol=2.0**-8, atol=1e-2)
        assert torch.equal(three, two.float())
        assert torch.equal(third.state[three]["gap"], second.state[two]["gap"])
    train(second.train(), range(8, 10))
    train(third.train(), range(8, 10))


@pytest.mark.covering(2)
@optimizers
@implementations
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_weights_beside_a_state_are_split_too(
    info: OptimizerInfo, implementation: str, dtype: torch.dtype, training: bool
) -> None:
    """Whatever they are: from there on it is as in float32."""
    saved = info.make(make_params((1000,)))
    train(saved, range(8))
    (param,), (wide,) = shuffled((1000,), dtype=dtype), shuffled((1000,))
    resumed, reference = info.make([param], implementation=implementation), info.make([wide], implementation="loop")
    for each in (resumed, reference):
        each.load_state_dict(saved.train(training).state_dict())
        each.train()
    for step in range(8, 16):
        set_gradients([param], step)
        assert param.grad is not None
        wide.grad = param.grad.float()
        resumed.step()
        reference.step()
    torch.testing.assert_close(resumed.iterates(param), reference.iterates(wide), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("file_is_channels_last", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cls", ["SGDScheduleFree", "AdamWScheduleFree"])
def test_a_run_of_the_schedulefree_package_becomes_compact_in_any_layout(
    cls: str, file_is_channels_last: bool, training: bool
) -> None:
    formats = [torch.channels_last, torch.contiguous_format]
    theirs_in, ours_in = formats if file_is_channels_last else formats[::-1]
    theirs = Parameter(torch.randn(8, 4, 3, 3).contiguous(memory_format=theirs_in))
    package = getattr(schedulefree, cls)([theirs], lr=0.1)
    package.train()
    for step in range(5):
        theirs.grad = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(step))
        package.step()
    z = package.state[theirs]["z"].clone()
    if not training:
        package.eval()
    ours = Parameter(theirs.detach().clone(memory_format=ours_in))
    optimizer = getattr(unscheduled, cls)([ours], lr=0.1, state_precision="compact")
    optimizer.load_state_dict(package.state_dict())
    x, _, found = optimizer.train().iterates(ours)
    torch.testing.assert_close(found, z, rtol=0.0, atol=1e-4)
    package.eval()
    torch.testing.assert_close(x, theirs.detach(), rtol=0.0, atol=1e-4)


# What is damaged.


def change(name: str, value: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def changed(state: dict[str, Any]) -> None:
        state[name] = value(state[name])

    return changed


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda state: state.pop("gap_scale"), "there is no tensor instead of .* in 'gap_scale' for .*"),
        (lambda state: state.pop("exp_avg_sq_scale"), "there is no tensor instead of .* in 'exp_avg_sq_scale'"),
        (change("gap_scale", lambda each: each.tolist()), "there is no tensor instead of"),
        (change("gap_scale", Tensor.double), r"a torch\.float64 of shape \(10,\) instead of float32 of shape \(10,\)"),
        (change("gap_scale", lambda each: each[1:]), r"a torch\.float32 of shape \(9,\) instead of"),
        (
            change("exp_avg_sq_scale", lambda each: each[:, 0]),
            r"of shape \(10,\) instead of float32 of shape \(10, 2\)",
        ),
        (change("gap_scale", torch.neg), "there are negative numbers"),
        (change("exp_avg_sq_scale", lambda each: each.flip(1)), "ends in the wrong order"),
        (change("gap", lambda each: each[1:]), r"'gap' of shape \(39, 30\) for .*\(shape \(40, 30\)\)"),
        (change("exp_avg_sq", lambda each: each.view(-1)), r"'exp_avg_sq' of shape \(1200,\) for"),
        (change("gap", lambda each: each.to(torch.uint8)), r"instead of float32 of shape \(10, 2\) in 'gap_scale'"),
        (change("gap", Tensor.float), r"\['exp_avg_sq', 'gap', 'gap_scale', 'step'\] for"),
        (lambda state: state.pop("gap"), r"\['exp_avg_sq', 'gap_scale', 'step'\] for"),
    ],
)
@pytest.mark.parametrize("state_precision", ["compact", "float32"])
def test_damaged_codes_are_refused_and_nothing_is_changed(
    damage: Callable[[dict[str, Any]], None], match: str, state_precision: str
) -> None:
    theirs = AdamWScheduleFree(make_params((40, 30), (7,)), state_precision="compact")
    train(theirs, range(5))
    damaged = through_a_file(theirs.state_dict())
    damage(damaged["state"][0])
    params = make_params((40, 30), (7,))
    optimizer = AdamWScheduleFree(params, state_precision=state_precision)
    train(optimizer, range(3))
    before = copies(whole(optimizer))
    groups = copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(ValueError, match=match) as error:
        optimizer.load_state_dict(damaged)
    assert "\n" not in str(error.value)
    assert equal(whole(optimizer), before)
    assert optimizer.state_dict()["param_groups"] == groups
    optimizer.load_state_dict(theirs.state_dict())  # a right one still loads


# Other ways to save.


@pytest.mark.covering(2)
@narrow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_state_dict_functions_of_torch_distributed_fill_a_fresh_optimizer(
    info: OptimizerInfo, dtype: torch.dtype, state_precision: str, training: bool, full: bool
) -> None:
    options = StateDictOptions(full_state_dict=full, cpu_offload=full)
    runs: list[tuple[torch.nn.Module, ScheduleFreeOptimizer]] = []
    for _ in range(2):
        model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 3)).to(dtype)
        runs.append((model, info.make(model.parameters(), state_precision=state_precision)))
    (model, optimizer), (other, resumed) = runs
    train(optimizer, range(7))
    optimizer.train(training)
    other.load_state_dict(through_a_file(model.state_dict()))
    state = through_a_file(get_optimizer_state_dict(model, optimizer, options=options))
    set_optimizer_state_dict(other, resumed, state, options=options)
    for each in (optimizer, resumed):
        train(each.train(), range(7, 10))
    assert equal(whole(optimizer), whole(resumed))


@pytest.mark.covering(2)
@pytest.mark.parametrize(("dtype", "state_precision"), NARROW)
@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_command_finds_the_average_in_a_file(
    dtype: torch.dtype, state_precision: Any, attach: bool, training: bool, tmp_path: Path
) -> None:
    model = Net().to(dtype)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1, state_precision=state_precision)
    if attach:
        optimizer.attach(model)
    fit(model, optimizer, range(7))
    x = averaged_state_dict(model, optimizer)
    optimizer.train(training)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit) as exit_info:
        main(["average", str(tmp_path / "checkpoint.pt"), "-o", str(tmp_path / "x.safetensors")])
    assert not exit_info.value.code
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == x.keys()
    assert all(torch.equal(found[name], x[name]) for name in x)
    if not attach:
        optimizer.eval()
        assert all(torch.equal(found[name], weight) for name, weight in model.named_parameters())


def test_a_float32_scale_is_there_for_each_block() -> None:
    """What a file holds beside the codes."""
    optimizer = AdamWScheduleFree(make_params((129,)), state_precision="compact")
    train(optimizer, range(3))
    state = optimizer.state_dict()["state"][0]
    kinds = {name: (value.dtype, tuple(value.shape)) for name, value in state.items() if isinstance(value, Tensor)}
    assert kinds == {
        "gap": (torch.int16, (129,)),
        "gap_scale": (torch.float32, (2,)),
        "exp_avg_sq": (torch.uint8, (129,)),
        "exp_avg_sq_scale": (torch.float32, (2, 2)),
        "y": (torch.float32, (129,)),
    }
    assert equal([wide(state, "gap")], [wide(optimizer.state[params_of(optimizer)[0]], "gap")])
