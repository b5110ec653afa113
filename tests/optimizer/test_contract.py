"""The contract of ``torch.optim.Optimizer``, once over every optimizer."""

import copy
import pickle
from typing import Any

import pytest
import torch
from problems import copies, equal, make_params, set_gradients, train
from registry import Configuration, OptimizerInfo, built_in, configurations, implementations, optimizers
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from unscheduled import NoAveraging, PolynomialAveraging, ScheduleFreeOptimizer, SGDScheduleFree
from unscheduled.state.split_weights import narrowed


@pytest.mark.covering(1)
@configurations
def test_foreach_is_the_loop(info: OptimizerInfo, configuration: Configuration) -> None:
    loop, foreach = make_params(dtype=torch.float64), make_params(dtype=torch.float64)
    train(info.make(loop, implementation="loop", **configuration.arguments), range(30))
    train(info.make(foreach, implementation="foreach", **configuration.arguments), range(30))
    torch.testing.assert_close(loop, foreach, rtol=1e-12, atol=1e-14)


@optimizers
def test_it_is_a_torch_optimizer(info: OptimizerInfo) -> None:
    optimizer = info.make(make_params())
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert info.cls.__name__ in repr(optimizer)
    assert optimizer.param_groups[0]["lr"] == info.lr
    assert optimizer.defaults["lr"] == info.lr


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("foreach", [True, False, None])
def test_foreach_as_in_schedulefree(info: OptimizerInfo, foreach: bool | None) -> None:
    optimizer = info.make(make_params(), foreach=foreach)
    assert optimizer.implementation == {True: "foreach", False: "loop", None: "auto"}[foreach]
    train(optimizer, range(2))


@pytest.mark.covering(1)
@optimizers
@implementations
def test_gradients_are_not_overwritten(info: OptimizerInfo, implementation: str) -> None:
    params = make_params()
    for maximize in (False, True):
        for decay in (0.0, 0.1):
            optimizer = info.make(params, implementation=implementation, maximize=maximize, weight_decay=decay)
            for step in range(8):
                set_gradients(params, step)
                gradients = [param.grad for param in params if param.grad is not None]
                bits = copies(gradients)
                optimizer.step()
                assert equal(gradients, bits)


@pytest.mark.covering(2)
@optimizers
@implementations
@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32])
def test_gradients_of_several_dtypes(info: OptimizerInfo, implementation: str, first: torch.dtype) -> None:
    """A parameter may ask for gradients of another dtype; each is widened by itself and none is written to."""
    if not hasattr(Parameter(torch.ones(1)), "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    dtypes = [first, torch.float32 if first == torch.bfloat16 else torch.bfloat16]
    together, alone = make_params((3,), (3,), dtype=torch.bfloat16), make_params((3,), (3,), dtype=torch.bfloat16)
    gradients = [torch.tensor([0.5, -2.0, 1.0]).to(dtype) for dtype in dtypes]
    optimizer = info.make(together, implementation=implementation, weight_decay=0.5)
    singles = [info.make([param], implementation="loop", weight_decay=0.5) for param in alone]
    for param, other, dtype in zip(together, alone, dtypes, strict=True):
        param.grad_dtype = other.grad_dtype = dtype
    for _ in range(8):
        for param, other, gradient in zip(together, alone, gradients, strict=True):
            param.grad, other.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        assert equal([param.grad for param in together if param.grad is not None], gradients)
        for single in singles:
            single.step()
    for param, other in zip(together, alone, strict=True):
        torch.testing.assert_close(optimizer.iterates(param).z, singles[param is together[1]].iterates(other).z)


@pytest.mark.covering(2)
@optimizers
@implementations
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_parameters_are_trained_as_in_float32(
    info: OptimizerInfo, implementation: str, dtype: torch.dtype
) -> None:
    """What the parameter cannot hold of y is kept beside it; the parameter is y to the nearest."""
    (narrow,) = make_params((1000,), dtype=dtype)
    wide = Parameter(narrow.detach().float())
    optimizer = info.make([narrow], implementation=implementation, weight_decay=0.1)
    reference = info.make([wide], implementation="loop" if dtype == torch.float16 else implementation, weight_decay=0.1)
    exact = dtype == torch.bfloat16 or implementation != "foreach"
    for step in range(30):
        set_gradients([narrow], step)
        assert narrow.grad is not None
        wide.grad = narrow.grad.float()
        optimizer.step()
        reference.step()
        ours, theirs = optimizer.iterates(narrow), reference.iterates(wide)
        assert ours.y.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.0 if exact else 1e-5, atol=1e-11 if exact else 1e-6)
        assert torch.equal(narrow, narrowed(ours.y, dtype))
        if step % 7 == 0:  # an evaluation changes nothing
            optimizer.eval()
            assert torch.equal(narrow, narrowed(ours.x, dtype))
            optimizer.train()


@pytest.mark.covering(1)
@optimizers
@implementations
def test_parameters_keep_their_storage(info: OptimizerInfo, implementation: str) -> None:
    params = make_params()
    addresses = [param.data_ptr() for param in params]
    optimizer = info.make(params, implementation=implementation)
    train(optimizer, range(8))
    optimizer.eval()
    optimizer.train()
    optimizer.load_state_dict(optimizer.state_dict())
    assert [param.data_ptr() for param in params] == addresses


@optimizers
def test_lr_as_a_tensor_is_lr_as_a_float(info: OptimizerInfo) -> None:
    floats, tensors = make_params(), make_params()
    lr = torch.tensor(info.lr, dtype=torch.float64)
    train(info.make(floats), range(10))
    train(info.make(tensors, lr=lr), range(10))
    assert equal(floats, tensors)


@optimizers
def test_schedulers_drive_the_lr(info: OptimizerInfo) -> None:
    scheduled, by_hand = make_params(), make_params()
    optimizer = info.make(scheduled)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    reference = info.make(by_hand)
    for step in range(10):
        reference.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
        train(optimizer, [step])
        train(reference, [step])
        scheduler.step()
    assert equal(scheduled, by_hand)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("as_tensor", [False, True])
def test_one_cycle_drives_lr_and_beta(info: OptimizerInfo, as_tensor: bool) -> None:
    """OneCycleLR writes both; x and z depend on the lr alone when the gradients do not depend on y."""
    params, reference = make_params(dtype=torch.float64), make_params(dtype=torch.float64)
    lr = torch.tensor(info.lr, dtype=torch.float64) if as_tensor else info.lr
    optimizer, other = info.make(params, lr=lr), info.make(reference)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=info.lr, total_steps=20)
    betas = set()
    for step in range(20):
        other.param_groups[0]["lr"] = float(optimizer.param_groups[0]["lr"])
        train(optimizer, [step])
        train(other, [step])
        betas.add(optimizer.param_groups[0]["beta"])
        if step < 19:
            scheduler.step()
    assert len(betas) > 5
    for param, expected in zip(params, reference, strict=True):
        torch.testing.assert_close(optimizer.iterates(param).x, other.iterates(expected).x, rtol=1e-6, atol=1e-9)


@optimizers
def test_cycled_momentum_keeps_x_where_it_is(info: OptimizerInfo) -> None:
    """Changing beta between steps moves y at the next step, never x or z."""
    params, reference = make_params(dtype=torch.float64), make_params(dtype=torch.float64)
    optimizer = info.make(params)
    other = info.make(reference)
    for step in range(10):
        optimizer.param_groups[0].update(info.beta_arguments(0.5 if step % 2 else 0.95))
        train(optimizer, [step])
        train(other, [step])
    for param, expected in zip(params, reference, strict=True):  # the same gradients wherever they are taken
        torch.testing.assert_close(optimizer.iterates(param).x, other.iterates(expected).x, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(optimizer.iterates(param).z, other.iterates(expected).z, rtol=1e-12, atol=1e-14)


@optimizers
def test_grad_scaler_skips_a_step_that_overflowed(info: OptimizerInfo) -> None:
    scaled, plain = make_params(), make_params()
    optimizer, reference = info.make(scaled), info.make(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))  # creates its scale
    for step in range(10):
        set_gradients(scaled, step)
        for param in scaled:
            assert param.grad is not None
            param.grad.mul_(float("inf") if step == 4 else scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        if step != 4:
            train(reference, [step])
    assert equal(scaled, plain)


@optimizers
def test_hooks_run_round_the_step(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(optimizer, range(2))
    assert seen == ["before", "after"] * 2


def test_hooks_of_all_optimizers_run_and_may_change_what_the_step_is_given() -> None:
    optimizer = SGDScheduleFree(make_params())
    train(optimizer, range(4))
    seen: list[Any] = []

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        seen.append(args)
        return (optimizer, lambda: 7.0), kwargs

    hooks = [
        register_optimizer_step_pre_hook(before),
        register_optimizer_step_post_hook(lambda _, args, kwargs: seen.append(len(args))),
    ]
    try:
        assert optimizer.step() == 7.0
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == [(optimizer,), 2]
    train(optimizer, range(4, 6))
    assert len(seen) == 2


def test_a_step_has_its_label_in_profiles() -> None:
    optimizer = SGDScheduleFree(make_params())
    train(optimizer, range(4))
    with torch.profiler.profile() as profile:
        train(optimizer, range(4, 6))
    labels = [event.key for event in profile.key_averages() for _ in range(event.count)]
    assert labels.count("Optimizer.step#SGDScheduleFree.step") == 2


@optimizers
def test_a_closure_is_a_step(info: OptimizerInfo) -> None:
    closed, plain = make_params(), make_params()
    optimizer, reference = info.make(closed), info.make(plain)
    for step in range(10):

        def closure(step: int = step) -> float:
            assert torch.is_grad_enabled()
            set_gradients(closed, step)
            return float(step)

        assert optimizer.step(closure) == step
        train(reference, [step])
    assert equal(closed, plain)


@pytest.mark.covering(1)
@optimizers
@implementations
def test_parameters_without_a_gradient_stand_still(info: OptimizerInfo, implementation: str) -> None:
    moving, still = make_params()
    optimizer = info.make([moving, still], implementation=implementation)
    train(optimizer, range(8))
    before = optimizer.iterates(still)
    for step in range(8):
        set_gradients([moving], step)
        still.grad = None
        optimizer.step()
    assert equal(optimizer.iterates(still), before)
    assert not torch.equal(optimizer.iterates(moving).x, before.x)


@optimizers
def test_a_frozen_parameter_does_not_disturb_the_others_and_resumes(info: OptimizerInfo) -> None:
    first, second = make_params()
    optimizer = info.make([first, second])
    train(optimizer, range(8))
    second.requires_grad_(False)
    second.grad = None
    frozen = second.detach().clone()
    for step in range(5):
        set_gradients([first], step)
        optimizer.step()
    assert torch.equal(second, frozen)
    optimizer.eval()
    optimizer.train()
    assert torch.equal(second, frozen)
    second.requires_grad_(True)
    train(optimizer, range(2))
    assert not torch.equal(second, frozen)


@pytest.mark.covering(1)
@optimizers
@implementations
def test_scalars_and_empty_tensors(info: OptimizerInfo, implementation: str) -> None:
    params = make_params((), (0,), (3, 0), (2,))
    vectors = make_params((1,), (0,), (3, 0), (2,))
    train(info.make(params, implementation=implementation), range(10))
    train(info.make(vectors, implementation=implementation), range(10))
    assert torch.equal(params[0].reshape(1), vectors[0])
    assert torch.equal(params[3], vectors[3])


@pytest.mark.covering(1)
@optimizers
@implementations
def test_memory_layout_does_not_matter(info: OptimizerInfo, implementation: str) -> None:
    start = torch.randn(2, 3, 4, 5)
    layouts = [
        start.clone(),
        start.clone(memory_format=torch.channels_last),
        start.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        torch.randn(2, 3, 4, 10)[..., ::2].copy_(start),
    ]
    params = [Parameter(layout) for layout in layouts]
    assert [param.is_contiguous() for param in params] == [True, False, False, False]
    optimizer = info.make(params, implementation=implementation, weight_decay=0.1)
    for step in range(10):
        gradient = torch.randn(start.shape, generator=torch.Generator().manual_seed(step))
        for param in params:
            param.grad = gradient.clone()
        optimizer.step()
    optimizer.eval()
    for param in params[1:]:
        torch.testing.assert_close(param, params[0], rtol=1e-6, atol=1e-7)
    assert all(optimizer.state[param]["gap"].stride() == param.stride() for param in params[:3])


@pytest.mark.covering(1)
@optimizers
@implementations
def test_several_dtypes_and_devices_in_one_group(info: OptimizerInfo, implementation: str) -> None:
    """Each goes its own way, and a parameter on another device does not disturb."""
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
    together = [make_params((6,), dtype=dtype)[0] for dtype in dtypes]
    alone = [make_params((6,), dtype=dtype)[0] for dtype in dtypes]
    elsewhere = Parameter(torch.empty(6, device="meta"))
    train(info.make([*together, elsewhere], implementation=implementation), range(10))
    for param in alone:
        train(info.make([param], implementation=implementation), range(10))
    assert equal(together, alone)


@pytest.mark.covering(1)
@built_in
@implementations
def test_complex_parameters_are_pairs_of_real_ones(info: OptimizerInfo, implementation: str) -> None:
    (number,) = make_params((5,), dtype=torch.complex128)
    pair = Parameter(torch.view_as_real(number.detach()).clone())
    arguments = info.elementwise | {"implementation": implementation, "weight_decay": 0.1}  # to Muon a pair is a matrix
    optimizer = info.make([number], **arguments)
    reference = info.make([pair], **arguments)
    for step in range(20):
        set_gradients([pair], step)
        assert pair.grad is not None
        gradient = torch.view_as_complex(pair.grad)
        number.grad = (
            gradient.conj().resolve_conj().conj() if step % 2 else gradient
        )  # also as a view, yet to be conjugated
        optimizer.step()
        reference.step()
    assert torch.equal(torch.view_as_real(number.detach()), pair)
    optimizer.eval()
    reference.eval()
    assert torch.equal(torch.view_as_real(number.detach()), pair)


@built_in
def test_options_of_a_group(info: OptimizerInfo) -> None:
    grouped = make_params()
    optimizer = info.make(
        [
            {"params": grouped[:1], "lr": 0.5 * info.lr, "r": 2.0},
            {"params": grouped[1:], "averaging": NoAveraging()},
        ],
        weight_lr_power=1.0,
    )
    single = make_params()
    first = info.make(single[:1], lr=0.5 * info.lr, r=2.0, weight_lr_power=1.0)
    second = info.make(single[1:], averaging=NoAveraging())
    assert optimizer.param_groups[0]["averaging"] == PolynomialAveraging(r=2.0, weight_lr_power=1.0)
    for each in (optimizer, first, second):
        train(each, range(10))
        each.eval()
    assert equal(grouped, single)


@optimizers
def test_a_group_added_late_averages_from_its_own_first_step(info: OptimizerInfo) -> None:
    early, late = make_params((3,), (3,), dtype=torch.float64)
    (alone,) = make_params((3,), dtype=torch.float64)
    alone.data.copy_(late)
    optimizer = info.make([early])
    train(optimizer, range(20))
    optimizer.add_param_group({"params": late})
    assert isinstance(optimizer.param_groups[1]["params"], list)
    reference = info.make([alone])
    for step in range(20):
        set_gradients([alone], step)
        late.grad = alone.grad
        optimizer.step()
        reference.step()
    assert torch.equal(late, alone)
    assert torch.equal(optimizer.iterates(late).x, reference.iterates(alone).x)


@pytest.mark.covering(2)
@optimizers
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
@pytest.mark.parametrize("training", [True, False])
def test_copies_train_on_alike(info: OptimizerInfo, duplicate: Any, training: bool) -> None:
    params = make_params()
    optimizer = info.make(params, implementation="loop")
    train(optimizer, range(8))
    optimizer.train(training)
    twin = duplicate(optimizer)
    twins = twin.param_groups[0]["params"]
    assert twin.training == training
    assert twin.implementation == "loop"
    for each in (optimizer, twin):
        each.train()
        train(each, range(8, 12))
    assert equal(params, twins)
    assert all(param is not other for param, other in zip(params, twins, strict=True))


@optimizers
def test_named_parameters(info: OptimizerInfo) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = info.make(model.named_parameters())
    train(optimizer, range(2))
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


@optimizers
def test_it_learns(info: OptimizerInfo) -> None:
    """Linear regression to its exact solution, at x."""
    inputs, truth = torch.randn(64, 4), torch.randn(4, 1)
    weight = Parameter(torch.zeros(4, 1))
    optimizer = info.make([weight], lr=20 * info.lr if info.rule != "sgd" else 1.0)
    for _ in range(1000):
        optimizer.zero_grad()
        (inputs @ weight - inputs @ truth).square().mean().backward()
        optimizer.step()
    optimizer.eval()
    torch.testing.assert_close(weight.detach(), truth, rtol=0, atol=0.02)


def test_only_what_users_call_is_public() -> None:
    """What attached models, hooks and parts ask of an optimizer is not."""
    of_torch = set(dir(torch.optim.Optimizer))
    found = {name for name in dir(ScheduleFreeOptimizer) if not name.startswith("_")} - of_torch
    assert found == {
        "attach",
        "averaged_parameters",
        "capturable",
        "detach",
        "eval",
        "freeze_averaging",
        "iterates",
        "metrics",
        "restart_averaging",
        "train",
        "to_torch",
        "training",
    }
