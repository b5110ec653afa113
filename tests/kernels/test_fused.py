"""The fused implementation: the same as the loop, whatever the memory looks like, from any thread and after a fork."""

import gc
import logging
import os
import subprocess
import sys
import textwrap
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from features import needs_gradients_of_other_dtypes
from forked import in_a_forked_child
from problems import copies, equal, make_params, set_gradients, train
from registry import Configuration, OptimizerInfo, configurations, optimizers
from torch import Tensor
from torch.nn import Parameter

from unscheduled import AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree, kernels
from unscheduled.kernels.fused import Kind, say_once
from unscheduled.kernels.numba import fused, jit

SHAPES = ((4, 3), (7,), (1,), (), (0,), (129,), (70_000,))


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parameters each call has left to another implementation."""
    counts: list[int] = []
    update = fused.update

    def counted(*arguments: Any) -> Any:
        works = update(*arguments)
        counts.append(sum(len(batch.params) for batch, _ in works))
        return works

    monkeypatch.setattr(fused, "update", counted)
    return counts


def assert_is_the_loop(make: Any, params: list[Parameter], steps: int = 20) -> None:
    others = [Parameter(param.detach().clone(memory_format=torch.preserve_format)) for param in params]
    ours, loop = make(params, implementation="fused"), make(others, implementation="loop")
    for step in range(steps):
        set_gradients(params, step)
        set_gradients(others, step)
        ours.step()
        loop.step()
    for param, other in zip(params, others, strict=True):
        for some, reference in zip(ours.iterates(param), loop.iterates(other), strict=True):
            torch.testing.assert_close(some, reference, rtol=2e-5, atol=2e-6)


@pytest.mark.covering(1)
@configurations
def test_fused_is_the_loop(info: OptimizerInfo, configuration: Configuration, left: list[int]) -> None:
    assert_is_the_loop(
        lambda params, **choice: info.make(params, **choice, **configuration.arguments), make_params(*SHAPES)
    )
    assert not any(left)


def dense_views() -> list[Parameter]:
    """Parameters that fill a stretch of memory, in another order than their indices."""
    tensor = torch.randn(6, 5, 4, 3)
    return [
        Parameter(torch.randn(5, 3).t()),
        Parameter(tensor.clone(memory_format=torch.channels_last)),
        Parameter(tensor.clone().permute(2, 0, 3, 1)),
        Parameter(torch.randn(100)[10:50]),
        Parameter(torch.randn(10, 1, 3).transpose(0, 1)),
    ]


@optimizers
def test_dense_tensors_in_any_order_take_the_fast_way(info: OptimizerInfo, left: list[int]) -> None:
    """Their gradients here are laid out otherwise."""
    assert_is_the_loop(info.make, dense_views())
    assert not any(left)


@optimizers
def test_what_it_cannot_take_is_left_to_the_loop(
    info: OptimizerInfo, left: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    say_once.cache_clear()
    params = [
        Parameter(torch.randn(4, 6)[:, ::2]),
        Parameter(torch.randn(3, dtype=torch.complex64)),
        Parameter(torch.randn(3, dtype=torch.float64)),
        Parameter(torch.randn(8)),
    ]
    with caplog.at_level(logging.DEBUG, "unscheduled"):
        assert_is_the_loop(info.make, params)
    assert sum(left) == 2 * 20  # complex numbers are pairs of float32
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert len(caplog.records) == info.rules
    assert "are updated by another implementation" in caplog.text


def test_a_negated_gradient_is_read_as_what_it_means() -> None:
    """The imaginary part of a conjugate is a view that negates."""
    param, other = Parameter(torch.ones(1)), Parameter(torch.ones(1))
    gradient = torch.tensor([1 + 2j]).conj().imag
    assert gradient.is_neg()
    for of, implementation in ((param, "fused"), (other, "loop")):
        optimizer = SGDScheduleFree([of], lr=0.1, implementation=implementation)
        for _ in range(3):
            of.grad = gradient
            optimizer.step()
    assert torch.equal(param, other)


@pytest.mark.parametrize("change", ["data", "state", "memory", "shared", "gradients"])
def test_tensors_that_are_replaced_between_steps_are_noticed(change: str) -> None:
    """Also where the same tensor object gets other memory, as by moving the state to another process or device."""
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = make_params()
        optimizer = AdamWScheduleFree(params, lr=0.01, implementation=implementation)
        kept: list[Tensor] = []  # so that no memory is used again
        for step in range(6):
            train(optimizer, [step])
            for param in params:
                if change == "data":
                    kept.append(param.data)
                    param.data = param.data.clone() * 2
                elif change == "state":
                    kept.append(optimizer.state[param]["gap"])
                    optimizer.state[param]["gap"] = optimizer.state[param]["gap"].clone() * 2
                elif change == "memory":
                    gap = optimizer.state[param]["gap"]
                    kept.append(gap.data)
                    gap.data = gap.data.clone() * 2
                elif change == "shared":
                    optimizer.state[param]["gap"].share_memory_()
                elif change == "gradients" and step % 2:
                    param.grad = None
        train(optimizer, [9])
        results.append(copies(params))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference)


def test_a_view_of_the_same_memory_is_another_tensor() -> None:
    """A transposed parameter, and one that became shorter, are not updated as they were."""
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        param = Parameter(torch.arange(9.0).view(3, 3))
        whole = param.data
        optimizer = SGDScheduleFree([param], lr=0.1, implementation=implementation)
        train(optimizer, range(3))
        param.data = param.data.t()
        param.grad = torch.arange(9.0).view(3, 3)
        optimizer.step()
        param.data = whole.view(-1)[:4]
        param.grad = torch.ones(4)
        with pytest.raises(RuntimeError, match=r"size|shape"):
            optimizer.step()
        results.append([whole])
    assert torch.equal(results[0][0][:2], results[1][0][:2])


def test_autograd_notices_that_the_weights_were_written() -> None:
    param = Parameter(torch.ones(3))
    optimizer = SGDScheduleFree([param], lr=0.1, implementation="fused")
    loss = (param**3).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_buffer_of_another_precision_is_left() -> None:
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = make_params()
        optimizer = AdamWScheduleFree(params, lr=0.01, implementation=implementation)
        train(optimizer, range(2))
        optimizer.state[params[0]]["exp_avg_sq"] = optimizer.state[params[0]]["exp_avg_sq"].double()
        train(optimizer, range(2, 5))
        results.append(copies(params))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference)


def test_a_step_within_a_compiled_function() -> None:
    params, others = make_params(), make_params()
    optimizer, reference = (AdamWScheduleFree(of, lr=0.01, implementation="fused") for of in (params, others))
    step = torch.compile(optimizer.step, backend="eager")
    for number in range(3):
        set_gradients(params, number)
        set_gradients(others, number)
        step()
        reference.step()
    assert equal(params, others)


def test_parameters_that_are_gone_are_forgotten() -> None:
    params = make_params()
    optimizer = AdamWScheduleFree([{"params": [param]} for param in params], implementation="fused")
    train(optimizer, range(3))
    gone = weakref.ref(optimizer.param_groups.pop()["params"][0])
    optimizer.state.pop(params.pop())
    train(optimizer, [3])
    gc.collect()
    assert gone() is None


def test_gradients_do_not_outlive_the_step() -> None:
    params = make_params()
    optimizer = AdamWScheduleFree(params, implementation="fused")
    train(optimizer, range(3))
    gradients = [weakref.ref(param.grad) for param in params if param.grad is not None]
    optimizer.zero_grad()
    assert [gradient() for gradient in gradients] == [None] * len(params)


def test_groups_with_other_options_and_counts_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = fused._run  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(fused, "_run", lambda *of: (calls.append(len(of[-1])), run(*of)))
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        params = make_params((3,), (4, 5), (6,))
        optimizer = AdamWScheduleFree(
            [{"params": params[:1], "weight_decay": 0.3, "decay_at": "z"}, {"params": params[1:], "lr": 0.1}],
            implementation=implementation,
        )
        for step in range(6):
            set_gradients(params, step)
            if step < 3:
                params[2].grad = None
            optimizer.step()
        results.append(copies(params))
    assert calls == [2, 2, 2, 3, 3, 3]
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference)


def trained(seed: int, implementation: Any = "fused") -> list[Tensor]:
    """The weights after some steps, large enough for more than one thread."""
    generator = torch.Generator().manual_seed(seed)
    params = [Parameter(torch.randn(25_000, generator=generator)) for _ in range(12)]  # torch needs no threads for one
    optimizer = RAdamScheduleFree(params, lr=0.01, implementation=implementation)
    train(optimizer, range(7))
    return copies(params)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = trained(0)
        torch.set_num_threads(3)
        assert equal(trained(0), alone)
    finally:
        torch.set_num_threads(before)


def test_several_python_threads_may_step_at_a_time() -> None:
    before = torch.get_num_threads()
    alone = [trained(seed) for seed in range(6)]
    try:
        torch.set_num_threads(2)
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(trained, range(6)))
    finally:
        torch.set_num_threads(before)
    assert all(map(equal, together, alone))


def trained_by_two_threads() -> list[list[float]]:
    torch.set_num_threads(2)
    return [tensor.tolist() for tensor in trained(3)]


@pytest.mark.skipif(not hasattr(torch, "set_num_threads") or sys.platform == "win32", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    try:
        ours = trained_by_two_threads()  # they are running
    finally:
        torch.set_num_threads(before)
    assert in_a_forked_child(trained_by_two_threads) == ours


def in_a_process(code: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_does_not_import_numba() -> None:
    assert in_a_process("import sys, unscheduled; print('numba' in sys.modules)") == "False\n"


def test_without_numba_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_compiler", lambda device_type: False)
    with pytest.raises(
        ImportError, match=r"'fused' needs Numba: pip install 'unscheduled\[fused\]', or use implementation = 'auto'"
    ):
        AdamWScheduleFree(make_params(), implementation="fused")
    train(AdamWScheduleFree(make_params()), range(3))


STEP = """
    import torch, unscheduled
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = unscheduled.SGDScheduleFree([weight], lr=0.5{choice})
    weight.grad = torch.ones(3)
    {step}
    print(weight.tolist())
"""


def test_numba_that_does_not_import_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('NumPy is too new')\n")
    assert (
        in_a_process(STEP.format(choice="", step="optimizer.step()"), PYTHONPATH=str(tmp_path)) == "[0.5, 0.5, 0.5]\n"
    )
    tried = "try:\n        optimizer.step()\n    except ImportError as error:\n        print(error)"
    said = in_a_process(STEP.format(choice=", implementation='fused'", step=tried), PYTHONPATH=str(tmp_path))
    assert said.startswith("implementation = 'fused' needs Numba, which does not import: NumPy is too new")


def test_without_a_place_for_the_cache_it_works_too(tmp_path: Path) -> None:
    """A file stands where the folder is to be made."""
    (tmp_path / "file").touch()
    code = STEP.format(choice=", implementation='fused'", step="optimizer.step()")
    assert in_a_process(code, NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache")) == "[0.5, 0.5, 0.5]\n"


def test_each_rule_has_a_file_of_its_own_in_the_cache(tmp_path: Path) -> None:
    """Numba's index of one file is read, added to and written: two processes at a time would mix rules up."""
    code = """
        import torch, unscheduled
        for cls in (unscheduled.SGDScheduleFree, unscheduled.AdamWScheduleFree):
            weight = torch.nn.Parameter(torch.ones(3))
            weight.grad = torch.ones(3)
            cls([weight], implementation="fused").step()
    """
    in_a_process(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert len(list(tmp_path.rglob("*kernel_*.nbi"))) == 2


def test_off_the_cpu_numba_is_not_imported() -> None:
    code = """
        import sys, torch, unscheduled
        weight = torch.nn.Parameter(torch.ones(3, device="meta"))
        weight.grad = torch.ones(3, device="meta")
        unscheduled.SGDScheduleFree([weight], lr=0.5).step()
        print("numba" in sys.modules)
    """
    assert in_a_process(code) == "False\n"


def test_parameters_on_another_device_are_refused() -> None:
    params = [Parameter(torch.zeros(3, device="meta"))]
    with pytest.raises(ValueError, match="group 0: implementation = 'fused' is for the CPU and for CUDA and HIP, but"):
        AdamWScheduleFree(params, implementation="fused")


def test_a_direction_that_numba_cannot_compile_runs_as_the_loop(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jit, "_kernels", {})
    rule = kernels.Rule(lambda grad: (grad.sign(),))
    with caplog.at_level(logging.DEBUG, "unscheduled"):
        kind = Kind(torch.device("cpu"), torch.float32, torch.float32, (torch.float32,))
        assert jit.compiled_kernel(rule, kind) is None
    assert "Numba cannot compile" in caplog.text


def test_a_changed_definition_is_compiled_anew() -> None:
    """What stands on the disk is found by what the definition and all that it calls say."""

    def of(text: str) -> int:
        names: dict[str, Any] = {}
        exec(text, names)
        return jit.fingerprint_of("", names["direction"])

    text = "K = 1.0\ndef half(g):\n    return 2 * g * K\ndef direction(g):\n    return (half(g),)\n"
    assert of(text) == of(text)
    assert of(text) != of(text.replace("K = 1.0", "K = 2.0"))
    assert of(text) != of(text.replace("2 * g", "3 * g"))
    assert of(text) != of(text.replace("(half(g),)", "(half(-g),)"))


@needs_gradients_of_other_dtypes
@pytest.mark.parametrize(
    ("dtype", "grad_dtype"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str
)
def test_a_gradient_of_another_dtype_and_layout(dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    results: list[list[Tensor]] = []
    for implementation in ("fused", "loop"):
        param: Any = Parameter(torch.ones(40, 30, dtype=dtype))
        param.grad_dtype = grad_dtype
        optimizer = SGDScheduleFree([param], lr=0.1, implementation=implementation)
        for step in range(3):
            param.grad = torch.randn(30, 40, generator=torch.Generator().manual_seed(step)).to(grad_dtype).t()
            optimizer.step()
        results.append(list(optimizer.iterates(param)))
    for some, reference in zip(*results, strict=True):
        torch.testing.assert_close(some, reference)
