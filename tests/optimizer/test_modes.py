"""y while training, x while evaluating: nothing is lost on the way, and nothing changes training."""

from typing import Any

import pytest
import torch
from problems import copies, equal, make_params, set_gradients, train
from registry import OptimizerInfo, optimizers
from torch import nn

from unscheduled import AdamWScheduleFree, AnnealedInterpolation, SGDScheduleFree, averaged_state_dict
from unscheduled.formulas import iterates
from unscheduled.optimizer import reconciliation
from unscheduled.state import parameter


@optimizers
def test_born_in_train_mode(info: OptimizerInfo) -> None:
    optimizer = info.make(make_params())
    assert optimizer.training is True
    train(optimizer, range(1))


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_eval_puts_x_and_train_restores_the_bits_of_y(info: OptimizerInfo, dtype: torch.dtype) -> None:
    params = make_params(dtype=dtype)
    optimizer = info.make(params, lr=0.1)
    train(optimizer, range(30))
    y = copies(params)
    x = [optimizer.iterates(param).x.to(dtype) for param in params]
    assert not equal(x, y)
    assert optimizer.eval() is optimizer
    assert not optimizer.training
    assert equal(params, x)
    assert optimizer.train() is optimizer
    assert optimizer.training
    assert equal(params, y)


def test_the_bits_of_y_return_where_a_weight_is_nan() -> None:
    (param,) = make_params((100,))
    optimizer = AdamWScheduleFree([param], lr=0.1)
    train(optimizer, range(10))
    param.data[3] = float("nan")
    y = param.detach().clone()
    optimizer.eval().train()
    assert torch.equal(param[torch.arange(100) != 3], y[torch.arange(100) != 3])
    assert param[3].isnan()


@pytest.mark.covering(2)
@optimizers
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("failing", ["averaged", "gradient_point"])
def test_a_switch_that_is_interrupted_loses_nothing(
    info: OptimizerInfo, there: bool, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory or Ctrl-C at the second parameter, on the way to x or back, where it goes tensor by tensor."""
    params = make_params((3,), (4,), (5,))
    optimizer = info.make(params, implementation="loop")
    train(optimizer, range(10))
    y = copies(params)
    x = copies(optimizer.eval().param_groups[0]["params"])
    if there:
        optimizer.train()
    if failing == "gradient_point":
        params[1].data.add_(0.0 if there else 1.0)
    calls = 0
    original = getattr(iterates, failing)

    def interrupted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2 or failing == "gradient_point":
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(iterates, failing, interrupted)
        if there and failing == "gradient_point":
            optimizer.eval().train()  # which does not need it
        else:
            with pytest.raises(KeyboardInterrupt):
                optimizer.train(not there)
            assert optimizer.training == there
    if there:
        assert equal(params, y)
        assert equal(optimizer.eval().param_groups[0]["params"], x)
    optimizer.train()
    assert torch.equal(params[0], y[0])
    assert torch.equal(params[2], y[2])
    if there or failing == "averaged":
        assert torch.equal(params[1], y[1])
    else:
        torch.testing.assert_close(params[1].detach(), y[1] + 1.0)


def test_weights_that_were_written_at_x_stay_if_the_switch_to_y_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory at the second parameter, when the first holds y already."""
    params = make_params((3,), (4,))
    optimizer = AdamWScheduleFree(params, implementation="loop")
    train(optimizer, range(10))
    optimizer.eval()
    params[0].data.add_(1.0)
    written, original, calls = copies(params), parameter.put_y, 0

    def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(parameter, "put_y", failing)
        with pytest.raises(MemoryError):
            optimizer.train()
    assert not optimizer.training
    assert equal(params, written)


@optimizers
def test_a_switch_back_that_stopped_half_way_can_be_done_again(
    info: OptimizerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params((3,), (4,), (5,))
    optimizer = info.make(params, implementation="loop")
    train(optimizer, range(10))
    y = copies(params)
    optimizer.eval()
    copy_, calls = torch.Tensor.copy_, 0

    def interrupted(self: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return copy_(self, source)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.train()
    assert not optimizer.training
    optimizer.train()
    assert equal(params, y)


@optimizers
def test_a_switch_under_inference_mode(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params)
    train(optimizer, range(10))
    y = copies(params)
    with torch.inference_mode():
        optimizer.eval()
    optimizer.train()
    assert equal(params, y)
    train(optimizer, [10])


@optimizers
def test_switching_is_idempotent(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params)
    train(optimizer, range(10))
    y = copies(params)
    optimizer.train()
    assert equal(params, y)
    optimizer.eval()
    x = copies(params)
    optimizer.eval().train(False)
    assert equal(params, x)
    assert equal(optimizer.train().train(True).param_groups[0]["params"], y)


@optimizers
def test_a_run_that_evaluates_100_times_ends_like_one_that_never_does(info: OptimizerInfo) -> None:
    often, never = make_params(), make_params()
    evaluated, plain = info.make(often), info.make(never)
    for step in range(100):
        train(evaluated, [step])
        train(plain, [step])
        evaluated.eval()
        evaluated.train()
    assert equal(often, never)
    assert equal(evaluated.eval().param_groups[0]["params"], plain.eval().param_groups[0]["params"])


@optimizers
def test_weights_written_in_eval_mode_become_the_new_average(info: OptimizerInfo) -> None:
    written, left = make_params(dtype=torch.float64)
    optimizer = info.make([written, left])
    train(optimizer, range(10))
    y_left = left.detach().clone()
    gap = optimizer.iterates(written).z - optimizer.iterates(written).x
    optimizer.eval()
    target = torch.randn_like(written)
    written.data.copy_(target)  # does not raise the version counter
    x, y, z = optimizer.iterates(written)
    assert torch.equal(x, target)
    torch.testing.assert_close(z - x, gap, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(y, 0.9 * x + 0.1 * z, rtol=1e-12, atol=1e-14)
    optimizer.train()
    x, y, z = optimizer.iterates(written)
    torch.testing.assert_close(x, target, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(z - x, gap, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(y, 0.9 * x + 0.1 * z, rtol=1e-12, atol=1e-14)
    assert torch.equal(left, y_left)


@optimizers
def test_closures_run_at_y_from_either_mode(info: OptimizerInfo) -> None:
    params, reference = make_params(), make_params()
    optimizer, plain = info.make(params), info.make(reference)
    optimizer.eval()
    for step in range(10):
        y = copies(reference)

        def closure(y: list[torch.Tensor] = y, step: int = step) -> float:
            assert equal(params, y)
            set_gradients(params, step)
            return 0.0

        optimizer.step(closure)
        train(plain, [step])
        assert not optimizer.training
        with plain.averaged_parameters():
            assert equal(params, reference)
    optimizer.train()
    assert equal(params, reference)


@optimizers
def test_a_closure_that_fails_leaves_the_mode(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params)
    train(optimizer, range(5))
    x = copies(optimizer.eval().param_groups[0]["params"])

    def closure() -> float:
        raise KeyError("the user's")

    with pytest.raises(KeyError, match="the user's"):
        optimizer.step(closure)
    assert not optimizer.training
    assert equal(params, x)


@optimizers
def test_a_closure_that_evaluates_is_stepped_at_y(info: OptimizerInfo) -> None:
    params, reference = make_params(), make_params()
    optimizer, plain = info.make(params), info.make(reference)
    for step in range(10):

        def closure(step: int = step) -> torch.Tensor:
            set_gradients(params, step)
            optimizer.eval()
            return torch.zeros(())

        optimizer.step(closure)
        assert optimizer.training
        train(plain, [step])
    assert equal(params, reference)


@optimizers
def test_averaged_parameters_gives_back_the_mode(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params)
    train(optimizer, range(10))
    y = copies(params)

    def fail_at_x() -> None:
        with optimizer.averaged_parameters() as inside:
            assert inside is optimizer
            assert not equal(params, y)
            raise KeyError

    with pytest.raises(KeyError):
        fail_at_x()
    assert equal(params, y)
    x = copies(optimizer.eval().param_groups[0]["params"])
    with optimizer.averaged_parameters():
        assert equal(params, x)
    assert not optimizer.training


@optimizers
def test_iterates_are_the_same_from_either_mode_and_are_copies(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params)
    fresh = optimizer.iterates(params[0])
    assert all(torch.equal(each, params[0]) and each is not params[0] for each in fresh)
    train(optimizer, range(8))
    training = [optimizer.iterates(param) for param in params]
    y = copies(params)
    training[0].x.zero_()
    training[0].y.zero_()
    training[0].z.zero_()
    assert equal(params, y)
    training = [optimizer.iterates(param) for param in params]
    optimizer.eval()
    evaluating = [optimizer.iterates(param) for param in params]
    for one, other in zip(training, evaluating, strict=True):
        assert equal(one, other)
    assert type(training[0])._fields == ("x", "y", "z")
    with pytest.raises(ValueError, match=r"a tensor of shape \(2,\) is no parameter of this optimizer"):
        optimizer.iterates(torch.zeros(2))


def test_a_state_looked_up_by_others_is_no_state() -> None:
    """``optimizer.state`` is a defaultdict: reading it makes an entry."""
    first, second = make_params()
    optimizer = AdamWScheduleFree([first, second])
    set_gradients([first], 0)
    assert optimizer.state[second] == {}
    optimizer.step()
    optimizer.eval()
    optimizer.train()
    assert torch.equal(optimizer.iterates(second).x, second)
    assert optimizer.metrics()["gap_norm"] == 0.0


@optimizers
def test_a_parameter_that_rests_keeps_its_x_while_beta_changes(info: OptimizerInfo) -> None:
    moving, resting = make_params(dtype=torch.float64)
    optimizer = info.make([moving, resting], interpolation=AnnealedInterpolation(0.99, 40))
    train(optimizer, range(10))
    x, y, z = optimizer.iterates(resting)
    resting.grad = None
    for step in range(10):
        set_gradients([moving], step)
        optimizer.step()
    later = optimizer.iterates(resting)
    torch.testing.assert_close(later.x, x, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(later.z, z, rtol=1e-13, atol=1e-14)
    assert not torch.allclose(later.y, y)
    beta = optimizer.param_groups[0]["beta"]
    torch.testing.assert_close(later.y, (1 - beta) * z + beta * x, rtol=1e-12, atol=1e-13)


def test_evaluating_inside_autocast_uses_the_averaged_weights() -> None:
    """Autocast keeps casts of the weights; a switch must not leave it those of the other mode."""
    model = nn.Linear(8, 8)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.5)
    train(optimizer, range(5))
    inputs = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(inputs)
        optimizer.eval()
        inside = model(inputs)
        optimizer.train()
        again = model(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        training = model(inputs)
    optimizer.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outside = model(inputs)
    assert torch.equal(inside, outside)
    assert torch.equal(again, training)
    assert not torch.equal(inside, training)


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("training", [True, False])
def test_averaged_state_dict_is_a_snapshot_at_x(info: OptimizerInfo, training: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight  # tied
    model[1].weight.requires_grad_(False)
    optimizer = info.make([param for param in model.parameters() if param.requires_grad])
    train(optimizer, range(8))
    optimizer.train(training)
    present = copies(model.parameters())
    averaged = averaged_state_dict(model, optimizer)
    assert equal(model.parameters(), present)
    assert optimizer.training == training
    assert list(averaged) == list(model.state_dict())
    assert averaged["0.weight"] is averaged["2.weight"]
    assert not any(isinstance(entry, nn.Parameter) or entry.requires_grad for entry in averaged.values())
    with optimizer.averaged_parameters():
        expected = {name: entry.clone() for name, entry in model.state_dict().items()}
    optimizer.train()
    train(optimizer, range(8, 10))
    model(torch.randn(4, 3))
    assert equal(averaged.values(), expected.values())


def test_averaged_state_dict_looks_at_each_parameter_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between loading a state and the first step, when the weights may have come since."""
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(20)])
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1)
    train(optimizer, range(2))
    optimizer.load_state_dict(optimizer.state_dict())
    looks = []
    original = reconciliation.settle
    monkeypatch.setattr(reconciliation, "settle", lambda *arguments: looks.append(1) or original(*arguments))
    averaged_state_dict(model, optimizer)
    assert len(looks) == 40


def test_averaged_state_dict_of_a_compiled_model() -> None:
    model = nn.Linear(3, 2)
    compiled = torch.compile(model, backend="eager")
    optimizer = AdamWScheduleFree(compiled.parameters(), lr=0.1)
    train(optimizer, range(5))
    averaged = averaged_state_dict(compiled, optimizer)
    assert list(averaged) == ["_orig_mod.weight", "_orig_mod.bias"]
    assert torch.equal(averaged["_orig_mod.weight"], optimizer.iterates(model.weight).x)


def test_a_model_made_double_goes_on_in_double() -> None:
    model = nn.Linear(3, 2)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1)
    train(optimizer, range(5))
    model.double()
    with torch.no_grad():
        model.weight.add_(1e-12)
    y = copies(model.parameters())
    optimizer.eval().train()
    assert equal(model.parameters(), y)
    for implementation in ("loop", "foreach"):
        optimizer.implementation = implementation
        train(optimizer, [5])
    assert not torch.equal(model.weight, model.weight.float().double())


@optimizers
def test_metrics(info: OptimizerInfo) -> None:
    params = make_params(dtype=torch.float64)
    optimizer = info.make(params)
    assert optimizer.metrics()["window"] == float("inf")
    train(optimizer, range(10))
    metrics = optimizer.metrics()
    assert all(type(value) is float for value in metrics.values())
    assert metrics["step"] == 10
    assert metrics["lr"] == info.lr
    assert 0 < metrics["effective_lr"] <= info.lr
    assert metrics["window"] == pytest.approx(1 / metrics["c"])
    gaps = torch.cat([(optimizer.iterates(p).z - optimizer.iterates(p).x).flatten() for p in params])
    assert metrics["gap_norm"] == pytest.approx(gaps.norm().item(), rel=1e-5)
    optimizer.param_groups[0].update(info.beta_arguments(torch.tensor(0.9)))
    train(optimizer, range(2))
    assert all(type(value) is float for value in optimizer.metrics().values())
    several = info.make([{"params": params[:1]}, {"params": params[1:]}])
    assert {"group0/lr", "group1/c"} < set(several.metrics())
    warming = SGDScheduleFree(make_params(), lr=2.0, warmup_steps=10)
    train(warming, range(3))
    assert warming.metrics()["effective_lr"] == pytest.approx(0.6)
