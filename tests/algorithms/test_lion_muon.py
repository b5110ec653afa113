"""Lion and Muon: what they are without averaging, and what they make of unusual tensors."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from features import needs_torch_muon
from lion_pytorch import Lion
from problems import copies, equal, make_params, set_gradients, train
from registry import implementations
from torch import Tensor
from torch.nn import Parameter

from unscheduled import (
    AdamWScheduleFree,
    GrowingInterpolation,
    LionScheduleFree,
    MuonScheduleFree,
    NoAveraging,
    PolynomialAveraging,
    ScheduleFreeOptimizer,
)
from unscheduled.algorithms.muon import orthogonalized

MATRICES = ((6, 4), (3, 8), (5, 5), (1, 7))


def close(a: Tensor, b: Tensor, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


def step_both(
    ours: ScheduleFreeOptimizer, theirs: torch.optim.Optimizer, params: list[Parameter], others: list[Parameter]
) -> None:
    for step in range(40):
        set_gradients(params, step)
        set_gradients(others, step)
        ours.step()
        theirs.step()


# Lion.


@implementations
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.8)])
def test_lion_without_averaging_is_lion(implementation: Any, weight_decay: float, betas: tuple[float, float]) -> None:
    params, others = make_params(dtype=torch.float64), make_params(dtype=torch.float64)
    ours = LionScheduleFree(
        params,
        lr=0.01,
        betas=(0.7, betas[1]),
        inner_momentum=betas[0],
        weight_decay=weight_decay,
        averaging=NoAveraging(),
        implementation=implementation,
    )
    step_both(ours, Lion(others, lr=0.01, betas=betas, weight_decay=weight_decay), params, others)
    for param, other in zip(params, others, strict=True):
        close(param.detach(), other.detach(), rtol=1e-12)
        close(ours.iterates(param).x, other.detach(), rtol=1e-12)


@implementations
@pytest.mark.parametrize("maximize", [False, True])
def test_z_goes_by_the_sign_of_the_look_ahead(implementation: Any, maximize: bool) -> None:
    (param,) = make_params((6,), dtype=torch.float64)
    optimizer = LionScheduleFree([param], lr=0.01, inner_momentum=0.9, maximize=maximize, implementation=implementation)
    z, m = param.detach().clone(), torch.zeros(6, dtype=torch.float64)
    for step in range(40):
        set_gradients([param], step)
        assert param.grad is not None
        g = -param.grad if maximize else param.grad.clone()
        optimizer.step()
        z = z - 0.01 * (0.9 * m + 0.1 * g).sign()
        m = 0.99 * m + 0.01 * g
        close(optimizer.iterates(param).z, z)
        close(optimizer.state[param]["exp_avg"], m)


@implementations
def test_the_sign_variant_keeps_no_buffer(implementation: Any) -> None:
    (param,) = make_params((6,), dtype=torch.float64)
    optimizer = LionScheduleFree([param], lr=0.01, inner_momentum=0.0, implementation=implementation)
    z = param.detach().clone()
    for step in range(20):
        train(optimizer, [step])
        assert param.grad is not None
        z = z - 0.01 * param.grad.sign()
    close(optimizer.iterates(param).z, z)
    assert set(optimizer.state[param]) == {"step", "gap"}


@pytest.mark.covering(2)
@implementations
@pytest.mark.parametrize("inner_momentum", [0.0, 0.9])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_lion_hides_no_gradient_that_is_not_finite(implementation: Any, inner_momentum: float, value: float) -> None:
    """A sign would: sign(inf) = 1."""
    (param,) = make_params((6,))
    optimizer = LionScheduleFree([param], inner_momentum=inner_momentum, implementation=implementation)
    train(optimizer, range(3))
    set_gradients([param], 3)
    assert param.grad is not None
    param.grad[2] = value
    optimizer.step()
    assert param.isnan().tolist() == [False, False, True, False, False, False]
    assert optimizer.iterates(param).x.isnan().tolist() == param.isnan().tolist()


@implementations
@pytest.mark.parametrize("inner_momentum", [0.0, 0.9])
def test_without_a_gradient_lion_stands_still(implementation: Any, inner_momentum: float) -> None:
    (param,) = make_params((6,))
    start = copies([param])
    optimizer = LionScheduleFree([param], lr=0.1, inner_momentum=inner_momentum, implementation=implementation)
    for _ in range(3):
        param.grad = torch.zeros(6)
        optimizer.step()
    assert equal([param], start)


# Muon.


@needs_torch_muon
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("momentum", [0.95, 0.5])
def test_muon_without_averaging_is_muon(monkeypatch: pytest.MonkeyPatch, weight_decay: float, momentum: float) -> None:
    """The iterations of torch's run in bfloat16: here in float64, to be the same to the last digits."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.to(torch.float64, copy=True))
    params, others = make_params(*MATRICES, dtype=torch.float64), make_params(*MATRICES, dtype=torch.float64)
    ours, theirs = muons(params, others, weight_decay, momentum, beta=0.7)
    step_both(ours, theirs, params, others)
    for param, other in zip(params, others, strict=True):
        close(param.detach(), other.detach(), rtol=1e-6)  # eps is added to the norm here, and its minimum there
        close(ours.iterates(param).x, other.detach(), rtol=1e-6)


@needs_torch_muon
@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
def test_muon_without_averaging_is_muon_to_the_precision_of_its_iterations(beta: float) -> None:
    params, others = make_params(*MATRICES), make_params(*MATRICES)
    starts = copies(params)
    ours, theirs = muons(params, others, weight_decay=0.1, momentum=0.95, beta=beta)
    step_both(ours, theirs, params, others)
    for param, other, start in zip(params, others, starts, strict=True):
        assert (param - other).norm() < 0.02 * (other - start).norm()


def muons(
    params: list[Parameter], others: list[Parameter], weight_decay: float, momentum: float, beta: float
) -> tuple[MuonScheduleFree, torch.optim.Optimizer]:
    ours = MuonScheduleFree(
        params,
        lr=0.01,
        betas=(beta, 0.999),
        inner_momentum=momentum,
        weight_decay=weight_decay,
        averaging=NoAveraging(),
    )
    theirs = torch.optim.Muon(
        others,
        lr=0.01,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=True,
        adjust_lr_fn="match_rms_adamw",
        eps=1e-8,
    )
    return ours, theirs


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (32, 8), (1, 9), (9, 1)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_singular_values_of_an_orthogonalized_matrix_are_near_1(shape: tuple[int, int], scale: float) -> None:
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.linspace(1.0, 3.0, min(shape), dtype=torch.float64)
    matrix = scale * (u * values) @ v
    found = orthogonalized(matrix, ns_steps=5, eps=1e-8)
    assert found.shape == shape
    singular = torch.linalg.svdvals(found)
    assert 0.65 <= singular.min() <= singular.max() <= 1.25
    inner = u.T @ found @ v.T  # diagonal: the singular vectors are the same
    close(inner, torch.diag(inner.diagonal()))


def test_tall_and_wide_are_the_same() -> None:
    matrix = torch.randn(7, 3, dtype=torch.float64)
    close(orthogonalized(matrix, 5, 1e-8).T, orthogonalized(matrix.T, 5, 1e-8))


@pytest.mark.parametrize("shape", [(6, 3, 2, 2), (4, 2, 3), (2, 3, 3, 3, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_convolution_is_the_matrix_of_its_first_dimension_by_all_others(
    shape: tuple[int, ...], channels_last: bool
) -> None:
    if channels_last and len(shape) != 4:
        shape = (6, 3, 2, 2)
    (weight,) = make_params(shape, dtype=torch.float64)
    matrix = Parameter(weight.detach().flatten(1).clone())
    if channels_last:
        weight.data = weight.data.to(memory_format=torch.channels_last)
    ours, other = (MuonScheduleFree([param], lr=0.01, weight_decay=0.1) for param in (weight, matrix))
    for step in range(10):
        set_gradients([weight, matrix], step)
        assert weight.grad is not None
        matrix.grad = weight.grad.flatten(1).clone()
        if channels_last:
            weight.grad = weight.grad.to(memory_format=torch.channels_last)
        ours.step()
        other.step()
    close(weight.detach().flatten(1), matrix.detach())
    close(ours.iterates(weight).x.flatten(1), other.iterates(matrix).x)
    assert ours.state[weight]["momentum_buffer"].shape == shape


@implementations
@pytest.mark.parametrize("use_muon", [None, False])
def test_what_is_no_matrix_is_trained_as_by_adamw_with_decay_at_z(implementation: Any, use_muon: bool | None) -> None:
    shapes = ((7,), ()) if use_muon is None else ((7,), (4, 3))
    params, others = make_params(*shapes), make_params(*shapes)
    arguments: dict[str, Any] = {
        "lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1, "warmup_steps": 5, "r": 1.0,
    }  # fmt: skip
    ours = MuonScheduleFree(params, use_muon=use_muon, implementation=implementation, **arguments)
    step_both(ours, AdamWScheduleFree(others, decay_at="z", implementation=implementation, **arguments), params, others)
    assert equal(params, others)
    assert all("exp_avg_sq" in ours.state[param] for param in params)


def test_vectors_beside_matrices_are_trained_as_alone() -> None:
    matrix, vector = make_params()
    (alone,) = (Parameter(vector.detach().clone()),)
    train(MuonScheduleFree([matrix, vector], lr=0.01), range(10))
    train(AdamWScheduleFree([alone], lr=0.01, decay_at="z"), range(10))
    assert torch.equal(vector, alone)


def test_groups_choose() -> None:
    embedding, hidden, bias = make_params((10, 4), (4, 3), (3,))
    groups = [{"params": [embedding], "use_muon": False}, {"params": [hidden], "use_muon": True}, {"params": [bias]}]
    optimizer = MuonScheduleFree(groups, lr=0.01)
    train(optimizer, range(5))
    kept = [set(optimizer.state[param]) - {"step", "gap"} for param in (embedding, hidden, bias)]
    assert kept == [{"exp_avg_sq"}, {"momentum_buffer"}, {"exp_avg_sq"}]
    other, hidden_alone = make_params((10, 4), (4, 3))
    train(AdamWScheduleFree([other], lr=0.01, decay_at="z"), range(5))
    train(MuonScheduleFree([hidden_alone], lr=0.01), range(5))
    assert equal([embedding, hidden], [other, hidden_alone])


@pytest.mark.parametrize(
    ("param", "match"),
    [
        (torch.zeros(3), r"a parameter of shape \(3,\) and torch\.float32 is no real matrix"),
        (torch.zeros(()), r"a parameter of shape \(\) and torch\.float32 is no real matrix"),
        (torch.zeros(3, 2, dtype=torch.complex64), r"a parameter of shape \(3, 2\) and torch\.complex64 is no real"),
    ],
)
def test_what_muon_cannot_orthogonalize_is_refused(param: Tensor, match: str) -> None:
    (matrix,) = make_params((4, 3))
    with pytest.raises(ValueError, match=f"^parameter group 0: use_muon = True, but {match}"):
        MuonScheduleFree([Parameter(param)], use_muon=True)
    optimizer = MuonScheduleFree([matrix])
    with pytest.raises(ValueError, match=f"^parameter group 1: use_muon = True, but {match}"):
        optimizer.add_param_group({"params": [("named", Parameter(param))], "use_muon": True})
    assert len(optimizer.param_groups) == 1


def test_complex_matrices_go_to_adamw() -> None:
    params, others = make_params((4, 3), dtype=torch.complex64), make_params((4, 3), dtype=torch.complex64)
    train(MuonScheduleFree(params, lr=0.01), range(5))
    train(AdamWScheduleFree(others, lr=0.01, decay_at="z"), range(5))
    assert equal(params, others)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0, 3, 2), (2, 0, 3)])
@pytest.mark.parametrize("state_precision", ["float32", "compact"])
def test_empty_matrices(shape: tuple[int, ...], state_precision: Any) -> None:
    empty, other = Parameter(torch.zeros(shape)), make_params((4, 3))[0]
    optimizer = MuonScheduleFree([empty, other], lr=0.01, weight_decay=0.1, state_precision=state_precision)
    train(optimizer, range(3))
    optimizer.eval()
    assert empty.shape == shape
    assert other.isfinite().all()


def test_a_zero_gradient_moves_nothing() -> None:
    (param,) = make_params((4, 3))
    start = copies([param])
    optimizer = MuonScheduleFree([param], lr=0.1)
    for _ in range(3):
        param.grad = torch.zeros(4, 3)
        optimizer.step()
    assert equal([param], start)
    assert equal(optimizer.iterates(param), [param.detach()] * 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_muon_hides_no_gradient_that_is_not_finite(value: float) -> None:
    param, other = make_params((4, 3), (3, 3))
    optimizer = MuonScheduleFree([param, other], lr=0.1)
    set_gradients([param, other], 0)
    assert param.grad is not None
    param.grad[1, 2] = value
    optimizer.step()
    assert not param.isfinite().any()
    assert other.isfinite().all()


def test_the_steps_of_z_have_the_size_of_adamws() -> None:
    """A root mean square of about 0.2 lr, whatever the shape and the size of the gradient."""
    for shape in ((8, 32), (32, 8), (16, 16)):
        (param,) = make_params(shape, dtype=torch.float64)
        optimizer = MuonScheduleFree([param], lr=0.1)
        visited = [param.detach().clone()]
        for step in range(5):
            set_gradients([param], step)
            assert param.grad is not None
            param.grad *= 10.0**step
            optimizer.step()
            visited.append(optimizer.iterates(param).z)
        for before, after in pairwise(visited):
            assert 0.6 * 0.02 < (after - before).square().mean().sqrt() < 1.25 * 0.02


def test_amuse() -> None:
    """Muon whose beta grows comes near the least squares, which its steps of constant size step over."""
    target, inputs = torch.randn(6, 4), torch.randn(64, 6)
    weight, bias = Parameter(torch.zeros(6, 4)), Parameter(torch.zeros(4))
    optimizer = MuonScheduleFree(
        [weight, bias],
        lr=0.05,
        betas=(0.5, 0.999),
        weight_decay=1e-4,
        warmup_steps=10,
        averaging=PolynomialAveraging(r=1),
        interpolation=GrowingInterpolation(power=0.7, start=10),
    )
    losses = []
    for _ in range(500):
        optimizer.zero_grad()
        loss = (inputs @ weight + bias - inputs @ target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert optimizer.metrics()["beta"] == pytest.approx(1 - 0.5 * (10 / 500) ** 0.7)
    with optimizer.averaged_parameters():
        assert (inputs @ weight + bias - inputs @ target).square().mean() < 0.02 * losses[0]


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_direction_does_not_depend_on_the_scale_of_the_gradient(scale: float) -> None:
    """The squares of such numbers are 0 or infinite in float32."""
    matrix = torch.randn(5, 3)
    close = torch.testing.assert_close
    close(orthogonalized(scale * matrix, 5, 1e-38), orthogonalized(matrix, 5, 1e-38), rtol=1e-4, atol=1e-4)
