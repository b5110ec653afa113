"""The lowerings of the definition, each tested equal to it.

| implementation | how | for |
|---|---|---|
| ``loop`` | the definition on each tensor | any rule, device and dtype |
| ``foreach`` | ``torch._foreach_*``, by hand | the default without the fused kernel, for rules that have it |
| ``compiled`` | the definition compiled by ``torch.compile`` into one graph | accelerators, if chosen |
| ``fused`` | the definition compiled by Numba or Triton into one pass | the default on the CPU, with Numba |

A direction that is not elementwise, such as Muon's, is computed tensor by tensor first; then the chosen implementation
makes the rest of the step. It also makes the rest of the step of a wrapped optimizer, whose base moves z first.

With ``capturable=True``, ``loop``, ``compiled`` or, on a GPU, ``fused`` makes the steps, with scalars on the device
that the host does not know: see :mod:`unscheduled.optimizer.capture`.

``torch.compile(optimizer.step)`` compiles the step of ``loop``, ``foreach`` or ``compiled`` as ``compiled`` does.
"""

import functools
import importlib
import importlib.util
import logging
from collections.abc import Iterable
from contextlib import ExitStack
from types import ModuleType
from typing import Literal, TypeAlias

from torch import Tensor

from unscheduled.formulas.rule import GIVEN, Rule
from unscheduled.kernels import compiled, foreach, loop, tensorwise
from unscheduled.kernels.batch import Batch as Batch
from unscheduled.kernels.batch import Scalars as Scalars
from unscheduled.kernels.batch import Tensors as Tensors
from unscheduled.kernels.batch import Work as Work
from unscheduled.kernels.batch import all_same as all_same
from unscheduled.kernels.batch import real as real
from unscheduled.kernels.compiled import Traceable as Traceable
from unscheduled.kernels.compiled import untraced as untraced
from unscheduled.kernels.numba import threads as threads  # it registers a function that runs after a fork
from unscheduled.kernels.storage import widened

Implementation: TypeAlias = Literal["auto", "loop", "foreach", "compiled", "fused"]

log = logging.getLogger("unscheduled")

IMPLEMENTATIONS = ("loop", "foreach", "compiled", "fused")


FUSED = {"cpu": ("numba", "unscheduled.kernels.numba.fused"), "cuda": ("triton", "unscheduled.kernels.triton.fused")}
"""For each type of device the library that compiles the fused kernel, and the module; that of HIP is "cuda", too."""

BY_DEFAULT = {"cpu"}
"""The types of devices on which ``"auto"`` is fused. "cuda" is to follow when its kernel has run on a GPU."""

NEEDED = {
    "cpu": "Numba: pip install 'unscheduled[fused]'",
    "cuda": "Triton 3.4 or newer, which comes with newer versions of torch for GPUs on Linux",
}


@functools.cache
def has_compiler(device_type: str) -> bool:
    """Whether the library of the fused kernel is installed; the first step that uses it imports it."""
    return device_type in FUSED and importlib.util.find_spec(FUSED[device_type][0]) is not None


@functools.cache
def import_fused(device_type: str) -> ModuleType | Exception:
    """The module of the fused implementation, or the error if the installed library fails to import."""
    library, module = FUSED[device_type]
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a library that is not whole, or too old, may raise
        log.debug("%s does not import, so that implementation = 'fused' is not used: %s", library.capitalize(), error)
        return error


def chosen(implementation: Implementation, foreach: bool | None, fused: bool | None) -> tuple[Implementation, str]:
    """The implementation that the arguments of a constructor choose, and the choosing argument as text for messages.

    ``fused=False`` alone chooses ``"auto"`` here: see :func:`unfused`.

    Raises:
        ValueError: if two of the arguments exclude each other, or ``foreach`` or ``fused`` is no bool.
    """
    flags = {"foreach": foreach, "fused": fused}
    for name, value in flags.items():
        if value is not None and not isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"{name} = {value!r} is neither True, False nor None")
    given = [f"{name} = {value}" for name, value in flags.items() if value is not None]
    if given and implementation != "auto":
        given.append(f"implementation = {implementation!r}")
    if len(given) > 1 and (implementation != "auto" or (foreach and fused)):
        raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
    if fused:
        return "fused", "fused = True"
    if foreach is not None:
        return ("foreach" if foreach else "loop"), f"foreach = {foreach}"
    return implementation, f"implementation = {implementation!r}"


def unfused(rule: Rule) -> Implementation:
    """The fastest implementation of a rule without the fused kernel, which ``fused=False`` chooses."""
    return "foreach" if rule.foreach is not None or not rule.elementwise else "loop"


def check(implementation: str, rule: Rule, params: Iterable[Tensor] = (), written: str = "") -> None:
    """Raise unless an implementation supports a rule and its parameters.

    Args:
        implementation: the name of the implementation.
        rule: the rule of the parameters.
        params: some of the parameters.
        written: the argument that chooses the implementation as text, if it is not ``implementation`` itself.

    Raises:
        ValueError: if there is no such implementation, the rule does not have it, or no parameter is on its device.
        ImportError: if the implementation needs a library that is not installed.
    """
    written = written or f"implementation = {implementation!r}"
    if implementation not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(f"implementation = {implementation!r} is unknown: use 'auto', {str(IMPLEMENTATIONS)[1:-1]}")
    if implementation == "foreach" and rule.foreach is None and rule.elementwise:
        raise ValueError(f"{written} is not there for this rule: use implementation = 'auto' or 'loop'")
    if implementation == "fused":
        devices = {param.device.type for param in params}
        if devices and not devices & FUSED.keys():
            raise ValueError(
                f"{written} is for the CPU and for CUDA and HIP, but the parameters are on "
                f"{' and '.join(sorted(devices))}: use implementation = 'auto' or 'foreach'"
            )
        for device in sorted(devices & FUSED.keys()):
            if not has_compiler(device):
                raise ImportError(
                    f"{written} needs {NEEDED[device]}, or use implementation = 'auto', which works without it"
                )


def check_capturable(implementation: str, params: Iterable[Tensor] = (), written: str = "") -> None:
    """Raise ValueError unless an implementation can make captured steps.

    Args:
        implementation: the name of the implementation.
        params: some of the parameters.
        written: the argument that chooses the implementation as text, if it is not ``implementation`` itself.
    """
    if implementation == "foreach" or (implementation == "fused" and any(param.is_cpu for param in params)):
        on_gpu = ", or on a GPU 'fused'" if implementation == "foreach" else ""
        raise ValueError(
            f"capturable = True, {written or f'implementation = {implementation!r}'} exclude each other"
            f"{'' if on_gpu else ' on the CPU'}: use implementation = 'auto', 'compiled' or 'loop'{on_gpu}"
        )


def of_capturable(implementation: str, works: list[Work]) -> str:
    """The implementation that makes a capturable step; ``"auto"`` is ``loop`` on the CPU and else ``compiled``."""
    params = [batch.params[0] for batch, _ in works]
    check_capturable(implementation, params)
    if implementation != "auto":
        return implementation
    return "loop" if any(param.is_cpu for param in params) else "compiled"


def update(implementation: str, rule: Rule, works: list[Work]) -> None:
    """Make one step of all parameters of a rule."""
    rule, works = _elementwise(implementation, rule, works)
    for batch, scalars in works:
        on_host = not isinstance(scalars.step, Tensor)
        by_foreach = implementation in ("auto", "foreach") or (implementation == "fused" and not batch.params[0].is_cpu)
        lowering = loop
        if implementation == "compiled":
            lowering = compiled
        elif by_foreach and on_host and rule.foreach is not None:
            lowering = foreach
        with widened(rule, batch, scalars.step) as wide:
            if lowering is loop and not on_host:
                loop.update_all(compiled.traceable(rule, wide, scalars))
            else:
                lowering.update(rule, wide, scalars)


def traceable(implementation: str, rule: Rule, works: list[Work], widths: ExitStack) -> list[Traceable]:
    """The arguments of the loop for a step in a function that is being compiled, which adds the loop to its graph.

    Narrow parameters and buffers are stored again when ``widths`` is closed.
    """
    rule, works = _elementwise(implementation, rule, works)
    return [
        work
        for batch, scalars in works
        for work in compiled.traceable(rule, widths.enter_context(widened(rule, batch, scalars.step)), scalars)
    ]


def _elementwise(implementation: str, rule: Rule, works: list[Work]) -> tuple[Rule, list[Work]]:
    """An elementwise rule and the work that is left for it, after the fused kernel where it is used."""
    if not rule.elementwise:
        rule, works = GIVEN, [tensorwise.directed(rule, work) for work in works]
    for device in sorted({batch.params[0].device.type for batch, _ in works} & FUSED.keys()):
        if implementation == "fused" or (implementation == "auto" and device in BY_DEFAULT and has_compiler(device)):
            fused = import_fused(device)
            if not isinstance(fused, Exception):
                works = fused.update(rule, works)
            elif implementation == "fused":
                library = FUSED[device][0].capitalize()
                raise ImportError(
                    f"implementation = 'fused' needs {library}, which does not import: {fused}"
                ) from fused
    return rule, works
