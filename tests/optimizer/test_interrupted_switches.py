"""A switch between y and x that Ctrl-C interrupts is made as a whole or not at all."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from interrupting import SHAPES, every_optimizer, go, interrupted
from problems import copies, equal, make_params

from unscheduled import ScheduleFreeOptimizer


@every_optimizer
def test_a_switch_that_is_interrupted_at_every_line_loses_nothing(make: Callable[[Any], ScheduleFreeOptimizer]) -> None:
    params = make_params(*SHAPES)
    optimizer = make(params)
    for step in range(4):
        go(optimizer, params, step)
    y = copies(params)
    x = copies(optimizer.eval().param_groups[0]["params"])
    for training in (True, False):
        line, left = 1, [0]
        while left[0] <= 0:
            optimizer.train(not training)
            with suppress(KeyboardInterrupt), interrupted(line) as left:
                optimizer.train(training)
            assert equal(params, y if optimizer.training else x)
            assert equal(optimizer.train(not training).param_groups[0]["params"], x if training else y)
            line += 3
