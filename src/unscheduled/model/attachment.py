"""An attached model: its ``training`` flag switches the parameters, and its state dict holds the average x.

The attached module gets a subclass of its class whose ``training`` is a descriptor that hears when the flag is set, so
that the parameters follow it whichever way it is set, without cost in the forward pass. Through hooks on its modules,
``state_dict`` returns x in either mode and ``load_state_dict`` sets the new x: see
:mod:`unscheduled.model.module_hooks`.
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
from unscheduled.model.follower import Follower, Notes
from unscheduled.model.module_hooks import ModuleHooks


class Clock:
    """Counts how often an optimizer was attached to a model in this process.

    When the count has changed, an optimizer is checked again at its next step.
    """

    time = 0


class AttachedModel:
    """A model, and the optimizers of its parameters that are attached to it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.training = model.training
        """The flag that the parameters follow: that of the model, except while a change is in progress."""
        self._entries: dict[Follower, Notes] = {}
        self._hooks = ModuleHooks(self)
        self._params: dict[Tensor, str] = {}  # the parameters of the model when it was last looked at, and their names
        self._had_by: dict[Tensor, tuple[Follower, ...]] = {}  # the optimizers that had each parameter then
        self.holds_averages = False
        """Whether the parameters of all optimizers hold x because of :meth:`averaged_parameters`."""
        self._put_off, self._leads, self._heard = 0, False, False

    # Attaching.

    def add(self, follower: Follower, bn_batches: int) -> None:
        """Attach an optimizer; ``bn_batches`` is how many recent batches to store for BatchNorm."""
        recent = RecentBatches(self.model, bn_batches, self) if bn_batches else None
        self._entries[follower] = Notes(follower.steps(), recent)
        if recent:
            recent.watch()
        if any(param not in self._params for param in follower.params()):
            self.hook()
        self._entries[follower].params = self._params_of(follower)
        self._note_owner(follower)
        self._hooks.tie_parts()
        Clock.time += 1

    def remove(self, follower: Follower) -> None:
        """Detach an optimizer; after the last one the model has its own class and no hooks."""
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
        """The attached optimizers."""
        return list(self._entries)

    def params(self) -> dict[Tensor, Follower]:
        """The parameters of all optimizers, each with its optimizer."""
        return {param: follower for follower in self._entries for param in follower.params()}

    def had_by(self, param: Tensor) -> tuple[Follower, ...]:
        """The optimizers that had a parameter when the model was last looked at, or when they were attached."""
        return self._had_by.get(param, ())

    def own_of(self, params: set[Tensor]) -> set[Tensor]:
        """Those of these parameters that were in the model when it was last looked at."""
        if len(params) < len(self._params):
            return {param for param in params if param in self._params}
        return {param for param in self._params if param in params}

    def shares_with(self, other: AttachedModel) -> bool:
        """Whether both models had a parameter in common when they were last looked at."""
        return not self._params.keys().isdisjoint(other._params)

    def hook(self, part: nn.Module | None = None) -> None:
        """Put hooks on the modules of the model, or of a new part, that have none yet."""
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
        """Whether a module has hooks because it is a part of the model."""
        return self._hooks.has(module)

    def let_go(self) -> None:
        """Restore the classes of the modules, and remove the hooks."""
        alive.discard(self)
        for entry in self._entries.values():
            if entry.recent:
                entry.recent.ignore()
        self._hooks.take_off()
        untie(self.model, self, ATTACHMENTS)

    def come_back(self) -> None:
        """Undo :meth:`let_go`, if an optimizer is still attached; a shallow copy can outlive the attachment."""
        if self._entries:
            self.hook()

    # Switching.

    def hears_the_flag(self) -> bool:
        """Whether setting the flag of the model works and calls :meth:`hear`."""
        self._heard = False
        try:
            self.model.training = self.training
        except Exception:  # an unusual class may raise any error
            return False
        return self._heard

    def hear(self, mode: bool) -> None:
        """Switch the parameters to the mode of the model's flag, unless switching is put off."""
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
        """A context in which a change of the flag does not switch the parameters."""
        before = self._put_off
        try:
            self._put_off = before + 1
            yield
        finally:
            self._put_off = before

    @contextmanager
    def averaged_parameters(self) -> Generator[None, None, None]:
        """A context in which the parameters of all optimizers hold x."""
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
        """Look at the model again after a switch, since it may have other modules and parameters."""
        if not self._leads:  # else hear() switches all optimizers, and has looked at the model
            self._look()
            self._warn()

    def _look(self) -> None:
        """Look at the model again: note its parameters, and hook new modules."""
        for module in self._sharded():
            module.reshard()  # the root keeps them gathered after a forward pass without backward
        self.hook()

    def _warn(self) -> None:
        """Warn if parameters have left the model, or no training batch was seen for BatchNorm."""
        self._look_for_others()
        for follower, entry in self._entries.items():
            if entry.recent and entry.recent.blind and follower.steps() > entry.steps and not self.training:
                entry.steps = follower.steps()
                warnings.warn(
                    f"no training batch was kept for BatchNorm, since {type(self.model).__name__} was never called in "
                    "training: attach the module that is called in training, or use update_bn()",
                    stacklevel=2,
                )

    def _sharded(self) -> list[Any]:
        """The modules whose parameters FSDP2 shards and gathers."""
        fsdp = sys.modules.get("torch.distributed.fsdp")
        if fsdp is None or not hasattr(fsdp, "FSDPModule"):
            return []
        return [module for module in self.model.modules() if isinstance(module, fsdp.FSDPModule)]

    def _params_of(self, follower: Follower) -> dict[Tensor, str]:
        """The parameters of an optimizer that are in the model, and their names there."""
        return {param: self._params[param] for param in follower.params() if param in self._params}

    def _look_for_others(self) -> None:
        """Warn once if parameters of an optimizer left the model or its groups, and the model has untrained ones."""
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
                    "model, which has others that are not averaged: make the optimizer with the present parameters, "
                    "or add them to it",
                    stacklevel=2,
                )

    # Saving and copying.

    def before_copy(self) -> None:
        """Re-estimate BatchNorm's statistics if the model evaluates, before it is saved or copied."""
        for entry in self._entries.values():
            if entry.recent and not self.model.training:
                entry.recent.refresh()

    def reader(self) -> AverageReader:
        """A function that returns the average x of a parameter, each time the same tensor, or None if it needs none.

        Call this method before the parameters change.
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
        """A context in which a module loads weights with its own ``load_state_dict``."""
        with self._hooks.loading(module):
            yield

    def end_load(self) -> None:
        """Note that loading has ended, with or without success."""
        self._hooks.end_load()

    def before_save_of_all(self) -> None:
        """Note the parameters of the model before all of it is saved, and warn if some have left it."""
        if not self._sharded():  # FSDP2 has other parameter objects while it gathers them
            self._params = {param: name for name, param in self.model.named_parameters()}
            self._look_for_others()


alive: weakref.WeakSet[AttachedModel] = weakref.WeakSet()
"""All models with an attached optimizer."""
