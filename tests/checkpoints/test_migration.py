"""State dicts of the ``schedulefree`` package and of AdamW: taken in, and given out."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import schedulefree
import torch
from problems import copies, equal, make_params, same, set_gradients, through_a_file, train
from registry import OPTIMIZERS, OptimizerInfo
from torch.nn import Parameter

import unscheduled
from unscheduled import (
    AdamWScheduleFree,
    AnnealedInterpolation,
    ExponentialAveraging,
    PolynomialAveraging,
    RAdamScheduleFree,
    ScheduleFreeOptimizer,
    SGDScheduleFree,
)
from unscheduled.checkpoints.exporting import export_adamw_state_dict, export_schedulefree_state_dict
from unscheduled.checkpoints.importing import recognised
from unscheduled.state.param_groups import AXES, described_axes

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("SGDScheduleFree", {"lr": 0.1}),
    ("SGDScheduleFree", {"lr": 0.1, "momentum": 0.5, "warmup_steps": 15, "weight_decay": 0.1, "r": 0.75}),
    ("SGDScheduleFree", {"lr": 0.1, "weight_lr_power": 0.0, "foreach": False}),
    ("AdamWScheduleFree", {"lr": 0.01}),
    ("AdamWScheduleFree", {"lr": 0.01, "betas": (0.95, 0.9), "eps": 1e-3, "warmup_steps": 15, "weight_decay": 0.1}),
    ("AdamWScheduleFree", {"lr": 0.01, "betas": (1.0, 0.99), "r": 2.0, "weight_lr_power": 1.0}),
    ("RAdamScheduleFree", {"lr": 0.01}),
    ("RAdamScheduleFree", {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1, "r": 1.0}),
    ("RAdamScheduleFree", {"lr": 0.01, "silent_sgd_phase": False, "weight_lr_power": 0.0}),
]
TORCH_ADAMS = [torch.optim.Adam, torch.optim.AdamW]

options = pytest.mark.parametrize(
    ("name", "arguments"), OPTIONS, ids=[f"{name}{index}" for index, (name, _) in enumerate(OPTIONS)]
)
modes = pytest.mark.parametrize("training", [True, False], ids=["y", "x"])
orders = pytest.mark.parametrize("model_first", [True, False], ids=["model_first", "optimizer_first"])


def theirs(name: str, params: list[Parameter], **arguments: Any) -> Any:
    """The package's optimizer, in train mode, of two groups."""
    optimizer = getattr(schedulefree, name)(two_groups(params), **arguments)
    optimizer.train()
    return optimizer


def ours(name: str, params: list[Parameter], **arguments: Any) -> ScheduleFreeOptimizer:
    return getattr(unscheduled, name)(two_groups(params), **arguments)


def two_groups(params: list[Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]


def exact_params(dtype: torch.dtype = torch.float64) -> list[Parameter]:
    return make_params((4, 3), (7,), (2, 2), dtype=dtype)


def load(params: list[Parameter], weights: list[torch.Tensor], optimizer: Any, state: Any, model_first: bool) -> None:
    for load_model in (model_first, not model_first):
        if load_model:
            with torch.no_grad():
                for param, weight in zip(params, weights, strict=True):
                    param.copy_(weight)
        else:
            optimizer.load_state_dict(state)


def zeros(params: Iterable[torch.Tensor]) -> list[Parameter]:
    return [Parameter(torch.zeros_like(param)) for param in params]


def converted(state: dict[str, Any], optimizer: ScheduleFreeOptimizer) -> dict[str, Any]:
    return recognised(state, optimizer.param_groups, optimizer._rule)


# From the package.


@pytest.mark.covering(2)
@options
@modes
@orders
@pytest.mark.parametrize("steps", [3, 10])
def test_a_run_of_the_package_goes_on(
    name: str, arguments: dict[str, Any], training: bool, model_first: bool, steps: int
) -> None:
    """Bit for bit would be too much: the package computes from y and z, not from y and the gap."""
    params = exact_params()
    reference = theirs(name, params, **arguments)
    train(reference, range(steps))
    if not training:
        reference.eval()
    weights, state = through_a_file([param.data for param in params]), through_a_file(reference.state_dict())
    reference.train()

    continued = zeros(params)
    optimizer = ours(name, continued)  # the file has the options
    load(continued, weights, optimizer, state, model_first)
    assert optimizer.training == training
    assert equal(continued, weights)
    optimizer.train()
    for step in range(steps, steps + 15):
        train(reference, [step])
        train(optimizer, [step])
        torch.testing.assert_close(continued, params, rtol=1e-9, atol=1e-12)
        for param, their in zip(continued, params, strict=True):
            torch.testing.assert_close(optimizer.iterates(param).z, reference.state[their]["z"], rtol=1e-9, atol=1e-12)
    for group, saved in zip(optimizer.param_groups, reference.param_groups, strict=True):
        assert group["step"] == saved["k"]
        assert group["weight_sum"] == pytest.approx(saved["weight_sum"], rel=1e-12)
    optimizer.eval()
    reference.eval()
    torch.testing.assert_close(continued, params, rtol=1e-9, atol=1e-12)


@pytest.mark.covering(2)
@options
@modes
def test_a_run_of_the_package_goes_on_in_float32(name: str, arguments: dict[str, Any], training: bool) -> None:
    params = exact_params(torch.float32)
    reference = theirs(name, params, **arguments)
    train(reference, range(10))
    if not training:
        reference.eval()
    continued = zeros(params)
    optimizer = ours(name, continued)
    load(continued, copies(params), optimizer, through_a_file(reference.state_dict()), True)
    reference.train()
    optimizer.train()
    for each in (reference, optimizer):
        train(each, range(10, 25))
        each.eval()
    torch.testing.assert_close(continued, params, rtol=1e-5, atol=1e-6)


@pytest.mark.covering(2)
@options
@modes
@orders
@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("flag", [True, False])
def test_an_attached_optimizer_takes_a_file_of_the_package(
    name: str, arguments: dict[str, Any], training: bool, model_first: bool, started: bool, flag: bool
) -> None:
    """Whatever the mode of the model, and also in the middle of another run."""
    params = exact_params()
    package = theirs(name, params, **arguments)
    for step in range(10):
        set_gradients(params, step)
        package.step()
    (package.train if training else package.eval)()
    weights, state = through_a_file(copies(params)), through_a_file(package.state_dict())
    model = torch.nn.ParameterList(zeros(params))
    resumed = list(model.parameters())
    optimizer = ours(name, resumed).attach(model)
    if started:
        train(optimizer, range(2))
    model.train(flag)
    for load_model in (model_first, not model_first):
        if load_model:
            model.load_state_dict({str(index): weight for index, weight in enumerate(weights)})
        else:
            optimizer.load_state_dict(state)
    assert optimizer.training is flag
    model.train()
    package.train()
    torch.testing.assert_close(resumed, params, rtol=1e-9, atol=1e-11)
    for step in range(10, 30):
        set_gradients(params, step)
        package.step()
        train(optimizer, [step])
    torch.testing.assert_close(resumed, params, rtol=1e-9, atol=1e-11)
    package.eval()
    model.eval()
    torch.testing.assert_close(resumed, params, rtol=1e-9, atol=1e-11)


def test_a_file_of_the_silent_phase_counts_no_weight() -> None:
    """The package gives weight to steps that do not move, if the power of the learning rate is 0."""
    arguments = {"lr": 0.01, "weight_lr_power": 0.0}
    params, plain = exact_params(), exact_params()
    reference = theirs("RAdamScheduleFree", params, **arguments)
    uninterrupted = ours("RAdamScheduleFree", plain, **arguments)
    train(reference, range(3))
    assert reference.param_groups[0]["weight_sum"] == 3.0
    optimizer = ours("RAdamScheduleFree", params)
    optimizer.load_state_dict(through_a_file(reference.state_dict()))
    train(optimizer, range(3, 20))
    train(uninterrupted, range(20))
    torch.testing.assert_close(params, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.covering(2)
@options
@modes
def test_the_form_is_ours(name: str, arguments: dict[str, Any], training: bool) -> None:
    params = exact_params()
    reference = theirs(name, params, **arguments)
    train(reference, range(10))
    if not training:
        reference.eval()
    reference.param_groups[0]["initial_lr"] = 0.5
    file = reference.state_dict()
    before = copy.deepcopy(file)
    twin = ours(name, exact_params(), **arguments)
    train(twin, range(10))
    twin.train(training)
    result = converted(file, twin)
    assert same(file, before)
    for key, state in result["state"].items():
        assert set(state) == {"step", "gap", "z", *twin._rule(twin.param_groups[0]).buffers}
        assert state["step"] == 10
        assert not state["gap"].any()
        assert state["z"] is file["state"][key]["z"]
    expected = twin.state_dict()["param_groups"]
    expected[0]["initial_lr"] = 0.5
    for group, expected_group in zip(result["param_groups"], expected, strict=True):
        numbers = {"weight_sum", "lr_max", "c", "effective_lr"}
        assert group.keys() == expected_group.keys()
        assert {key: group[key] for key in group.keys() - numbers} == {
            key: expected_group[key] for key in group.keys() - numbers
        }
        for number in numbers:
            assert group[number] == pytest.approx(expected_group[number], rel=1e-12)


def test_what_the_package_lacks_is_as_in_our_groups() -> None:
    reference = theirs("RAdamScheduleFree", exact_params(), lr=0.01)
    train(reference, range(10))
    optimizer = ours(
        "RAdamScheduleFree",
        exact_params(),
        warmup_steps=7,
        decay_at="z",
        maximize=True,
        interpolation=AnnealedInterpolation(0.95, 100),
    )
    optimizer.load_state_dict(reference.state_dict())
    for group in optimizer.param_groups:
        assert (group["warmup_steps"], group["decay_at"], group["maximize"]) == (7, "z", True)
        assert group["interpolation"] == AnnealedInterpolation(0.95, 100)
        assert group["averaging"] == PolynomialAveraging()
        assert group["beta"] == 0.9


def test_learning_rates_that_are_tensors_make_numbers_of_the_counters() -> None:
    reference = theirs("SGDScheduleFree", exact_params(), lr=0.1)
    train(reference, range(5))
    file = reference.state_dict()
    for group in file["param_groups"]:
        for name in ("lr", "lr_max", "weight_sum", "scheduled_lr"):
            group[name] = torch.tensor(group[name])
    optimizer = ours("SGDScheduleFree", exact_params())
    optimizer.load_state_dict(through_a_file(file))
    for group in optimizer.param_groups:
        assert isinstance(group["lr"], torch.Tensor)
        assert all(isinstance(group[name], float) for name in ("lr_max", "weight_sum", "c", "effective_lr"))


def test_a_power_that_was_changed_after_the_last_step() -> None:
    """The weight of the last step can then not be told from the file; only its c, a number to log, depends on it."""
    reference = theirs("SGDScheduleFree", exact_params(), lr=0.1)
    train(reference, range(5))
    reference.param_groups[0]["weight_lr_power"] = 0.0
    optimizer = ours("SGDScheduleFree", exact_params())
    optimizer.load_state_dict(reference.state_dict())
    assert [group["c"] for group in optimizer.param_groups] == [1.0, pytest.approx(0.2)]


def test_files_of_older_versions_lack_the_last_learning_rate() -> None:
    optimizer = ours("AdamWScheduleFree", make_params())
    optimizer.load_state_dict(
        changed_file(lambda state: [group.pop("scheduled_lr") for group in state["param_groups"]])
    )
    assert [group["effective_lr"] for group in optimizer.param_groups] == [0.0, 0.0]


@pytest.mark.parametrize("info", [info for info in OPTIMIZERS if "schedulefree" in info.reads])
def test_a_file_of_the_package_before_the_first_step(info: OptimizerInfo) -> None:
    reference = getattr(schedulefree, info.cls.__name__)(make_params())
    optimizer = info.make(make_params())
    optimizer.load_state_dict(reference.state_dict())
    assert not optimizer.training
    assert optimizer.param_groups[0]["lr_max"] == optimizer.param_groups[0]["c"] == 0.0
    reference.train()
    optimizer.load_state_dict(reference.state_dict())
    params = [param for group in optimizer.param_groups for param in group["params"]]
    their_params = [param for group in reference.param_groups for param in group["params"]]
    for each in (optimizer, reference):
        train(each, range(10))
    torch.testing.assert_close(params, their_params, rtol=1e-4, atol=1e-5)


PACKAGE = ("SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree")
FILES: dict[str, Callable[[list[Parameter]], Any]] = {
    **{name: lambda params, name=name: getattr(schedulefree, name)(params) for name in PACKAGE},
    "AdamW": torch.optim.AdamW,
}


def is_read(info: OptimizerInfo, file: str) -> bool:
    return file in info.reads or ("schedulefree" in info.reads and file == info.cls.__name__)


@pytest.mark.covering(1)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("info", OPTIMIZERS, ids=lambda info: info.cls.__name__)
def test_files_of_others_are_read_or_refused(info: OptimizerInfo, file: str) -> None:
    their_params, params = make_params(), make_params()
    reference = FILES[file](their_params)
    if file != "AdamW":
        reference.train()
    train(reference, range(3))
    optimizer = info.make(params)
    if is_read(info, file):
        optimizer.load_state_dict(reference.state_dict())
        assert all(optimizer.state[param]["step"] == 3 for param in params)
        return
    train(optimizer, range(2))
    state, weights = copy.deepcopy(optimizer.state_dict()), copies(params)
    with pytest.raises(ValueError, match=r"the state dict does not fit|another kind of optimizer"):
        optimizer.load_state_dict(reference.state_dict())
    assert same(optimizer.state_dict(), state)
    assert equal(params, weights)


@pytest.mark.parametrize("info", OPTIMIZERS, ids=lambda info: info.cls.__name__)
def test_what_can_be_exported_is_what_is_read(info: OptimizerInfo) -> None:
    optimizer = info.make(make_params())
    train(optimizer, range(3))
    for name, export in (("schedulefree", export_schedulefree_state_dict), ("AdamW", export_adamw_state_dict)):
        if name in info.reads:
            assert export(optimizer)["param_groups"]
        else:
            with pytest.raises(ValueError, match=info.cls.__name__):
                export(optimizer)


def test_parameters_without_gradients_have_no_state() -> None:
    params = exact_params()
    reference = theirs("AdamWScheduleFree", params)
    set_gradients(params[:1], 0)
    reference.step()
    reference.eval()
    optimizer = ours("AdamWScheduleFree", exact_params())
    optimizer.load_state_dict(through_a_file(reference.state_dict()))
    assert [bool(optimizer.state.get(param)) for group in optimizer.param_groups for param in group["params"]] == [
        True,
        False,
        False,
    ]


def changed_file(change: Any, name: str = "AdamWScheduleFree", **arguments: Any) -> dict[str, Any]:
    reference = theirs(name, make_params(), **arguments)
    train(reference, range(4))
    state = reference.state_dict()
    change(state)
    return state


REFUSED = {
    "kind": (lambda: changed_file(lambda state: None, "SGDScheduleFree"), "SGDScheduleFree .* is AdamWScheduleFree"),
    "radam": (lambda: changed_file(lambda state: None, "RAdamScheduleFree"), "RAdamScheduleFree .* AdamWScheduleFree"),
    "beta": (
        lambda: changed_file(lambda state: None, betas=(0.0, 0.9)),
        "parameter group 0: beta = 0 in train mode: the average x cannot be recovered",
    ),
    "modes": (
        lambda: changed_file(lambda state: state["param_groups"][1].update(train_mode=False)),
        r"some groups in train mode and some in eval mode: call its optimizer's train\(\)",
    ),
    "z": (lambda: changed_file(lambda state: state["state"][1].pop("z")), "group 1: .* no 'z' for parameter 1"),
    "exp_avg_sq": (lambda: changed_file(lambda state: state["state"][0].pop("exp_avg_sq")), "exp_avg_sq"),
    "shape": (
        lambda: changed_file(lambda state: state["state"][1].update(z=torch.zeros(2))),
        r"'z' of shape \(2,\) for parameter 0 of group 1",
    ),
    "r": (lambda: changed_file(lambda state: state["param_groups"][0].update(r=99.0)), r"group 0: r = 99\.0"),
    "k": (lambda: changed_file(lambda state: state["param_groups"][0].update(k=-1)), "step = -1"),
    "count": (lambda: changed_file(lambda state: state["param_groups"].pop()), "1 parameter groups"),
    "surplus": (
        lambda: changed_file(lambda state: state["param_groups"].append(state["param_groups"][1])),
        "3 parameter groups",
    ),
    "params": (lambda: changed_file(lambda state: state["param_groups"][0]["params"].append(7)), "2 parameters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_changes_nothing(case: str) -> None:
    make, match = REFUSED[case]
    params = make_params()
    optimizer = ours("AdamWScheduleFree", params)
    train(optimizer, range(3))
    state, weights = copy.deepcopy(optimizer.state_dict()), copies(params)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(make())
    assert same(optimizer.state_dict(), state)
    assert equal(params, weights)


def test_another_averaging_is_refused() -> None:
    optimizer = ours("AdamWScheduleFree", make_params(), averaging=ExponentialAveraging(0.1))
    with pytest.raises(ValueError, match=r"averaging = PolynomialAveraging.* this optimizer has ExponentialAveraging"):
        optimizer.load_state_dict(changed_file(lambda state: None))


# To the package.


@pytest.mark.covering(2)
@options
@modes
@pytest.mark.parametrize("steps", [3, 10])
def test_the_package_goes_on_with_our_run(name: str, arguments: dict[str, Any], training: bool, steps: int) -> None:
    params = exact_params()
    optimizer = ours(name, params, **arguments)
    train(optimizer, range(steps))
    optimizer.train(training)
    before = copy.deepcopy(optimizer.state_dict())
    file = through_a_file(export_schedulefree_state_dict(optimizer))
    assert same(optimizer.state_dict(), before)
    continued = [Parameter(param.detach().clone()) for param in params]
    reference = getattr(schedulefree, name)(two_groups(continued))
    reference.load_state_dict(file)
    assert reference.param_groups[0]["train_mode"] == training
    assert reference.param_groups[0].keys() == theirs(name, exact_params()).param_groups[0].keys()
    for each in (reference, optimizer):
        each.train()
        train(each, range(steps, steps + 15))
        each.eval()
    torch.testing.assert_close(continued, params, rtol=1e-9, atol=1e-12)


@pytest.mark.covering(2)
@options
@modes
def test_there_and_back_is_the_same(name: str, arguments: dict[str, Any], training: bool) -> None:
    params = exact_params()
    optimizer = ours(name, params, **arguments)
    train(optimizer, range(10))
    optimizer.train(training)
    twin = ours(name, [Parameter(param.detach().clone()) for param in params])
    twin.load_state_dict(export_schedulefree_state_dict(optimizer))
    state, expected = twin.state_dict(), optimizer.state_dict()
    for group, expected_group in zip(state["param_groups"], expected["param_groups"], strict=True):
        assert group.pop("c") == pytest.approx(expected_group.pop("c"), rel=1e-12)
        assert group == expected_group
    for key in expected["state"]:
        torch.testing.assert_close(state["state"][key], expected["state"][key], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_exported_tensors_are_copies_in_the_precision_of_the_parameter(dtype: torch.dtype) -> None:
    optimizer = ours("AdamWScheduleFree", exact_params(dtype))
    train(optimizer, range(3))
    for export in (export_schedulefree_state_dict, export_adamw_state_dict):
        file = export(optimizer)
        before = copy.deepcopy(file)
        assert {value.dtype for state in file["state"].values() for key, value in state.items() if key != "step"} == {
            dtype
        }
        train(optimizer, range(3, 5))
        assert same(file, before)


def test_an_attached_model_is_saved_at_the_average() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = AdamWScheduleFree(model.parameters()).attach(model)
    train(optimizer, range(3))
    file = export_schedulefree_state_dict(optimizer)
    assert file["param_groups"][0]["train_mode"] is False
    reference = schedulefree.AdamWScheduleFree(torch.nn.Linear(3, 2).parameters())
    reference.load_state_dict(through_a_file(file))


def test_a_warmup_that_is_over_can_be_exported() -> None:
    params = exact_params()
    optimizer = RAdamScheduleFree(params, warmup_steps=6, averaging=PolynomialAveraging(warmup_steps=7))
    train(optimizer, range(5))
    with pytest.raises(ValueError, match=r"parameter group 0: .* no averaging = PolynomialAveraging\(.* train until"):
        export_schedulefree_state_dict(optimizer)
    optimizer.param_groups[0]["averaging"] = PolynomialAveraging()
    with pytest.raises(ValueError, match="no warmup_steps = 6: train until it is over"):
        export_schedulefree_state_dict(optimizer)
    optimizer.param_groups[0]["averaging"] = PolynomialAveraging(warmup_steps=7)
    train(optimizer, range(5, 10))
    continued = [Parameter(param.detach().clone()) for param in params]
    reference = schedulefree.RAdamScheduleFree(continued)
    reference.load_state_dict(export_schedulefree_state_dict(optimizer))
    for each in (reference, optimizer):
        train(each, range(10, 20))
    torch.testing.assert_close(continued, params, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("cls", "arguments", "match"),
    [
        (SGDScheduleFree, {"interpolation": AnnealedInterpolation(0.9, 9), "momentum": 0.5}, "no interpolation = Ann"),
        (SGDScheduleFree, {"averaging": ExponentialAveraging(0.1)}, r"no averaging = ExponentialAveraging\(c=0\.1\)"),
        (SGDScheduleFree, {"decay_at": "z", "weight_decay": 0.1}, "no decay_at = 'z': make it 'y'"),
        (SGDScheduleFree, {"maximize": True}, "no maximize = True"),
        (SGDScheduleFree, {"momentum": 0.0}, r"no momentum = 0\.0"),
        (SGDScheduleFree, {"momentum": 1.0}, r"no momentum = 1\.0"),
        (AdamWScheduleFree, {"betas": (0.0, 0.9)}, r"no betas = \(0\.0, 0\.9\)"),
        (AdamWScheduleFree, {"inner_momentum": 0.9}, r"no inner_momentum = 0\.9"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_package_cannot_express(cls: Any, arguments: dict[str, Any], match: str) -> None:
    optimizer = cls(make_params(), **arguments)
    with pytest.raises(ValueError, match=f"parameter group 0: the schedulefree package has {match}"):
        export_schedulefree_state_dict(optimizer)


def test_a_beta_that_was_changed_is_exported_in_eval_mode() -> None:
    optimizer = SGDScheduleFree(make_params())
    train(optimizer, range(3))
    optimizer.param_groups[0]["momentum"] = 0.95
    with pytest.raises(ValueError, match=r"y was formed with beta = 0\.9, .* with 0\.95: export in eval mode"):
        export_schedulefree_state_dict(optimizer)
    optimizer.eval()
    assert export_schedulefree_state_dict(optimizer)["param_groups"][0]["momentum"] == 0.95


def test_an_algorithm_that_the_package_does_not_have() -> None:
    class Other(ScheduleFreeOptimizer):
        _rule = AdamWScheduleFree._rule
        _rule_scalars = AdamWScheduleFree._rule_scalars
        _beta = AdamWScheduleFree._beta
        _check_rule = AdamWScheduleFree._check_rule

    other = Other(make_params(), implementation="auto", foreach=None, **AdamWScheduleFree(make_params()).defaults)
    with pytest.raises(ValueError, match="the schedulefree package has no Other: export SGDScheduleFree"):
        export_schedulefree_state_dict(other)


@pytest.mark.parametrize("export", [export_schedulefree_state_dict, export_adamw_state_dict])
def test_an_optimizer_of_another_library_is_not_exported(export: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"has no AdamW|AdamW has no second moments of all"):
        export(torch.optim.AdamW(make_params()))


# From AdamW.


@pytest.mark.covering(2)
@pytest.mark.parametrize("adam", TORCH_ADAMS)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(
    ("cls", "arguments"),
    [(AdamWScheduleFree, {}), (AdamWScheduleFree, {"inner_momentum": 0.8}), (RAdamScheduleFree, {})],
    ids=["adamw", "momentum", "radam"],
)
@orders
def test_a_run_starts_from_adamw(
    adam: Any, amsgrad: bool, cls: Any, arguments: dict[str, Any], model_first: bool
) -> None:
    params = exact_params()
    reference = adam(two_groups(params), lr=0.01, amsgrad=amsgrad)
    train(reference, range(10))
    file = through_a_file(reference.state_dict())
    before = copy.deepcopy(file)
    continued = zeros(params)
    optimizer = cls(two_groups(continued), lr=0.03, **arguments)
    options = copy.deepcopy(optimizer.state_dict()["param_groups"])
    load(continued, copies(params), optimizer, file, model_first)
    assert same(file, before)
    assert optimizer.training
    assert equal(continued, params)
    assert optimizer.state_dict()["param_groups"] == options  # ours, and nothing counted
    for param, their in zip(continued, params, strict=True):
        moments = {"exp_avg", "exp_avg_sq"} & set(optimizer._rule(optimizer.param_groups[0]).buffers)
        assert optimizer.state[param].keys() - {"y", "z"} == {"step", "gap", *moments}
        assert optimizer.state[param]["step"] == 10
        for moment in moments:
            assert torch.equal(optimizer.state[param][moment], reference.state[their][moment])
        assert equal(optimizer.iterates(param), [param] * 3)
    optimizer.eval()
    optimizer.train()
    assert equal(continued, params)
    train(optimizer, range(10, 20))
    assert all(optimizer.state[param]["step"] == 20 for param in continued)


def test_the_bias_correction_of_adamw_goes_on() -> None:
    """With beta1 = 0 and no averaging, ours is AdamW."""
    params = exact_params()
    reference = torch.optim.AdamW(params, lr=0.01, betas=(0.0, 0.99), weight_decay=0.1)
    train(reference, range(10))
    continued = [Parameter(param.detach().clone()) for param in params]
    optimizer = AdamWScheduleFree(
        continued, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1, averaging=unscheduled.NoAveraging()
    )
    optimizer.load_state_dict(reference.state_dict())
    for each in (reference, optimizer):
        train(each, range(10, 20))
    torch.testing.assert_close(continued, params, rtol=1e-9, atol=1e-12)


def test_what_is_not_recognised_is_the_same_object() -> None:
    adamw, sgd = torch.optim.AdamW(make_params()), torch.optim.SGD(make_params())
    ours_adamw, ours_sgd = AdamWScheduleFree(make_params()), SGDScheduleFree(make_params())
    for file, optimizer in [
        (adamw.state_dict(), ours_sgd),
        (sgd.state_dict(), ours_adamw),
        (ours_adamw.state_dict(), ours_adamw),
        (ours_sgd.state_dict(), ours_adamw),
    ]:
        assert converted(file, optimizer) is file
    with pytest.raises(ValueError, match="another kind of optimizer"):
        ours_sgd.load_state_dict(adamw.state_dict())


def test_the_axes_of_adamw_are_ours() -> None:
    optimizer = AdamWScheduleFree(make_params(), averaging=ExponentialAveraging(0.1))
    (group,) = converted(torch.optim.AdamW(make_params()).state_dict(), optimizer)["param_groups"]
    assert {axis: group[axis] for axis in AXES} == described_axes(optimizer.param_groups[0])


# To AdamW.


@pytest.mark.parametrize(
    ("cls", "arguments", "beta1"),
    [(AdamWScheduleFree, {}, 0.9), (AdamWScheduleFree, {"inner_momentum": 0.8}, 0.8), (RAdamScheduleFree, {}, 0.9)],
    ids=["adamw", "momentum", "radam"],
)
def test_adamw_goes_on_from_the_average(cls: Any, arguments: dict[str, Any], beta1: float) -> None:
    params = exact_params(torch.float32)
    optimizer = cls(
        two_groups(params), lr=torch.tensor(0.5), betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1, **arguments
    )
    set_gradients(params[:2], 0)
    optimizer.step()
    train(optimizer, range(1, 6))
    optimizer.eval()
    file = through_a_file(export_adamw_state_dict(optimizer))
    adamw = torch.optim.AdamW(two_groups([Parameter(param.detach().clone()) for param in params]))
    adamw.load_state_dict(file)
    first = adamw.param_groups[0]
    assert first.keys() == torch.optim.AdamW(make_params()).param_groups[0].keys()
    assert (first["lr"], first["betas"], first["eps"], first["weight_decay"]) == (0.5, (beta1, 0.99), 1e-6, 0.1)
    assert adamw.param_groups[1]["lr"] == 0.02
    for group in adamw.param_groups:
        for param in group["params"]:
            our = next(each for each in params if each.shape == param.shape)
            state = adamw.state[param]
            assert torch.equal(state["step"], torch.tensor(5.0 if our is params[2] else 6.0))
            assert torch.equal(state["exp_avg_sq"], optimizer.state[our]["exp_avg_sq"])
            assert torch.equal(state["exp_avg"], optimizer.state[our].get("exp_avg", torch.zeros_like(param)))
    train(adamw, range(6, 9))


def test_sgd_has_nothing_for_adamw() -> None:
    with pytest.raises(ValueError, match="SGDScheduleFree has no second moments"):
        export_adamw_state_dict(SGDScheduleFree(make_params()))
