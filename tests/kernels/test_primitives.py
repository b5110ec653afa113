"""Each primitive means the same in every lowering, bit for bit: that of the loop, which is what its text says."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from unscheduled import ScheduleFreeOptimizer
from unscheduled.formulas.iterates import Coefficients
from unscheduled.formulas.primitives import clip, maximum, minimum, sign, sqrt, where
from unscheduled.formulas.rule import Rule
from unscheduled.kernels import Batch, Scalars, compiled, foreach, loop
from unscheduled.kernels.batch import Kept
from unscheduled.kernels.foreach import on_lists
from unscheduled.kernels.numba import fused

NAN, INF = math.nan, math.inf
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-30, INF, -INF, NAN, 1e-45, -1e-45, 1.1754e-38, 3.4e38, -3.4e38)
"""1e-45 and 1.1754e-38 are no normal numbers of float32."""

# Each direction puts what a primitive gives into a buffer, where nothing is done to it.


def rooted(grad: Any, some: Any, other: Any, scalar: Any) -> Any:
    return grad, sqrt(some), other


def signed(grad: Any, some: Any, other: Any, scalar: Any) -> Any:
    return grad, sign(some), other


def smaller(grad: Any, some: Any, other: Any, scalar: Any) -> Any:
    return grad, minimum(some, other), other


def larger(grad: Any, some: Any, other: Any, scalar: Any) -> Any:
    return grad, maximum(some, other), other


def smaller_number(grad: Any, some: Any, other: Any, scalar: Any) -> Any:
    return grad, minimum(some, scalar), minimum(scalar, other)


def larger_number(grad: Any, some: Any, other: Any, scalar: Any) -> Any:
    return grad, maximum(some, scalar), maximum(scalar, other)


def clipped(grad: Any, some: Any, other: Any, scalar: Any) -> Any:
    return grad, clip(some, -scalar, scalar), clip(grad, some, other)


def chosen(grad: Any, some: Any, other: Any, scalar: Any) -> Any:
    return grad, where(some < other, some, other), where(some == other, scalar, where(some != grad, other, scalar))


def chosen_by_number(grad: Any, some: Any, other: Any, scalar: Any) -> Any:
    return grad, where(scalar > 0.0, some, other), where(some >= scalar, where(other <= scalar, some, other), other)


DIRECTIONS = (
    *(rooted, signed, smaller, larger, smaller_number, larger_number),
    *(clipped, chosen, chosen_by_number),
)
directions = pytest.mark.parametrize("direction", DIRECTIONS, ids=lambda direction: direction.__name__)


def rule_of(direction: Callable[..., Any]) -> Rule:
    return Rule(direction, ("some", "other"), on_lists(direction))


def batch_of(stored: torch.dtype, gradients: torch.dtype) -> Batch:
    """Every pair of special numbers, several times over, so that wide registers and what is left meet all of them."""
    pairs = list(itertools.product(SPECIAL, SPECIAL)) * 3
    some, other = (torch.tensor(column, dtype=stored) for column in zip(*pairs, strict=True))
    grad = torch.tensor([SPECIAL[number * 7 % len(SPECIAL)] for number in range(len(pairs))]).to(gradients)
    params, states = [torch.zeros(len(pairs), dtype=gradients)], {}
    if gradients == torch.bfloat16 and stored == torch.float32:
        states["low"] = torch.zeros(len(pairs), dtype=torch.int16)
    gaps = [torch.zeros(len(pairs), dtype=stored)]
    return Batch(params, [grad], gaps, [[some], [other]], [states], contiguous=True, kept=Kept())


def scalars_of(number: float) -> Scalars:
    still = Coefficients(0.0, 0.0, 0.0, 0.0)
    return Scalars(1, 0.0, 0.0, 0.0, still, maximize=False, direction={"scalar": number})


def by_fused(rule: Rule, batch: Batch, scalars: Scalars) -> None:
    assert fused.update(rule, [(batch, scalars)]) == []


def assert_same_bits(some: Tensor, other: Tensor) -> None:
    """But for the bits of NaN, of which there are many."""
    integer = {4: torch.int32, 8: torch.int64}[some.element_size()]
    assert torch.equal(some.isnan(), other.isnan())
    whole = ~some.isnan()
    assert torch.equal(some[whole].view(integer), other[whole].view(integer))


def compare(
    update: Callable[[Rule, Batch, Scalars], None], direction: Any, stored: torch.dtype, gradients: torch.dtype
) -> None:
    rule = rule_of(direction)
    for number in (0.5, 0.0, -0.0, 1e-45, INF, NAN):
        ours, reference = batch_of(stored, gradients), batch_of(stored, gradients)
        update(rule, ours, scalars_of(number))
        loop.update(rule, reference, scalars_of(number))
        for (some,), (other,) in zip(ours.buffers, reference.buffers, strict=True):
            assert_same_bits(some, other)


dtypes = pytest.mark.parametrize(
    ("stored", "gradients"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float64, torch.float64)],
)


@pytest.mark.covering(2)
@dtypes
@directions
def test_on_lists(direction: Any, stored: torch.dtype, gradients: torch.dtype) -> None:
    compare(foreach.update, direction, stored, gradients)


@pytest.mark.parametrize("gradients", [torch.float32, torch.bfloat16])
@directions
def test_fused(direction: Any, gradients: torch.dtype) -> None:
    compare(by_fused, direction, torch.float32, gradients)


@pytest.mark.covering(1)
@dtypes
@directions
def test_compiled(
    direction: Any,
    stored: torch.dtype,
    gradients: torch.dtype,
    graphs: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compare(compiled.update, direction, stored, gradients)
    assert graphs["unique_graphs"] <= 2  # torch makes one of its own for a number that is NaN


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler has some of its own
@dtypes
@directions
def test_with_the_compiler_of_torch(
    direction: Any, stored: torch.dtype, gradients: torch.dtype, graphs: dict[str, int]
) -> None:
    compare(compiled.update, direction, stored, gradients)
    assert graphs["unique_graphs"] <= 2  # torch makes one of its own for a number that is NaN


def test_the_loop_says_what_the_text_says() -> None:
    """On tensors as on floats."""
    for some, other in itertools.product(SPECIAL, SPECIAL):
        left, right = (torch.tensor([number], dtype=torch.float64) for number in (some, other))
        for primitive in (minimum, maximum):
            expected = torch.tensor([primitive(some, other)], dtype=torch.float64)
            assert_same_bits(primitive(left, right), expected)
            assert_same_bits(primitive(left, other), expected)
            assert_same_bits(primitive(some, right), expected)
        assert_same_bits(clip(left, other, 1.0), torch.tensor([clip(some, other, 1.0)], dtype=torch.float64))
    found = [math.isnan(minimum(NAN, 1.0)), math.isnan(maximum(1.0, NAN)), math.isnan(sign(INF)), math.isnan(sign(NAN))]
    assert found == [True] * 4
    assert [minimum(2.0, 1.0), maximum(2.0, 1.0), sign(-3.0), sqrt(9.0)] == [1.0, 2.0, -1.0, 3.0]
    assert [clip(number, -1.0, 1.0) for number in (-INF, -0.5, 0.5, INF)] == [-1.0, -0.5, 0.5, 1.0]
    assert str(minimum(-0.0, 0.0)) == "-0.0"  # the first of two that are equal


# Arithmetic on lists.


def test_all_operators_are_those_of_tensors() -> None:
    def of_all(grad: Any, some: Any, other: Any, scalar: Any) -> Any:
        sums = scalar + some - (scalar - other) * scalar - -grad
        return grad, sums / other + scalar * (scalar / some), sums / scalar

    for stored in (torch.float32, torch.float64):
        compare(foreach.update, of_all, stored, stored)


@pytest.mark.parametrize(
    "direction",
    [
        lambda grad, some, other, scalar: (some, some, other),
        lambda grad, some, other, scalar: (grad, grad, other),
        lambda grad, some, other, scalar: (some * other, other, some),
        lambda grad, some, other, scalar: (other, grad, some + grad),
    ],
)
def test_a_direction_may_give_what_it_was_given(direction: Any) -> None:
    """The step is then made of other memory than what it is stored in."""
    ours, reference = batch_of(torch.float64, torch.float64), batch_of(torch.float64, torch.float64)
    step = Scalars(1, 0.5, 0.25, 0.5, Coefficients(0.5, 0.25, 0.5, 0.25), maximize=False, direction={"scalar": 1.0})
    for update, batch in ((foreach.update, ours), (loop.update, reference)):
        batch.grads[0].nan_to_num_(posinf=2.0, neginf=-2.0)
        update(rule_of(direction), batch, step)
    for some, other in zip(
        [ours.grads, ours.gaps, *ours.buffers], [reference.grads, reference.gaps, *reference.buffers], strict=True
    ):
        torch.testing.assert_close(some, other, equal_nan=True)


def branching(grad: Any, kept: Any) -> Any:
    return max(grad, kept), kept


def test_a_direction_that_branches_on_an_element_is_refused_on_lists() -> None:
    with pytest.raises(TypeError, match="a direction branches on an element, as if, min and max do: use where"):
        on_lists(branching)([torch.ones(2)], [torch.ones(2)])


def shifting(grad: Any, newest: Any, before: Any) -> Any:
    return before + newest, grad, newest


@pytest.mark.parametrize("implementation", ["loop", "foreach", "fused"])
def test_a_buffer_may_move_on_into_another(implementation: str) -> None:
    """The second buffer is the gradient of two steps ago."""
    rule = Rule(shifting, ("newest", "before"), on_lists(shifting))

    class Shifting(ScheduleFreeOptimizer):
        def _rule(self, group: Any, param: Any = None) -> Rule:
            return rule

        def _rule_scalars(self, group: Any, rule: Rule, step: Any) -> dict[str, float]:
            return {}

        def _beta(self, group: Any) -> float:
            return 0.0

        def _check_rule(self, group: Any) -> None:
            pass

    param = Parameter(torch.zeros(3))
    optimizer = Shifting([param], lr=1.0, weight_decay=0.0, warmup_steps=0, implementation=implementation)
    for value in (1.0, 2.0, 4.0):
        param.grad = torch.full((3,), value)
        optimizer.step()
    state = optimizer.state[param]
    assert (state["newest"].tolist(), state["before"].tolist()) == ([4.0] * 3, [2.0] * 3)
    assert optimizer.iterates(param).z.tolist() == [-4.0] * 3  # 0, then 1, then 2 + 1
