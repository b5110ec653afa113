"""The wrapper moves z by any optimizer, and is an optimizer itself."""

from collections.abc import Callable
from typing import Any

import lion_pytorch
import prodigyopt
import pytest
import torch
from bases import BASES, Base, bases, dtypes
from problems import copies, equal, make_params, set_gradients, train
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RAdam, lr_scheduler

from unscheduled import (
    AdamWScheduleFree,
    AnnealedInterpolation,
    ConstantStep,
    ExponentialAveraging,
    LionScheduleFree,
    NoAveraging,
    RAdamScheduleFree,
    ScheduleFreeOptimizer,
    ScheduleFreeWrapper,
    SGDScheduleFree,
)


class Reference:
    """x, y and z, each a tensor of its own: the base moves z in place."""

    def __init__(
        self, base: Base, beta: float, decay: float, warmup: int, r: float, power: float, distance: bool = True
    ) -> None:
        self.z = base.params(torch.float64)
        self.x, self.y = copies(self.z), copies(self.z)
        self.base = base.make(self.z)
        self.lr = self.base.param_groups[0]["lr"]
        self.distance = distance  # whether a d of the base is one
        self.beta, self.decay, self.warmup, self.r, self.power = beta, decay, warmup, r, power
        self.t, self.largest, self.weight_sum = 0, 0.0, 0.0

    @torch.no_grad()
    def step(self, grads: list[Tensor]) -> None:
        self.t += 1
        (group,) = self.base.param_groups
        group["lr"] = self.lr * min(1.0, self.t / self.warmup)
        gamma = group["lr"] * (group.get("d", 1.0) if self.distance else 1.0)
        for z, grad in zip(self.z, grads, strict=True):
            z.grad = grad.clone()
        self.base.step()
        self.largest = max(self.largest, gamma)
        weight = self.t**self.r * self.largest**self.power
        self.weight_sum += weight
        c = weight / self.weight_sum
        for x, y, z in zip(self.x, self.y, self.z, strict=True):
            z -= gamma * self.decay * y
            x.copy_((1 - c) * x + c * z)
            y.copy_((1 - self.beta) * z + self.beta * x)


@bases
@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
def test_the_base_moves_z_and_x_averages_it(base: Base, beta: float) -> None:
    """The gradients depend on y, so an error in y is one in all."""
    reference = Reference(base, beta, decay=0.2, warmup=8, r=0.5, power=1.5)
    params = base.params(torch.float64)
    optimizer = ScheduleFreeWrapper(
        base.make(params), weight_decay_at_y=0.2, momentum=beta, weight_lr_power=1.5, r=0.5, warmup_steps=8
    )
    for step in range(30):
        set_gradients(params, step)
        noises = [param.grad for param in params]
        for param, noise in zip(params, noises, strict=True):
            param.grad = noise + param.detach()
        reference.step([noise + y for noise, y in zip(noises, reference.y, strict=True)])
        optimizer.step()
    for param, x, y, z in zip(params, reference.x, reference.y, reference.z, strict=True):
        torch.testing.assert_close(optimizer.iterates(param), (x, y, z.detach()), rtol=1e-9, atol=1e-11)


Make = Callable[[Any], ScheduleFreeOptimizer]
TWINS: dict[str, tuple[Make, Make]] = {
    "SGD": (
        lambda params: ScheduleFreeWrapper(SGD(params, lr=0.1, weight_decay=0.1), warmup_steps=5, r=1),
        lambda params: SGDScheduleFree(params, lr=0.1, weight_decay=0.1, decay_at="z", warmup_steps=5, r=1),
    ),
    "decay at y": (
        lambda params: ScheduleFreeWrapper(SGD(params, lr=0.1), weight_decay_at_y=0.1, warmup_steps=5),
        lambda params: SGDScheduleFree(params, lr=0.1, weight_decay=0.1, warmup_steps=5),
    ),
    "RMSprop without bias": (
        lambda params: ScheduleFreeWrapper(Adam(params, lr=0.01, betas=(0.0, 0.99))),
        lambda params: AdamWScheduleFree(params, lr=0.01, betas=(0.9, 0.99)),
    ),
    "AdamW": (
        lambda params: ScheduleFreeWrapper(AdamW(params, lr=0.01, betas=(0.8, 0.99), weight_decay=0.1), momentum=0.95),
        lambda params: AdamWScheduleFree(
            params, lr=0.01, betas=(0.95, 0.99), inner_momentum=0.8, weight_decay=0.1, decay_at="z"
        ),
    ),
    "Lion": (
        lambda params: ScheduleFreeWrapper(
            lion_pytorch.Lion(params, lr=0.003, betas=(0.8, 0.99), weight_decay=0.1), momentum=0.95
        ),
        lambda params: LionScheduleFree(
            params, lr=0.003, betas=(0.95, 0.99), inner_momentum=0.8, weight_decay=0.1, decay_at="z"
        ),
    ),
    "RAdam before it adapts": (
        lambda params: ScheduleFreeWrapper(RAdam(params, lr=0.01, betas=(0.0, 0.5))),
        lambda params: RAdamScheduleFree(params, lr=0.01, betas=(0.9, 0.5), silent_sgd_phase=False),
    ),
}


@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS)
def test_it_is_the_built_in_optimizer(twins: tuple[Make, Make]) -> None:
    wrapped, built_in = make_params(), make_params()
    optimizer, other = twins[0](wrapped), twins[1](built_in)
    for each in (optimizer, other):
        train(each, range(30))
    for param, expected in zip(wrapped, built_in, strict=True):
        for ours, theirs in zip(optimizer.iterates(param), other.iterates(expected), strict=True):
            assert (ours - theirs).norm() < 1e-6 * theirs.norm()


def bytes_of(optimizer: Optimizer) -> int:
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(storage.nbytes() for storage in {tensor.untyped_storage() for tensor in tensors})


@pytest.mark.covering(1)
@bases
@dtypes
def test_kept_are_the_state_of_the_base_and_the_gap(base: Base, dtype: torch.dtype) -> None:
    plain, params = base.params(), base.params(dtype)
    alone, optimizer = base.make(plain), ScheduleFreeWrapper(base.make(params))
    for step in range(3):
        set_gradients(plain, step)
        alone.step()
        train(optimizer, [step])
    weights = sum(param.numel() for param in params)
    assert bytes_of(optimizer.base) == bytes_of(alone)
    assert bytes_of(optimizer) == weights * (4 if dtype == torch.float32 else 6)


def test_the_step_size_of_prodigy_weighs_the_average() -> None:
    (weight,) = make_params((5,))
    optimizer = ScheduleFreeWrapper(prodigyopt.Prodigy([weight], lr=0.5, d0=1e-3))
    largest = weights = 0.0
    found = []
    for _ in range(30):
        d = optimizer.base.param_groups[0]["d"]
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
        largest = max(largest, 0.5 * d)
        weights += largest**2
        metrics = optimizer.metrics()
        assert (metrics["lr"], metrics["effective_lr"]) == (0.5, 0.5 * d)
        assert metrics["c"] == pytest.approx(largest**2 / weights)
        found.append(d)
    assert found[-1] > 10 * found[0]


class Damped(SGD):
    """Has a ``d`` of its own, which is no distance."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            group["d"] = 0.25

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.mul_(group["d"])
        super().step()


class DAdaptLion(Damped):
    """Has a ``d`` that is a distance, and nothing beside it but its name."""


@pytest.mark.parametrize("d", [1.0, 1.5, 4.0])
def test_the_d_of_adafactor_clips_and_weighs_nothing(d: float) -> None:
    """Its weight decay is at z and 0 here, so that at beta = 0 the wrapper's decay at y is Adafactor's own."""
    params, plain = make_params(), make_params()
    options: dict[str, Any] = {"lr": 0.01, "d": d}
    optimizer = ScheduleFreeWrapper(
        torch.optim.Adafactor(params, **options), weight_decay_at_y=0.2, momentum=0.0, averaging=NoAveraging()
    )
    reference = torch.optim.Adafactor(plain, weight_decay=0.2, **options)
    for step in range(10):
        train(optimizer, [step])
        set_gradients(plain, step)
        reference.step()
        assert optimizer.metrics()["effective_lr"] == 0.01
    # Adafactor's step is min(lr, 1 / sqrt t) and relative to the size of z, but its decay is by lr
    torch.testing.assert_close(params, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("d", [1.0, 1.5])
def test_over_adafactor_all_is_as_in_float64(d: float) -> None:
    base = Base(torch.optim.Adafactor, {"lr": 0.01, "weight_decay": 0.1, "d": d})
    reference = Reference(base, 0.9, decay=0.2, warmup=8, r=0.5, power=1.5, distance=False)
    params = base.params(torch.float64)
    optimizer = ScheduleFreeWrapper(
        base.make(params), weight_decay_at_y=0.2, weight_lr_power=1.5, r=0.5, warmup_steps=8
    )
    for step in range(30):
        set_gradients(params, step)
        reference.step([param.grad for param in params])  # type: ignore[misc]
        optimizer.step()
        assert optimizer.metrics()["effective_lr"] == pytest.approx(0.01 * min(1.0, (step + 1) / 8))
    for param, x, y, z in zip(params, reference.x, reference.y, reference.z, strict=True):
        torch.testing.assert_close(optimizer.iterates(param), (x, y, z.detach()), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("make", "beside", "factor"),
    [
        (Damped, {}, 1.0),
        (Damped, {"d0": 0.01}, 0.25),
        (Damped, {"growth_rate": 1.02}, 0.25),
        (DAdaptLion, {}, 0.25),
        (SGD, {"d0": 0.01}, 1.0),
    ],
)
def test_a_d_is_a_distance_if_such_optimizers_have_what_stands_beside_it(
    make: Callable[..., Optimizer], beside: dict[str, float], factor: float
) -> None:
    base = make(make_params(), lr=0.1)
    base.param_groups[0].update(beside)
    optimizer = ScheduleFreeWrapper(base)
    train(optimizer, range(2))
    assert optimizer.metrics()["effective_lr"] == 0.1 * factor


@pytest.mark.parametrize(
    ("arguments", "implementation"),
    [
        ({}, "auto"),
        ({"foreach": True}, "foreach"),
        ({"foreach": False}, "loop"),
        ({"fused": True}, "fused"),
        ({"fused": False}, "foreach"),
        ({"step_size": ConstantStep(), "capturable": False}, "auto"),
    ],
)
def test_it_takes_the_arguments_of_the_other_classes(arguments: dict[str, Any], implementation: str) -> None:
    params, plain = make_params(), make_params()
    optimizer, reference = ScheduleFreeWrapper(SGD(params), **arguments), ScheduleFreeWrapper(SGD(plain))
    assert optimizer.implementation == implementation
    for each in (optimizer, reference):
        train(each, range(3))
    torch.testing.assert_close(params, plain)


def test_groups_have_their_own_momentum_averaging_and_interpolation() -> None:
    options: list[dict[str, Any]] = [
        {"momentum": 0.5, "averaging": ExponentialAveraging(0.1)},
        {"interpolation": AnnealedInterpolation(0.97, 20), "warmup_steps": 4, "weight_decay": 0.1},
        {"lr": 0.002},
    ]
    together, alone = make_params((4,), (3,), (2,)), make_params((4,), (3,), (2,))
    optimizer = ScheduleFreeWrapper(Adam(together[:1], lr=0.01))
    optimizer.param_groups[0].update(options[0])
    optimizer.param_groups[0]["beta"] = 0.5
    for param, group in zip(together[1:], options[1:], strict=True):
        optimizer.add_param_group({"params": [param], **group})
    train(optimizer, range(12))
    for param, group in zip(alone, options, strict=True):
        lr, decay = group.pop("lr", 0.01), group.pop("weight_decay", 0.0)
        train(ScheduleFreeWrapper(Adam([param], lr=lr), weight_decay_at_y=decay, **group), range(12))
    assert equal(together, alone)


# It is an optimizer.

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: step / 5),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=12),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, total_iters=3), lr_scheduler.ExponentialLR(optimizer, 0.5)],
        milestones=[4],
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # of SequentialLR of torch 2.6
@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers_set_the_lr_of_the_base(schedule: Callable[[Optimizer], Any], as_tensor: bool) -> None:
    lr = torch.tensor(0.01, dtype=torch.float64) if as_tensor else 0.01
    optimizer = ScheduleFreeWrapper(Adam(make_params(), lr=lr, foreach=False), warmup_steps=3)
    scheduler = schedule(optimizer)
    seen: list[float] = []
    optimizer.base.register_step_pre_hook(lambda base, *_: seen.append(float(base.param_groups[0]["lr"])))
    expected, betas = [], set()
    for step in range(12):
        expected.append(float(optimizer.param_groups[0]["lr"]) * min(1.0, (step + 1) / 3))
        betas.add(optimizer.param_groups[0]["beta"])
        train(optimizer, [step])
        scheduler.step(*[1.0] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
    assert seen == pytest.approx(expected)
    assert len(set(seen)) > 3
    assert (len(betas) > 5) == isinstance(scheduler, lr_scheduler.OneCycleLR)


def test_a_tensor_of_lr_that_groups_of_the_base_share_is_one_for_each() -> None:
    first, second, third, fourth = make_params((3,), (4,), (5,), (6,))
    base = SGD([{"params": [first]}, {"params": [second]}], lr=torch.tensor(0.5))
    optimizer = ScheduleFreeWrapper(base, momentum=0.0, warmup_steps=2)
    optimizer.param_groups[1]["lr"].fill_(0.0)
    still = copies([second])
    train(optimizer, range(3))
    assert equal([second], still)
    for param in (third, fourth):
        optimizer.add_param_group({"params": [param]})
    optimizer.param_groups[2]["lr"].fill_(0.25)
    train(optimizer, range(3, 6))
    expected = [0.5, 0.0, 0.25, 0.5]
    assert [float(group["lr"]) for group in optimizer.param_groups] == expected
    assert [float(group["lr"]) for group in base.param_groups] == expected
    assert float(base.defaults["lr"]) == float(optimizer.defaults["lr"]) == 0.5


@dtypes
def test_the_base_sees_what_is_noted_on_a_parameter(dtype: torch.dtype) -> None:
    (param,) = make_params((3,), dtype=dtype)
    param.note = "embedding"  # type: ignore[attr-defined]
    optimizer = ScheduleFreeWrapper(SGD([param], lr=0.1))
    notes: list[str] = []
    optimizer.base.register_step_pre_hook(lambda base, *_: notes.append(base.param_groups[0]["params"][0].note))
    train(optimizer, range(2))
    assert notes == ["embedding"] * 2


def test_a_step_that_the_grad_scaler_skips_is_none_of_the_base_either() -> None:
    scaled, plain = make_params(), make_params()
    optimizer, reference = ScheduleFreeWrapper(Adam(scaled)), ScheduleFreeWrapper(Adam(plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))  # creates its scale
    for step in range(6):
        set_gradients(scaled, step)
        for param in scaled:
            assert param.grad is not None
            param.grad.mul_(float("inf") if step == 3 else scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        if step != 3:
            train(reference, [step])
    assert optimizer.base.state[scaled[0]]["step"] == 5
    assert equal(scaled, plain)


@dtypes
def test_hooks_of_the_base_run_within_the_step_and_see_z(dtype: torch.dtype) -> None:
    params = make_params(dtype=dtype)
    optimizer = ScheduleFreeWrapper(SGD(params, lr=0.1, momentum=0.9))
    train(optimizer, range(4))
    seen: list[str] = []
    z = optimizer.iterates(params[0]).z

    def before(base: Optimizer, *_: Any) -> None:
        seen.append("base before")
        torch.testing.assert_close(base.param_groups[0]["params"][0].detach(), z)

    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.base.register_step_pre_hook(before)
    optimizer.base.register_step_post_hook(lambda *_: seen.append("base after"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(optimizer, [4])
    assert seen == ["before", "base before", "base after", "after"]
    assert optimizer.base.param_groups[0]["params"] == params


@bases
def test_a_closure_is_a_step_from_either_mode(base: Base) -> None:
    closed, plain = base.params(), base.params()
    optimizer, reference = ScheduleFreeWrapper(base.make(closed)), ScheduleFreeWrapper(base.make(plain))
    for step in range(8):

        def closure(step: int = step) -> float:
            assert equal(closed, plain)
            set_gradients(closed, step)
            return float(step)

        optimizer.train(step % 3 == 0)
        assert optimizer.step(closure) == step
        train(reference, [step])
    assert not optimizer.training
    assert equal(closed, copies(reference.eval().param_groups[0]["params"]))


def test_a_group_that_is_added_has_options_of_the_base() -> None:
    first, second = make_params()
    optimizer = ScheduleFreeWrapper(Adam([first], lr=0.01))
    train(optimizer, range(3))
    group = {"params": second, "lr": 0.1, "momentum": 0.5, "base": {"betas": (0.5, 0.9)}}
    given = dict(group)
    optimizer.add_param_group(group)
    assert group == given
    assert [group["betas"] for group in optimizer.base.param_groups] == [(0.9, 0.999), (0.5, 0.9)]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.5]
    train(optimizer, [3])
    assert [group["lr"] for group in optimizer.base.param_groups] == [0.01, 0.1]
    z = Parameter(make_params()[1].detach())
    alone = Adam([z], lr=0.1, betas=(0.5, 0.9))
    set_gradients([z], 3)
    alone.step()
    torch.testing.assert_close(optimizer.iterates(second).z, z.detach())


@pytest.mark.parametrize("named", [True, False])
def test_parameters_have_the_names_that_they_have_in_the_base(named: bool) -> None:
    first, second = make_params()
    entries: list[Any] = [("first", first), ("second", second)] if named else [first, second]
    optimizer = ScheduleFreeWrapper(Adam(entries[:1]))
    optimizer.add_param_group({"params": entries[1:]})
    names = [group.get("param_names") for group in optimizer.param_groups]
    assert names == ([["first"], ["second"]] if named else [None, None])
    first.grad = torch.zeros_like(first).to_sparse()
    with pytest.raises(RuntimeError, match="gradient of first" if named else "gradient of parameter 0"):
        optimizer.step()


@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_the_base_may_be_of_either_lowering(flag: str) -> None:
    params, plain = make_params(), make_params()
    optimizer, other = ScheduleFreeWrapper(AdamW(params, **{flag: True})), ScheduleFreeWrapper(AdamW(plain))
    for each in (optimizer, other):
        train(each, range(10))
    torch.testing.assert_close(params, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "base", [base for name, base in BASES.items() if name != "Rprop"], ids=lambda base: base.cls.__name__
)
def test_nothing_moves_at_lr_0(base: Base) -> None:
    """But over Rprop, of which the learning rate is that of the first step alone."""
    params = base.params()
    optimizer = ScheduleFreeWrapper(base.make(params))
    before = copies(params)
    lr, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], 0.0
    train(optimizer, range(3))
    assert equal(params, before)
    assert equal(optimizer.eval().param_groups[0]["params"], before)
    optimizer.train()
    optimizer.param_groups[0]["lr"] = lr
    train(optimizer, range(3, 6))
    assert all(param.isfinite().all() for param in params)
    assert not any(map(torch.equal, params, before))


def test_an_attached_model_switches_and_saves() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = ScheduleFreeWrapper(Adam(model.parameters())).attach(model)
    train(optimizer, range(5))
    x, y, _ = optimizer.iterates(model.weight)
    assert torch.equal(model.state_dict()["weight"], x)
    assert torch.equal(model.eval().weight, x)
    assert torch.equal(model.train().weight, y)
    assert not torch.equal(x, y)


@bases
def test_a_parameter_that_is_unfrozen_late_is_new_to_the_base(base: Base) -> None:
    first, late = base.params()
    optimizer = ScheduleFreeWrapper(base.make([first, late]))
    start = late.detach().clone()
    for step in range(4):
        set_gradients([first], step)
        optimizer.step()
    assert torch.equal(late, start)
    train(optimizer, [4])
    x, y, z = optimizer.iterates(late)
    c = optimizer.metrics()["c"]
    assert 0 < c < 1
    torch.testing.assert_close(x, (1 - c) * start + c * z)
    torch.testing.assert_close(y, 0.1 * z + 0.9 * x)
    if isinstance(optimizer.base, prodigyopt.Prodigy):
        return  # whose step size is of all parameters
    alone = base.make([only := Parameter(start)])
    set_gradients([only], 4)
    alone.step()
    torch.testing.assert_close(z, only.detach())


@pytest.mark.covering(1)
@bases
@dtypes
def test_a_base_that_has_made_steps_goes_on(base: Base, dtype: torch.dtype) -> None:
    """The gradients are the same wherever they are taken, so z is what the base makes by itself."""
    params, alone = base.params(dtype), base.params(dtype)
    wrapped, plain = base.make(params), base.make(alone)
    for step in range(4):
        for each in (params, alone):
            set_gradients(each, step)
        wrapped.step()
        plain.step()
    optimizer = ScheduleFreeWrapper(wrapped)
    for step in range(4, 8):
        train(optimizer, [step])
        set_gradients(alone, step)
        plain.step()
    tolerances = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for param, z in zip(params, alone, strict=True):
        torch.testing.assert_close(optimizer.iterates(param).z, z.detach().float(), **tolerances)
        values = [value for value in wrapped.state[param].values() if isinstance(value, Tensor)]
        assert all(value.dtype == torch.float32 for value in values)


@dtypes
@pytest.mark.parametrize("make", [SGD, Adam, Adagrad])
def test_what_hangs_on_the_gradient_of_a_parameter_stays(make: Callable[..., Optimizer], dtype: torch.dtype) -> None:
    """Data parallelism hooks the nodes that accumulate gradients, and autograd drops those of another dtype."""
    (param,) = make_params((5,), dtype=dtype)
    node = param.view_as(param).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    calls: list[int] = []
    node.register_hook(lambda *_: calls.append(0))
    optimizer = ScheduleFreeWrapper(make([param], lr=0.1))
    for _ in range(4):
        optimizer.zero_grad()
        (param**2).sum().backward()
        optimizer.step()
    assert len(calls) == 4


def test_every_class_of_torch_is_tested_or_refused() -> None:
    classes = {name for name, value in vars(torch.optim).items() if isinstance(value, type)}
    assert classes - {"Optimizer"} <= set(BASES) | {"LBFGS", "SparseAdam"}


@dtypes
def test_a_step_needs_the_memory_of_z_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the base has subtracted from z takes the place of z."""
    params = make_params(dtype=dtype)
    base = torch.optim.SGD(params, lr=0.1)
    optimizer = ScheduleFreeWrapper(base)
    lent: list[int] = []
    base.register_step_pre_hook(lambda *_: lent.extend(param.data_ptr() for param in base.param_groups[0]["params"]))
    moves: list[int] = []

    def update(_: str, __: Any, works: Any) -> None:
        moves.extend(move.data_ptr() for batch, _ in works for move in batch.grads)

    monkeypatch.setattr("unscheduled.kernels.update", update)
    train(optimizer, [0])
    assert moves == lent
