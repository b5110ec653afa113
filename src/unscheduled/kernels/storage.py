"""Widens batches whose parameters or buffers are stored narrow, for ``loop``, ``foreach`` and ``compiled``."""

from collections.abc import Generator
from contextlib import contextmanager

from unscheduled.formulas.rule import Rule
from unscheduled.kernels.batch import Batch
from unscheduled.state.buffers import store, wide
from unscheduled.state.quantization import is_narrow, random_rounding
from unscheduled.state.split_weights import is_split, joined, split


@contextmanager
def widened(rule: Rule, batch: Batch, step: int) -> Generator[Batch, None, None]:
    """Yield the batch with float32 copies of its narrow tensors, and store the copies after the ``with`` block.

    Args:
        rule: the rule, which has the names of the buffers.
        batch: tensors of one kind.
        step: the number of the step, on which the random numbers of the rounding depend.
    """
    narrow = is_narrow(batch.gaps[0].dtype)
    if not (narrow or is_split(batch.params[0].dtype)):
        yield batch
        return
    pairs = list(zip(batch.params, batch.states, strict=True))
    y = [joined(param, state["low"]) if "low" in state else param for param, state in pairs]
    names = ("gap", *rule.buffers)
    columns = [[wide(state, name) for state in batch.states] for name in names]
    yield batch._replace(params=y, gaps=columns[0], buffers=columns[1:])
    for values, (param, state) in zip(y, pairs, strict=True):
        if values is not param:
            split(values, param, state["low"])
    for position, (name, column) in enumerate(zip(names, columns, strict=True)):
        for values, state in zip(column, batch.states, strict=True):
            store(state, name, values, random_rounding(state[name], step, position))
