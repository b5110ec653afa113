"""The model's own life cycle moves the parameters: its ``training`` flag, ``state_dict`` and ``load_state_dict``.

The attached module gets a subclass of its own class that is told when ``training`` is set: the parameters follow the
flag however it is set, at no cost in the forward pass. Hooks on its modules make ``state_dict`` give the average x in
either mode, and take what ``load_state_dict`` brings as the new x: see :mod:`unscheduled.model.module_hooks`.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from unscheduled.model.attached_module import ATTACHMENTS, AverageReader, tie, untie
from unscheduled.model.batchnorm import RecentBatches
from unscheduled.model.follower import Entry, Follower
from unscheduled.model.module_hooks import ModuleHooks


class Clock:
    """Counts how often an optimizer was attached to a model, in this process.

    When it has gone on, optimizers that make a step are looked at once more.
    """

    time = 0


class AttachedModel:
    """A model, and the optimizers of its parameters that are attached to it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.training = model.training
        """The flag that the parameters follow: that of the model, but while it is being changed."""
        self._entries: dict[Follower, Entry] = {}
        self._hooks = ModuleHooks(self)
        self._params: dict[Tensor, str] = {}  # of the model, when it was last looked at
        self._had_by: dict[Tensor, tuple[Follower, ...]] = {}  # the same of the optimizers
        self.holds_averages = False
        """Whether somebody has put x into the parameters of all optimizers for the moment."""
        self._put_off, self._leads, self._heard = 0, False, False

    # Attaching.

    def add(self, follower: Follower, bn_batches: int) -> None:
        """Attach an optimizer."""
        recent = RecentBatches(self.model, bn_batches, self) if bn_batches else None
        self._entries[follower] = Entry(follower.steps(), recent)
        if recent:
            recent.watch()
        if any(param not in self._params for param in follower.params()):
            self.hook()
        self._entries[follower].params = self._params_of(follower)
        self._note_owner(follower)
        self._hooks.tie_parts()
        Clock.time += 1

    def remove(self, follower: Follower) -> None:
        """Detach an optimizer. With the last one, the model is its own again."""
        entry = self._entries.pop(follower)
        for param, its in list(self._had_by.items()):
            if follower in its:
                self._had_by[param] = tuple(each for each in its if each is not follower)
        if entry.recent:
            entry.recent.ignore()
        if not self._entries:
            self.let_go()

    def _note_owner(self, follower: Follower) -> None:
        new: dict[Tensor, tuple[Follower, ...]] = dict.fromkeys(follower.params(), (follower,))
        for param in self._had_by.keys() & new.keys():
            if follower in self._had_by[param]:
                new[param] = self._had_by[param]
            else:
                new[param] = (*self._had_by[param], follower)
        self._had_by |= new

    def followers(self) -> list[Follower]:
        """The optimizers."""
        return list(self._entries)

    def params(self) -> dict[Tensor, Follower]:
        """The parameters of all optimizers, and whose each is."""
        return {param: follower for follower in self._entries for param in follower.params()}

    def had_by(self, param: Tensor) -> tuple[Follower, ...]:
        """The optimizers that had a parameter when the model was last looked at, or they were attached."""
        return self._had_by.get(param, ())

    def own_of(self, params: set[Tensor]) -> set[Tensor]:
        """The parameters among these that were in the model when it was last looked at."""
        if len(params) < len(self._params):
            return {param for param in params if param in self._params}
        return {param for param in self._params if param in params}

    def shares_with(self, other: AttachedModel) -> bool:
        """Whether both models have a parameter, when they were last looked at."""
        return not self._params.keys().isdisjoint(other._params)

    def hook(self, part: nn.Module | None = None) -> None:
        """Put hooks on the modules of the model, or of a part that has come to it, that have none yet."""
        alive.add(self)
        if part is None:
            tie(self.model, self, ATTACHMENTS)
            self._params = {param: name for name, param in self.model.named_parameters()}
            self._had_by.clear()
            for follower, entry in self._entries.items():
                self._note_owner(follower)
                if entry.recent:
                    entry.recent.watch()
        self._hooks.put(self.model if part is None else part)

    def has_hooked(self, module: nn.Module) -> bool:
        """Whether the module is a part of the model."""
        return self._hooks.has(module)

    def let_go(self) -> None:
        """Give the modules their own classes back, and take the hooks off."""
        alive.discard(self)
        for entry in self._entries.values():
            if entry.recent:
                entry.recent.ignore()
        self._hooks.take_off()
        untie(self.model, self, ATTACHMENTS)

    def come_back(self) -> None:
        """Undo :meth:`let_go`, if an optimizer is attached; a shallow copy may have outlived that."""
        if self._entries:
            self.hook()

    # Switching.

    def hears_the_flag(self) -> bool:
        """Whether the flag of the model can be set, and comes here when it is."""
        self._heard = False
        try:
            self.model.training = self.training
        except Exception:  # whatever a class of its own kind raises
            return False
        return self._heard

    def hear(self, mode: bool) -> None:
        """Put into the parameters what the flag of the model asks for, unless that is put off."""
        self._heard = True
        if self._put_off or mode == self.training:
            return
        self._look()
        before, self.training, self._leads = self.training, mode, True
        done: list[Follower] = []
        try:
            for follower in self._entries:
                done.append(follower)
                follower.follow()
        except BaseException:  # out of memory
            self.training = before
            for follower in done:
                follower.follow()
            raise
        finally:
            self._leads = False
        self._warn()

    @contextmanager
    def putting_off(self) -> Generator[None, None, None]:
        """Within it a change of the flag moves nothing."""
        before = self._put_off
        try:
            self._put_off = before + 1
            yield
        finally:
            self._put_off = before

    @contextmanager
    def averaged_parameters(self) -> Generator[None, None, None]:
        """Within it the parameters of all optimizers hold x."""
        before = self.holds_averages
        with ExitStack() as stack:
            for follower in () if before else self._entries:
                stack.enter_context(follower.optimizer.averaged_parameters())
            try:
                self.holds_averages = True
                yield
            finally:
                self.holds_averages = before

    def switched(self) -> None:
        """The parameters have been moved, or none has a gradient: the model may have others by now."""
        if not self._leads:  # else all optimizers switch, and the model was looked at before
            self._look()
            self._warn()

    def _look(self) -> None:
        """Look at the model anew: it may have other modules and parameters."""
        for module in self._sharded():
            module.reshard()  # the root keeps them gathered after a forward pass without backward
        self.hook()

    def _warn(self) -> None:
        """Say it if parameters are no longer there, or batches were not seen."""
        self._look_for_others()
        for follower, entry in self._entries.items():
            if entry.recent and entry.recent.blind and follower.steps() > entry.steps and not self.training:
                entry.steps = follower.steps()
                warnings.warn(
                    f"no training batch was kept for BatchNorm, since {type(self.model).__name__} was never called in "
                    "the steps that were made: attach the module that is called in training, or use update_bn()",
                    stacklevel=2,
                )

    def _sharded(self) -> list[Any]:
        """The modules that FSDP2 gathers the parameters of."""
        fsdp = sys.modules.get("torch.distributed.fsdp")
        if fsdp is None or not hasattr(fsdp, "FSDPModule"):
            return []
        return [module for module in self.model.modules() if isinstance(module, fsdp.FSDPModule)]

    def _params_of(self, follower: Follower) -> dict[Tensor, str]:
        """The parameters of an optimizer that are in the model, and their names there."""
        return {param: self._params[param] for param in follower.params() if param in self._params}

    def _look_for_others(self) -> None:
        """Say it, once, if parameters of an optimizer have left the model, and it has some that nobody trains."""
        names = self._params
        for follower, entry in self._entries.items():
            params = self._params_of(follower)
            if params.keys() >= entry.params.keys():
                entry.params = params
                continue
            gone = [name for param, name in entry.params.items() if param not in names]
            still = {param for group in follower.optimizer.param_groups for param in group["params"]}
            left = [name for param, name in entry.params.items() if param in names and param not in still]
            if left:
                warnings.warn(
                    f"parameters of the attached model ({len(left)}, from {left[0]} on) were taken out of the groups "
                    f"of {type(follower.optimizer).__name__}: they stay at y, where they were trained, not at x",
                    stacklevel=2,
                )
            entry.params = params
            if gone and any(param.requires_grad for param in names.keys() - self.params().keys()):
                warnings.warn(
                    f"parameters of the optimizer ({len(gone)}, from {gone[0]} on) are no longer in the attached "
                    "model, which has others that are not averaged: make the optimizer of the present ones, or add "
                    "them to it",
                    stacklevel=2,
                )

    # Saving and copying.

    def before_copy(self) -> None:
        """The model is about to be saved or copied."""
        for entry in self._entries.values():
            if entry.recent and not self.model.training:
                entry.recent.refresh()

    def reader(self) -> AverageReader:
        """A function that gives the average x of a parameter, each time the same; None for one that needs none.

        It is called before anything is changed.
        """
        owners, readers = self.params(), dict[Follower, AverageReader]()

        def average_of(param: Tensor) -> Tensor | None:
            owner = owners.get(param)
            if owner is None:
                return None
            if owner not in readers:
                readers[owner] = owner.averages()
            return readers[owner](param)

        return average_of

    @contextmanager
    def loading(self, module: nn.Module) -> Generator[None, None, None]:
        """Within it weights are loaded into a module in whatever way."""
        with self._hooks.loading(module):
            yield

    def end_load(self) -> None:
        """Loading has ended, in whatever way."""
        self._hooks.end_load()

    def before_save_of_all(self) -> None:
        """The whole model is about to be saved."""
        if not self._sharded():  # which may be gathered, and have others meanwhile
            self._params = {param: name for name, param in self.model.named_parameters()}
            self._look_for_others()


alive: weakref.WeakSet[AttachedModel] = weakref.WeakSet()
"""The models that an optimizer is attached to."""
