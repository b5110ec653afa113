"""The end-game: what x is, exactly, after a restart, a freeze and a cool-down."""

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from problems import equal, make_params, train
from registry import OptimizerInfo, implementations, optimizers
from torch import Tensor

from unscheduled import ExponentialAveraging, NoAveraging, PolynomialAveraging, ScheduleFreeOptimizer, SGDScheduleFree

AVERAGINGS = [
    PolynomialAveraging(),
    PolynomialAveraging(r=1),
    PolynomialAveraging(r=1, warmup_steps=4),
    PolynomialAveraging(r=-0.5, weight_lr="current", weight_lr_power=1),
    ExponentialAveraging(0.2),
    NoAveraging(),
]
averagings = pytest.mark.parametrize("averaging", AVERAGINGS, ids=str)


def run(optimizer: ScheduleFreeOptimizer, steps: Iterable[int]) -> list[Tensor]:
    """Step, and give the z of the first parameter after each."""
    visited = []
    for step in steps:
        train(optimizer, [step])
        visited.append(optimizer.iterates(optimizer.param_groups[0]["params"][0]).z)
    return visited


def mean(visited: list[Tensor], averaging: Any) -> Tensor:
    """The average of these z and of no others, at a constant learning rate."""
    if isinstance(averaging, (ExponentialAveraging, NoAveraging)):
        c = averaging.c if isinstance(averaging, ExponentialAveraging) else 1.0
        x = visited[0]
        for z in visited[1:]:
            x = (1 - c) * x + c * z
        return x
    if len(visited) <= averaging.warmup_steps:
        return visited[-1]
    weights = [0.0 if t <= averaging.warmup_steps else t**averaging.r for t in range(1, len(visited) + 1)]
    return weighted(visited, weights)


def weighted(visited: list[Tensor], weights: list[float]) -> Tensor:
    pairs = zip(weights, visited, strict=True)
    return torch.stack([weight * z for weight, z in pairs]).sum(0) / sum(weights)


def x_of(optimizer: ScheduleFreeOptimizer) -> Tensor:
    return optimizer.iterates(optimizer.param_groups[0]["params"][0]).x


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def becomes_mean(optimizer: ScheduleFreeOptimizer, steps: Iterable[int], averaging: Any) -> None:
    """After these steps x is the average of the z that they visit."""
    visited = run(optimizer, steps)
    close(x_of(optimizer), mean(visited, averaging))


def sgd(averaging: Any = None, **arguments: Any) -> ScheduleFreeOptimizer:
    (param,) = make_params((5,), dtype=torch.float64)
    return SGDScheduleFree([param], lr=0.1, averaging=averaging, **arguments)


# The restart.


@averagings
def test_a_restart_moves_nothing_and_then_x_is_the_mean_of_the_z_since(averaging: Any) -> None:
    optimizer = sgd(averaging)
    run(optimizer, range(13))
    before = optimizer.iterates(optimizer.param_groups[0]["params"][0])
    optimizer.restart_averaging()
    assert equal(optimizer.iterates(optimizer.param_groups[0]["params"][0]), before)
    visited = []
    for step in range(13, 30):
        visited += run(optimizer, [step])
        close(x_of(optimizer), mean(visited, averaging))


@optimizers
def test_every_optimizer_restarts(info: OptimizerInfo) -> None:
    averaging = PolynomialAveraging(r=1, weight_lr_power=0)
    (param,) = make_params((4, 3), dtype=torch.float64)
    optimizer = info.make([param], averaging=averaging)
    run(optimizer, range(13))
    y = param.detach().clone()
    optimizer.restart_averaging()
    assert torch.equal(param, y)
    becomes_mean(optimizer, range(13, 30), averaging)


@implementations
def test_every_implementation_restarts(implementation: Any) -> None:
    averaging = PolynomialAveraging(r=1)
    optimizer = sgd(averaging, implementation=implementation)
    run(optimizer, range(13))
    optimizer.restart_averaging()
    becomes_mean(optimizer, range(13, 30), averaging)


@averagings
def test_two_restarts_in_a_row_are_one(averaging: Any) -> None:
    once, twice = sgd(averaging), sgd(averaging)
    for optimizer, times in ((once, 1), (twice, 2)):
        run(optimizer, range(13))
        for _ in range(times):
            optimizer.restart_averaging()
        run(optimizer, range(13, 20))
    assert equal(once.param_groups[0]["params"], twice.param_groups[0]["params"])
    assert torch.equal(x_of(once), x_of(twice))


def test_of_two_restarts_the_later_counts() -> None:
    averaging = PolynomialAveraging(r=1)
    optimizer = sgd(averaging)
    for steps in (range(8), range(8, 15)):
        run(optimizer, steps)
        optimizer.restart_averaging()
    becomes_mean(optimizer, range(15, 25), averaging)


@averagings
def test_a_restart_in_eval_mode(averaging: Any) -> None:
    optimizer, other = sgd(averaging), sgd(averaging)
    for each in (optimizer, other):
        run(each, range(13))
    x = x_of(optimizer)
    optimizer.eval().restart_averaging()
    assert torch.equal(optimizer.param_groups[0]["params"][0], x)
    other.restart_averaging()
    run(optimizer.train(), range(13, 20))
    run(other, range(13, 20))
    assert equal(optimizer.param_groups[0]["params"], other.param_groups[0]["params"])
    assert torch.equal(x_of(optimizer), x_of(other))


@averagings
@pytest.mark.parametrize("evaluated", [False, True])
def test_a_restart_is_saved_and_loaded(averaging: Any, evaluated: bool) -> None:
    optimizer = sgd(averaging)
    run(optimizer, range(13))
    optimizer.restart_averaging()
    resumed = reloaded(optimizer.train(not evaluated), sgd(averaging))
    for each in (optimizer.train(), resumed.train()):
        becomes_mean(each, range(13, 25), averaging)
    assert equal(optimizer.param_groups[0]["params"], resumed.param_groups[0]["params"])


def reloaded(optimizer: ScheduleFreeOptimizer, fresh: ScheduleFreeOptimizer) -> ScheduleFreeOptimizer:
    """A new optimizer with the state and the weights of another."""
    with torch.no_grad():
        for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
            for param, new_param in zip(group["params"], new["params"], strict=True):
                new_param.copy_(param)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return fresh


@averagings
@pytest.mark.parametrize("idle", [1, 3])
def test_steps_at_lr_0_do_not_lose_a_restart(averaging: Any, idle: int) -> None:
    """They are counted, as always, so t goes on."""
    optimizer = sgd(averaging)
    run(optimizer, range(13))
    optimizer.restart_averaging()
    before = x_of(optimizer)
    optimizer.param_groups[0]["lr"] = 0.0
    run(optimizer, range(13, 13 + idle))
    assert torch.equal(x_of(optimizer), before)
    optimizer.param_groups[0]["lr"] = 0.1
    visited = run(optimizer, [13 + idle])
    close(x_of(optimizer), visited[0])
    visited += run(optimizer, range(14 + idle, 30))
    if isinstance(averaging, PolynomialAveraging) and averaging.warmup_steps == 0:
        close(x_of(optimizer), weighted(visited, [(idle + t) ** averaging.r for t in range(1, len(visited) + 1)]))


def test_a_restart_forgets_the_largest_learning_rate_but_not_the_warmup() -> None:
    optimizer = sgd(warmup_steps=4)
    run(optimizer, range(8))
    optimizer.restart_averaging()
    visited, weights = [], []
    for step, lr in enumerate((0.02, 0.01, 0.05, 0.03), start=8):
        optimizer.param_groups[0]["lr"] = lr
        visited += run(optimizer, [step])
        assert optimizer.metrics()["effective_lr"] == lr
        weights.append(max([lr, *(w**0.5 for w in weights)]) ** 2)
    close(x_of(optimizer), weighted(visited, weights))


def test_a_restart_is_of_all_groups() -> None:
    first, second = make_params((5,), (6,), dtype=torch.float64)
    optimizer = SGDScheduleFree([{"params": [first]}, {"params": [second], "r": 2.0}], lr=0.1)
    train(optimizer, range(9))
    optimizer.restart_averaging()
    train(optimizer, [9])
    for param in (first, second):
        close(optimizer.iterates(param).x, optimizer.iterates(param).z)


# The freeze.


@optimizers
def test_while_it_is_frozen_x_stays_and_z_and_y_go_on(info: OptimizerInfo) -> None:
    (param,) = make_params((4, 3), dtype=torch.float64)
    optimizer, beta = info.make([param], **info.beta_arguments(0.8)), 0.8
    run(optimizer, range(13))
    x, other = x_of(optimizer), copy.deepcopy(optimizer)
    optimizer.freeze_averaging()
    visited = run(optimizer, range(13, 23))
    assert len({tuple(z.flatten().tolist()) for z in visited}) == 10
    now = optimizer.iterates(param)
    close(now.x, x)
    close(now.y, (1 - beta) * now.z + beta * x)
    assert optimizer.metrics()["c"] == 0.0
    run(other, range(13, 23))
    assert not torch.allclose(x_of(other), x, rtol=1e-3)


@pytest.mark.parametrize("averaging", AVERAGINGS[:2], ids=str)
def test_what_was_visited_while_frozen_has_no_weight(averaging: PolynomialAveraging) -> None:
    optimizer = sgd(averaging)
    visited = run(optimizer, range(10))
    optimizer.freeze_averaging()
    run(optimizer, range(10, 20))
    optimizer.freeze_averaging(False)
    visited += run(optimizer, range(20, 30))
    close(x_of(optimizer), weighted(visited, [t**averaging.r for t in (*range(1, 11), *range(21, 31))]))


def test_a_frozen_exponential_average_goes_on_from_where_it_is() -> None:
    optimizer = sgd(ExponentialAveraging(0.2))
    run(optimizer, range(10))
    optimizer.freeze_averaging()
    run(optimizer, range(10, 20))
    optimizer.freeze_averaging(False)
    x = x_of(optimizer)
    (z,) = run(optimizer, [20])
    close(x_of(optimizer), 0.8 * x + 0.2 * z)


@averagings
def test_a_restart_ends_a_freeze(averaging: Any) -> None:
    optimizer = sgd(averaging)
    run(optimizer, range(10))
    optimizer.freeze_averaging()
    run(optimizer, range(10, 15))
    optimizer.restart_averaging()
    becomes_mean(optimizer, range(15, 25), averaging)


@pytest.mark.covering(2)
@averagings
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("frozen_steps", [0, 3])
def test_a_restart_that_is_frozen_at_once_is_made_when_it_thaws(averaging: Any, times: int, frozen_steps: int) -> None:
    optimizer = sgd(averaging)
    run(optimizer, range(13))
    optimizer.restart_averaging()
    for _ in range(times):
        optimizer.freeze_averaging()
    x = x_of(optimizer)
    run(optimizer, range(13, 13 + frozen_steps))
    close(x_of(optimizer), x)
    optimizer = reloaded(optimizer, sgd(averaging))
    for _ in range(times):
        optimizer.freeze_averaging(False)
    visited = run(optimizer, [13 + frozen_steps])
    close(x_of(optimizer), visited[0])
    if frozen_steps == 0:
        visited += run(optimizer, range(14, 25))
        close(x_of(optimizer), mean(visited, averaging))


@pytest.mark.parametrize("averaging", AVERAGINGS[:5], ids=str)
def test_thawing_what_is_not_frozen_does_nothing(averaging: Any) -> None:
    optimizer, other = sgd(averaging), sgd(averaging)
    for each in (optimizer, other):
        run(each, range(10))
        each.restart_averaging()
    optimizer.freeze_averaging(False)
    for each in (optimizer, other):
        run(each, range(10, 15))
    assert torch.equal(x_of(optimizer), x_of(other))


@averagings
def test_a_freeze_is_saved_and_loaded(averaging: Any) -> None:
    optimizer = sgd(averaging)
    run(optimizer, range(13))
    optimizer.freeze_averaging()
    x = x_of(optimizer)
    resumed = reloaded(optimizer, sgd(averaging))
    run(resumed, range(13, 20))
    close(x_of(resumed), x)
    run(optimizer, range(13, 20))
    for each in (optimizer, resumed):
        each.freeze_averaging(False)
        run(each, range(20, 25))
    assert equal(optimizer.param_groups[0]["params"], resumed.param_groups[0]["params"])
    assert torch.equal(x_of(optimizer), x_of(resumed))


def test_an_unknown_state_of_the_averaging_is_not_loaded() -> None:
    optimizer = sgd()
    run(optimizer, range(3))
    state_dict = optimizer.state_dict()
    state_dict["param_groups"][0]["averaging_state"] = "thawed"
    with pytest.raises(ValueError, match="averaging_state = 'thawed' is not one of"):
        optimizer.load_state_dict(state_dict)


# The cool-down.


@pytest.mark.parametrize("r", [0.0, 1.0, 2.5])
def test_after_the_start_of_a_cooldown_x_is_the_mean_over_it_alone(r: float) -> None:
    optimizer = sgd(PolynomialAveraging(r=r, cooldown_start=12))
    visited = run(optimizer, range(12))
    close(x_of(optimizer), mean(visited, PolynomialAveraging(r=r)))
    visited = []
    for step in range(12, 30):  # longer than what lies before it
        visited += run(optimizer, [step])
        close(x_of(optimizer), mean(visited, PolynomialAveraging(r=r)))


def test_a_cooldown_is_decided_in_mid_run() -> None:
    optimizer = sgd(PolynomialAveraging(r=1))
    run(optimizer, range(12))
    optimizer.param_groups[0]["averaging"] = PolynomialAveraging(r=1, cooldown_start=12)
    becomes_mean(optimizer, range(12, 20), PolynomialAveraging(r=1))


@pytest.mark.parametrize("idle", [11, 12, 13])
def test_a_step_at_lr_0_does_not_lose_a_cooldown(idle: int) -> None:
    optimizer = sgd(PolynomialAveraging(cooldown_start=12))
    visited = []
    for step in range(20):
        optimizer.param_groups[0]["lr"] = 0.0 if step == idle else 0.1
        z = run(optimizer, [step])
        visited += z if step >= 12 and step != idle else []
    close(x_of(optimizer), torch.stack(visited).mean(0))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"cooldown_start": 0}, r"cooldown_start = 0 is no integer >= 1: give the last step before the cool-down"),
        ({"cooldown_start": -3}, r"cooldown_start = -3 is no integer >= 1"),
        ({"cooldown_start": 2.5}, r"cooldown_start = 2\.5 is no integer >= 1"),
        ({"cooldown_start": 5, "warmup_steps": 6}, r"cooldown_start = 5 lies before the end of warmup_steps = 6"),
    ],
)
def test_cooldowns_that_cannot_be(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=f"^{match}"):
        PolynomialAveraging(**arguments)
