"""A rule is refused where its direction does not have the buffers and scalars that it is given."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from problems import equal, make_params, train
from registry import OptimizerInfo, built_in

from unscheduled import AdamWScheduleFree
from unscheduled.algorithms.adamw import ADAM, ADAM_WITH_MOMENTUM
from unscheduled.formulas.rule import Rule


def direction(grad: Any, exp_avg: Any, exp_avg_sq: Any, beta2: float, eps: float) -> Any:
    return grad, exp_avg, exp_avg_sq


def foreach(grads: Any, exp_avgs: Any, exp_avg_sqs: Any, eps: float, beta2: float) -> Any:
    return grads


WRITTEN = "direction(grad, exp_avg, exp_avg_sq, beta2, eps)"


def test_the_scalars_are_the_arguments_after_the_buffers() -> None:
    assert Rule(direction, ("exp_avg", "exp_avg_sq"), foreach, ("int16", "uint8")).scalars == ("beta2", "eps")


@pytest.mark.parametrize(
    ("buffers", "found"),
    [
        (("exp_avg_sq", "exp_avg"), "('exp_avg', 'exp_avg_sq')"),
        (("exp_avg", "exp_avg_squares"), "('exp_avg', 'exp_avg_sq')"),
        (("exp_avg_sq",), "('exp_avg',)"),
        (("exp_avg", "exp_avg_sq", "beta2", "eps", "more"), "('exp_avg', 'exp_avg_sq', 'beta2', 'eps')"),
    ],
)
def test_buffers_in_another_order_or_of_other_names(buffers: tuple[str, ...], found: str) -> None:
    message = f"buffers = {buffers} are not what {WRITTEN} has after the gradient: {found}: give the arguments of the"
    with pytest.raises(ValueError, match=re.escape(message)):
        Rule(direction, buffers)


def test_a_direction_without_a_gradient() -> None:
    with pytest.raises(ValueError, match=r"buffers = \(\) are not what <lambda>\(\) has after the gradient"):
        Rule(lambda: ())


@pytest.mark.parametrize(
    ("wrong", "argument"),
    [
        (lambda grad, *buffers: (grad,), "*buffers"),
        (lambda grad, **scalars: (grad,), "**scalars"),
        (lambda grad, *, eps: (grad,), "eps"),
        (lambda grad, eps=1e-8: (grad,), "eps=1e-08"),
        (lambda grad, eps, /: (grad,), "grad"),
    ],
)
def test_arguments_that_the_kernels_do_not_give(wrong: Any, argument: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"the argument {argument!r} of <lambda>(grad")):
        Rule(wrong)


def test_foreach_and_codes_that_do_not_fit() -> None:
    def other(grad: Any, exp_avg: Any, exp_avg_sq: Any, beta2: float) -> Any:
        return grad, exp_avg, exp_avg_sq

    message = (
        "foreach = foreach(grads, exp_avgs, exp_avg_sqs, eps, beta2) has other scalars than "
        "other(grad, exp_avg, exp_avg_sq, beta2): use beta2"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Rule(other, ("exp_avg", "exp_avg_sq"), foreach)
    with pytest.raises(
        ValueError, match=r"compact = \('int16',\) is not one entry for each of the buffers \('exp_avg',"
    ):
        Rule(direction, ("exp_avg", "exp_avg_sq"), compact=("int16",))


def test_what_is_replaced_is_checked_too() -> None:
    with pytest.raises(ValueError, match="are not what direction_with_momentum"):
        dataclasses.replace(ADAM_WITH_MOMENTUM, buffers=("exp_avg_sq", "exp_avg"))
    assert dataclasses.replace(ADAM, degree=2).scalars == ADAM.scalars


# The scalars of a step.


class Reversed(AdamWScheduleFree):
    """AdamW, whose scalars are in another order than the arguments of its direction."""

    def _rule_scalars(self, group: Any, rule: Rule, step: int) -> dict[str, float]:
        return dict(reversed(super()._rule_scalars(group, rule, step).items()))


class Misspelt(AdamWScheduleFree):
    def _rule_scalars(self, group: Any, rule: Rule, step: int) -> dict[str, float]:
        scalars = super()._rule_scalars(group, rule, step)
        scalars["epsilon"] = scalars.pop("eps")
        return scalars


@pytest.mark.parametrize("implementation", ["loop", "foreach", "fused"])
@pytest.mark.parametrize("inner_momentum", [0.0, 0.9])
def test_the_order_of_the_scalars_does_not_matter(implementation: Any, inner_momentum: float) -> None:
    params, others = make_params(), make_params()
    arguments: dict[str, Any] = {"lr": 0.1, "eps": 0.5, "inner_momentum": inner_momentum}
    train(Reversed(params, implementation=implementation, **arguments), range(5))
    train(AdamWScheduleFree(others, implementation=implementation, **arguments), range(5))
    assert equal(params, others)


def test_a_scalar_of_another_name_is_refused_when_the_optimizer_is_made() -> None:
    message = (
        "the scalars of adam_direction(grad, exp_avg_sq, beta2, one_minus_beta2, inverse_bias_correction2, eps) are "
        "('beta2', 'one_minus_beta2', 'inverse_bias_correction2', 'eps'), but 'eps' is missing, 'epsilon' is unknown: "
        "give the arguments of the direction and the scalars the same names"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        Misspelt(make_params())


@built_in
def test_the_scalars_of_every_optimizer_are_those_of_its_rules(info: OptimizerInfo) -> None:
    for configuration in info.configurations():
        optimizer = info.make(
            [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3))], **configuration.arguments
        )
        (group,) = optimizer.param_groups
        for param in group["params"]:
            rule = optimizer._rule(group, param)  # pyright: ignore[reportPrivateUsage]
            assert len(rule.ordered(optimizer._rule_scalars(group, rule, 3))) == len(rule.scalars)  # pyright: ignore[reportPrivateUsage]
