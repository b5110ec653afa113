"""Trajectories equal to those of the authors' ``schedulefree`` package, over its whole option space.

Left out are the cases in which it is known to be wrong, each a test of its own in test_peers_bugs.py; and RAdam with
``weight_lr_power=0`` in its silent phase, where it gives weight to steps that do not move (0 to the power 0).
"""

from typing import Any

import pytest
import schedulefree
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import make_params, set_gradients

import unscheduled

SHARED = {
    "lr": st.sampled_from([1e-3, 0.05, 1.0]),
    "weight_decay": st.sampled_from([0, 0.1]),
    "r": st.sampled_from([-0.5, 0.0, 0.75, 3.0]),
    "weight_lr_power": st.sampled_from([0.0, 1.0, 2.0]),
    "foreach": st.booleans(),
}
BETAS = st.tuples(st.sampled_from([0.1, 0.5, 0.9, 0.98, 1.0]), st.sampled_from([0.0, 0.7, 0.95, 0.999]))
WARMUP = st.sampled_from([0, 1, 7, 100])
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "SGDScheduleFree": st.fixed_dictionaries(
        SHARED | {"momentum": st.sampled_from([0.1, 0.5, 0.9, 0.98]), "warmup_steps": WARMUP}
    ),
    "AdamWScheduleFree": st.fixed_dictionaries(
        SHARED | {"betas": BETAS, "eps": st.sampled_from([1e-8, 1e-3]), "warmup_steps": WARMUP}
    ),
    "RAdamScheduleFree": st.fixed_dictionaries(
        SHARED | {"betas": BETAS, "eps": st.sampled_from([1e-8, 1e-3]), "silent_sgd_phase": st.booleans()}
    ).filter(
        lambda options: (
            not options["silent_sgd_phase"] or (options["betas"][1] > 0.6 and options["weight_lr_power"] > 0)
        )
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), group_lr=st.sampled_from([1e-3, 0.02]))
def test_trajectories_are_those_of_schedulefree(name: str, data: st.DataObject, group_lr: float) -> None:
    options = data.draw(OPTIONS[name])
    ours, theirs = make_params(dtype=torch.float64), make_params(dtype=torch.float64)
    optimizer = getattr(unscheduled, name)([{"params": ours[:1]}, {"params": ours[1:], "lr": group_lr}], **options)
    reference = getattr(schedulefree, name)([{"params": theirs[:1]}, {"params": theirs[1:], "lr": group_lr}], **options)
    reference.train()
    for step in range(25):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(optimizer.iterates(our).z, reference.state[their]["z"], rtol=1e-9, atol=1e-11)
    optimizer.eval()
    reference.eval()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("options", [{}, {"r": 1.0}])
def test_learning_rate_schedules_are_those_of_schedulefree(name: str, options: dict[str, Any]) -> None:
    """An external warmup from 0, a plateau and a decay."""
    ours, theirs = make_params(dtype=torch.float64), make_params(dtype=torch.float64)
    optimizer = getattr(unscheduled, name)(ours, lr=0.01, **options)
    reference = getattr(schedulefree, name)(theirs, lr=0.01, **options)
    reference.train()
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: min(step / 5, 1.0, (30 - step) / 10))
        for each in (optimizer, reference)
    ]
    for step in range(29):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        reference.step()
        for schedule in schedules:
            schedule.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("base", "arguments"),
    [
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.Adagrad, {"lr": 0.05}),
    ],
)
@pytest.mark.parametrize("options", [{}, {"weight_decay_at_y": 0.1, "momentum": 0.8, "r": 0.5, "weight_lr_power": 1}])
def test_the_wrapper_is_that_of_schedulefree(base: Any, arguments: dict[str, Any], options: dict[str, Any]) -> None:
    """Over those of torch with which the package's works at all, and without a decay of their own besides."""
    ours, theirs = make_params(dtype=torch.float64), make_params(dtype=torch.float64)
    optimizer = unscheduled.ScheduleFreeWrapper(base(ours, **arguments), **options)
    reference = schedulefree.ScheduleFreeWrapper(base(theirs, **arguments), **options)
    reference.train()
    for step in range(25):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    optimizer.eval()
    reference.eval()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
