"""What people write around an optimizer, as they do with torch's own: it changes no bit, or it is refused in words."""

import copy
import dataclasses
import pickle
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from problems import copies, make_params, set_gradients, train
from registry import ALL, DEFAULTS_OF, OPTIMIZERS, OptimizerInfo, built_in, optimizers
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import lr_scheduler, swa_utils

from unscheduled import (
    AdamWScheduleFree,
    AutoScheduleFree,
    ConstantStep,
    MuonScheduleFree,
    PolyakStep,
    ScheduleFreeOptimizer,
    ScheduleFreePlus,
    SGDScheduleFree,
    averaged_state_dict,
    export_adamw_state_dict,
    export_schedulefree_state_dict,
    to_torch,
    update_bn,
)
from unscheduled.formulas.rule import Rule
from unscheduled.kernels import compiled, has_compiler
from unscheduled.state.param_groups import COUNTERS, unknown_entries

IMPLEMENTATIONS = ["auto", "loop", "foreach", "compiled"]
SHAPES = ((4, 3), (7,), (130,), ())

Around = Callable[[], AbstractContextManager[Any]]


@pytest.fixture
def quick_graphs(graphs: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled by a compiler that takes less time."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: original(*args, **{"backend": "eager"} | kwargs))


def every_tensor(found: Any) -> list[Tensor]:
    return [each for each in torch.utils._pytree.tree_leaves(found) if isinstance(each, Tensor)]


def assert_same_bits(some: Any, other: Any) -> None:
    assert repr(some) == repr(other)
    for one, two in zip(every_tensor(some), every_tensor(other), strict=True):
        assert one.dtype == two.dtype
        assert one.device == two.device
        assert torch.equal(one.nan_to_num(0.5), two.nan_to_num(0.5))


# A default device or a default dtype.


@contextmanager
def default_dtype(dtype: torch.dtype) -> Generator[None, None, None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Generator[None, None, None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


AROUND = [
    pytest.param(lambda: torch.device("meta"), id="with a device"),
    pytest.param(lambda: default_device("meta"), id="default device"),
    pytest.param(lambda: default_dtype(torch.float64), id="default float64"),
    pytest.param(lambda: default_dtype(torch.bfloat16), id="default bfloat16"),
]
around_all = pytest.mark.parametrize("around", AROUND)

MAKERS: dict[str, Callable[[Any], ScheduleFreeOptimizer]] = {
    **{f"{info.cls.__name__}": lambda params, info=info: info.make(params) for info in ALL},
    **{
        f"{info.cls.__name__} {name}={value}": lambda params, info=info, name=name, value=value: info.make(
            params, **{name: value}
        )
        for info in OPTIMIZERS
        for name, value in (
            ("implementation", "loop"),
            ("implementation", "foreach"),
            ("implementation", "compiled"),
            ("state_precision", "compact"),
        )
        if info.compact or value != "compact"
    },
    **{
        f"{info.cls.__name__} capturable": lambda params, info=info: info.make(params, capturable=True, warmup_steps=3)
        for info in OPTIMIZERS
        if info.capturable
    },
    "a Polyak step": lambda params: AdamWScheduleFree(params, step_size=PolyakStep(norm_beta=0.5)),
    "a Polyak step of SGD": lambda params: SGDScheduleFree(params, step_size=PolyakStep()),
    "ScheduleFreePlus": ScheduleFreePlus,
    "a distance step": AutoScheduleFree,
    "a distance step on the device": lambda params: AutoScheduleFree(params, capturable=True),
    "a learning rate that is a tensor": lambda params: AdamWScheduleFree(
        params, lr=torch.tensor(0.01, dtype=torch.float32, device="cpu")
    ),
}


def life(
    make: Callable[[Any], ScheduleFreeOptimizer],
    around: Around,
    grads: list[list[Tensor]],
    params: list[Parameter],
    closing: Callable[[ScheduleFreeOptimizer], Any] | None = None,
) -> Any:
    """What comes of a run, all of whose calls stand within a context."""

    def gradients(step: int) -> None:
        for param, grad in zip(params, grads[step], strict=True):
            param.grad = grad.clone()

    needs_loss = False
    with around():
        optimizer = make([{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}])
        needs_loss = isinstance(optimizer.param_groups[0]["step_size"], PolyakStep)
    found: list[Any] = []
    for step in range(8):
        gradients(step)
        if step == 6:
            params[1].grad = None
        with around():
            optimizer.step(**({"loss": 1.5, "grad_norm": 9.0} if needs_loss else {}))
            if step == 3:
                found.extend([optimizer.metrics(), [optimizer.iterates(param) for param in params]])
                saved = copy.deepcopy(optimizer.eval().state_dict())
                found.append(saved)
                optimizer.load_state_dict(saved)
                optimizer.train()
            if step == 5 and closing is None:  # a run that has done so cannot be exported
                optimizer.restart_averaging()
    with around():
        found.extend([list(map(optimizer._averages(), params)), optimizer.metrics(), optimizer.state_dict()])
        found.append(closing(optimizer) if closing else None)
    return found, [param.detach() for param in params]


def runs(make: Any, around: Around, *closing: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The run by itself, and within the context; each finds nothing that an earlier one has kept."""
    params = make_params(*SHAPES, dtype=dtype)
    grads: list[list[Tensor]] = []
    for step in range(8):
        set_gradients(params, step)
        grads.append([param.grad.clone() for param in params if param.grad is not None])
    results: list[Any] = []
    for each in (nullcontext, around):
        compiled._graph.cache_clear()  # pyright: ignore[reportPrivateUsage]
        results.append(life(make, each, grads, [Parameter(param.detach().clone()) for param in params], *closing))
    return results[0], results[1]


@pytest.mark.covering(1)
@pytest.mark.usefixtures("quick_graphs")
@around_all
@pytest.mark.parametrize("name", MAKERS)
def test_a_default_device_or_dtype_changes_no_bit(name: str, around: Around) -> None:
    assert_same_bits(*runs(MAKERS[name], around))


@around_all
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_a_default_device_or_dtype_changes_no_bit_of_other_parameters(dtype: torch.dtype, around: Around) -> None:
    assert_same_bits(*runs(lambda params: AdamWScheduleFree(params, lr=0.01), around, dtype=dtype))


@around_all
@pytest.mark.parametrize(
    "closing",
    [export_adamw_state_dict, export_schedulefree_state_dict, lambda optimizer: to_torch(optimizer).state_dict()],
    ids=["AdamW", "schedulefree", "to_torch"],
)
def test_a_default_device_or_dtype_changes_no_export(closing: Any, around: Around) -> None:
    assert_same_bits(*runs(lambda params: AdamWScheduleFree(params, lr=0.01), around, closing))


@around_all
def test_a_default_device_or_dtype_changes_no_statistics(around: Around) -> None:
    results: list[Any] = []
    for each in (nullcontext, around):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).float()
        inputs = [torch.randn(5, 3) for _ in range(6)]
        with each():
            optimizer = AdamWScheduleFree(model.parameters(), lr=0.01).attach(model, bn_batches=2)
            for batch in inputs:
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
            model.eval()
            kept = copy.deepcopy(model.state_dict())
            update_bn(inputs, model, optimizer)
            results.append((kept, model.state_dict(), averaged_state_dict(model, optimizer)))
    assert_same_bits(*results)


# One configuration for all classes.

CLASSES = [*(info.cls for info in OPTIMIZERS), *DEFAULTS_OF]
classes = pytest.mark.parametrize("cls", CLASSES)


@pytest.mark.covering(1)
@classes
@pytest.mark.parametrize(
    ("arguments", "implementation"),
    [
        ({}, "auto"),
        ({"foreach": None, "fused": None}, "auto"),
        ({"foreach": True}, "foreach"),
        ({"foreach": False}, "loop"),
        ({"fused": False}, "foreach"),
        ({"fused": False, "foreach": True}, "foreach"),
        ({"fused": False, "foreach": False}, "loop"),
        ({"fused": False, "capturable": True}, "auto"),
        ({"foreach": False, "capturable": True}, "loop"),
        pytest.param({"fused": True}, "fused", marks=pytest.mark.skipif(not has_compiler("cpu"), reason="needs Numba")),
        pytest.param(
            {"fused": True, "foreach": False},
            "fused",
            marks=pytest.mark.skipif(not has_compiler("cpu"), reason="needs Numba"),
        ),
    ],
)
def test_the_implementation_by_the_arguments_of_torch(cls: Any, arguments: dict[str, Any], implementation: str) -> None:
    params = make_params()
    optimizer = cls(params, **{"step_size": ConstantStep()} | arguments)
    assert optimizer.implementation == implementation
    set_gradients(params, 0)
    optimizer.step()


def test_without_the_fused_kernel_a_rule_without_foreach_is_a_loop() -> None:
    class Plain(AdamWScheduleFree):
        def _rule(self, group: Any, param: Tensor | None = None) -> Rule:
            return dataclasses.replace(super()._rule(group, param), foreach=None)

    assert Plain(make_params(), fused=False).implementation == "loop"
    with pytest.raises(ValueError, match=r"^foreach = True is not there for this rule: use implementation = 'auto'"):
        Plain(make_params(), foreach=True)


@pytest.mark.covering(1)
@classes
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"foreach": True, "fused": True}, "foreach = True and fused = True exclude each other: give one of them"),
        ({"fused": False, "implementation": "loop"}, "fused = False and implementation = 'loop' exclude each other"),
        (
            {"fused": False, "foreach": True, "implementation": "fused"},
            "foreach = True and fused = False and implementation = 'fused' exclude each other",
        ),
        ({"fused": 1}, "fused = 1 is neither True, False nor None"),
        ({"foreach": "yes"}, "foreach = 'yes' is neither True, False nor None"),
        ({"capturable": 1}, "capturable = 1 is neither True nor False"),
        ({"capturable": None}, "capturable = None is neither True nor False"),
        (
            {"capturable": True, "fused": True},
            "parameter group 0: capturable = True, fused = True exclude each other on the CPU",
        ),
        ({"step_size": ConstantStep}, "step_size = ConstantStep is a class: make an object of it"),
    ],
)
def test_arguments_that_exclude_each_other(cls: Any, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=f"^{match}"):
        cls(make_params(), **{"step_size": ConstantStep()} | arguments)


def test_what_is_not_there_is_called_by_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [Parameter(torch.zeros(2, device="meta"))]
    with pytest.raises(ValueError, match=r"fused = True is for the CPU and for CUDA and HIP, but .* are on meta"):
        AdamWScheduleFree(params, fused=True)
    optimizer = AdamWScheduleFree(params, foreach=True)
    optimizer.implementation = "unknown"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="implementation = 'unknown' is unknown"):
        optimizer.add_param_group({"params": make_params()})
    monkeypatch.setattr("unscheduled.kernels.has_compiler", lambda device_type: False)
    with pytest.raises(ImportError, match=r"^fused = True needs Numba"):
        AdamWScheduleFree(make_params(), fused=True)


@pytest.mark.parametrize("info", [info for info in OPTIMIZERS if not info.polyak], ids=lambda info: info.cls.__name__)
def test_a_polyak_step_where_there_is_none(info: OptimizerInfo) -> None:
    name = info.cls.__name__
    match = rf"step_size = PolyakStep\(.*\) is not there for {name}: use AdamWScheduleFree or SGDScheduleFree"
    for own in ({}, info.elementwise):
        with pytest.raises(ValueError, match=match):
            info.make(make_params(), step_size=PolyakStep(), **own)


def test_schedule_free_plus_with_a_learning_rate_is_adamw() -> None:
    ours, others = make_params(), make_params()
    plus = ScheduleFreePlus(ours, step_size=ConstantStep(), warmup_steps=0, betas=(0.9, 0.999), weight_decay=0.1)
    adamw = AdamWScheduleFree(others, weight_decay=0.1, corrected_decay=True)
    for step in range(5):
        for params, optimizer in ((ours, plus), (others, adamw)):
            set_gradients(params, step)
            optimizer.step()
    assert_same_bits(ours, others)
    assert_same_bits(plus.state_dict(), adamw.state_dict())
    with pytest.raises(ValueError, match=r"capturable = True, step_size = PolyakStep\(.*computed on the host"):
        ScheduleFreePlus(ours, capturable=True)
    assert ScheduleFreePlus(ours).param_groups[0]["lr"] == 1.0


@classes
def test_a_copy_is_made_by_the_same_implementation(cls: Any) -> None:
    optimizer = copy.deepcopy(cls(make_params(), fused=False))
    assert optimizer.implementation == "foreach"
    optimizer.add_param_group({"params": make_params()})


# Entries of a group that no step reads.

UNKNOWN = [
    ("r", 5, r"r = 5 is no option of a group: set group\['averaging'\] = dataclasses\.replace\(.*, r=5\) instead"),
    ("weight_lr_power", 0.0, r"weight_lr_power = 0\.0 is no option .*\(group\['averaging'\], weight_lr_power=0\.0\)"),
    (
        "weight_dacay",
        0.1,
        r"weight_dacay = 0\.1 is no option of a group: use 'weight_decay', and remove 'weight_dacay'",
    ),
    ("lr_scale", 0.5, r"lr_scale = 0\.5 is no option of a group: multiply group\['lr'\] by it, and remove 'lr_scale'"),
    (
        "nesterov",
        True,
        r"nesterov = True is no option of a group: the options are averaging, .*; a label can .* under 'name'",
    ),
    ("fused", True, "fused = True in a group: it is for all groups, so give it to the constructor"),
    ("state_precision", "compact", "state_precision = 'compact' in a group: it is for all groups"),
    ("capturable", False, "capturable = False in a group: it is for all groups"),
]
unknown = pytest.mark.parametrize(("name", "value", "match"), UNKNOWN, ids=[name for name, _, _ in UNKNOWN])


@pytest.mark.covering(1)
@optimizers
@unknown
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_an_unknown_entry_at_a_step(info: OptimizerInfo, name: str, value: Any, match: str, steps: int) -> None:
    """Also at a step that is like the one before, and at one of several groups."""
    first, second = make_params()
    optimizer = info.make([{"params": [first]}, {"params": [second]}])
    train(optimizer, range(steps))
    optimizer.param_groups[1][name] = value
    before, state = copies([first, second]), copy.deepcopy(list(optimizer.state.values()))
    set_gradients([first, second], steps)
    with pytest.raises(ValueError, match=f"^parameter group 1: {match}"):
        optimizer.step()
    assert optimizer.param_groups[0]["step"] == steps
    assert_same_bits([first.detach(), second.detach()], before)
    assert_same_bits(list(optimizer.state.values()), state)
    del optimizer.param_groups[1][name]
    optimizer.step()
    assert optimizer.param_groups[1]["step"] == steps + 1


@pytest.mark.covering(1)
@optimizers
@unknown
def test_an_unknown_entry_of_a_new_group(info: OptimizerInfo, name: str, value: Any, match: str) -> None:
    first, second = make_params()
    optimizer = info.make([first])
    if name not in ("r", "weight_lr_power"):  # which a new group may have
        with pytest.raises(ValueError, match=f"^parameter group 1: {match}"):
            optimizer.add_param_group({"params": [second], name: value})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [second]})
    train(optimizer, range(2))


@built_in
def test_an_unknown_entry_at_construction(info: OptimizerInfo) -> None:
    with pytest.raises(ValueError, match=r"parameter group 0: momentun = 0\.9 is no option of a group"):
        info.make([{"params": make_params(), "momentun": 0.9}])


def test_an_unknown_entry_of_a_capturable_or_a_compiled_optimizer() -> None:
    for arguments in ({"capturable": True}, {"implementation": "compiled"}, {"step_size": PolyakStep()}):
        params = make_params()
        optimizer = AdamWScheduleFree(params, **arguments)
        optimizer.param_groups[0]["r"] = 1
        set_gradients(params, 0)
        with pytest.raises(ValueError, match="parameter group 0: r = 1 is no option of a group"):
            optimizer.step(loss=1.0)


@optimizers
def test_the_averaging_that_takes_the_place_of_r(info: OptimizerInfo) -> None:
    ours, others = make_params(), make_params()
    optimizer, other = info.make(ours), info.make(others, r=5.0)
    group = optimizer.param_groups[0]
    group["averaging"] = dataclasses.replace(group["averaging"], r=5.0)
    for each in (optimizer, other):
        train(each, range(5))
    assert_same_bits(ours, others)


SCHEDULERS: list[Callable[[Any], Any]] = [
    lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=9, cycle_momentum=True),
    lambda optimizer: lr_scheduler.CyclicLR(optimizer, 1e-4, 0.01, step_size_up=4, cycle_momentum=True),
    lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
    lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer),
    lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)], [3]
    ),
    lambda optimizer: swa_utils.SWALR(optimizer, swa_lr=0.001),
]


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_what_schedulers_and_labels_put_there_is_known(info: OptimizerInfo, scheduler: Any) -> None:
    params = make_params()
    optimizer = info.make(params)
    optimizer.param_groups[0]["name"] = "all"
    schedule = scheduler(optimizer)
    for step in range(6):
        set_gradients(params, step)
        optimizer.step()
        schedule.step(*([1.0] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else []))
    assert set(unknown_entries(optimizer.param_groups[0], optimizer.defaults)) == set()
    copied = pickle.loads(pickle.dumps(optimizer))
    train(copied, range(2))
    copied.load_state_dict(optimizer.state_dict())
    train(copied, range(2))


def test_groups_of_another_optimizer_make_a_new_one() -> None:
    first, second = make_params()
    old = AdamWScheduleFree([{"params": [first], "lr": 0.1}, {"params": [("second", second)]}][:1])
    train(old, range(3))
    new = AdamWScheduleFree(old.param_groups)
    assert new.param_groups[0]["step"] == 0
    train(new, range(3))


# Autocast.

OPTIONS: list[dict[str, Any]] = [
    {"implementation": "auto"},
    {"implementation": "loop"},
    {"implementation": "foreach"},
    {"implementation": "compiled"},
    {"state_precision": "compact"},
    {"capturable": True},
]


@pytest.mark.covering(1)
@pytest.mark.usefixtures("quick_graphs")
@pytest.mark.parametrize(
    ("info", "options"),
    [
        pytest.param(info, options, id=f"{info.cls.__name__}-{options}")
        for info in OPTIMIZERS
        for options in OPTIONS
        if info.compact or "state_precision" not in options
    ],
)
def test_autocast_changes_no_bit(info: OptimizerInfo, options: dict[str, Any]) -> None:
    arguments = info.with_all_buffers | options
    assert_same_bits(*runs(lambda params: info.make(params, **arguments), lambda: torch.autocast("cpu")))


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@optimizers
def test_autocast_changes_no_bit_of_other_parameters(info: OptimizerInfo, dtype: torch.dtype, of: torch.dtype) -> None:
    assert_same_bits(*runs(info.make, lambda: torch.autocast("cpu", dtype), dtype=of))


@pytest.mark.parametrize("cls", [AdamWScheduleFree, SGDScheduleFree, ScheduleFreePlus])
def test_autocast_changes_no_bit_of_a_polyak_step(cls: Any) -> None:
    assert_same_bits(*runs(lambda params: cls(params, step_size=PolyakStep()), lambda: torch.autocast("cpu")))


@pytest.mark.usefixtures("quick_graphs")
@pytest.mark.parametrize("cls", [AdamWScheduleFree, MuonScheduleFree])
def test_autocast_changes_no_bit_of_a_compiled_step(cls: Any) -> None:
    def make(params: Any) -> Any:
        optimizer = cls(params, implementation="loop")
        optimizer.step = torch.compile(optimizer.step)  # pyright: ignore[reportAttributeAccessIssue]
        return optimizer

    assert_same_bits(*runs(make, lambda: torch.autocast("cpu")))


@built_in
def test_a_step_on_a_device_without_autocast(info: OptimizerInfo) -> None:
    params = [Parameter(torch.zeros(3, 2, device="meta"))]
    params[0].grad = torch.zeros(3, 2, device="meta")
    optimizer = info.make(params, implementation="loop")
    with torch.autocast("cpu"):
        optimizer.step()
    assert optimizer.param_groups[0]["step"] == 1


# What is printed.


@optimizers
def test_it_is_printed_as_torch_prints_its_own_without_counters(info: OptimizerInfo) -> None:
    first, second = make_params()
    optimizer = info.make([{"params": [("first", first)]}, {"params": [("second", second)], "lr": 0.5}])
    train(optimizer, range(3))
    before = repr(optimizer)
    kept = [
        {name: value for name, value in group.items() if name not in COUNTERS | {"param_names"}}
        for group in optimizer.param_groups
    ]
    plain = torch.optim.SGD([first])
    plain.param_groups = kept
    assert before == repr(plain).replace("SGD", info.cls.__name__, 1)
    assert "    lr: 0.5\n" in before
    assert all(f"    {name}: " in before for name in set(optimizer.defaults) - {"differentiable"})
    assert not any(f"    {name}: " in before for name in (*COUNTERS, "params", "param_names"))
