"""The Polyak step and the rest: states and copies, modes, scalers, late groups, narrow numbers, and the metrics."""

import copy
import io
from typing import Any

import pytest
import torch
from problems import copies, equal, make_params, set_gradients
from registry import implementations
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn import Parameter

from unscheduled import AdamWScheduleFree, PolyakStep, ScheduleFreeOptimizer, ScheduleFreePlus, SGDScheduleFree

SMOOTHED = PolyakStep(f_star=0.5, norm_beta=0.9, max_step=10.0)
KINDS: list[type[Any]] = [AdamWScheduleFree, SGDScheduleFree, ScheduleFreePlus]
kinds = pytest.mark.parametrize("cls", KINDS)


def made(cls: type[Any], params: Any, **arguments: Any) -> Any:
    return cls(params, **{"step_size": SMOOTHED, "warmup_steps": 3} | arguments)


def fit(optimizer: ScheduleFreeOptimizer, steps: range) -> list[float]:
    """Step on random gradients and losses; the step sizes."""
    step_sizes: list[float] = []
    for step in steps:
        set_gradients([param for group in optimizer.param_groups for param in group["params"]], step)
        optimizer.step(loss=2.0 + step % 3)
        step_sizes.append(optimizer.param_groups[0]["effective_lr"])
    return step_sizes


# States and copies.


@kinds
@pytest.mark.parametrize("training", [True, False])
def test_a_state_resumes_bit_for_bit(cls: type[Any], training: bool) -> None:
    """Through a file that holds no code, with the averages and the rule itself."""
    params, others = make_params(), make_params()
    optimizer = made(cls, params)
    fit(optimizer, range(5))
    optimizer.train(training)
    file = io.BytesIO()
    torch.save((copies(params), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    with torch.no_grad():
        for other, weight in zip(others, weights, strict=True):
            other.copy_(weight)
    resumed = made(cls, others, step_size=PolyakStep())
    resumed.load_state_dict(state)
    assert resumed.training is training
    assert resumed.param_groups[0]["step_size"] == SMOOTHED
    assert 1.0 < resumed.param_groups[0]["polyak_weight"] < 5.0
    assert fit(resumed.train(), range(5, 10)) == fit(optimizer.train(), range(5, 10))
    assert equal(params, others)


@kinds
def test_without_the_averages_a_run_would_go_otherwise(cls: type[Any]) -> None:
    params, others = make_params(), make_params()
    optimizer, other = made(cls, params), made(cls, others)
    fit(optimizer, range(5))
    fit(other, range(5))
    other.param_groups[0].update(polyak_excess=0.0, polyak_norm=0.0, polyak_weight=0.0)
    assert fit(optimizer, range(5, 6)) != fit(other, range(5, 6))


@pytest.mark.covering(1)
@kinds
@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("polyak_norm", -1.0, r"polyak_norm = -1\.0 is outside \[0, inf\)"),
        ("polyak_excess", float("nan"), r"polyak_excess = nan is outside"),
        ("polyak_weight", -0.5, r"polyak_weight = -0\.5 is outside \[0, inf\)"),
        ("polyak_norm", 0.0, r"polyak_norm = 0\.0 and polyak_weight = 2\.\d+ are not both 0 or both above 0"),
        ("polyak_norm", None, r"polyak_norm is missing: the state dict is damaged"),
    ],
)
def test_a_damaged_average_is_refused(cls: type[Any], name: str, value: float, match: str) -> None:
    optimizer = made(cls, make_params())
    fit(optimizer, range(3))
    state = optimizer.state_dict()
    state["param_groups"][0][name] = value
    if value is None:
        del state["param_groups"][0][name]
    before = dict(optimizer.param_groups[0])
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0] == before


def test_a_state_with_another_rule_of_the_step_is_refused() -> None:
    polyak, constant = made(AdamWScheduleFree, make_params()), AdamWScheduleFree(make_params())
    fit(polyak, range(2))
    with pytest.raises(ValueError, match=r"it was made with step_size = PolyakStep\(.*this optimizer has ConstantStep"):
        constant.load_state_dict(polyak.state_dict())


@kinds
@pytest.mark.filterwarnings("ignore")  # those of torch.distributed.checkpoint
@pytest.mark.parametrize("flat", [True, False])
def test_torchs_checkpoints_make_the_buffers_by_a_step_without_a_loss(cls: type[Any], flat: bool) -> None:
    """Into a fresh optimizer, which has to have buffers before it is given those of the checkpoint."""

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 2)

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, other = net(), net()
    optimizer, resumed = made(cls, model.parameters()), made(cls, other.parameters())
    fit(optimizer, range(5))
    state = get_optimizer_state_dict(model, optimizer, options=options)
    fresh = get_optimizer_state_dict(other, resumed, options=options)
    assert equal(other.parameters(), net().parameters())
    assert fresh.keys() == state.keys()
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, resumed, state, options=options)
    assert fit(resumed, range(5, 10)) == fit(optimizer, range(5, 10))
    assert equal(model.parameters(), other.parameters())


@kinds
def test_a_deep_copy_goes_on_by_itself(cls: type[Any]) -> None:
    params = make_params()
    optimizer = made(cls, params)
    fit(optimizer, range(5))
    copied_params, copied = copy.deepcopy((params, optimizer))
    before = copies(params)
    step_sizes = fit(copied, range(5, 10))
    assert equal(params, before)
    assert fit(optimizer, range(5, 10)) == step_sizes
    assert equal(params, copied_params)


# Groups.


@kinds
def test_a_late_group_takes_the_step_of_the_others(cls: type[Any]) -> None:
    """The averages are the same for all groups, and go on."""
    first, second, third = make_params((4, 3), (7,), (5,))
    optimizer = made(cls, [first], warmup_steps=0)
    fit(optimizer, range(4))
    average = {name: optimizer.param_groups[0][name] for name in ("polyak_excess", "polyak_norm", "polyak_weight")}
    optimizer.add_param_group({"params": [second]})
    optimizer.eval()
    optimizer.add_param_group({"params": [third], "lr": 0.5})
    optimizer.train()
    assert all(group[name] == value for group in optimizer.param_groups for name, value in average.items())
    fit(optimizer, range(4, 8))
    metrics = optimizer.metrics()
    assert metrics["group0/effective_lr"] > 0.0
    assert metrics["group1/effective_lr"] == metrics["group0/effective_lr"]
    assert metrics["group2/effective_lr"] == 0.5 * metrics["group0/effective_lr"]
    assert metrics["group1/step"] == 4
    assert len({group["polyak_norm"] for group in optimizer.param_groups}) == 1
    assert optimizer.param_groups[2]["polyak_weight"] == pytest.approx((1 - 0.9**8) / 0.1)


@kinds
def test_the_first_group_may_go(cls: type[Any]) -> None:
    first, second = make_params()
    optimizer = made(cls, [{"params": [first]}, {"params": [second]}])
    fit(optimizer, range(4))
    del optimizer.param_groups[0]
    fit(optimizer, range(4, 5))
    assert optimizer.param_groups[0]["polyak_weight"] == pytest.approx((1 - 0.9**5) / 0.1)


@kinds
def test_parameters_without_gradients_are_left_out_of_the_sums(cls: type[Any]) -> None:
    used, unused = make_params()
    (alone,) = make_params((4, 3))
    optimizer, reference = made(cls, [used, unused]), made(cls, [alone])
    for step in range(5):
        set_gradients([used, alone], step)
        optimizer.step(loss=2.0)
        reference.step(loss=2.0)
    assert torch.equal(used, alone)
    assert torch.equal(unused, make_params()[1])


@kinds
def test_without_any_gradient_nothing_happens(cls: type[Any]) -> None:
    params = make_params()
    optimizer = made(cls, params)
    optimizer.step(loss=2.0)
    assert equal(params, make_params())
    assert optimizer.metrics()["effective_lr"] == 0.0
    assert fit(optimizer, range(3))[-1] > 0.0


# Modes and scalers.


@kinds
def test_an_attached_model_switches_as_ever(cls: type[Any]) -> None:
    """Evaluating between the steps changes nothing, and the loss falls."""
    batch = torch.randn(16, 4)
    ends: list[list[Tensor]] = []
    losses: list[float] = []
    for evaluate in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = made(cls, model.parameters(), step_size=PolyakStep()).attach(model)
        for _ in range(30):
            optimizer.zero_grad()
            loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step(loss=loss)
            losses.append(loss.item())
            if evaluate:
                y = copies(model.parameters())
                model.eval()
                assert not equal(model.parameters(), y) or optimizer.metrics()["c"] == 1.0
                model.train()
        ends.append(copies(model.eval().parameters()))
    assert equal(*ends)
    assert losses[29] < 0.5 * losses[0]


@kinds
def test_a_scaler_passes_the_loss_on(cls: type[Any]) -> None:
    """Unscaled, to gradients that it has unscaled; a step that overflowed is left out."""
    scaled, plain = make_params(), make_params()
    optimizer, reference = made(cls, scaled), made(cls, plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))  # creates its scale
    for step in range(8):
        set_gradients(scaled, step)
        for param in scaled:
            assert param.grad is not None
            param.grad.mul_(float("inf") if step == 4 else scaler.get_scale())
        scaler.step(optimizer, loss=torch.tensor(2.0))
        scaler.update()
        if step != 4:
            set_gradients(plain, step)
            reference.step(loss=2.0)
    assert equal(scaled, plain)
    assert optimizer.metrics()["step"] == 7


# Narrow numbers and the metrics.


@pytest.mark.covering(2)
@kinds
@implementations
@pytest.mark.parametrize(
    ("dtype", "state_precision", "error"),
    [(torch.float32, "compact", 0.01), (torch.bfloat16, "float32", 0.03), (torch.bfloat16, "compact", 0.03)],
)
def test_narrow_runs_take_nearly_the_steps_of_float64(
    cls: type[Any], implementation: Any, dtype: torch.dtype, state_precision: str, error: float
) -> None:
    exact = made(cls, make_params((40, 30), (129,), dtype=torch.float64), implementation=implementation)
    start = [param.to(dtype) for param in copies(make_params((40, 30), (129,), dtype=torch.float64))]
    params = [Parameter(param) for param in start]
    narrow = made(cls, params, implementation=implementation, state_precision=state_precision)
    assert fit(narrow, range(30)) == pytest.approx(fit(exact, range(30)), rel=error)
    for param, truth in zip(params, exact.param_groups[0]["params"], strict=True):
        ours, true = narrow.iterates(param).x.double(), exact.iterates(truth).x
        assert (ours - true).norm() < error * true.norm()


@kinds
def test_gradients_of_any_memory_format_are_left_as_they_are(cls: type[Any]) -> None:
    (param,) = make_params((2, 3, 4, 5))
    (other,) = make_params((2, 3, 4, 5))
    strided = Parameter(param.detach().to(memory_format=torch.channels_last))
    optimizer, reference = made(cls, [strided]), made(cls, [other])
    for step in range(5):
        set_gradients([other], step)
        assert other.grad is not None
        strided.grad = other.grad.to(memory_format=torch.channels_last)
        before = strided.grad.clone()
        optimizer.step(loss=2.0)
        reference.step(loss=2.0)
        assert torch.equal(strided.grad, before)
    torch.testing.assert_close(strided, other, rtol=1e-5, atol=1e-7)


@kinds
def test_the_metrics_have_the_learning_rate_times_the_step(cls: type[Any]) -> None:
    """And the warmup; the learning rate as set beside it."""
    plain, scaled = (made(cls, make_params(), lr=lr, warmup_steps=4) for lr in (1.0, 0.25))
    assert fit(scaled, range(1))[0] == pytest.approx(0.25 * fit(plain, range(1))[0])
    assert (plain.metrics()["lr"], scaled.metrics()["lr"]) == (1.0, 0.25)
    unwarmed = made(cls, make_params(), warmup_steps=0)
    assert 4 * plain.metrics()["effective_lr"] == pytest.approx(fit(unwarmed, range(1))[0])
    assert unwarmed.metrics()["effective_lr"] == unwarmed.param_groups[0]["lr_max"]


@pytest.mark.parametrize("cls", [AdamWScheduleFree, ScheduleFreePlus])
def test_the_learning_rate_is_1_unless_it_is_given(cls: type[Any]) -> None:
    assert cls(make_params(), step_size=PolyakStep()).param_groups[0]["lr"] == 1.0
    assert cls(make_params(), step_size=PolyakStep(), lr=0.5).param_groups[0]["lr"] == 0.5
    assert AdamWScheduleFree(make_params()).param_groups[0]["lr"] == 0.0025


def test_schedule_free_plus_is_a_set_of_defaults() -> None:
    params, others = make_params(), make_params()
    plus = ScheduleFreePlus(params, weight_decay=5.0)
    adamw = AdamWScheduleFree(
        others, betas=(0.9, 0.99), warmup_steps=200, weight_decay=5.0, step_size=PolyakStep(), corrected_decay=True
    )
    assert fit(plus, range(10)) == fit(adamw, range(10))
    assert equal(params, others)


def test_a_late_group_after_a_step_size_that_was_changed_by_hand() -> None:
    first, second = make_params((4, 3), (7,))
    optimizer = AdamWScheduleFree([first])
    optimizer.param_groups[0]["step_size"] = optimizer.defaults["step_size"] = SMOOTHED
    optimizer.add_param_group({"params": [second]})
    assert all(step_size > 0.0 for step_size in fit(optimizer, range(3)))
