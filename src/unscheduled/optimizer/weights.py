"""What the parameters hold: y while training, x while evaluating; switched by hand, or by the attached models."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unscheduled.checkpoints.live import LiveDicts
from unscheduled.formulas.validation import require_count
from unscheduled.kernels import untraced
from unscheduled.model import attaching
from unscheduled.model.attachment import AttachedModel, Clock
from unscheduled.model.follower import Follower
from unscheduled.optimizer import takeover
from unscheduled.optimizer.gradient_origin import GradientWatch
from unscheduled.optimizer.reconciliation import PairedState
from unscheduled.optimizer.writes import WriteWatch
from unscheduled.state.device_math import on_host
from unscheduled.state.interruption import Deferred
from unscheduled.state.param_groups import Group
from unscheduled.state.parameter import State, known_gradient_point, live_y, put_averages, put_gradient_points

if TYPE_CHECKING:
    from typing_extensions import Self


class TwoModes(PairedState):
    """An optimizer whose parameters hold y or x, and the ways from one to the other."""

    _attachments: list[AttachedModel]
    _followers: list[Follower]  # what attached models know of it: one, also where a trainer's wrapper attaches it
    _given_up: set[Tensor]  # parameters that another optimizer has taken, which count as holding x
    _looked_at: int  # the clock of attachments when it was last known that no other optimizer has a parameter
    _gradients: GradientWatch
    _live: LiveDicts
    _copied: bool  # from one that was attached, to a model that may have been copied apart from this one

    def __init__(self, params: Any, defaults: Group) -> None:
        self.__dict__.update(self._fresh_modes())
        super().__init__(params, defaults)

    def _fresh_modes(self) -> dict[str, Any]:
        """Train mode, attached to nothing."""
        return {
            "_averaged": set(),
            "_attachments": [],
            "_followers": [],
            "_given_up": set(),
            "_looked_at": 0,
            "_copied": False,
            "_loaded_training": None,
            "_loading": None,
            "_written": {},
            "_gradients": GradientWatch(),
            "_live": LiveDicts(),
            "_writes": WriteWatch(),
        }

    @property
    def training(self) -> bool:
        """Whether the parameters hold y (True, from birth); False once any of them holds x."""
        return not self._averaged

    @untraced
    def train(self, mode: bool = True) -> Self:
        """Put y into the parameters, where gradients are to be taken; with ``mode=False``, do :meth:`eval`.

        The bits of y are those from before :meth:`eval`. But if weights were written in the meantime, as by loading a
        checkpoint, what was written is the new x, and y is formed from it and the gap.
        """
        self._settle()
        self._notice_replaced(self._params())
        if mode != self.training or (not mode and len(self._averaged) < len(self._params())):
            self._put(set() if mode else set(self._params()))
        return self

    def eval(self) -> Self:
        """Put the average x into the parameters: what to evaluate, save and ship. y is kept aside, bit for bit."""
        return self.train(False)

    @contextmanager
    def averaged_parameters(self) -> Generator[Self, None, None]:
        """Within the ``with`` block the parameters hold the average x; afterwards the mode is what it was before.

        But if an attached model is switched within the block, the mode afterwards is what that model asks for.

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
        with self._mode_given_back():
            yield self.eval()

    @contextmanager
    def _mode_given_back(self) -> Generator[None, None, None]:
        """Afterwards the mode is what it was before, or what the attached models ask for if they were switched."""
        before, flags = set(self._averaged), dict(zip(self._attachments, self._flags(), strict=True))
        try:
            yield
        finally:
            if all(flags.get(attached) is attached.training for attached in self._attachments):
                self._put(before)
            else:
                self._follow()

    def _flags(self) -> list[bool]:
        return [attached.training for attached in self._attachments]

    # Attaching.

    def attach(self, model: nn.Module, *, bn_batches: int = 0) -> Self:
        """Tie the parameters to the life cycle of their model, which is enough from then on.

        - ``model.training``, however it is changed, moves the parameters: y in train mode, x in eval mode. The flags of
          submodules alone do not. :meth:`train` and :meth:`eval` still work, until the model's flag next changes.
        - ``model.state_dict()``, also of a part of the model or a wrapper round it, gives a snapshot of x in either
          mode, without touching the parameters (``keep_vars=True`` gives the parameters themselves).
        - ``model.load_state_dict()`` brings a new x, also in the middle of training, which goes on from y. The bits of
          y return if it is the x that belongs to the optimizer's state, in whichever order the two are loaded.
        - A deep copy or a pickle of the model is a plain model of its own that holds x. That of a part of it alone
          holds what the part holds: y in train mode.

        Attach after the model was wrapped, sharded or moved, since that may make new parameters. It looks through
        ``torch.compile`` and data parallelism. Several models and several optimizers may be attached to each other; but
        another optimizer that holds a parameter of this one gives way: its parameters go to x, and it is detached. If
        an optimizer of another kind takes over, nothing can tell: call :meth:`eval` and :meth:`detach` before.

        Args:
            model: the module that is set to train and eval mode.
            bn_batches: how many of the last training batches to keep (by reference), to re-estimate the statistics of
                BatchNorm at x from before the next evaluation; 0 for none. Only calls of ``model`` itself are seen, not
                those of its parts. See :func:`unscheduled.update_bn`.

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
        params = set(self._params())
        root = attaching.check(model, params)
        if any(attached.model is root for attached in self._attachments):
            return self
        attached = attaching.attached_model(root)
        owners = attaching.owners_of(params, self._as_follower())
        self._settle()
        self._given_up.clear()
        if not self._attachments:  # until then nothing is noted, since nobody would take over
            self._writes.note_step(self._params(), self._params)
        self._attachments.append(attached)
        attached.add(self._as_follower(), bn_batches)  # before the others go, with the last of which the tie would
        for other, shared in owners.items():
            other.give_up(shared, True)
        attaching.warn_of_shared_parts(attached, self._as_follower())
        takeover.watch()
        self._copied = False
        self._put(self._wanted_averages())
        return self

    def detach(self) -> Self:
        """Undo every :meth:`attach`: the parameters stay as they are, and are switched by hand from then on."""
        for attached in self._attachments:
            attached.remove(self._as_follower())
        self._attachments.clear()
        return self

    def _as_follower(self) -> Follower:
        """This optimizer, as attached models know it."""
        if not self._followers:
            self._followers.append(
                Follower(
                    optimizer=self,
                    params=self._followed,
                    follow=self._follow,
                    averages=self._averages,
                    steps=self._steps,
                    before_load=self._before_load,
                    after_load=self._after_load,
                    end_load=self._settle,
                    give_up=self._give_up,
                )
            )
        return self._followers[0]

    def _followed(self) -> list[Tensor]:
        """The parameters, but for those that another optimizer has taken."""
        params = self._params()
        return [param for param in params if param not in self._given_up] if self._given_up else params

    def _steps(self) -> int:
        """How many steps were made, or 0 if none was since a state was loaded."""
        return 0 if self._loaded_training is not None else int(sum(on_host(each["step"]) for each in self.param_groups))

    @untraced
    def _follow(self) -> None:
        """Put into the parameters what the flags of the attached models ask for."""
        self._settle()
        self._notice_replaced(self._params())
        self._put(self._wanted_averages())

    def _wanted_averages(self) -> set[Tensor]:
        """The parameters of models in eval mode, and those of no attached model if any is in eval mode."""
        if all(self._flags()):
            return set()
        params = set(self._params())
        held = [(attached.own_of(params), attached.training) for attached in self._attachments]
        of_none = params.difference(*(some for some, _ in held))
        return of_none.union(*(some for some, training in held if not training))

    # Other optimizers of the same parameters.

    @untraced
    def _give_up(self, params: set[Tensor], at_average: bool) -> None:
        """Leave parameters to another optimizer; if these are all, it is detached.

        They are put at x, or (not ``at_average``) stay as they are. Weights that were written since the last step stay
        in any case. What is there then counts as the x of this optimizer.
        """
        self._settle()
        kept = params - self._averaged if not at_average else self._written_since(params - self._averaged)
        self._note_averaged(self._averaged | kept)
        self._put(self._averaged | params)
        self._given_up |= params
        for group in self.param_groups:
            group["training"] = self.training
        if not self._followed():
            self.detach()

    def _written_since(self, params: set[Tensor]) -> set[Tensor]:
        """Which of these parameters, which are to hold y, somebody else has written to since the last step."""
        if self._loaded_training is None:
            return self._writes.were_written(params)
        return {
            param for param, state, beta in self._started(params) if known_gradient_point(param, state, beta) is None
        }

    def _take_over(self) -> None:
        """End the attachment of another optimizer to parameters that this one is about to move."""
        for other, shared in attaching.owners_of(set(self._params()), self._as_follower()).items():
            warnings.warn(takeover.message(self, other.optimizer), stacklevel=takeover.CALLER)
            other.give_up(shared, False)
        self._looked_at = Clock.time

    # Switching.

    @untraced
    @torch.inference_mode(False)  # else y would be a tensor that cannot be trained on
    @torch.no_grad()
    def _put(self, averaged: set[Tensor]) -> None:
        """Put x into these parameters and y into the others."""
        averaged = averaged | self._given_up
        if averaged == self._averaged:
            return
        with Deferred():  # y or x, and what notes that, as a whole
            there, back = self._started(averaged - self._averaged), self._started(self._averaged - averaged)
            put_averages(there, self._written)
            try:
                put_gradient_points(back, self._written)
            except BaseException:
                put_gradient_points(there, self._written)
                raise
            self._gradients.watch(averaged - self._given_up)
            self._note_averaged(averaged)
            if self._attachments:
                self._writes.note([param for param, _, _ in back])
            if self._live.are_out():
                self._live.put_y(self._live_ys())
            for group in self.param_groups:
                group["training"] = self.training
            torch.clear_autocast_cache()  # it may hold casts of the weights of the other mode
            for attached in self._attachments:
                attached.switched()

    @torch.no_grad()
    def _live_ys(self) -> dict[Tensor, State]:
        """y of each parameter that has seen a gradient, as it is saved."""
        started = self._started(set(self._params()))
        return {param: live_y(param, state, beta, param not in self._averaged) for param, state, beta in started}

    def _note_averaged(self, averaged: set[Tensor]) -> None:
        """These parameters hold x: noted in place, since a trainer's wrapper may have borrowed this method."""
        self._averaged.clear()
        self._averaged.update(averaged)

    def _refuse_gradients_at_average(self) -> None:
        """Raise RuntimeError if a gradient was taken while the parameters held x."""
        for param in self._gradients.taken_at_average():
            raise RuntimeError(
                f"the gradient of {self._find(param)[1]} was taken in eval mode, at the average x and not at y: "
                "call zero_grad(), and put the model or the optimizer into train mode before the forward pass"
            )
        self._gradients.forget()

    def _look_for_other_parameters(self) -> None:
        """No parameter has a gradient: those of the model may be others by now, as after sharding, or of a pickle.

        Raises:
            RuntimeError: if this is a copy of an attached optimizer that has never had any.
        """
        if self._copied:
            raise RuntimeError(
                "no parameter of this optimizer has a gradient: it was copied from one that was attached to a model, "
                "and a pickled model has parameters of its own. Make an optimizer of these, attach it, and load the "
                "state_dict() of this one"
            )
        for attached in self._attachments:
            attached.switched()

    def _loaded(self, training: bool, weights: dict[Tensor, Tensor]) -> None:
        """A state was loaded that belongs to weights of that mode: to those that are there, or that were before."""
        self._take_back(weights, attached=bool(self._attachments))
        self._loaded_training = training
        self._note_averaged(set() if training else set(self._params()))
        self._settle()
        self._gradients.watch(self._averaged)
        if self._attachments:
            self._put(self._wanted_averages())
        for group in self.param_groups:
            group["training"] = self.training
