"""Gradients that were taken at x are not stepped with; those of y are, whatever happens to them in between."""

import copy
from typing import Any

import pytest
import torch
from models import ADAMW, backward, fit, trained
from problems import copies, equal, through_a_file


@pytest.mark.parametrize("attach", [True, False])
def test_gradients_taken_at_the_average_are_not_stepped_with(attach: bool) -> None:
    model, optimizer = trained(ADAMW, attach=attach)
    switch = model if attach else optimizer
    optimizer.zero_grad()
    switch.eval()
    backward(model, 3)
    switch.train()
    before = copies(model.parameters())
    with pytest.raises(
        RuntimeError, match=r"the gradient of parameter \d of group 0 .* was taken in eval mode.* call zero_grad"
    ):
        optimizer.step()
    assert equal(model.parameters(), before)
    fit(model, optimizer, range(2))


@pytest.mark.parametrize("attach", [True, False])
def test_gradients_that_a_copy_takes_at_the_average_are_not_stepped_with(attach: bool) -> None:
    """It was copied in eval mode, with the model."""
    model, optimizer = trained(ADAMW, attach=attach)
    (model if attach else optimizer).eval()
    net, copied = copy.deepcopy((model, optimizer))
    if attach:
        copied.attach(net)
    backward(net, 3)
    (net if attach else copied).train()
    with pytest.raises(RuntimeError, match="taken in eval mode"):
        copied.step()
    (model if attach else optimizer).train()
    assert equal(net.parameters(), model.parameters())
    fit(net, copied, range(2))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_at_y_survive_an_evaluation_between_micro_batches(set_to_none: bool) -> None:
    model, optimizer = trained(ADAMW)
    reference, plain = trained(ADAMW, attach=False)
    for net, each in ((model, optimizer), (reference, plain)):
        each.zero_grad(set_to_none=set_to_none)
        backward(net, 1)
        if net is model:
            model.eval()
            model(torch.randn(2, 4))
            model.train()
        backward(net, 2)
        each.step()
    assert equal(model.parameters(), reference.parameters())


@pytest.mark.covering(2)
@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("in_eval_mode", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
        lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9),
        lambda model: backward(model, 4),
        lambda model: [param.grad.div_(2.0) for param in model.parameters() if param.grad is not None],
        lambda model: model.eval().train(),
    ],
    ids=["clipped", "not clipped", "accumulated", "divided", "switched"],
)
def test_gradients_taken_at_the_average_are_known_whatever_is_done_to_them(
    attach: bool, in_eval_mode: bool, change: Any
) -> None:
    model, optimizer = trained(ADAMW, attach=attach)
    switch = model if attach else optimizer
    optimizer.zero_grad()
    switch.eval()
    backward(model, 3)
    if in_eval_mode:
        change(model)
        switch.eval()
    switch.train()
    if not in_eval_mode:
        change(model)
    with pytest.raises(RuntimeError, match=r"was taken in eval mode.* call zero_grad"):
        optimizer.step()
    fit(model, optimizer, range(2))


def test_gradients_taken_at_the_average_are_known_of_weights_that_were_frozen_before() -> None:
    model, optimizer = trained(ADAMW)
    model.requires_grad_(False)
    model.eval()
    model.requires_grad_(True)
    backward(model, 3)  # on top of those of the last step
    model.train()
    with pytest.raises(RuntimeError, match="was taken in eval mode"):
        optimizer.step()


def test_scaled_gradients_taken_at_the_average_are_known() -> None:
    model, optimizer = trained(ADAMW)
    scaler = torch.amp.GradScaler("cpu")
    optimizer.zero_grad()
    model.eval()
    scaler.scale(model(torch.ones(2, 4)).square().mean()).backward()
    model.train()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="was taken in eval mode"):
        scaler.step(optimizer)


def test_gradients_at_y_that_are_clipped_in_eval_mode_are_stepped_with() -> None:
    (model, optimizer), (reference, plain) = trained(ADAMW), trained(ADAMW, attach=False)
    for net, each in ((model, optimizer), (reference, plain)):
        each.zero_grad()
        backward(net, 1)
        if net is model:
            net.eval()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-2)
        net.train()
        each.step()
    assert equal(model.parameters(), reference.parameters())
    assert not any(param._post_accumulate_grad_hooks or param._backward_hooks for param in model.parameters())


def test_gradients_that_wait_while_a_state_is_loaded_are_no_error() -> None:
    model, optimizer = trained(ADAMW)
    backward(model, 1)
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    optimizer.step()


def test_gradients_at_the_average_that_were_zeroed_are_forgotten() -> None:
    model, optimizer = trained(ADAMW)
    model.eval()
    backward(model, 3)
    model.train()
    model.zero_grad(set_to_none=False)
    backward(model, 4)
    optimizer.step()
