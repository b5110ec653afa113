"""Every optimizer with its configurations, the corresponding settings of the oracle, arguments that it must refuse, and
its flags.

A new algorithm is one entry in OPTIMIZERS; every test of the contract runs over all entries. What differs between
algorithms is a flag of the entry, so that no test leaves one out silently.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from unscheduled import (
    AdamWScheduleFree,
    ADOPTScheduleFree,
    AnnealedInterpolation,
    AutoScheduleFree,
    ExponentialAveraging,
    GrowingInterpolation,
    LionScheduleFree,
    MuonScheduleFree,
    NoAveraging,
    PolynomialAveraging,
    RAdamScheduleFree,
    ScheduleFreeOptimizer,
    ScheduleFreePlus,
    ScheduleFreeWrapper,
    SGDScheduleFree,
)

IMPLEMENTATIONS = ["loop", "foreach", "fused"]

GRADIENTS = (3.0, -4.0, 1.0, 4.0)
"""The first gradients of a single number, for which every entry has the moves by hand."""

ADAM_BY_HAND = (
    3.0 / sqrt(0.009 / 0.001),
    -4.0 / sqrt(0.024991 / 0.001999),
    1.0 / sqrt(0.025966009 / 0.002997001),
    4.0 / sqrt(0.041940042991 / 0.003994003999),
)
"""v = 0.999 v + 0.001 g^2, over 1 - 0.999^t."""


@dataclass(frozen=True)
class Configuration:
    """``arguments`` of the optimizer that correspond to ``settings`` of the oracle."""

    desc: str
    arguments: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Refused:
    """Arguments that must raise ValueError, and the pattern of its message."""

    arguments: dict[str, Any]
    match: str

    @property
    def desc(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.arguments.items())


@dataclass(frozen=True)
class OptimizerInfo:
    """An optimizer under test."""

    cls: type[ScheduleFreeOptimizer]
    rule: str  # its name in the oracle
    lr: float  # a learning rate that suits random gradients
    beta_arguments: Any  # beta -> arguments
    own: tuple[Configuration, ...]  # configurations for this optimizer only
    refused: tuple[Refused, ...]
    buffers: frozenset[str]
    oracle: dict[str, Any] = field(default_factory=dict)  # its defaults, where they are not the oracle's
    by_hand: tuple[float, ...] = ()  # how far z moves, in units of lr, against each of GRADIENTS

    # What it can do.
    capturable: bool = True
    polyak: bool = False  # there is a Polyak step for its direction
    distance: bool = False  # and a distance step
    compact: float | None = 3.2  # more than the bytes a parameter of its compact state; None if there is none
    counterpart: type[torch.optim.Optimizer] | None = None  # what to_torch hands its runs over to
    reads: frozenset[str] = frozenset()  # whose files it reads, and can be exported to: "schedulefree", "AdamW"
    flattens: bool = True  # torch's DCP can flatten its state

    # What it is like.
    silent_steps: int = 0  # the first ones, in which nothing moves
    jumps: bool = False  # its direction jumps where that of the oracle may round to the other side
    rules: int = 1  # that its parameters are divided by, matrices and others
    phases: int = 1  # of a run, each of which has a graph of its own where its numbers are on the host
    elementwise: dict[str, Any] = field(default_factory=dict)  # arguments with which the shape makes no difference
    with_all_buffers: dict[str, Any] = field(default_factory=dict)  # arguments with which it keeps most

    @property
    def desc(self) -> str:
        return self.cls.__name__

    def make(self, params: Any, **arguments: Any) -> ScheduleFreeOptimizer:
        return self.cls(params, **({"lr": self.lr} | arguments))

    def buffers_of(self, param: Tensor) -> frozenset[str]:
        """The buffers of a parameter; for parameters that are no matrices, Muon has those of AdamW."""
        is_adamws = self.rules > 1 and param.dim() < 2
        return frozenset({"gap", "exp_avg_sq"}) if is_adamws else self.buffers

    def configurations(self) -> list[Configuration]:
        """The configurations: every choice by itself, and some choices together."""
        found = [
            Configuration("default", {}, {}),
            *(Configuration(f"beta={beta:g}", self.beta_arguments(beta), {"beta": beta}) for beta in (0.0, 0.5, 1.0)),
        ]
        shared: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "warmup": ({"warmup_steps": 12}, {"warmup_steps": 12}),
            "warmup, r, decay": (
                {"warmup_steps": 12, "r": 0.75, "weight_decay": 0.1},
                {"warmup_steps": 12, "r": 0.75, "weight_decay": 0.1},
            ),
            "decay": ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
            "decay at z": ({"weight_decay": 0.1, "decay_at": "z"}, {"weight_decay": 0.1, "decay_at": "z"}),
            "r": ({"r": 2.5}, {"r": 2.5}),
            "r<0": ({"r": -0.5}, {"r": -0.5}),
            "equal weights": ({"weight_lr_power": 0.0}, {"weight_lr_power": 0.0}),
            "averaging warmup": (
                {"averaging": PolynomialAveraging(r=1, warmup_steps=7)},
                {"r": 1, "averaging_warmup_steps": 7},
            ),
            "exponential": ({"averaging": ExponentialAveraging(0.05)}, {"constant_c": 0.05}),
            "none": ({"averaging": NoAveraging()}, {"constant_c": 1.0}),
            "current lr": (
                {"averaging": PolynomialAveraging(weight_lr_power=1, weight_lr="current"), "warmup_steps": 12},
                {"weight_lr": "current", "weight_lr_power": 1, "warmup_steps": 12},
            ),
            "cool-down": (
                {"averaging": PolynomialAveraging(r=1, cooldown_start=40)},
                {"r": 1, "cooldown_start": 40},
            ),
            "growing": (
                {"interpolation": GrowingInterpolation(0.7, 10)} | self.beta_arguments(0.5),
                {"beta": 0.5, "growing_power": 0.7, "growing_start": 10},
            ),
            "annealed": ({"interpolation": AnnealedInterpolation(0.97, 30)}, {"beta_max": 0.97, "anneal_steps": 30}),
            "maximize": ({"maximize": True, "weight_decay": 0.1}, {"maximize": True, "weight_decay": 0.1}),
        }
        for desc, (arguments, settings) in shared.items():
            found.append(Configuration(desc, arguments, settings))
        all_at_once = {"weight_decay": 0.1, "decay_at": "z", "maximize": True}
        found.append(
            Configuration(
                "annealed, exponential, decay at z, maximize",
                all_at_once
                | {"averaging": ExponentialAveraging(0.05), "interpolation": AnnealedInterpolation(0.97, 30)},
                all_at_once | {"constant_c": 0.05, "beta_max": 0.97, "anneal_steps": 30},
            )
        )
        return [*found, *self.own]

    def settings(self, configuration: Configuration) -> dict[str, Any]:
        """The oracle's settings for a configuration."""
        return {"rule": self.rule, "lr": self.lr, "beta": 0.9} | self.oracle | configuration.settings


class WrappedInfo(OptimizerInfo):
    """The wrapper over torch's SGD, as SGDScheduleFree: the base does decay at z and maximizing."""

    def make(self, params: Any, **arguments: Any) -> ScheduleFreeOptimizer:
        of_base = {"lr": arguments.pop("lr", self.lr), "maximize": arguments.pop("maximize", False)}
        if arguments.pop("decay_at", "y") == "z":
            of_base["weight_decay"] = arguments.pop("weight_decay", 0.0)
        if "weight_decay" in arguments:
            arguments["weight_decay_at_y"] = arguments.pop("weight_decay")
        foreach = arguments.pop("foreach", None)
        if foreach is not None:
            arguments["implementation"] = "foreach" if foreach else "loop"
        return ScheduleFreeWrapper(torch.optim.SGD(params, **of_base), **arguments)


REFUSED = (
    Refused({"lr": -1.0}, r"lr = -1\.0 is outside \[0, inf\)"),
    Refused({"lr": float("nan")}, r"lr = nan is outside \[0, inf\)"),
    Refused({"lr": float("inf")}, r"lr = inf is outside \[0, inf\)"),
    Refused({"weight_decay": -0.1}, r"weight_decay = -0\.1 is outside \[0, inf\)"),
    Refused({"warmup_steps": -1}, r"warmup_steps = -1 is no integer >= 0"),
    Refused({"warmup_steps": 0.05}, r"warmup_steps = 0\.05 is no integer >= 0: give a number of steps"),
    Refused({"r": -1.0}, r"r = -1\.0 is outside \(-1, 32\]"),
    Refused({"weight_lr_power": -1.0}, r"weight_lr_power = -1\.0 is outside \[0, 8\]"),
    Refused({"weight_lr_power": 9.0}, r"weight_lr_power = 9\.0 is outside \[0, 8\]"),
    Refused({"lr": "1e-3"}, r"lr = '1e-3' is not a number"),
    Refused({"weight_decay": "0.1"}, r"weight_decay = '0\.1' is not a number: use 0 for none"),
    Refused({"averaging": NoAveraging}, r"averaging = NoAveraging is a class: make an object of it, with parentheses"),
    Refused({"decay_at": "x"}, r"decay_at = 'x' is neither 'y' nor 'z'"),
    Refused({"averaging": 0.1}, r"averaging = 0\.1 is no averaging"),
    Refused({"r": 1.0, "averaging": NoAveraging()}, r"r = 1\.0, averaging = NoAveraging\(\) exclude each other"),
    Refused({"interpolation": "annealed"}, r"interpolation = 'annealed' is no interpolation"),
)

REFUSED_BETAS = (
    Refused({"betas": (1.9, 0.999)}, r"betas\[0\] = 1\.9 is outside \[0, 1\]"),
    Refused({"betas": (-0.1, 0.999)}, r"betas\[0\] = -0\.1 is outside \[0, 1\]"),
    Refused({"betas": (0.9, 1.0)}, r"betas\[1\] = 1\.0 is outside \[0, 1\)"),
    Refused({"betas": (float("nan"), 0.9)}, r"betas\[0\] = nan is outside \[0, 1\]"),
    Refused({"betas": 0.9}, r"betas = 0\.9 is no pair"),
    Refused({"eps": 0.0}, r"eps = 0\.0 is outside \[1e-30, inf\)"),
    Refused({"eps": -1e-8}, r"eps = -1e-08 is outside \[1e-30, inf\)"),
)

OPTIMIZERS = (
    OptimizerInfo(
        cls=SGDScheduleFree,
        rule="sgd",
        lr=0.1,
        beta_arguments=lambda beta: {"momentum": beta},
        own=(),
        refused=(
            *REFUSED,
            Refused({"momentum": 1.5}, r"momentum = 1\.5 is outside \[0, 1\]"),
            Refused({"momentum": -0.5}, r"momentum = -0\.5 is outside \[0, 1\]"),
            Refused(
                {"momentum": 1.0, "interpolation": AnnealedInterpolation(0.9, 9)},
                r"momentum = 1\.0, interpolation = Annealed.*: beta = 1\.0 is outside \[0, 1\)",
            ),
        ),
        buffers=frozenset({"gap"}),
        by_hand=GRADIENTS,
        polyak=True,
        distance=True,
        compact=2.1,
        counterpart=torch.optim.SGD,
        reads=frozenset({"schedulefree"}),
    ),
    OptimizerInfo(
        cls=AdamWScheduleFree,
        rule="adamw",
        lr=0.01,
        beta_arguments=lambda beta: {"betas": (beta, 0.999)},
        own=(
            Configuration("beta2, eps", {"betas": (0.95, 0.9), "eps": 1e-3}, {"beta": 0.95, "beta2": 0.9, "eps": 1e-3}),
            Configuration("inner momentum", {"inner_momentum": 0.8}, {"inner_momentum": 0.8}),
            Configuration(
                "inner momentum, decay, warmup",
                {"inner_momentum": 0.9, "weight_decay": 0.1, "warmup_steps": 9},
                {"inner_momentum": 0.9, "weight_decay": 0.1, "warmup_steps": 9},
            ),
        ),
        refused=(
            *REFUSED,
            *REFUSED_BETAS,
            Refused({"inner_momentum": 1.0}, r"inner_momentum = 1\.0 is outside \[0, 1\)"),
        ),
        buffers=frozenset({"gap", "exp_avg_sq"}),
        by_hand=ADAM_BY_HAND,
        polyak=True,
        distance=True,
        counterpart=torch.optim.AdamW,
        reads=frozenset({"schedulefree", "AdamW"}),
        with_all_buffers={"inner_momentum": 0.9},
    ),
    OptimizerInfo(
        cls=RAdamScheduleFree,
        rule="radam",
        lr=0.01,
        beta_arguments=lambda beta: {"betas": (beta, 0.999)},
        own=(
            Configuration("loud sgd phase", {"silent_sgd_phase": False}, {"silent_sgd_phase": False}),
            Configuration("beta2", {"betas": (0.9, 0.9)}, {"beta2": 0.9}),
            Configuration(
                "only sgd", {"betas": (0.9, 0.5), "silent_sgd_phase": False}, {"beta2": 0.5, "silent_sgd_phase": False}
            ),
        ),
        refused=(
            *REFUSED,
            *REFUSED_BETAS,
            Refused({"betas": (0.9, 0.6)}, r"betas\[1\] = 0\.6 .* nothing would ever move: use 0\.999"),
        ),
        buffers=frozenset({"gap", "exp_avg_sq"}),
        by_hand=(0.0, 0.0, 0.0, 0.0),
        counterpart=torch.optim.AdamW,
        reads=frozenset({"schedulefree", "AdamW"}),
        distance=True,
        silent_steps=4,
        phases=2,
    ),
    OptimizerInfo(
        cls=LionScheduleFree,
        rule="lion",
        lr=0.003,
        beta_arguments=lambda beta: {"betas": (beta, 0.99)},
        own=(
            Configuration("inner momentum", {"inner_momentum": 0.9}, {"inner_momentum": 0.9}),
            Configuration(
                "inner momentum, beta2, decay",
                {"inner_momentum": 0.8, "betas": (0.9, 0.9), "weight_decay": 0.1},
                {"inner_momentum": 0.8, "beta2": 0.9, "weight_decay": 0.1},
            ),
        ),
        refused=(
            *REFUSED,
            *(case for case in REFUSED_BETAS if "betas" in case.arguments),
            Refused({"inner_momentum": 1.0}, r"inner_momentum = 1\.0 is outside \[0, 1\)"),
        ),
        buffers=frozenset({"gap"}),
        oracle={"beta2": 0.99},
        by_hand=(1.0, -1.0, 1.0, 1.0),
        compact=2.1,
        jumps=True,
        with_all_buffers={"inner_momentum": 0.9},
    ),
    OptimizerInfo(
        cls=MuonScheduleFree,
        rule="muon",
        lr=0.01,
        beta_arguments=lambda beta: {"betas": (beta, 0.999)},
        own=(
            Configuration("inner momentum", {"inner_momentum": 0.5}, {"inner_momentum": 0.5}),
            Configuration("decay at y", {"weight_decay": 0.1, "decay_at": "y"}, {"weight_decay": 0.1, "decay_at": "y"}),
            Configuration("steps", {"ns_steps": 2}, {"ns_steps": 2}),
            Configuration("all of AdamW", {"use_muon": False}, {"rule": "adamw", "inner_momentum": 0.0}),
        ),
        refused=(
            *REFUSED,
            *REFUSED_BETAS,
            Refused({"inner_momentum": 1.0}, r"inner_momentum = 1\.0 is outside \[0, 1\)"),
            Refused({"ns_steps": 0}, r"ns_steps = 0 is no integer >= 1"),
            Refused({"use_muon": "yes"}, r"use_muon = 'yes' is neither True, False nor None"),
        ),
        buffers=frozenset({"gap", "momentum_buffer"}),
        oracle={"inner_momentum": 0.95, "decay_at": "z"},
        by_hand=ADAM_BY_HAND,  # a single number is no matrix
        compact=4.1,
        rules=2,
        elementwise={"use_muon": False},
    ),
    OptimizerInfo(
        cls=ADOPTScheduleFree,
        rule="adopt",
        lr=0.01,
        beta_arguments=lambda beta: {"betas": (beta, 0.9999)},
        own=(Configuration("beta2, eps", {"betas": (0.9, 0.9), "eps": 0.1}, {"beta2": 0.9, "eps": 0.1}),),
        refused=(*REFUSED, *REFUSED_BETAS),
        buffers=frozenset({"gap", "square_avg"}),
        oracle={"beta2": 0.9999, "eps": 1e-6},
        by_hand=(0.0, -1.0, 1.0 / sqrt(9.0007), 3**0.25),  # v = 9, 9.0007, 8.99989993; clipped but for the third
        compact=None,
        silent_steps=1,
    ),
)

WRAPPED = WrappedInfo(
    cls=ScheduleFreeWrapper,
    rule="sgd",
    lr=0.1,
    beta_arguments=lambda beta: {"momentum": beta},
    own=(),
    refused=(),
    buffers=frozenset({"gap"}),
    by_hand=GRADIENTS,
    capturable=False,
    compact=2.1,
    counterpart=torch.optim.SGD,
    flattens=False,
)
ALL = (*OPTIMIZERS, WRAPPED)

DEFAULTS_OF: dict[type[ScheduleFreeOptimizer], type[ScheduleFreeOptimizer]] = {
    AutoScheduleFree: AdamWScheduleFree,
    ScheduleFreePlus: AdamWScheduleFree,
}
"""Classes that only give other defaults to one of these."""

optimizers = pytest.mark.parametrize("info", ALL, ids=lambda info: info.desc)
with_distance_step = pytest.mark.parametrize(
    "info", [info for info in ALL if info.distance], ids=lambda info: info.desc
)
built_in = pytest.mark.parametrize("info", OPTIMIZERS, ids=lambda info: info.desc)
compactable = pytest.mark.parametrize("info", [info for info in ALL if info.compact], ids=lambda info: info.desc)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)

NARROW = (
    (torch.float32, "compact"),
    (torch.bfloat16, "compact"),
    (torch.bfloat16, "float32"),
    (torch.float16, "float32"),
)
"""Of parameters and states, those in which something is stored narrow."""


def narrow_runs(infos: Iterable[OptimizerInfo]) -> Any:
    """These optimizers with all that they can store narrow."""
    runs = [
        pytest.param(info, dtype, precision, id=f"{info.cls.__name__}-{str(dtype)[6:]}-{precision}")
        for info in infos
        for dtype, precision in NARROW
        if info.compact or precision != "compact"
    ]
    return pytest.mark.parametrize(("info", "dtype", "state_precision"), runs)


narrow, narrow_built_in = narrow_runs(ALL), narrow_runs(OPTIMIZERS)
configurations = pytest.mark.parametrize(
    ("info", "configuration"),
    [
        pytest.param(info, configuration, id=f"{info.cls.__name__}-{configuration.desc}")
        for info in ALL
        for configuration in info.configurations()
    ],
)
