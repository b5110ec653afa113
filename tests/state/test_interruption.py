"""A step that Ctrl-C interrupts is made as a whole or not at all: tensors and numbers are of the same step."""

import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from interrupting import OPTIMIZERS, SHAPES, every_optimizer, go, interrupted
from problems import copies, make_params, same
from torch import Tensor

from unscheduled import (
    AdamWScheduleFree,
    ScheduleFreeOptimizer,
    ScheduleFreeWrapper,
    kernels,
)
from unscheduled.state.interruption import Deferred

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@contextmanager
def handled(number: int, handler: Any) -> Generator[None, None, None]:
    former = signal.signal(number, handler)
    try:
        yield
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, former)


def bits(optimizer: ScheduleFreeOptimizer) -> Any:
    """All that a step changes, but for what is made anew at the next."""
    states = [optimizer.state]
    if isinstance(optimizer, ScheduleFreeWrapper):
        states.append(optimizer.base.state)
    tensors, numbers = list[Tensor](), list[Any]()
    for group in optimizer.param_groups:
        numbers.append({name: value for name, value in group.items() if name != "params"})
        for param in group["params"]:
            tensors.append(param)
            for state in states:
                values = state.get(param, {}).items()
                tensors.extend(value for _, value in values if isinstance(value, Tensor))
                numbers.append({name: value for name, value in values if not isinstance(value, Tensor)})
    return copies(tensors), numbers


def steps_of(optimizer: ScheduleFreeOptimizer) -> int:
    return int(optimizer.param_groups[0]["step"])


@pytest.mark.covering(1)
@every_optimizer
@dtypes
def test_interrupted_at_every_line_the_run_is_that_of_its_steps(
    make: Callable[[Any], ScheduleFreeOptimizer], dtype: torch.dtype
) -> None:
    params, others = (make_params(*SHAPES, dtype=dtype) for _ in range(2))
    optimizer, reference = make(params), make(others)
    for step in range(3):  # what is imported and compiled at first
        go(optimizer, params, step)
        go(reference, others, step)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    line, made, not_made = 1, 0, 0
    stride = 1 if dtype == torch.float32 else 3
    while True:
        before = steps_of(optimizer)
        try:
            with interrupted(line) as left:
                go(optimizer, params, before)
        except KeyboardInterrupt:
            assert steps_of(optimizer) in (before, before + 1)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
        if steps_of(optimizer) > before:
            go(reference, others, before)
            made += 1
        else:
            not_made += 1
        if line % 10 < stride:
            assert same(bits(optimizer), bits(reference))
        if left[0] > 0:
            break  # it was not interrupted any more
        line += stride
    assert made > 10
    assert not_made > 10
    go(optimizer, params, steps_of(optimizer))
    go(reference, others, steps_of(reference))
    assert same(bits(optimizer), bits(reference))


@pytest.mark.parametrize("implementation", ["loop", "foreach", "compiled", "fused"])
def test_interrupted_while_the_kernel_runs_the_numbers_are_those_of_the_tensors(
    implementation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unscheduled.kernels import compiled, loop
    from unscheduled.kernels.numba import threads

    monkeypatch.setattr(compiled, "_graph", lambda *_: loop.update_all)
    params, others = make_params(*SHAPES), make_params(*SHAPES)
    optimizer, reference = (AdamWScheduleFree(each, implementation=implementation) for each in (params, others))
    update, run = kernels.update, threads.run
    calls: list[str] = []

    def interrupted_update(*arguments: Any) -> None:
        update(*arguments)
        calls.append("update")
        signal.raise_signal(signal.SIGINT)

    def interrupted_run(*arguments: Any) -> None:
        run(*arguments)
        calls.append("run")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(kernels, "update", interrupted_update)
    monkeypatch.setattr(threads, "run", interrupted_run)
    for step in range(6):
        with pytest.raises(KeyboardInterrupt):
            go(optimizer, params, step)
        assert steps_of(optimizer) == step + 1
    monkeypatch.undo()
    monkeypatch.setattr(compiled, "_graph", lambda *_: loop.update_all)
    for step in range(6):
        go(reference, others, step)
    assert same(bits(optimizer), bits(reference))
    assert calls[-2:] == (["run", "update"] if implementation == "fused" else ["update", "update"])


@pytest.mark.parametrize("name", ["fused", "foreach", "Muon", "over AdamW"])
def test_interrupted_at_random_moments_the_run_is_that_of_its_steps(name: str) -> None:
    params, others = make_params(*SHAPES), make_params(*SHAPES)
    optimizer, reference = OPTIMIZERS[name](params), OPTIMIZERS[name](others)
    running, stepping, moments = [True], list[bool](), random.Random(1)

    def interrupt() -> None:
        while running:
            time.sleep(moments.uniform(0.001, 0.004))
            os.kill(os.getpid(), signal.SIGINT)

    def handler(*_: Any) -> None:
        if stepping:
            raise KeyboardInterrupt

    interruptions, deadline = 0, time.monotonic() + 20.0
    thread = threading.Thread(target=interrupt)
    with handled(signal.SIGINT, handler):
        thread.start()
        while interruptions < 100 and time.monotonic() < deadline:
            try:
                stepping.append(True)
                while True:
                    go(optimizer, params, steps_of(optimizer))
            except KeyboardInterrupt:  # noqa: PERF203
                stepping.clear()
                interruptions += 1
        running.clear()
        thread.join()
    for step in range(steps_of(optimizer)):
        go(reference, others, step)
    assert interruptions > 10
    assert same(bits(optimizer), bits(reference))


# What defers it.


def test_a_signal_is_handled_at_the_end_of_the_block_and_the_handler_is_there_again() -> None:
    seen: list[str] = []

    def block(*numbers: int) -> None:
        with Deferred():
            for number in numbers:
                signal.raise_signal(number)
            seen.append("block")

    def failing() -> None:
        with Deferred():
            signal.raise_signal(signal.SIGINT)
            print(1 / 0)

    with handled(signal.SIGINT, lambda *_: seen.append("interrupt")), handled(signal.SIGTERM, lambda *_: sys.exit(3)):
        block(signal.SIGINT, signal.SIGINT)
        assert seen == ["block", "interrupt"]
        with pytest.raises(SystemExit):
            block(signal.SIGTERM)
        with pytest.raises(ZeroDivisionError):
            failing()
    assert seen == ["block", "interrupt", "block", "interrupt"]
    with pytest.raises(KeyboardInterrupt) as found:
        failing()
    assert isinstance(found.value.__context__, ZeroDivisionError)


def test_handlers_that_are_not_pythons_or_are_replaced_within_the_block_are_left_alone() -> None:
    with handled(signal.SIGINT, signal.SIG_IGN), Deferred():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.raise_signal(signal.SIGINT)
    former, other = signal.getsignal(signal.SIGINT), lambda *_: None
    try:
        with Deferred():
            signal.signal(signal.SIGINT, other)
        assert signal.getsignal(signal.SIGINT) is other
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_second_signal_is_not_deferred_where_the_block_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unscheduled.state.interruption.PATIENCE", 0.0)
    passed: list[str] = []

    def block() -> None:
        with Deferred():
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.001)
            passed.append("first")
            signal.raise_signal(signal.SIGINT)
            passed.append("second")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert passed == ["first"]


def test_in_another_thread_nothing_is_deferred() -> None:
    params = make_params(*SHAPES)
    optimizer = AdamWScheduleFree(params)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            former = signal.getsignal(signal.SIGINT)
            with Deferred():
                assert signal.getsignal(signal.SIGINT) is former
            for step in range(4):
                go(optimizer, params, step)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors
    assert steps_of(optimizer) == 4


def test_a_step_that_is_refused_or_fails_restores_the_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    params = make_params(*SHAPES)
    optimizer = AdamWScheduleFree(params, implementation="loop")
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "update", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(optimizer, params, 0)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        go(optimizer, params, 0)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    gc.collect()
