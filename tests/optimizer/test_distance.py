"""The distance step against the float64 oracle, exact equivalences, and everything round a step."""

import copy
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from oracle import DistanceOracle, Oracle
from problems import copies, equal, make_params, set_gradients, train
from registry import IMPLEMENTATIONS, OptimizerInfo, implementations, with_distance_step
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn import Parameter

from unscheduled import (
    AdamWScheduleFree,
    AnnealedInterpolation,
    AutoScheduleFree,
    ConstantStep,
    DistanceStep,
    MuonScheduleFree,
    NoAveraging,
    PolynomialAveraging,
    RAdamScheduleFree,
    ScheduleFreeOptimizer,
    ScheduleFreeWrapper,
    SGDScheduleFree,
    export_adamw_state_dict,
    export_schedulefree_state_dict,
)

SHAPES = [(3, 4), (), (5,)]
PLAIN = DistanceStep(early=0.0, noise_beta=None)
EAGER = DistanceStep(start=0.05, growth=1.5)
"""So that few steps have all phases of a run."""

CASES_OF_STEP = {
    "default": DistanceStep(),
    "plain": PLAIN,
    "eager": EAGER,
    "not early": DistanceStep(start=0.05, growth=1.5, early=0.0),
    "without V": DistanceStep(start=0.05, growth=1.5, noise_beta=None),
    "constants": DistanceStep(1.5, 0.02, 1.3, 3.0, 0.8, 0.3),
}
NARROW = [(torch.float32, "compact"), (torch.bfloat16, "compact"), (torch.bfloat16, "float32")]


def made(info: OptimizerInfo, params: Any, step_size: DistanceStep = EAGER, **arguments: Any) -> ScheduleFreeOptimizer:
    return info.make(params, **({"lr": 1.0, "step_size": step_size} | arguments))


def short(info: OptimizerInfo) -> dict[str, Any]:
    """Arguments with which it moves from the first steps on, but for RAdam."""
    return {} if info.cls is SGDScheduleFree else {"betas": (0.9, 0.99)}


def gammas(optimizer: ScheduleFreeOptimizer, steps: Iterable[int]) -> list[float]:
    """The step sizes of steps on random gradients."""
    found: list[float] = []
    for step in steps:
        train(optimizer, [step])
        found.append(float(optimizer.param_groups[0]["effective_lr"]))
    return found


# The oracle.


@dataclass(frozen=True)
class Case:
    """Arguments of the optimizer, the same for the oracle, and what the second group has."""

    desc: str
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    group: dict[str, Any] = field(default_factory=dict)
    group_settings: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("alone"),
    Case("warmup", {"warmup_steps": 9}, {"warmup_steps": 9}),
    Case("decay", {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    Case("decay at z", {"weight_decay": 0.1, "decay_at": "z"}, {"weight_decay": 0.1, "decay_at": "z"}),
    Case("maximize", {"maximize": True}, {"maximize": True}),
    Case("r", {"averaging": PolynomialAveraging(r=1, warmup_steps=7)}, {"r": 1, "averaging_warmup_steps": 7}),
    Case("annealed", {"interpolation": AnnealedInterpolation(0.97, 30)}, {"beta_max": 0.97, "anneal_steps": 30}),
    Case("lr of a group", {"lr": 0.5}, {"lr": 0.5}, {"lr": 2.0}, {"lr": 2.0}),
)


def follow_the_oracle(
    info: OptimizerInfo, step_size: DistanceStep, case: Case, implementation: Any, scale: float = 1.0
) -> None:
    """Random gradients with a mean, two groups; one of the steps has no gradient but 0."""
    random = np.random.default_rng(0)
    starts = [np.asarray(random.standard_normal(shape)) for shape in SHAPES]
    targets = [np.asarray(random.standard_normal(shape)) for shape in SHAPES]
    params = [Parameter(torch.from_numpy(start.copy())) for start in starts]
    settings = {"rule": info.rule, "lr": 1.0, "beta": 0.9} | case.settings
    oracles = [Oracle(start, **settings) for start in starts[:2]]
    oracles.append(Oracle(starts[2], **settings | case.group_settings))
    truth = DistanceOracle(
        oracles,
        step_size.factor,
        step_size.start,
        step_size.growth,
        step_size.early,
        step_size.noise_beta,
        step_size.least_noise,
    )
    groups = [{"params": params[:2]}, {"params": params[2:], **case.group}]
    optimizer = made(info, groups, step_size, implementation=implementation, **case.arguments)
    found: list[float] = []
    for step in range(1, 61):
        noise = [np.asarray(random.standard_normal(shape)) for shape in SHAPES]
        gradients = [
            np.asarray(scale * (0.5 * each + oracle.y - target))
            for each, oracle, target in zip(noise, oracles, targets, strict=True)
        ]
        if step == 20:
            gradients = [np.zeros_like(gradient) for gradient in gradients]
        found.append(truth.step(gradients))
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = torch.from_numpy(gradient)
        optimizer.step()
        assert optimizer.metrics()["group0/effective_lr"] == pytest.approx(oracles[0].gamma, rel=1e-9)
        assert optimizer.metrics()["group1/gamma"] == pytest.approx(truth.gamma, rel=1e-9)
        for param, oracle in zip(params, oracles, strict=True):
            for ours, true in zip(optimizer.iterates(param), (oracle.x, oracle.y, oracle.z), strict=True):
                np.testing.assert_allclose(ours, true, rtol=1e-8, atol=1e-10)
    assert 0.0 < min(found) < max(found) < math.inf
    if step_size is EAGER and info.cls is not RAdamScheduleFree:  # which is rectified for long
        assert truth.r > EAGER.start


@with_distance_step
@pytest.mark.parametrize("name", CASES_OF_STEP)
@implementations
def test_x_y_z_and_the_step_equal_the_oracle_at_every_step(info: OptimizerInfo, name: str, implementation: Any) -> None:
    follow_the_oracle(info, CASES_OF_STEP[name], CASES[0], implementation)


@with_distance_step
@pytest.mark.parametrize("case", CASES[1:], ids=lambda case: case.desc)
def test_with_other_options_they_do_too(info: OptimizerInfo, case: Case) -> None:
    follow_the_oracle(info, EAGER, case, "loop")


@pytest.mark.parametrize(
    "options",
    [{"inner_momentum": 0.8}, {"corrected_decay": True, "weight_decay": 0.5}],
    ids=lambda each: next(iter(each)),
)
def test_with_the_options_of_adamw_they_do_too(options: dict[str, Any]) -> None:
    info = next(each for each in with_distance_step.args[1] if each.cls is AdamWScheduleFree)
    follow_the_oracle(info, EAGER, Case("", options, options), "fused")


# Exact equivalences.


def test_the_first_rule_is_what_remains_without_the_corrections() -> None:
    """gamma = min(1.2 gamma, 1.6 R / sqrt(t)), from the iterates themselves."""
    (param,) = make_params((7,), dtype=torch.float64)
    start = param.detach().clone()
    optimizer = AdamWScheduleFree([param], betas=(0.9, 0.99), step_size=PLAIN)
    reached, gamma = 1e-3, 1.6 * 1e-3
    for step in range(1, 41):
        set_gradients([param], step)
        optimizer.step()
        gamma = min(1.2 * gamma, 1.6 * reached / math.sqrt(step))
        assert optimizer.metrics()["effective_lr"] == pytest.approx(gamma, rel=1e-12)
        h = (optimizer.state[param]["exp_avg_sq"] / (1 - 0.99**step)).sqrt() + 1e-8
        away = (h * (optimizer.iterates(param).x - start).square()).sum() / h.sum()
        reached = max(reached, math.sqrt(away))
    assert set(optimizer.state[param]) == {"step", "gap", "exp_avg_sq", "z0"}


@with_distance_step
@implementations
@pytest.mark.parametrize("scale", [2.0**-10, 2.0**20])
def test_the_scale_of_the_loss_changes_nothing(info: OptimizerInfo, implementation: Any, scale: float) -> None:
    params, others = make_params(dtype=torch.float64), make_params(dtype=torch.float64)
    eps = {} if info.cls is SGDScheduleFree else {"eps": 1e-30}
    one, other = (made(info, each, implementation=implementation, **eps) for each in (params, others))
    for step in range(30):
        set_gradients([*params, *others], step)
        for param in others:
            assert param.grad is not None
            param.grad *= scale
        one.step()
        other.step()
        assert one.metrics()["gamma"] == pytest.approx(other.metrics()["gamma"], rel=1e-12)
    for param, same in zip(params, others, strict=True):
        torch.testing.assert_close(param, same, rtol=1e-10, atol=1e-12)


@with_distance_step
@implementations
def test_two_halves_are_as_a_whole(info: OptimizerInfo, implementation: Any) -> None:
    """Beyond rounding; in one group and in two."""
    (whole,) = make_params((8,), dtype=torch.float64)
    halves = [[Parameter(half.clone()) for half in whole.detach().chunk(2)] for _ in range(2)]
    optimizers = [
        made(info, [whole], implementation=implementation),
        made(info, halves[0], implementation=implementation),
        made(info, [{"params": [half]} for half in halves[1]], implementation=implementation),
    ]
    for step in range(30):
        set_gradients([whole], step)
        assert whole.grad is not None
        for pair in halves:
            for half, gradient in zip(pair, whole.grad.chunk(2), strict=True):
                half.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for pair in halves:
        torch.testing.assert_close(torch.cat(pair), whole.detach(), rtol=1e-10, atol=1e-12)


@with_distance_step
def test_complex_parameters_are_pairs_of_real_ones(info: OptimizerInfo) -> None:
    number = Parameter(torch.randn(5, dtype=torch.complex128))
    pair = Parameter(torch.view_as_real(number.detach()).clone())
    one, other = (made(info, [param]) for param in (number, pair))
    for _ in range(20):
        gradient = torch.randn(5, 2, dtype=torch.float64)
        number.grad, pair.grad = torch.view_as_complex(gradient), gradient
        one.step()
        other.step()
    torch.testing.assert_close(torch.view_as_real(number.detach()), pair.detach(), rtol=1e-12, atol=0)


@with_distance_step
def test_on_the_device_the_step_is_the_same(info: OptimizerInfo) -> None:
    """With several groups, gradients that come late, a restart and a step without any gradient."""
    runs: list[tuple[list[Parameter], ScheduleFreeOptimizer]] = []
    for capturable in (False, True):
        params = make_params((4, 3), (7,), (5,), dtype=torch.float64)
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.5}]
        runs.append((params, made(info, groups, capturable=capturable, implementation="loop")))
    for step in range(30):
        for params, optimizer in runs:
            set_gradients(params, step)
            if step < 4:
                params[1].grad = None
            if step == 9:
                optimizer.zero_grad()
            if step == 20:
                optimizer.restart_averaging()
            optimizer.step()
        gamma, same = (optimizer.metrics()["group1/gamma"] for _, optimizer in runs)
        assert gamma == pytest.approx(same, rel=1e-12)
    for param, same in zip(runs[0][0], runs[1][0], strict=True):
        torch.testing.assert_close(param, same, rtol=1e-12, atol=1e-14)


def test_a_gradient_that_is_not_finite_leaves_the_estimates_on_the_device_as_they_are() -> None:
    params = make_params()
    optimizer = AutoScheduleFree(params, capturable=True)
    train(optimizer, range(5))
    before = {name: float(optimizer.param_groups[0][name]) for name in ("distance_gamma", "distance_reached")}
    params[0].grad = torch.full_like(params[0], math.inf)
    optimizer.step()
    assert before == {name: float(optimizer.param_groups[0][name]) for name in before}


# Whatever happens round the steps.


@with_distance_step
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, "float32"), *NARROW])
def test_a_state_resumes_bit_for_bit(info: OptimizerInfo, training: bool, dtype: torch.dtype, precision: Any) -> None:
    """Through a file that holds no code; the start z_0 and the constants of the rule are in it."""
    params, others = make_params(dtype=dtype), make_params(dtype=dtype)
    optimizer = made(info, params, state_precision=precision)
    train(optimizer, range(9))
    optimizer.train(training)
    file = io.BytesIO()
    torch.save((copies(params), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    with torch.no_grad():
        for other, weight in zip(others, weights, strict=True):
            other.copy_(weight)
    resumed = made(info, others, DistanceStep(), state_precision=precision)
    resumed.load_state_dict(state)
    assert resumed.training is training
    assert resumed.param_groups[0]["step_size"] == EAGER
    assert gammas(resumed.train(), range(9, 15)) == gammas(optimizer.train(), range(9, 15))
    assert equal(params, others)
    assert all(
        torch.equal(resumed.state[other]["z0"], start)
        for other, start in zip(others, make_params(dtype=dtype), strict=True)
    )


@with_distance_step
def test_evaluating_changes_nothing(info: OptimizerInfo) -> None:
    params, others = make_params(), make_params()
    one, other = made(info, params), made(info, others)
    for step in range(12):
        train(one, [step])
        train(other, [step])
        other.eval()
        other.train()
    assert equal(params, others)


@with_distance_step
@pytest.mark.parametrize(("dtype", "precision"), NARROW)
def test_narrow_states_make_nearly_the_same_steps(info: OptimizerInfo, dtype: torch.dtype, precision: Any) -> None:
    params = make_params((300,))
    narrow = [Parameter(param.detach().to(dtype)) for param in params]
    wide = [Parameter(param.detach().to(torch.float32, copy=True)) for param in narrow]
    one, other = made(info, narrow, state_precision=precision, **short(info)), made(info, wide, **short(info))
    for step in range(30):
        set_gradients(narrow, step)
        for param, same in zip(wide, narrow, strict=True):
            assert same.grad is not None
            param.grad = same.grad.float()
        one.step()
        other.step()
    assert one.metrics()["gamma"] == pytest.approx(other.metrics()["gamma"], rel=0.01)
    assert all(one.state[param]["z0"].dtype == dtype for param in narrow)


@with_distance_step
def test_a_step_that_is_refused_changes_nothing(info: OptimizerInfo) -> None:
    """As one with a gradient that is not finite, which is to be left out: then the run is as if it had not come."""
    params, others = make_params(), make_params()
    one, other = made(info, params), made(info, others)
    for step in range(12):
        if step % 3 == 0:
            set_gradients(params, 100 + step)
            params[0].grad = torch.full_like(params[0], math.nan if step else math.inf)
            before, state = copies(params), copy.deepcopy(one.state_dict())
            with pytest.raises(ValueError, match=r"the gradient or a weight is not finite: call zero_grad\(\)"):
                one.step()
            assert equal(params, before)
            assert state["param_groups"] == one.state_dict()["param_groups"]
        train(one, [step])
        train(other, [step])
    assert equal(params, others)


@with_distance_step
def test_a_gradient_scaler_leaves_steps_out(info: OptimizerInfo) -> None:
    params, others = make_params(), make_params()
    one, other = made(info, params), made(info, others)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    for step in range(10):
        if step == 5:
            for param in params:
                param.grad = torch.full_like(param, math.inf)
            scaler.scale(torch.zeros(1))
            scaler.step(one)
            scaler.update(4.0)
        train(other, [step])
        set_gradients(params, step)
        for param in params:
            assert param.grad is not None
            param.grad *= 4.0
        scaler.scale(torch.zeros(1))
        scaler.step(one)
        scaler.update(4.0)
    assert equal(params, others)


@with_distance_step
def test_a_late_group_takes_the_step_of_the_others(info: OptimizerInfo) -> None:
    first, second, third = make_params((4, 3), (7,), (5,))
    optimizer = made(info, [first])
    train(optimizer, range(8))
    optimizer.add_param_group({"params": [second]})
    optimizer.eval()
    optimizer.add_param_group({"params": [third], "lr": 0.5})
    optimizer.train()
    gamma = optimizer.metrics()["group0/gamma"]
    assert gamma == optimizer.metrics()["group2/gamma"] > 0.0
    train(optimizer, range(8, 16))
    metrics = optimizer.metrics()
    assert metrics["group0/gamma"] == metrics["group1/gamma"] == metrics["group2/gamma"]
    assert [group["distance_steps"] for group in optimizer.param_groups] == [16.0] * 3
    if info.cls is not RAdamScheduleFree:  # whose rectification counts the gradients of a parameter
        assert metrics["group2/effective_lr"] == 0.5 * metrics["group0/effective_lr"]
    assert torch.equal(optimizer.state[third]["z0"], make_params((4, 3), (7,), (5,))[2])


def test_a_group_without_gradients_at_lr_0_comes_in_later() -> None:
    """Until then only the numbers that all groups have alike go on in it."""
    first, second = make_params()
    optimizer = AutoScheduleFree([{"params": [first], "lr": 0.0}, {"params": [second]}])
    for step in range(6):
        set_gradients([second], step)
        optimizer.step()
    assert [group["distance_steps"] for group in optimizer.param_groups] == [6.0, 6.0]
    optimizer.param_groups[0]["lr"] = 1.0
    train(optimizer, range(6, 9))
    assert [group["distance_steps"] for group in optimizer.param_groups] == [9.0, 9.0]


def test_parameters_without_gradients_count_with_how_far_they_have_come() -> None:
    """R is over all that have moved; a parameter that never had a gradient is in no sum."""
    used, resting, unused = make_params((4, 3), (7,), (5,), dtype=torch.float64)
    alone = make_params((4, 3), (7,), (5,), dtype=torch.float64)[:2]
    starts = copies(alone)
    optimizer, reference = (
        AdamWScheduleFree(params, betas=(0.9, 0.99), step_size=EAGER) for params in ([used, resting, unused], alone)
    )
    for step in range(12):
        set_gradients([used, resting, *alone], step)
        if step > 8:
            resting.grad = alone[1].grad = None
        optimizer.step()
        reference.step()
    assert equal([used, resting], alone)
    assert torch.equal(unused, make_params((4, 3), (7,), (5,), dtype=torch.float64)[2])
    optimizer.zero_grad()
    before = optimizer.param_groups[0]["distance_reached"]
    squares = scales = 0.0
    for param, start in zip((used, resting), starts, strict=True):
        state = optimizer.state[param]
        h = (state["exp_avg_sq"] / (1 - 0.99 ** state["step"])).sqrt() + 1e-8
        squares += float((h * (optimizer.iterates(param).x - start).square()).sum())
        scales += float(h.sum())
    set_gradients([used], 12)
    optimizer.step()
    reached = optimizer.param_groups[0]["distance_reached"]
    assert reached == pytest.approx(max(before, math.sqrt(squares / scales)), rel=1e-12)


@with_distance_step
def test_without_any_gradient_nothing_happens(info: OptimizerInfo) -> None:
    params, others = make_params(), make_params()
    decay = 0.0 if info.cls is RAdamScheduleFree else 2.0  # whose rectification counts the calls of step()
    one, other = (made(info, each, weight_decay=decay) for each in (params, others))
    for step in range(8):
        if step % 3 == 0:
            one.zero_grad()
            one.step()
            assert one.metrics()["effective_lr"] == 0.0
            assert one.param_groups[0]["distance_remembered"] == other.param_groups[0]["distance_remembered"]
        train(one, [step])
        train(other, [step])
        assert one.metrics()["gamma"] == other.metrics()["gamma"]


@with_distance_step
def test_a_restart_or_a_frozen_average_keeps_the_step_finite(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = made(info, params)
    train(optimizer, range(10))
    optimizer.restart_averaging()
    train(optimizer, [10])
    assert optimizer.metrics()["gap_norm"] == 0.0
    assert all(map(math.isfinite, gammas(optimizer, range(12, 20))))
    optimizer.freeze_averaging()
    x = [optimizer.iterates(param).x for param in params]
    reached = optimizer.metrics()["distance"]
    assert all(map(math.isfinite, gammas(optimizer, range(20, 30))))
    for param, frozen in zip(params, x, strict=True):
        torch.testing.assert_close(optimizer.iterates(param).x, frozen)
    assert optimizer.metrics()["distance"] == pytest.approx(reached, rel=0.2)


@pytest.mark.filterwarnings("ignore")  # those of torch.distributed.checkpoint
@pytest.mark.parametrize("flat", [True, False])
def test_torchs_checkpoints_carry_it(flat: bool) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 2)

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, other = net(), net()
    optimizer, resumed = (AutoScheduleFree(each.parameters(), step_size=EAGER) for each in (model, other))
    train(optimizer, range(5))
    state = get_optimizer_state_dict(model, optimizer, options=options)
    fresh = get_optimizer_state_dict(other, resumed, options=options)
    assert fresh.keys() == state.keys()
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, resumed, state, options=options)
    assert gammas(resumed, range(5, 10)) == gammas(optimizer, range(5, 10))
    assert equal(model.parameters(), other.parameters())


def test_a_deep_copy_goes_on_by_itself() -> None:
    params = make_params()
    optimizer = AutoScheduleFree(params, step_size=EAGER)
    train(optimizer, range(5))
    copied_params, copied = copy.deepcopy((params, optimizer))
    before = copies(params)
    found = gammas(copied, range(5, 10))
    assert equal(params, before)
    assert gammas(optimizer, range(5, 10)) == found
    assert equal(params, copied_params)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_temporary_has_the_size_of_all_parameters(implementation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums are formed piece by piece, and are the same."""
    params, others = make_params(*[(6, 5)] * 4), make_params(*[(6, 5)] * 4)
    one, other = (AutoScheduleFree(each, implementation=implementation) for each in (params, others))
    train(one, range(6))
    monkeypatch.setattr("unscheduled.optimizer.distance.PIECE", 40)
    train(other, range(6))
    assert one.metrics()["gamma"] == pytest.approx(other.metrics()["gamma"], rel=1e-6)


def test_the_sums_over_a_large_tensor_are_exact() -> None:
    """In float32, the sum of a million positive numbers is off by 1e-5, and that of 40 million by a sixth."""
    param = Parameter(torch.rand(1 << 20))
    optimizer = AutoScheduleFree([param], step_size=EAGER)
    start = param.detach().double()
    for step in range(8):
        x, state = optimizer.iterates(param).x.double(), dict(optimizer.state.get(param, {}))
        if step:
            h = (state["exp_avg_sq"].double() / (1 - 0.99**step)).sqrt() + 1e-8
            reached = math.sqrt(float((h * (x - start).square()).sum() / h.sum()))
        train(optimizer, [step])
    assert optimizer.metrics()["distance"] == pytest.approx(reached, rel=1e-7)


def test_tensors_of_no_elements_are_no_trouble() -> None:
    params = [*make_params(), Parameter(torch.zeros(0, 3))]
    others = make_params()
    one, other = AutoScheduleFree(params), AutoScheduleFree(others)
    train(one, range(4))
    train(other, range(4))
    assert equal(params[:2], others)


# What takes over.


def test_what_takes_over_has_the_last_step() -> None:
    params = make_params()
    optimizer = AutoScheduleFree(params, step_size=EAGER)
    with pytest.raises(ValueError, match="make a step above 0 before"):
        optimizer.to_torch()
    train(optimizer, range(6))
    gamma = optimizer.metrics()["effective_lr"]
    assert export_adamw_state_dict(optimizer)["param_groups"][0]["lr"] == gamma
    with pytest.raises(ValueError, match=r"the schedulefree package has no step_size = DistanceStep"):
        export_schedulefree_state_dict(optimizer)
    plain = optimizer.to_torch()
    assert 0.0 < plain.param_groups[0]["lr"] < gamma


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"factor": 0.0}, r"factor = 0\.0 is outside \(0, inf\)"),
        ({"start": -1.0}, r"start = -1\.0 is outside \(0, inf\)"),
        ({"growth": 1.0}, r"growth = 1\.0 is outside \(1, inf\)"),
        ({"early": -1.0}, r"early = -1\.0 is outside \[0, inf\): use 2\.0, or 0"),
        ({"noise_beta": 1.0}, r"noise_beta = 1\.0 is outside \(0, 1\): use 0\.95, or None"),
        ({"least_noise": 0.0}, r"least_noise = 0\.0 is outside \(0, 1\]"),
        ({"partitioned": 1}, r"partitioned = 1 is neither True nor False"),
    ],
)
def test_constants_out_of_range_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DistanceStep(**arguments)


def test_what_it_cannot_be_with_is_refused() -> None:
    rule = DistanceStep()
    with pytest.raises(ValueError, match=r"averaging = NoAveraging\(\), step_size = DistanceStep"):
        AutoScheduleFree(make_params(), averaging=NoAveraging())
    with pytest.raises(ValueError, match=r"silent_sgd_phase = False, step_size = DistanceStep"):
        RAdamScheduleFree(make_params(), silent_sgd_phase=False, step_size=rule)
    with pytest.raises(ValueError, match=r"is not there for MuonScheduleFree"):
        MuonScheduleFree(make_params(), use_muon=False, step_size=rule)
    with pytest.raises(ValueError, match=r"is not there for ScheduleFreeWrapper, since only the base knows"):
        ScheduleFreeWrapper(torch.optim.SGD(make_params(), lr=0.1), step_size=rule)
    with pytest.raises(ValueError, match=r"step_size = DistanceStep.* in a group: it is for all groups"):
        AdamWScheduleFree([{"params": make_params(), "step_size": rule}])


def test_a_step_size_that_is_changed_in_the_middle_is_refused() -> None:
    optimizer = AdamWScheduleFree(make_params())
    train(optimizer, range(3))
    optimizer.param_groups[0]["step_size"] = DistanceStep()
    with pytest.raises(ValueError, match=r"the options of the group ask for .*'z0'.*set them back"):
        train(optimizer, [3])


@pytest.mark.parametrize(
    ("name", "value"), [("distance_gamma", 0.0), ("distance_reached", 0.0), ("distance_remembered", math.nan)]
)
def test_a_damaged_number_is_refused(name: str, value: float) -> None:
    optimizer = AutoScheduleFree(make_params())
    train(optimizer, range(3))
    state = optimizer.state_dict()
    state["param_groups"][0][name] = value
    with pytest.raises(ValueError, match=rf"{name} = {value} is outside"):
        optimizer.load_state_dict(state)
    del state["param_groups"][0][name]
    with pytest.raises(ValueError, match=f"{name} is missing"):
        optimizer.load_state_dict(state)


def test_states_of_other_runs_are_refused() -> None:
    """They have no start: of another step size, of torch's AdamW."""
    optimizer, constant = AutoScheduleFree(make_params()), AdamWScheduleFree(make_params())
    adamw = torch.optim.AdamW(make_params())
    for other in (constant, adamw):
        params = other.param_groups[0]["params"]
        set_gradients(params, 0)
        other.step()
        with pytest.raises(ValueError, match=r"another kind of optimizer|it was made with step_size = ConstantStep"):
            optimizer.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"it was made with step_size = DistanceStep\("):
        constant.load_state_dict(optimizer.state_dict())


# The preset.


def test_the_preset_is_adamw_with_the_step() -> None:
    params, others = make_params(), make_params()
    auto = AutoScheduleFree(params)
    adamw = AdamWScheduleFree(others, betas=(0.9, 0.99), step_size=DistanceStep())
    train(auto, range(6))
    train(adamw, range(6))
    assert equal(params, others)
    assert auto.param_groups[0]["lr"] == adamw.param_groups[0]["lr"] == 1.0
    assert RAdamScheduleFree(make_params(), step_size=DistanceStep()).param_groups[0]["lr"] == 1.0
    assert AutoScheduleFree(make_params(), step_size=ConstantStep()).param_groups[0]["lr"] == 0.0025


@pytest.mark.parametrize("cls", [AdamWScheduleFree, SGDScheduleFree])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_it_converges_without_a_learning_rate_whatever_the_scale_of_the_loss(cls: type[Any], scale: float) -> None:
    """Consistent least squares."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    target = matrix @ torch.randn(6, generator=generator, dtype=torch.float64)
    weight = Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = cls([weight], step_size=DistanceStep(), **({} if cls is SGDScheduleFree else {"betas": (0.9, 0.99)}))

    def loss() -> Tensor:
        return scale * (matrix @ weight - target).square().mean()

    first = loss().item()
    for _ in range(600):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    optimizer.eval()
    assert loss().item() < 1e-2 * first


def test_a_run_starts_where_its_weights_are_at_the_first_step() -> None:
    """Not where they were when torch's DCP had the buffers made, for a file that then did not come."""
    torch.manual_seed(0)
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer, reference = AutoScheduleFree(model.parameters()), AutoScheduleFree(other.parameters())
    get_optimizer_state_dict(model, optimizer)
    assert "z0" in optimizer.state[model.weight]
    model.load_state_dict(other.state_dict())
    assert gammas(optimizer, range(6)) == gammas(reference, range(6))
    assert equal(model.parameters(), other.parameters())
