"""The fused kernel for GPUs, without one: in Triton's interpreter, compiled for GPUs, launched by a mock driver."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from problems import make_params, train
from registry import ALL, OptimizerInfo
from torch.nn import Parameter
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import ASTSource

from unscheduled import AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree, kernels
from unscheduled.formulas.rule import Rule
from unscheduled.kernels.triton import fused, jit
from unscheduled.state.quantization import CODES

TARGETS = (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64))
POINTERS = {"table": "*i64", "tensor_of": "*i64", "tensors": "i32", "grads": "*i64", "keys": "*i64", "scalars": "*fp32"}
MOST_REGISTERS = 128
SUPPORT = Path(__file__).parent.parent / "support"


@pytest.mark.slow
def test_interpreted_it_is_the_definition() -> None:
    """In a process of its own, since Triton decides when it is imported whether it interprets."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SUPPORT / "interpreted_triton.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert int(re.findall(r"(\d+) passed", run.stdout)[-1]) > 50


# Compiled.


def rules() -> list[Rule]:
    """The elementwise rules of all algorithms, each once; the others' directions are given to the kernel."""
    found: dict[Rule, None] = {}
    for info in ALL:
        for arguments in ({}, info.with_all_buffers):
            optimizer = info.make(make_params((3,)), **arguments)
            for group in optimizer.param_groups:
                found[optimizer._rule(group)] = None  # pyright: ignore[reportPrivateUsage]
    return [rule for rule in found if rule.elementwise]


def kinds() -> list[Any]:
    cases: list[Any] = []
    for rule in rules():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for compact in (False, True) if rule.compact is not None else (False,):
                name = f"{rule.direction.__name__}-{str(dtype)[6:]}{'-compact' * compact}"
                is_fast = rule.direction.__name__ == "adam_direction" and dtype != torch.float16
                cases.append(pytest.param(rule, dtype, compact, id=name, marks=() if is_fast else pytest.mark.slow))
    return cases


def stored_dtypes(rule: Rule, compact: bool) -> tuple[torch.dtype, ...]:
    if compact:
        return (torch.int16, *(CODES[each] for each in rule.compact or ()))
    return (torch.float32,) * (1 + len(rule.buffers))


@pytest.mark.parametrize(("rule", "dtype", "compact"), kinds())
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.backend}-{target.arch}")
def test_the_assembly(rule: Rule, dtype: torch.dtype, compact: bool, target: GPUTarget, tmp_path: Path) -> None:
    """A thread loads and stores four numbers at once; nothing is spilled, and no operation is fused."""
    stored = stored_dtypes(rule, compact)
    constants = {
        "PARAM": fused.DTYPES[dtype],
        "GRAD": fused.DTYPES[dtype],
        "STORED": tuple(fused.DTYPES[each] for each in stored),
        "SCALARS": 8 + len(rule.scalars),
    }
    source = ASTSource(jit.kernel_of(rule), POINTERS | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    warps = 4 if target.backend == "hip" else 8
    kernel = triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": False})
    of_params = [dtype] if dtype == torch.float32 else [torch.int16, torch.int16]
    read = [dtype, *of_params, *stored]
    written = [*of_params, *stored]
    if target.backend == "hip":
        text = kernel.asm["amdgcn"]
        assert "ScratchSize: 0" in text
        assert set(re.findall(r"\.vgpr_spill_count: +(\d+)", text)) == {"0"}
        assert max(map(int, re.findall(r"\.vgpr_count: +(\d+)", text))) <= MOST_REGISTERS
        for word, dtypes in (("load", read), ("store", written)):
            widths = [each.itemsize for each in dtypes]
            assert text.count(f"buffer_{word}_dwordx4") == widths.count(4)
            assert text.count(f"buffer_{word}_dwordx2") == widths.count(2)
        return
    text = kernel.asm["ptx"]
    assert "fma." not in text
    for word, dtypes in (("ld", read), ("st", written)):
        widths = [each.itemsize for each in dtypes]
        assert text.count(f"{word}.global.v4.b32") == widths.count(4)
        assert text.count(f"{word}.global.v2.b32") == widths.count(2)
    (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    usage = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(tmp_path / "kernel.cubin")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "STACK:0 " in usage
    assert "LOCAL:0 " in usage
    assert int(re.findall(r"REG:(\d+)", usage)[-1]) <= MOST_REGISTERS


# Launched.


class Launches(DriverBase):
    """A mock driver: it compiles for one, and notes the launches."""

    def __init__(self) -> None:
        launches = self.launches = []
        loaded = self.loaded = []

        class Launcher:
            def __init__(self, source: Any, metadata: Any) -> None:
                pass

            def __call__(self, *arguments: Any) -> None:
                launches.append(arguments)

        class Utils:
            @staticmethod
            def get_device_properties(device: int) -> dict[str, int]:
                return {"max_shared_mem": 100_000}

            @staticmethod
            def load_binary(name: str, *_: Any) -> tuple[Any, ...]:
                loaded.append(name)
                return object(), object(), 0, 0, 1024

        self.launcher_cls, self.utils = Launcher, Utils

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return TARGETS[1]

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """What the host does for a GPU, for tensors on the CPU."""
    made = Launches()
    monkeypatch.setattr(triton.runtime.driver, "_active", made)
    monkeypatch.setattr(fused, "DEVICE", "cpu")
    monkeypatch.setattr(fused, "_of_direction", type(fused._of_direction)())  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(kernels, "import_fused", lambda device_type: fused)
    return made


def test_a_step_is_one_launch(driver: Launches) -> None:
    """Of all groups, wherever their memory begins; the kernel is compiled and loaded once."""
    whole = torch.zeros(4000)
    params = [Parameter(whole[begin : begin + size]) for begin, size in ((0, 5), (5, 3000), (3008, 900))]
    optimizer = AdamWScheduleFree([{"params": params[:1]}, {"params": params[1:], "lr": 0.1}], implementation="fused")
    train(optimizer, range(4))
    assert [launch[0] for launch in driver.launches] == [1, 5, 5, 5, 5]  # tiles; the first launch updates nothing
    assert len(driver.loaded) == 1


def test_tables_are_made_once(driver: Launches) -> None:
    params = make_params((5,), (3000,))
    optimizer = AdamWScheduleFree(params, implementation="fused")
    train(optimizer, range(3))
    for param in params:  # whose memory stays
        assert param.grad is not None
        param.grad.mul_(2.0)
    optimizer.step()
    tables, grads = ([launch[place].data_ptr() for launch in driver.launches[1:]] for place in (9, 12))
    assert len(set(tables)) == 1
    assert grads[-1] == grads[-2]
    optimizer.add_param_group({"params": make_params((7,))})
    train(optimizer, [4])
    assert driver.launches[-1][9].data_ptr() != tables[0]


def test_no_tensor_of_a_step_that_updates_nothing(driver: Launches) -> None:
    optimizer = SGDScheduleFree([Parameter(torch.zeros(0))], implementation="fused")
    train(optimizer, range(2))
    assert len(driver.launches) == 1


def test_what_the_kernel_does_not_support_is_updated_by_another(driver: Launches) -> None:
    params = [
        Parameter(torch.randn(4, 6)[:, ::2]),
        Parameter(torch.randn(3, dtype=torch.float64)),
        Parameter(torch.randn(3, dtype=torch.complex128)),
    ]
    others = [Parameter(param.detach().clone(memory_format=torch.preserve_format)) for param in params]
    for of, implementation in ((params, "fused"), (others, "loop")):
        train(RAdamScheduleFree(of, silent_sgd_phase=False, implementation=implementation), range(7))
    for param, other in zip(params, others, strict=True):
        torch.testing.assert_close(param, other, rtol=0.0, atol=0.0)
    assert len(driver.launches) == 1  # that which updates nothing


def test_a_rule_that_triton_cannot_compile_runs_otherwise(driver: Launches, caplog: pytest.LogCaptureFixture) -> None:
    def direction(grad: Any) -> Any:
        return (grad**3,)

    rule = Rule(direction)
    with caplog.at_level(logging.DEBUG, "unscheduled"):
        kind = fused.Kind(torch.device("cpu"), torch.float32, torch.float32, (torch.float32,))
        assert fused.compiled_kernel(rule, kind) is None
        assert fused.compiled_kernel(rule, kind) is None
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert "Triton does not run direction, so that it is not fused" in caplog.text
    assert fused.compiled_kernel(Rule(lambda grad: (grad,)), kind) is None


def test_integers_of_a_graph_are_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is captured reads no memory of the host: integers are filled in on the device."""
    numbers = [0, 5, 2**47 + 1, 139_872_342_474_752]
    monkeypatch.setattr(fused, "DEVICE", "cpu")
    made = [fused._vector(numbers, torch.device("cpu"))]  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(fused, "is_capturing", lambda device: True)
    made.append(fused._vector(numbers, torch.device("cpu")))  # pyright: ignore[reportPrivateUsage]
    assert [each.tolist() for each in made] == [numbers, numbers]


def test_numbers_are_sent_whatever_the_default_device_is(driver: Launches) -> None:
    torch.set_default_device("meta")
    try:
        made = fused._sent([1, 2], [0.5], torch.device("cpu"))  # pyright: ignore[reportPrivateUsage]
    finally:
        torch.set_default_device(None)
    assert [each.tolist()[:2] for each in made] == [[1, 2], [0.5, 0.0]]


def test_a_kernel_that_is_not_there_is_not_made_in_a_capture(driver: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "is_capturing", lambda device: True)
    optimizer = AdamWScheduleFree(make_params(), implementation="fused")
    with pytest.raises(RuntimeError, match="is captured, but there is no kernel yet for gradients of torch"):
        train(optimizer, [0])
    assert not driver.launches


def test_triton_that_fails_otherwise_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("raise RuntimeError('no driver')\n")
    code = "from unscheduled import kernels; print(repr(kernels.import_fused('cuda')))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "RuntimeError('no driver')\n"


def test_triton_that_is_too_old_is_done_without() -> None:
    code = (
        "import triton; triton.__version__ = '3.3.1'; from unscheduled import kernels; "
        "print(kernels.import_fused('cuda'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "install 3.4 or newer" in run.stdout


def test_without_triton_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        device = torch.device("cuda")

    monkeypatch.setattr(kernels, "has_compiler", lambda device_type: False)
    rule = AdamWScheduleFree(make_params())._rule({"inner_momentum": 0.0})  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(ImportError, match=r"'fused' needs Triton 3\.4 or newer.*or use implementation = 'auto'"):
        kernels.check("fused", rule, [OnGpu()])  # type: ignore[list-item]


def test_arithmetic_of_the_text_is_that_of_the_definition() -> None:
    """The copies have the code of the definitions, and nothing else."""
    kernel = jit.kernel_of(rules()[0])
    assert kernel.fn.__code__ is jit.step.__code__
    assert set(kernel.fn.__globals__) > {"update", "tl"}
    assert kernel.fn.__globals__["tl"] is tl


@pytest.mark.parametrize("info", [info for info in ALL if info.capturable], ids=lambda info: info.desc)
def test_capturable_steps_are_refused_on_the_cpu(info: OptimizerInfo) -> None:
    with pytest.raises(ValueError, match="capturable = True, implementation = 'fused' exclude each other on the CPU"):
        info.make(make_params(), implementation="fused", capturable=True)
