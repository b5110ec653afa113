"""Every optimizer and configuration against the float64 oracle, step by step."""

import numpy as np
import pytest
import torch
from oracle import Oracle, Vector
from registry import ALL, IMPLEMENTATIONS, Configuration, OptimizerInfo, configurations, implementations
from torch import Tensor

SHAPES = [(3, 4), (), (5,)]


@pytest.mark.covering(2)
@configurations
@implementations
def test_x_y_z_equal_the_oracle_at_every_step(
    info: OptimizerInfo, configuration: Configuration, implementation: str
) -> None:
    random = np.random.default_rng(0)
    starts = [np.asarray(random.standard_normal(shape)) for shape in SHAPES]
    params = [torch.nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
    oracles = [Oracle(start, **info.settings(configuration)) for start in starts]
    optimizer = info.make(params, implementation=implementation, **configuration.arguments)
    for _ in range(60):
        for param, oracle in zip(params, oracles, strict=True):
            gradient = np.asarray(random.standard_normal(param.shape))
            param.grad = torch.from_numpy(gradient)
            oracle.step(gradient)
        optimizer.step()
        for param, oracle in zip(params, oracles, strict=True):
            x, y, z = optimizer.iterates(param)
            np.testing.assert_allclose(y, param.detach(), rtol=0, atol=0)
            for ours, truth in ((x, oracle.x), (y, oracle.y), (z, oracle.z)):
                np.testing.assert_allclose(ours, truth, rtol=1e-9, atol=1e-12)


LONG = [
    pytest.param(info, configuration, implementation, id=f"{info.cls.__name__}-{configuration.desc}-{implementation}")
    for info in ALL
    for place, configuration in enumerate(info.configurations())
    for implementation in (IMPLEMENTATIONS if place == 0 else [each for each in IMPLEMENTATIONS if each != "foreach"])
]
"""The long runs of ``foreach`` are in the first configuration of each algorithm; the short ones above are in all."""


@pytest.mark.slow
@pytest.mark.parametrize(("info", "configuration", "implementation"), LONG)
def test_the_average_of_20000_float32_steps(
    info: OptimizerInfo, configuration: Configuration, implementation: str
) -> None:
    """A fixed stream of random gradients about a drift to the origin, against the float64 run of the same stream."""
    random = np.random.default_rng(0)
    stream = random.standard_normal((20_000, 256)).astype(np.float32)
    start = random.standard_normal(256).astype(np.float32)
    param = torch.nn.Parameter(torch.from_numpy(start.copy()))
    oracle = Oracle(start.astype(np.float64), **info.settings(configuration))
    optimizer = info.make([param], implementation=implementation, **configuration.arguments)
    for gradient in stream:
        param.grad = torch.from_numpy(gradient)
        optimizer.step()
        oracle.step(gradient.astype(np.float64))
    a_few_signs_differ = info.jumps and "exp_avg" in optimizer.state[param]  # where m is next to 0
    assert relative_error(optimizer.iterates(param).x, oracle.x) < (5e-5 if a_few_signs_differ else 1e-5)


def relative_error(ours: Tensor, truth: Vector) -> float:
    return float(np.linalg.norm(ours.double().numpy() - truth) / np.linalg.norm(truth))
