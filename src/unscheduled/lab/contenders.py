"""The contenders that every race knows: the members of the Schedule-Free family, and schedules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from unscheduled import (
    AdamWScheduleFree,
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
from unscheduled.lab.contender import Contender, Options, Training, of, schedule_free, scheduled, with_beta
from unscheduled.lab.peers import PEERS
from unscheduled.lab.schedules import Decay, constant, cosine, linear, step_decay, warmup_then, wsd

SHAPES: dict[str, tuple[str, Decay]] = {
    "cosine": ("cosine decay to 0 at the horizon", cosine),
    "linear": ("linear decay to 0 at the horizon", linear),
    "step": ("a tenth of the rate from half of the horizon on, a hundredth from three quarters on", step_decay),
    "wsd": ("the peak rate for 4/5 of the way, then linear decay to 0 at the horizon (WSD)", wsd),
}
"""The decays after the linear warmup: for each schedule its description and its function."""


def adamw(model: nn.Module, lr: float, options: Options) -> Optimizer:
    return AdamW(model.parameters(), lr=lr, **options)


def sgd(model: nn.Module, lr: float, options: Options) -> Optimizer:
    return SGD(model.parameters(), lr=lr, **options)


def plain_muon(model: nn.Module, lr: float, options: Options) -> Optimizer:
    """Muon without averaging, with its usual momentum; AdamW without a first moment updates the other parameters."""
    return MuonScheduleFree(muon_groups(model), lr=lr, averaging=NoAveraging(), **options).attach(model)


def muon_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups: AdamW updates the embeddings and the last linear layer, Muon the other matrices."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    ends = [module for module in model.modules() if isinstance(module, nn.Embedding)] + layers[-1:]
    of_adamw = {id(param) for module in ends for param in module.parameters()}
    params = list(model.parameters())
    groups = [
        {"params": [param for param in params if id(param) not in of_adamw]},
        {"params": [param for param in params if id(param) in of_adamw], "use_muon": False},
    ]
    return [group for group in groups if group["params"]]


def averaged_and_scheduled(
    theory: str, decay: Decay, choices: Callable[[int], dict[str, Any]], beta: float | None = None
) -> Contender:
    """A contender of Schedule-Free AdamW whose averaging needs a schedule or the horizon: a run for each horizon."""

    def prepare(model: nn.Module, lr: float, options: Options, warmup_steps: int, horizon: int) -> Training:
        optimizer = of(AdamWScheduleFree, beta, **choices(horizon))(model, lr, options, 0).attach(model)
        return Training(optimizer, LambdaLR(optimizer, warmup_then(decay, warmup_steps, horizon)))

    return Contender(theory, "AdamWScheduleFree", False, prepare)


def make_radam(model: nn.Module, lr: float, options: Options, warmup_steps: int) -> ScheduleFreeOptimizer:
    """Schedule-Free RAdam without a warmup, since the rectification replaces it."""
    return of(RAdamScheduleFree)(model, lr, options, 0)


def make_wrapped(model: nn.Module, lr: float, options: Options, warmup_steps: int) -> ScheduleFreeOptimizer:
    base = torch.optim.RMSprop(model.parameters(), lr=lr, alpha=with_beta(0.9, options)["betas"][1])
    decay = options.get("weight_decay", 0.0)
    return ScheduleFreeWrapper(base, weight_decay_at_y=decay, warmup_steps=warmup_steps)


def make_amuse(power: float) -> Any:
    """A function that makes Schedule-Free Muon with the growing beta of AMUSE, with this power of the growth."""

    def make(model: nn.Module, lr: float, options: Options, warmup_steps: int) -> ScheduleFreeOptimizer:
        growing = GrowingInterpolation(power=power, start=max(1, warmup_steps))
        muon = of(MuonScheduleFree, beta=0.5, params=muon_groups, interpolation=growing)
        return muon(model, lr, options, warmup_steps)

    return make


def make_plus(model: nn.Module, lr: float, options: Options, warmup_steps: int) -> ScheduleFreeOptimizer:
    """ScheduleFree+ without the task's weight decay, which it would multiply by the square of the step size."""
    own = {name: value for name, value in options.items() if name != "weight_decay"}
    return of(ScheduleFreePlus)(model, lr, own, warmup_steps)


def make_distance(model: nn.Module, lr: float, options: Options, warmup_steps: int) -> ScheduleFreeOptimizer:
    """Schedule-Free AdamW with the distance step and betas of its own, without a warmup."""
    own = {name: value for name, value in options.items() if name != "betas"}
    return AutoScheduleFree(model.parameters(), lr, **own)


CONTENDERS: dict[str, Contender] = {
    "schedule-free": schedule_free(
        "Schedule-Free AdamW, linear warmup, no decay, judged at the averaged weights: one run for all horizons",
        of(AdamWScheduleFree),
    ),
    "schedule-free-r1": schedule_free(
        "Schedule-Free AdamW with beta 0.8, r = 1 and decay at z: the average follows late steps more",
        of(AdamWScheduleFree, beta=0.8, r=1.0, decay_at="z"),
    ),
    **{name: scheduled(f"AdamW, linear warmup, then {text}", "AdamW", adamw, d) for name, (text, d) in SHAPES.items()},
    "constant": schedule_free(
        "plain AdamW (c = 1), linear warmup, no decay and no averaging: the baseline of averaging and of schedules",
        of(AdamWScheduleFree, inner_momentum=0.9, averaging=NoAveraging()),
    ),
    "polyak-ruppert": schedule_free(
        "Schedule-Free AdamW with beta = 0: gradients at z, x the mean of all z", of(AdamWScheduleFree, beta=0.0)
    ),
    "primal": schedule_free(
        "Schedule-Free AdamW with beta = 1: gradients at the average itself", of(AdamWScheduleFree, beta=1.0)
    ),
    "river": schedule_free(
        "Schedule-Free AdamW with C = 50, that is r = 4: the average follows late steps more",
        of(AdamWScheduleFree, averaging=PolynomialAveraging.river(C=50, beta=0.9)),
    ),
    "annealed": schedule_free(
        "Schedule-Free AdamW, beta annealed to 0.965 over 1,000 steps, evenly in log(1 - beta)",
        of(AdamWScheduleFree, interpolation=AnnealedInterpolation(beta_max=0.965, steps=1000)),
    ),
    "inner-momentum": schedule_free(
        "Schedule-Free AdamW with Adam's momentum 0.9 inside", of(AdamWScheduleFree, inner_momentum=0.9)
    ),
    "plus": schedule_free(
        "Schedule-Free AdamW with the Polyak step (ScheduleFree+, its means over all steps): no learning rate",
        make_plus,
        lr=1.0,
    ),
    "distance": schedule_free(
        "Schedule-Free AdamW with the distance step: no learning rate, no warmup, no loss", make_distance, lr=1.0
    ),
    "radam": schedule_free("Schedule-Free RAdam: the rectification takes the place of the warmup", make_radam),
    "sgd": schedule_free("Schedule-Free SGD, linear warmup", of(SGDScheduleFree), "SGDScheduleFree"),
    "sgd-r1": schedule_free(
        "Schedule-Free SGD with r = 1: the average follows late steps more",
        of(SGDScheduleFree, r=1.0),
        "SGDScheduleFree",
    ),
    **{
        f"sgd-{name}": scheduled(f"SGD, linear warmup, then {text}", "SGD", sgd, d)
        for name, (text, d) in SHAPES.items()
    },
    "lion": schedule_free(
        "Schedule-Free Lion without momentum inside: steps along the sign of the gradient, linear warmup",
        of(LionScheduleFree),
        "LionScheduleFree",
    ),
    "muon": schedule_free(
        "Schedule-Free Muon: orthogonal steps for matrices, AdamW's for the rest, linear warmup",
        of(MuonScheduleFree, params=muon_groups),
    ),
    "muon-r1": schedule_free(
        "Schedule-Free Muon with beta 0.8 and r = 1", of(MuonScheduleFree, beta=0.8, params=muon_groups, r=1.0)
    ),
    "muon-linear": scheduled(
        f"Muon without averaging, linear warmup, then {SHAPES['linear'][0]}", "AdamWScheduleFree", plain_muon, linear
    ),
    "amuse": schedule_free(
        "Schedule-Free Muon with a beta that grows from 0.5 towards 1 as in AMUSE, power 0.7", make_amuse(0.7)
    ),
    "amuse-slow": schedule_free(
        "Schedule-Free Muon with a beta that grows from 0.5 towards 1 as in AMUSE, power 0.5", make_amuse(0.5)
    ),
    "wrapped-rmsprop": schedule_free("Schedule-Free learning over torch.optim.RMSprop, linear warmup", make_wrapped),
    "gpa": averaged_and_scheduled(
        "Generalized Primal Averaging: Schedule-Free AdamW with c = 0.0033, beta 0.8 and cosine decay",
        cosine,
        lambda horizon: {"averaging": ExponentialAveraging(c=1.0 - 0.9 ** (1 / 32)), "decay_at": "z"},
        beta=0.8,
    ),
    "schedulet": averaged_and_scheduled(
        "schedulet: linear decay, and the average weighted by the learning rate of each step",
        linear,
        lambda horizon: {"averaging": PolynomialAveraging(weight_lr_power=1.0, weight_lr="current")},
    ),
    "cool-down": averaged_and_scheduled(
        "Schedule-Free AdamW whose average restarts for the last fifth of the horizon",
        constant,
        lambda horizon: {"averaging": PolynomialAveraging(cooldown_start=max(1, round(0.8 * horizon)))},
    ),
    **PEERS,
}

DEFAULT_CONTENDERS = ("schedule-free", "cosine", "linear")
"""The contenders of a race if the user names none."""
