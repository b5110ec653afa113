"""What the parameters hold: y while training, x while evaluating; switched by hand, or by the attached models."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from unscheduled import attachment, loading
from unscheduled.attachment import Attachment
from unscheduled.groups import Group
from unscheduled.interval import require_count
from unscheduled.state import (
    Iterates,
    State,
    gradient_point,
    holds_average,
    keeps_gradient_point,
    put_averages,
    put_gradient_points,
    read,
    settle,
)

if TYPE_CHECKING:
    from typing_extensions import Self

Seen = dict[Tensor, tuple[Callable[[], Any], int]]  # gradients, and how often each had been written


class TwoModes(torch.optim.Optimizer):
    """An optimizer whose parameters hold y or x, and the ways from one to the other."""

    _averaged: set[Tensor]  # the parameters that hold x
    _attachments: list[Attachment]
    _loaded_training: bool | None  # the mode of a loaded file, until the first step or switch after it
    _averaged_before_load: set[Tensor]
    _written: dict[Tensor, Tensor]  # weights that were loaded as a new x, until the first step or switch after it
    _gradients_before_eval: Seen
    _gradients_at_average: Seen

    def __init__(self, params: Any, defaults: Group) -> None:
        self.__dict__.update(self._fresh_modes())
        super().__init__(params, defaults)

    def _fresh_modes(self) -> dict[str, Any]:
        """Train mode, attached to nothing."""
        return {
            "_averaged": set(),
            "_attachments": [],
            "_loaded_training": None,
            "_averaged_before_load": set(),
            "_written": {},
            "_gradients_before_eval": {},
            "_gradients_at_average": {},
        }

    @property
    def training(self) -> bool:
        """Whether the parameters hold y (True, from birth); False once any of them holds x."""
        return not self._averaged

    def train(self, mode: bool = True) -> Self:
        """Put y into the parameters (``mode=True``), where gradients are to be taken; or, False, do :meth:`eval`.

        The bits of y are those from before :meth:`eval`. But if weights were written meanwhile, as by loading a
        checkpoint, what was written is the new x, and y is formed from it and the gap.
        """
        if mode != self.training or (not mode and len(self._averaged) < len(self._params())):
            self._settle()
            self._put(set() if mode else set(self._params()), forget=True)
        return self

    def eval(self) -> Self:
        """Put the average x into the parameters: what to evaluate, save and ship. y is kept aside, bit for bit."""
        return self.train(False)

    @contextmanager
    def averaged_parameters(self) -> Generator[Self, None, None]:
        """Within the ``with`` block the parameters hold the average x; afterwards the mode is what it was before.

        Not between a forward pass and its backward: autograd refuses weights that were written in between.

        Example:
            >>> import torch
            >>> import unscheduled
            >>> weight = torch.nn.Parameter(torch.ones(2))
            >>> optimizer = unscheduled.SGDScheduleFree([weight], lr=1.0)
            >>> with optimizer.averaged_parameters():
            ...     loss = weight.sum()
            >>> optimizer.training
            True
        """
        before = set(self._averaged)
        try:
            yield self.eval()
        finally:
            self._put(before, forget=True)

    # Attaching.

    def attach(self, model: nn.Module, *, bn_batches: int = 0) -> Self:
        """Tie the parameters to the life cycle of their model, which is enough from then on.

        - ``model.training``, however it is changed, moves the parameters: y in train mode, x in eval mode. The flags of
          submodules alone do not. :meth:`train` and :meth:`eval` still work, until the model's flag next changes.
        - ``model.state_dict()``, also of a part of the model or a wrapper round it, gives x in either mode, without
          touching the parameters (``keep_vars=True`` gives the parameters themselves).
        - ``model.load_state_dict()`` brings a new x, also in the middle of training, which goes on from y. The bits of
          y return if it is the x that belongs to the optimizer's state, in whichever order the two are loaded.
        - A deep copy or a pickle of the model is a plain model of its own that holds x.

        Attach after the model was wrapped, sharded or moved, since that may make new parameters. It looks through
        ``torch.compile`` and data parallelism. Several models and several optimizers may be attached to each other; but
        one that has a parameter of this optimizer as well gives it up: it goes to x and is detached.

        Args:
            model: the module that is set to train and eval mode.
            bn_batches: how many of the last training batches to keep (by reference), to re-estimate the statistics of
                BatchNorm at x from before the next evaluation; 0 for none. See :func:`unscheduled.update_bn`.

        Raises:
            TypeError: if ``model`` is no module.
            ValueError: if it has no parameter of this optimizer, or ``bn_batches`` is no integer >= 0. Nothing is
                changed then.

        Example:
            >>> import torch
            >>> import unscheduled
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = unscheduled.AdamWScheduleFree(model.parameters()).attach(model)
            >>> model.eval()
            Linear(in_features=2, out_features=1, bias=True)
            >>> optimizer.training
            False
        """
        require_count(0, "bn_batches", bn_batches, "give the number of training batches to keep; 0 for none")
        root = attachment.check(model, set(self._params()))
        if any(attached.model is root for attached in self._attachments):
            return self
        ours = set(self._params())
        for module in root.modules():
            for other in attachment.attachments(module):
                if other.optimizer is not self and other.optimizer.shares(ours):
                    other.optimizer.eval()
                    other.optimizer.detach()
        self._settle()
        self._attachments.append(Attachment(self, root, bn_batches))
        self._put(self._wanted_averages(), forget=False)
        return self

    def detach(self) -> Self:
        """Undo every :meth:`attach`: the parameters stay what they are, and are switched by hand again."""
        for attached in self._attachments:
            attached.let_go()
        self._attachments.clear()
        return self

    def shares(self, params: set[Tensor]) -> bool:
        """Whether any of the parameters is this optimizer's too."""
        return not params.isdisjoint(self._params())

    def follow(self) -> None:
        """Put into the parameters what the flags of the attached models ask for. Attached models call it."""
        self._settle()
        self._put(self._wanted_averages(), forget=True)

    def average_of(self, param: Tensor) -> Tensor | None:
        """The average x of a parameter that holds y, as a new tensor; None if it needs none. See :meth:`iterates`."""
        if param in self._averaged or not self.state.get(param):
            return None
        return self.iterates(param).x.to(param.dtype)

    def before_load(self) -> None:
        """Expect weights to be written into the parameters. Attached models call it."""
        self._averaged_before_load = set(self._averaged)
        if not self._misses_gaps():
            self._put(set(self._params()), forget=False)

    def after_load(self) -> None:
        """Take the weights that were written, and put the mode back. Attached models call it."""
        if self._misses_gaps():  # the weights are what the file says
            self._averaged = set() if self._loaded_training else set(self._params())
            self._averaged_before_load = self._wanted_averages()
        self._settle(anew=True)
        self._written = {
            param: param.detach().clone()
            for param, state, beta in self._started(set(self._params()) - self._averaged_before_load)
            if not keeps_gradient_point(param, state, beta)
        }
        self._put(self._averaged_before_load, forget=False)

    def _wanted_averages(self) -> set[Tensor]:
        """The parameters of models in eval mode, and those of no attached model if any is in eval mode."""
        held = [(set(attached.model.parameters()), attached.model.training) for attached in self._attachments]
        any_eval = not all(training for _, training in held)
        wanted: set[Tensor] = set()
        for param in self._params():
            flags = [training for params, training in held if param in params]
            if not all(flags) or (not flags and any_eval):
                wanted.add(param)
        return wanted

    # Switching.

    @torch.inference_mode(False)  # else y would be a tensor that cannot be trained on
    @torch.no_grad()
    def _put(self, averaged: set[Tensor], forget: bool) -> None:
        """Put x into these parameters and y into the others; ``forget`` what else a loaded file says about y."""
        to_average = self._started(averaged - self._averaged)
        to_gradient_point = self._started(self._averaged - averaged)
        if averaged != self._averaged:
            put_averages(to_average)
            put_gradient_points(to_gradient_point, forget or self._loaded_training is None)
            self._watch_gradients(averaged)
            self._averaged = averaged
            for group in self.param_groups:
                group["training"] = self.training
            torch.clear_autocast_cache()  # it may hold casts of the weights of the other mode
            for attached in self._attachments:
                attached.hook()
                attached.reshard()
        if forget:
            self._forget_file()

    def _watch_gradients(self, averaged: set[Tensor]) -> None:
        """Note the gradients that are taken while the parameters hold x."""
        for param in averaged - self._averaged:
            self._gradients_at_average.pop(param, None)
            if param.grad is not None:
                self._gradients_before_eval[param] = _seen(param.grad)
        for param in self._averaged - averaged:
            before = self._gradients_before_eval.pop(param, None)
            grad = param.grad
            if grad is not None and not _is_seen(grad, before) and bool(grad.any()):
                self._gradients_at_average[param] = _seen(grad)

    def _refuse_gradients_at_average(self) -> None:
        """Raise RuntimeError if a gradient was taken while the parameters held x."""
        for param, seen in self._gradients_at_average.items():
            if param.grad is not None and _is_seen(param.grad, seen):
                raise RuntimeError(
                    f"the gradient of {self._find(param)[1]} was taken in eval mode, at the average x and not at y: "
                    "call zero_grad(), and put the model or the optimizer into train mode before the forward pass"
                )
        self._gradients_at_average.clear()

    # Loaded states, which may come before the weights that belong to them.

    @torch.no_grad()
    def _loaded(self, training: bool) -> None:
        """A state was loaded that belongs to weights of that mode."""
        for param, weights in self._written.items():
            param.copy_(weights)
        self._written = {}
        self._loaded_training = training
        self._averaged = set() if training else set(self._params())
        self._settle(anew=True)
        if self._attachments:
            self._put(self._wanted_averages(), forget=False)
        for group in self.param_groups:
            group["training"] = self.training

    @torch.no_grad()
    def _settle(self, anew: bool = False) -> None:
        """Bring a loaded state together with the weights: again if they may have been loaded since, unnoticed."""
        if self._loaded_training is not None and (anew or not self._attachments):
            for param, state, beta in self._started(set(self._params())):
                settle(param, state, beta, param not in self._averaged)

    def _misses_gaps(self) -> bool:
        return self._loaded_training is not None and any("z" in state for state in self.state.values())

    def _refuse_average_for_gradient_point(self) -> None:
        """Raise RuntimeError if the weights that were loaded after the state are x, where y was to be trained."""
        if self._loaded_training is not None:
            for param, state, beta in self._started(set(self._params())):
                if "y" in state and not torch.equal(param, state["y"]) and holds_average(param, state, beta):
                    raise RuntimeError(
                        f"the weights of {self._find(param)[1]} are the average x, but were trained on as y: load the "
                        "model's weights before the optimizer's state, or attach() the optimizer to the model"
                    )

    def _forget_file(self) -> None:
        """The weights and the loaded state belong together from here on."""
        self._written = {}
        if self._loaded_training is not None:
            for param, state in self.state.items():
                state.pop("z", None)
                if param not in self._averaged:
                    state.pop("y", None)
            self._loaded_training = None

    # Looking at it.

    @torch.no_grad()
    def iterates(self, param: Tensor) -> Iterates:
        """The three sequences of a parameter, as new tensors in the precision of its state, from either mode.

        Args:
            param: one of the optimizer's parameters.

        Raises:
            ValueError: if ``param`` is none of them.
        """
        group, _ = self._find(param)
        self._settle()
        return read(param, self.state.get(param), group["beta"], param not in self._averaged)

    @torch.no_grad()
    def _with_gradient_point(self, param: Tensor, state: State, beta: float) -> State:
        """The state as it is saved: with the bits of y, so that it goes with weights at x as well as at y."""
        saved = {name: value for name, value in state.items() if name not in ("y", "z")}
        return saved | {"y": gradient_point(param, state, beta, param not in self._averaged)}

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in cast(list[Tensor], group["params"])]

    def _started(self, params: set[Tensor]) -> list[tuple[Tensor, State, float]]:
        return [
            (param, state, group["beta"])
            for group in self.param_groups
            for param in cast(list[Tensor], group["params"])
            if param in params and (state := self.state.get(param))
        ]

    def _find(self, param: Tensor) -> tuple[Group, str]:
        """The group of a parameter, and what to call it."""
        for index, group in enumerate(self.param_groups):
            for position, candidate in enumerate(group["params"]):
                if candidate is param:
                    return group, loading.param_name(group, index, position)
        raise ValueError(f"a tensor of shape {tuple(param.shape)} is no parameter of this optimizer: see param_groups")


def _seen(grad: Tensor) -> tuple[Callable[[], Any], int]:
    return weakref.ref(grad), grad._version  # pyright: ignore[reportPrivateUsage]


def _is_seen(grad: Tensor, seen: tuple[Callable[[], Any], int] | None) -> bool:
    return seen is not None and seen[0]() is grad and seen[1] == grad._version  # pyright: ignore[reportPrivateUsage]
