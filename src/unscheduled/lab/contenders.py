"""The contenders of a race: the members of the family, and schedules. One entry in ``CONTENDERS`` is all that a new one
needs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from unscheduled import (
    AdamWScheduleFree,
    AnnealedInterpolation,
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

Options = Mapping[str, Any]
Prepare = Callable[[nn.Module, float, Options, int, int], "Training"]
Make = Callable[[nn.Module, float, Options, int], ScheduleFreeOptimizer]


@dataclass(frozen=True)
class Training:
    """What moves the weights of one run.

    Args:
        optimizer: stepped once a batch.
        schedule: stepped after the optimizer, if there is one.
    """

    optimizer: Optimizer
    schedule: LambdaLR | None = None

    def step(self, loss: Tensor) -> None:
        """One step, from the gradients of this loss."""
        if isinstance(self.optimizer, ScheduleFreeOptimizer):
            self.optimizer.step(loss=loss)
        else:
            self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()


@dataclass(frozen=True)
class Contender:
    """A way to train that a race compares.

    Args:
        theory: one line that says what it is.
        optimizer: the class whose ``OptimizerSettings`` of the task it takes.
        anytime: whether one run serves every horizon; otherwise each horizon has a run of its own.
        prepare: given the model, the learning rate, the other options, the steps of warmup and the horizon.
        lr: the learning rate, of one that is not to be tuned.
    """

    theory: str
    optimizer: str
    anytime: bool
    prepare: Prepare
    lr: float | None = None


def cosine(progress: float) -> float:
    """The share of the peak learning rate left: half a cosine, 1 at the end of the warmup, 0 at the horizon."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """The share of the peak learning rate left: a straight line, 1 at the end of the warmup, 0 at the horizon."""
    return 1.0 - progress


def warmup_then(decay: Callable[[float], float], warmup_steps: int, horizon: int) -> Callable[[int], float]:
    """The learning-rate factor of step k, from 0: (k + 1) / warmup_steps at first; exactly 0 at k = horizon."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return decay(min(1.0, (step - warmup_steps) / (horizon - warmup_steps)))

    return factor


def scheduled_adamw(name: str, decay: Callable[[float], float]) -> Contender:
    def prepare(model: nn.Module, lr: float, options: Options, warmup_steps: int, horizon: int) -> Training:
        optimizer = AdamW(model.parameters(), lr=lr, **options)
        return Training(optimizer, LambdaLR(optimizer, warmup_then(decay, warmup_steps, horizon)))

    return Contender(
        theory=f"AdamW, linear warmup, then {name} decay to 0 at the horizon: one run for each horizon",
        optimizer="AdamW",
        anytime=False,
        prepare=prepare,
    )


def with_beta(beta: float, options: Options) -> dict[str, Any]:
    """The options with another interpolation beta."""
    return {**options, "betas": (beta, options["betas"][1] if "betas" in options else 0.999)}


def schedule_free(
    theory: str,
    make: Make,
    optimizer: str = "AdamWScheduleFree",
    lr: float | None = None,
) -> Contender:
    """One run for all horizons, judged at the average.

    Args:
        theory: one line.
        make: given the model, the learning rate, the task's options and the steps of warmup.
        optimizer: whose options they are.
        lr: the learning rate, if it is not to be tuned.
    """

    def prepare(model: nn.Module, lr: float, options: Options, warmup_steps: int, horizon: int) -> Training:
        return Training(make(model, lr, options, warmup_steps).attach(model))

    return Contender(theory, optimizer, True, prepare, lr)


def of(
    cls: type[ScheduleFreeOptimizer],
    beta: float | None = None,
    params: Callable[[nn.Module], Any] = nn.Module.parameters,
    **axes: Any,
) -> Make:
    """One of the optimizers, with another choice on some axes."""

    def make(model: nn.Module, lr: float, options: Options, warmup_steps: int) -> ScheduleFreeOptimizer:
        own = options if beta is None else with_beta(beta, options)
        return cast(Any, cls)(params(model), lr=lr, warmup_steps=warmup_steps, **own, **axes)

    return make


def averaged_and_scheduled(
    theory: str,
    decay: Callable[[float], float],
    axes: Callable[[int], dict[str, Any]],
    beta: float | None = None,
) -> Contender:
    """Schedule-Free AdamW whose averaging needs a schedule, or the horizon: one run for each."""

    def prepare(model: nn.Module, lr: float, options: Options, warmup_steps: int, horizon: int) -> Training:
        options = options if beta is None else with_beta(beta, options)
        optimizer = AdamWScheduleFree(model.parameters(), lr=lr, **options, **axes(horizon)).attach(model)
        return Training(optimizer, LambdaLR(optimizer, warmup_then(decay, warmup_steps, horizon)))

    return Contender(theory, "AdamWScheduleFree", False, prepare)


def constant(progress: float) -> float:
    """The peak learning rate."""
    return 1.0


def make_radam(model: nn.Module, lr: float, options: Options, warmup_steps: int) -> ScheduleFreeOptimizer:
    """Without a warmup, whose place the rectification takes."""
    return of(RAdamScheduleFree)(model, lr, options, 0)


def make_wrapped(model: nn.Module, lr: float, options: Options, warmup_steps: int) -> ScheduleFreeOptimizer:
    base = torch.optim.RMSprop(model.parameters(), lr=lr, alpha=with_beta(0.9, options)["betas"][1])
    decay = options.get("weight_decay", 0.0)
    return ScheduleFreeWrapper(base, weight_decay_at_y=decay, warmup_steps=warmup_steps)


def muon_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Embeddings and the last linear layer are AdamW's, all other matrices Muon's."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    ends = [module for module in model.modules() if isinstance(module, nn.Embedding)] + linear[-1:]
    of_adamw = {id(param) for module in ends for param in module.parameters()}
    params = list(model.parameters())
    groups = [
        {"params": [param for param in params if id(param) not in of_adamw]},
        {"params": [param for param in params if id(param) in of_adamw], "use_muon": False},
    ]
    return [group for group in groups if group["params"]]


def make_amuse(model: nn.Module, lr: float, options: Options, warmup_steps: int) -> ScheduleFreeOptimizer:
    growing = GrowingInterpolation(power=0.7, start=max(1, warmup_steps))
    amuse = of(MuonScheduleFree, beta=0.5, params=muon_groups, interpolation=growing)
    return amuse(model, lr, options, warmup_steps)


def make_plus(model: nn.Module, lr: float, options: Options, warmup_steps: int) -> ScheduleFreeOptimizer:
    """The decay of the task is for learning rates; here it would be one for their squares."""
    own = {name: value for name, value in options.items() if name != "weight_decay"}
    return of(ScheduleFreePlus)(model, lr, own, warmup_steps)


CONTENDERS: dict[str, Contender] = {
    "schedule-free": schedule_free(
        "Schedule-Free AdamW, linear warmup, no decay, judged at the averaged weights: one run for all horizons",
        of(AdamWScheduleFree),
    ),
    "cosine": scheduled_adamw("cosine", cosine),
    "linear": scheduled_adamw("linear", linear),
    "constant": schedule_free(
        "plain AdamW (c = 1), linear warmup, no decay and no averaging: what averaging and schedules are to beat",
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
        "ScheduleFree+: Schedule-Free AdamW with the Polyak step, no learning rate at all", make_plus, lr=1.0
    ),
    "radam": schedule_free("Schedule-Free RAdam: the rectification takes the place of the warmup", make_radam),
    "sgd": schedule_free("Schedule-Free SGD, linear warmup", of(SGDScheduleFree), "SGDScheduleFree"),
    "lion": schedule_free(
        "Schedule-Free Lion without momentum inside: steps along the sign of the gradient, linear warmup",
        of(LionScheduleFree),
        "LionScheduleFree",
    ),
    "muon": schedule_free(
        "Schedule-Free Muon: orthogonal steps for matrices, AdamW's for the rest, linear warmup",
        of(MuonScheduleFree, params=muon_groups),
    ),
    "amuse": schedule_free("the same with a beta that grows from 0.5 towards 1 as in AMUSE", make_amuse),
    "wrapped-rmsprop": schedule_free("Schedule-Free learning over torch.optim.RMSprop, linear warmup", make_wrapped),
    "gpa": averaged_and_scheduled(
        "Generalized Primal Averaging: Schedule-Free AdamW with c = 0.0033, beta 0.8 and cosine decay",
        cosine,
        lambda horizon: {"averaging": ExponentialAveraging(c=1.0 - 0.9 ** (1 / 32)), "decay_at": "z"},
        beta=0.8,
    ),
    "schedulet": averaged_and_scheduled(
        "schedulet: linear decay, and the average weighed by the learning rate of each step",
        linear,
        lambda horizon: {"averaging": PolynomialAveraging(weight_lr_power=1.0, weight_lr="current")},
    ),
    "cool-down": averaged_and_scheduled(
        "Schedule-Free AdamW whose average begins afresh for the last fifth of the horizon",
        constant,
        lambda horizon: {"averaging": PolynomialAveraging(cooldown_start=max(1, round(0.8 * horizon)))},
    ),
}

DEFAULT_CONTENDERS = ("schedule-free", "cosine", "linear")
"""Those of a race for which the user names none."""
