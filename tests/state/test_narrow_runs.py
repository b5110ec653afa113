"""Training with narrow states: the contract of the optimizers, and long runs against the float64 oracle."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Oracle, Vector
from problems import copies, equal, make_params, set_gradients, train
from registry import OptimizerInfo, compactable, implementations, narrow, narrow_built_in, optimizers
from torch import Tensor
from torch.nn import Parameter

from unscheduled import AdamWScheduleFree, RAdamScheduleFree, ScheduleFreeOptimizer, SGDScheduleFree
from unscheduled.formulas.rule import Rule

SHAPES = ((40, 30), (129,), (7,), (), (0,))


def buffers(optimizer: ScheduleFreeOptimizer, param: Tensor) -> list[Tensor]:
    return [value for value in optimizer.state[param].values() if isinstance(value, Tensor)]


def whole(optimizer: ScheduleFreeOptimizer) -> list[Tensor]:
    """All bits of a run: the parameters and what is kept beside them."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [tensor for param in params for tensor in (param, *buffers(optimizer, param))]


# The contract.


@compactable
@implementations
def test_a_compact_state_takes_two_to_four_bytes_a_parameter(info: OptimizerInfo, implementation: str) -> None:
    params = make_params((300, 100), (1280,))
    optimizer = info.make(params, implementation=implementation, state_precision="compact")
    count = sum(param.numel() for param in params)
    for step in range(3):
        train(optimizer, [step])
        optimizer.eval().train()
        size = sum(value.numel() * value.element_size() for param in params for value in buffers(optimizer, param))
        assert size / count < info.compact


@pytest.mark.covering(2)
@implementations
@narrow
def test_gradients_and_storage_are_left_alone(
    info: OptimizerInfo, implementation: str, dtype: torch.dtype, state_precision: str
) -> None:
    params = make_params(*SHAPES, dtype=dtype)
    addresses = [param.data_ptr() for param in params]
    optimizer = info.make(
        params, implementation=implementation, state_precision=state_precision, maximize=True, weight_decay=0.1
    )
    for step in range(4):
        set_gradients(params, step)
        gradients = [param.grad for param in params if param.grad is not None]
        bits = copies(gradients)
        optimizer.step()
        assert equal(gradients, bits)
        optimizer.eval().train()
    optimizer.load_state_dict(optimizer.state_dict())
    assert [param.data_ptr() for param in params] == addresses


@pytest.mark.covering(2)
@implementations
@narrow
def test_evaluating_changes_no_bit(
    info: OptimizerInfo, implementation: str, dtype: torch.dtype, state_precision: str
) -> None:
    arguments = {"implementation": implementation, "state_precision": state_precision, "weight_decay": 0.1}
    often, never = make_params(*SHAPES, dtype=dtype), make_params(*SHAPES, dtype=dtype)
    optimizer, reference = info.make(often, **arguments), info.make(never, **arguments)
    for step in range(8):
        train(optimizer, [step])
        train(reference, [step])
        optimizer.eval().train()
        with optimizer.averaged_parameters():
            optimizer.state_dict()
        optimizer.metrics()
        optimizer.iterates(often[0])
    assert equal(whole(optimizer), whole(reference))
    assert optimizer.metrics() == reference.metrics()


@pytest.mark.covering(2)
@implementations
@narrow
def test_the_iterates_are_what_the_parameters_hold(
    info: OptimizerInfo, implementation: str, dtype: torch.dtype, state_precision: str
) -> None:
    """The same from either mode; the parameters are y or x, to the nearest."""
    params = make_params(*SHAPES, dtype=dtype)
    optimizer = info.make(params, implementation=implementation, state_precision=state_precision)
    train(optimizer, range(8))
    squares = 0.0
    for param in params:
        training = optimizer.train().iterates(param)
        assert is_nearest(param, training.y)
        evaluating = optimizer.eval().iterates(param)
        assert equal(training, evaluating)
        assert is_nearest(param, training.x)
        x, y, z = (iterate.double() for iterate in training)
        torch.testing.assert_close(y, 0.1 * z + 0.9 * x, rtol=1e-6, atol=1e-6)
        squares += float((z - x).square().sum())
    assert optimizer.metrics()["gap_norm"] == pytest.approx(squares**0.5, rel=1e-4)
    assert squares > 0.0


def is_nearest(param: Tensor, exact: Tensor) -> bool:
    """Whether no other number of the parameter's dtype is nearer."""
    here, infinite = param.detach(), torch.full_like(param.detach(), float("inf"))
    distances = [
        (each.double() - exact.double()).abs()
        for each in (here, torch.nextafter(here, infinite), torch.nextafter(here, -infinite))
    ]
    return bool((distances[0] <= torch.minimum(*distances[1:])).all())


@pytest.mark.covering(2)
@narrow
@pytest.mark.parametrize("training", [True, False])
def test_a_closure_is_a_step(info: OptimizerInfo, dtype: torch.dtype, state_precision: str, training: bool) -> None:
    closed, plain = make_params(*SHAPES, dtype=dtype), make_params(*SHAPES, dtype=dtype)
    optimizer = info.make(closed, state_precision=state_precision)
    reference = info.make(plain, state_precision=state_precision)
    optimizer.train(training)
    for step in range(6):
        optimizer.step(lambda step=step: set_gradients(closed, step))
        train(reference, [step])
    assert equal(whole(optimizer.train()), whole(reference))


@pytest.mark.covering(2)
@implementations
@narrow_built_in
def test_groups_are_optimizers_of_their_own(
    info: OptimizerInfo, implementation: str, dtype: torch.dtype, state_precision: str
) -> None:
    """From the beginning or added late, whatever else is updated in the same step."""
    shared = {"implementation": implementation, "state_precision": state_precision}
    together, alone = make_params(*SHAPES[:3], dtype=dtype), make_params(*SHAPES[:3], dtype=dtype)
    options = [{"lr": 0.5 * info.lr}, {"weight_decay": 0.1}, {"r": 2.0}]
    groups = [{"params": [param], **own} for param, own in zip(together, options, strict=True)]
    optimizer = info.make(groups[:2], **shared)
    singles = [info.make([param], **own, **shared) for param, own in zip(alone, options, strict=True)]
    for step in range(8):
        if step == 4:
            optimizer.eval()
            optimizer.add_param_group(groups[2])
            optimizer.train()
        train(optimizer, [step])
        for single in singles if step >= 4 else singles[:2]:
            train(single, [step])
    assert equal(whole(optimizer), (tensor for single in singles for tensor in whole(single)))


@compactable
@implementations
def test_a_compact_step_is_that_of_the_loop(info: OptimizerInfo, implementation: str) -> None:
    """The same random numbers: where the arithmetic rounds otherwise, a few codes are off by one."""
    params = [
        *make_params(*SHAPES),
        Parameter(torch.randn(6, 5, 4, 3).contiguous(memory_format=torch.channels_last)),
    ]
    others = [Parameter(param.detach().clone(memory_format=torch.preserve_format)) for param in params]
    loop = info.make(params, implementation="loop", state_precision="compact")
    train(loop, range(5))
    ours = info.make(others, implementation=implementation, state_precision="compact")
    for param, other in zip(params, others, strict=True):
        other.data.copy_(param)
    ours.load_state_dict(loop.state_dict())
    assert equal((tensor for p in others for tensor in by_name(ours, p)), (t for p in params for t in by_name(loop, p)))
    train(loop, [5])
    train(ours, [5])
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(other, param, rtol=1e-5, atol=1e-6)
        for some, reference in zip(by_name(ours, other), by_name(loop, param), strict=True):
            assert some.stride() == reference.stride()
            if some.is_floating_point():
                torch.testing.assert_close(some, reference, rtol=1e-5, atol=0.0)
            elif some.numel():
                distance = (some.int() - reference.int()).abs()
                assert int(distance.max()) <= 1
                assert float((distance > 0).float().mean()) < 0.02


def by_name(optimizer: ScheduleFreeOptimizer, param: Tensor) -> list[Tensor]:
    """What is kept of a parameter, but for the y of a file."""
    state = optimizer.state[param]
    return [state[name] for name in sorted(state) if name not in ("step", "y")]


RUN = """
import sys
from problems import make_params, train
import torch, unscheduled
for name in sys.argv[1:]:
    for state_precision in ("compact", "float32"):
        found = []
        for implementation in ("fused", "loop"):
            (param,) = make_params((1000,), dtype=torch.bfloat16)
            optimizer = getattr(unscheduled, name)(
                [param], lr=0.01, implementation=implementation, state_precision=state_precision
            )
            train(optimizer, range(4))
            found.append(param.detach().float())
        torch.testing.assert_close(*found, rtol=0.01, atol=1e-4)
"""


@pytest.mark.slow
def test_kernels_that_other_processes_have_compiled_are_the_right_ones(tmp_path: Path) -> None:
    """Numba keeps them on the disk, each with names that are different from others of the same process only."""
    support = Path(__file__).parents[1] / "support"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NUMBA_CACHE_DIR": str(tmp_path)}
    names = ("SGDScheduleFree", "AdamWScheduleFree")
    for arguments in (names[:1], names[1:], names, names[::-1]):
        command = [sys.executable, "-c", RUN, *arguments]
        done = subprocess.run(command, cwd=support, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


# Bad input.


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="state_precision = 'int8' is unknown: use 'float32' or 'compact'"):
        AdamWScheduleFree(make_params(), state_precision="int8")  # type: ignore[arg-type]
    for dtype in (torch.float64, torch.complex64):
        wide = make_params(dtype=dtype)
        message = rf"group 0: state_precision = 'compact' is for whole .* but one is {dtype}: use 'float32'"
        with pytest.raises(ValueError, match=message):
            AdamWScheduleFree(wide, state_precision="compact")
        optimizer = SGDScheduleFree(make_params(), state_precision="compact")
        with pytest.raises(ValueError, match=message.replace("group 0", "group 1")):
            optimizer.add_param_group({"params": wide})
        assert len(optimizer.param_groups) == 1


class WithoutCodes(SGDScheduleFree):  # type: ignore[misc]
    """A new rule, whose buffers nobody has thought about."""

    def _rule(self, group: Any, param: Any = None) -> Rule:
        return Rule(lambda grad: (grad.sign(),))


def test_a_rule_without_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="state_precision = 'compact' is not there for this rule: use 'float32'"):
        WithoutCodes(make_params(), state_precision="compact")
    with pytest.raises(ValueError, match=r"state_precision = 'int8' is unknown: use 'float32'$"):
        WithoutCodes(make_params(), state_precision="int8")  # type: ignore[arg-type]


# Long runs.


def error_of_the_average(
    make: Any, settings: dict[str, Any], dtype: torch.dtype = torch.float32, split: bool = True, seed: int = 0
) -> float:
    """After 20,000 steps on a fixed stream of random gradients, relative to the float64 run of the same numbers."""
    random = np.random.default_rng(seed)
    stream = torch.from_numpy(random.standard_normal((20_000, 256)).astype(np.float32)).to(dtype)
    param = Parameter(torch.from_numpy(random.standard_normal(256).astype(np.float32)).to(dtype))
    oracle = Oracle(param.detach().double().numpy(), beta=0.9, **settings)
    if not split:  # float32 arithmetic on weights that are stored in 16 bits after every step
        param, stream = Parameter(param.detach().float()), stream.float()
    optimizer = make([param])
    for gradient, exact in zip(stream, stream.double().numpy(), strict=True):
        param.grad = gradient
        optimizer.step()
        oracle.step(exact)
        if not split:
            param.data.copy_(param.to(dtype))
    return relative_error(optimizer.iterates(param).x, oracle.x)


def relative_error(ours: Tensor, truth: Vector) -> float:
    return float(np.linalg.norm(ours.double().numpy() - truth) / np.linalg.norm(truth))


COMPACT = [
    (AdamWScheduleFree, "adamw", 0.01, 0.0),
    (AdamWScheduleFree, "adamw", 0.01, 0.1),
    (AdamWScheduleFree, "adamw", 0.0025, 0.0),
    (AdamWScheduleFree, "adamw", 0.001, 0.0),
    (AdamWScheduleFree, "adamw", 0.001, 0.1),
    (RAdamScheduleFree, "radam", 0.01, 0.1),
    (SGDScheduleFree, "sgd", 0.1, 0.0),
    (SGDScheduleFree, "sgd", 0.1, 0.1),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "rule", "lr", "decay", "implementation"),
    [(*run, "fused") for run in COMPACT] + [(*COMPACT[1], other) for other in ("loop", "foreach")],
)
def test_20000_steps_with_a_compact_state(cls: Any, rule: str, lr: float, decay: float, implementation: str) -> None:
    error = error_of_the_average(
        lambda params: cls(params, lr=lr, weight_decay=decay, implementation=implementation, state_precision="compact"),
        {"rule": rule, "lr": lr, "weight_decay": decay},
    )
    assert error < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "rule"), [(AdamWScheduleFree, "adamw"), (RAdamScheduleFree, "radam")])
@pytest.mark.parametrize("seed", range(4))
def test_20000_steps_with_a_compact_state_at_the_worst_settings_known(cls: Any, rule: str, seed: int) -> None:
    """The errors are about 0.004."""
    error = error_of_the_average(
        lambda params: cls(params, lr=0.0025, weight_decay=0.1, implementation="fused", state_precision="compact"),
        {"rule": rule, "lr": 0.0025, "weight_decay": 0.1},
        seed=seed,
    )
    assert error < 5e-3


@pytest.mark.slow
@optimizers
@pytest.mark.parametrize(
    ("dtype", "implementation"),
    [(torch.bfloat16, "fused"), (torch.bfloat16, "loop"), (torch.float16, "loop"), (torch.float16, "foreach")],
)
def test_20000_steps_of_split_weights(info: OptimizerInfo, dtype: torch.dtype, implementation: str) -> None:
    error = error_of_the_average(
        lambda params: info.make(params, weight_decay=0.1, implementation=implementation),
        {"rule": info.rule, "lr": info.lr, "weight_decay": 0.1} | info.oracle,
        dtype,
    )
    assert error < 1e-5


@pytest.mark.slow
@optimizers
def test_20000_steps_of_weights_that_are_not_split_go_astray(info: OptimizerInfo) -> None:
    error = error_of_the_average(
        lambda params: info.make(params, weight_decay=0.1),
        {"rule": info.rule, "lr": info.lr, "weight_decay": 0.1} | info.oracle,
        torch.bfloat16,
        split=False,
    )
    assert error > 0.02
