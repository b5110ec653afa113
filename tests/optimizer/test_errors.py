"""Bad input: a message with the value, the range and the remedy, and nothing is changed."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from problems import copies, equal, make_params, set_gradients, train
from registry import OPTIMIZERS, OptimizerInfo, Refused, built_in, implementations, optimizers
from torch import Tensor, nn

from unscheduled import AdamWScheduleFree, AnnealedInterpolation, NoAveraging
from unscheduled.formulas.rule import Rule
from unscheduled.optimizer.base import ScheduleFreeOptimizer
from unscheduled.state.param_groups import Group

refused = pytest.mark.parametrize(
    ("info", "case"),
    [pytest.param(info, case, id=f"{info.cls.__name__}-{case.desc}") for info in OPTIMIZERS for case in info.refused],
)


@refused
def test_refused_at_construction(info: OptimizerInfo, case: Refused) -> None:
    with pytest.raises(ValueError, match=f"^{case.match}"):
        info.make(make_params(), **case.arguments)


@pytest.mark.covering(1)
@refused
def test_refused_in_a_group(info: OptimizerInfo, case: Refused) -> None:
    first, second = make_params()
    with pytest.raises(ValueError, match=f"^parameter group 1: {case.match}"):
        info.make([{"params": [first]}, {"params": [second], **case.arguments}])


@pytest.mark.covering(1)
@refused
def test_refused_in_add_param_group(info: OptimizerInfo, case: Refused) -> None:
    first, second = make_params()
    optimizer = info.make([first])
    group: dict[str, Any] = {"params": [second], **case.arguments}
    given = dict(group)
    with pytest.raises(ValueError, match=f"^parameter group 1: {case.match}"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    assert group == given
    train(optimizer, range(2))


@built_in
def test_a_parameter_twice(info: OptimizerInfo) -> None:
    first, second = make_params()
    with pytest.raises(ValueError, match="parameter group 0: a parameter stands in it twice"):
        info.make([first, second, first])
    optimizer = info.make([first, second])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [second]})
    assert len(optimizer.param_groups) == 1


@optimizers
def test_what_torch_refuses(info: OptimizerInfo) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        info.make([])
    with pytest.raises(TypeError, match="should be an iterable of Tensors"):
        info.make(make_params()[0])
    with pytest.raises(TypeError, match="ordered collections"):
        info.make([{"params": set(make_params())}])
    with pytest.raises(ValueError, match="non-leaf"):
        info.make([make_params()[0] * 2])


@optimizers
def test_what_is_no_group(info: OptimizerInfo) -> None:
    first, second = make_params()
    with pytest.raises(TypeError, match="param_group must be a dict with the key 'params', but got <class 'list'>"):
        info.make([first]).add_param_group([second])  # type: ignore[arg-type]


@pytest.mark.covering(1)
@built_in
@pytest.mark.parametrize("choice", [{"foreach": False}, {"implementation": "loop"}])
def test_the_implementation_of_a_group(info: OptimizerInfo, choice: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"parameter group 0: .* in a group: .* give it to the constructor"):
        info.make([{"params": make_params(), **choice}])


@optimizers
def test_a_parameter_that_is_a_conjugated_view(info: OptimizerInfo) -> None:
    view = nn.Parameter(torch.randn(3, dtype=torch.complex64).conj())
    with pytest.raises(ValueError, match=r"conjugated view: make it of tensor\.resolve_conj\(\)"):
        info.make([view])


@built_in
def test_a_tensor_of_learning_rates(info: OptimizerInfo) -> None:
    with pytest.raises(ValueError, match=r"lr = a tensor of shape \(2,\): it must have one element"):
        info.make(make_params(), lr=torch.ones(2))
    with pytest.raises(ValueError, match=r"lr = nan is outside \[0, inf\)"):
        info.make(make_params(), lr=torch.tensor(float("nan")))


@pytest.mark.covering(1)
@built_in
@pytest.mark.parametrize("foreach", [True, False])
def test_two_ways_to_choose_the_implementation(info: OptimizerInfo, foreach: bool) -> None:
    with pytest.raises(ValueError, match=f"foreach = {foreach} and implementation = 'loop' exclude each other"):
        info.make(make_params(), foreach=foreach, implementation="loop")


@optimizers
def test_an_unknown_implementation(info: OptimizerInfo) -> None:
    with pytest.raises(ValueError, match="implementation = 'fast' is unknown: use 'auto', 'loop', 'foreach'"):
        info.make(make_params(), implementation="fast")


@built_in
def test_a_group_with_its_own_averaging_does_not_contradict_the_powers_of_the_others(info: OptimizerInfo) -> None:
    first, second = make_params()
    optimizer = info.make([{"params": [first]}, {"params": [second], "averaging": NoAveraging()}], r=2.0)
    assert optimizer.param_groups[1]["averaging"] == NoAveraging()


@optimizers
def test_a_step_in_eval_mode(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params)
    train(optimizer, range(5))
    optimizer.eval()
    before, metrics = copies(params), optimizer.metrics()
    with pytest.raises(RuntimeError, match=r"step\(\) in eval mode.*call optimizer\.train\(\) before the forward pass"):
        optimizer.step()
    assert equal(params, before)
    assert optimizer.metrics() == metrics


@optimizers
def test_sparse_gradients(info: OptimizerInfo) -> None:
    """Also when another group was to be stepped before."""
    dense, embedding = nn.Linear(2, 2), nn.Embedding(5, 2, sparse=True)
    optimizer = info.make([*dense.named_parameters(), *embedding.named_parameters(prefix="embedding")])
    dense(embedding(torch.tensor([1, 3]))).sum().backward()
    before = copies([*dense.parameters(), *embedding.parameters()])
    with pytest.raises(
        RuntimeError, match=r"the gradient of embedding\.weight \(shape \(5, 2\)\) is sparse.*sparse=False"
    ):
        optimizer.step()
    assert equal([*dense.parameters(), *embedding.parameters()], before)
    assert optimizer.metrics()["step"] == 0


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("bad", [float("nan"), -0.1, torch.tensor(float("nan"))])
def test_a_scheduler_that_went_wrong(info: OptimizerInfo, bad: float | Tensor) -> None:
    first, second = make_params()
    optimizer = info.make([{"params": [first]}, {"params": [second]}])
    train(optimizer, range(2))
    before = copies([first, second])
    optimizer.param_groups[1]["lr"] = bad
    with pytest.raises(ValueError, match=r"parameter group 1: lr = .* is outside \[0, inf\)"):
        train(optimizer, [2])
    assert equal([first, second], before)
    assert optimizer.metrics()["group0/step"] == 2


@built_in
def test_a_first_step_that_is_refused_leaves_no_state(info: OptimizerInfo) -> None:
    params = make_params()
    optimizer = info.make(params)
    optimizer.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="parameter group 0: lr = nan"):
        train(optimizer, [0])
    assert optimizer.state_dict()["state"] == {}


@optimizers
def test_a_beta_that_went_wrong(info: OptimizerInfo) -> None:
    first, second = make_params()
    optimizer = info.make([{"params": [first]}, {"params": [second]}])
    train(optimizer, range(6))
    before = copies([first, second])
    optimizer.param_groups[1].update(info.beta_arguments(1.9))
    with pytest.raises(
        ValueError, match=r"parameter group 1: beta of ConstantInterpolation\(\) = 1\.9 is outside \[0, 1\]"
    ):
        train(optimizer, [6])
    assert equal([first, second], before)


def test_an_averaging_that_went_wrong() -> None:
    @dataclass(frozen=True)
    class Broken:
        def __call__(self, step: int, lr: float, lr_max: float, weight_sum: float) -> tuple[float, float]:
            return float("nan"), weight_sum

    params = make_params()
    before = copies(params)
    with pytest.raises(ValueError, match=r"parameter group 0: c of .*Broken.* = nan is outside \[0, 1\]"):
        train(AdamWScheduleFree(params, averaging=Broken()), [0])
    assert equal(params, before)


@pytest.mark.covering(2)
@optimizers
@implementations
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("at", [0, 1, 7, 15])
def test_nothing_moves_at_lr_0(info: OptimizerInfo, implementation: str, as_tensor: bool, at: int) -> None:
    params = make_params()
    interpolation = AnnealedInterpolation(0.99, 18)
    optimizer = info.make(params, implementation=implementation, weight_decay=0.1, interpolation=interpolation)
    for step in range(20):
        before = [optimizer.iterates(param) for param in params]
        lr = 0.0 if step == at else info.lr
        optimizer.param_groups[0]["lr"] = torch.tensor(lr, dtype=torch.float64) if as_tensor else lr
        train(optimizer, [step])
        if step == at:
            assert all(equal(optimizer.iterates(p), bits) for p, bits in zip(params, before, strict=True))
    assert all(param.isfinite().all() for param in params)
    assert not equal(params, make_params())


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize("weight_lr_power", [0.0, 2.0])
def test_a_run_at_lr_0_gathers_no_weights(info: OptimizerInfo, weight_lr_power: float) -> None:
    optimizer = info.make(make_params(), lr=0.0, weight_lr_power=weight_lr_power)
    train(optimizer, range(8))
    assert optimizer.param_groups[0]["weight_sum"] == 0.0
    assert optimizer.metrics()["c"] == 0.0


@pytest.mark.covering(2)
@optimizers
@implementations
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_gradient_is_not_hidden(info: OptimizerInfo, implementation: str, value: float) -> None:
    """It does to the weights what it does under torch.optim, and can be seen in the metrics."""
    (param,), (reference,) = make_params((6,)), make_params((6,))
    optimizer = info.make([param], implementation=implementation)
    other = (info.counterpart or torch.optim.RAdam)([reference], lr=info.lr)
    train(optimizer, range(10))
    for step in range(10, 13):
        set_gradients([param], step)
        set_gradients([reference], step)
        assert param.grad is not None
        assert reference.grad is not None
        param.grad[2] = reference.grad[2] = value
        optimizer.step()
        other.step()
    assert torch.equal(param.isfinite(), reference.isfinite())
    assert param.isfinite().tolist() == [True, True, False, True, True, True]
    gap_norm = optimizer.metrics()["gap_norm"]
    assert not gap_norm < float("inf")


class SignScheduleFree(ScheduleFreeOptimizer):
    """A new algorithm, as one would write it: its definition, and where its arguments stand."""

    def __init__(self, params: Any, lr: float, implementation: Any = "auto") -> None:
        super().__init__(
            params,
            implementation=implementation,
            foreach=None,
            lr=lr,
            beta=0.9,
            weight_decay=0.0,
            warmup_steps=0,
            decay_at="y",
            maximize=False,
        )

    def _rule(self, group: Group, param: Tensor | None = None) -> Rule:
        return Rule(lambda grad: (grad.sign(),))

    def _rule_scalars(self, group: Group, rule: Rule, step: int) -> dict[str, float]:
        return {}

    def _beta(self, group: Group) -> float:
        return 0.9

    def _check_rule(self, group: Group) -> None:
        pass


def test_a_rule_without_foreach_runs_as_the_loop() -> None:
    params = make_params()
    start = copies(params)
    optimizer = SignScheduleFree(params, lr=0.5)
    train(optimizer, range(1))
    assert all(
        torch.equal(p, s - 0.5 * p.grad.sign()) for p, s in zip(params, start, strict=True) if p.grad is not None
    )
    with pytest.raises(ValueError, match="implementation = 'foreach' is not there for this rule: use"):
        SignScheduleFree(params, lr=0.5, implementation="foreach")


def test_the_shell_itself_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ScheduleFreeOptimizer(make_params(), implementation="auto", foreach=None)  # type: ignore[abstract]


def test_an_interpolation_of_a_wrong_beta() -> None:
    @dataclass(frozen=True)
    class Doubled:
        def __call__(self, beta: float, step: int) -> float:
            return 2 * beta

    with pytest.raises(ValueError, match=r"beta of .*Doubled.* = 1\.8 is outside \[0, 1\]"):
        AdamWScheduleFree(make_params(), interpolation=Doubled())
