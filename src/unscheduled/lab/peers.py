"""Learning-rate-free optimizers of other authors as contenders, each with its authors' defaults and schedule.

They need the extra ``peers``. Each gets the weight decay of the task, but for DoG, whose decay is an L2 penalty.
"""

import contextlib
import io
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from unscheduled.lab.contender import Contender, Options, Training
from unscheduled.lab.schedules import cosine, warmup_then


def of_peer(module: str, name: str) -> Callable[..., Any]:
    """A class of another library; what it prints when it is called is left out."""
    cls = getattr(import_module(module), name)

    def make(*args: Any, **kwargs: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return cls(*args, **kwargs)

    return make


def decay_of(options: Options) -> dict[str, Any]:
    return {"weight_decay": options.get("weight_decay", 0.0)}


def with_cosine(make: Callable[[nn.Module, float, Options], Optimizer], warmup: bool) -> Any:
    """A preparation with cosine decay to 0 at the horizon, after the task's linear warmup or none."""

    def prepare(model: nn.Module, lr: float, options: Options, warmup_steps: int, horizon: int) -> Training:
        optimizer = make(model, lr, options)
        return Training(optimizer, LambdaLR(optimizer, warmup_then(cosine, warmup_steps * warmup, horizon)))

    return prepare


def make_prodigy(model: nn.Module, lr: float, options: Options) -> Optimizer:
    return of_peer("prodigyopt", "Prodigy")(model.parameters(), lr=lr, **decay_of(options))


def make_d_adaptation(model: nn.Module, lr: float, options: Options) -> Optimizer:
    return of_peer("dadaptation", "DAdaptAdam")(model.parameters(), lr=lr, decouple=True, **decay_of(options))


def prepare_prodigy_plus(model: nn.Module, lr: float, options: Options, warmup_steps: int, horizon: int) -> Training:
    optimizer = of_peer("prodigyplus", "ProdigyPlusScheduleFree")(model.parameters(), lr=lr, **decay_of(options))

    @contextmanager
    def averaged() -> Generator[nn.Module]:
        optimizer.eval()
        try:
            yield model
        finally:
            optimizer.train()

    return Training(optimizer, averaged=averaged)


def prepare_dog(model: nn.Module, lr: float, options: Options, warmup_steps: int, horizon: int) -> Training:
    """DoG with its polynomial average; its authors advise a larger first step for models with BatchNorm."""
    first = 1e-4 if any(isinstance(module, _BatchNorm) for module in model.modules()) else 1e-6
    optimizer = of_peer("dog", "DoG")(model.parameters(), lr=lr, reps_rel=first)
    averager = of_peer("dog", "PolynomialDecayAverager")(model)
    return Training(optimizer, averager, lambda: contextlib.nullcontext(averager.averaged_model))


PEERS: Mapping[str, Contender] = {
    "prodigy": Contender(
        "Prodigy with cosine decay to 0 at the horizon, no warmup",
        "AdamW",
        False,
        with_cosine(make_prodigy, False),
        1.0,
        "prodigyopt",
    ),
    "d-adaptation": Contender(
        "DAdaptAdam with decoupled decay, linear warmup, then cosine decay to 0 at the horizon",
        "AdamW",
        False,
        with_cosine(make_d_adaptation, True),
        1.0,
        "dadaptation",
    ),
    "prodigy-plus": Contender(
        "prodigy-plus-schedule-free: no schedule, judged at its average",
        "AdamW",
        True,
        prepare_prodigy_plus,
        1.0,
        "prodigy-plus-schedule-free",
    ),
    "dog": Contender(
        "DoG: no schedule, judged at its polynomial average", "AdamW", True, prepare_dog, 1.0, "dog-optimizer"
    ),
}
"""The contenders by name."""
