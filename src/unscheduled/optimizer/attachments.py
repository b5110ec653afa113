"""The models that an optimizer is attached to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from unscheduled.checkpoints.matching import plain_name
from unscheduled.model import attaching
from unscheduled.model.attachment import AttachedModel, Clock
from unscheduled.model.follower import Follower
from unscheduled.optimizer import takeover
from unscheduled.state.param_groups import Group, params_of


class Attachments:
    """The models that an optimizer is attached to, whose flags ``training`` its parameters follow."""

    def __init__(self) -> None:
        self.models: list[AttachedModel] = []
        self.follower: Follower | None = None
        """The optimizer, as these models know it."""
        self.was_copied = False
        """Whether the optimizer is a copy of one that was attached, and none of its parameters had a gradient yet."""
        self._looked_at = 0  # the clock of attachments when it was last known that no other optimizer has a parameter

    # Attaching.

    def tie_to(self, model: nn.Module, params: set[Tensor]) -> AttachedModel | None:
        """The tie of a model, to be given to :meth:`add`; None if it is attached already.

        Raises:
            TypeError: if it is no module, or its class cannot be attached.
            ValueError: if it has none of these parameters. Nothing is changed then.
        """
        root = attaching.check(model, params)
        return None if any(tie.model is root for tie in self.models) else attaching.attached_model(root)

    def add(self, tie: AttachedModel, follower: Follower, bn_batches: int, params: set[Tensor]) -> None:
        """Attach the optimizer to a model; other optimizers of its parameters give way."""
        owners = attaching.owners_of(params, follower)
        self.follower = follower
        self.models.append(tie)
        tie.add(follower, bn_batches)  # before the others go, with the last of which the tie would
        for other, shared in owners.items():
            other.give_up(shared, True)
        attaching.warn_of_shared_parts(tie, follower)
        takeover.watch()
        self.was_copied = False

    def detach(self) -> None:
        """Undo every :meth:`add`."""
        for tie in self.models:
            if self.follower is not None:
                tie.remove(self.follower)
        self.models.clear()

    def take_over(self, optimizer: Any, params: Callable[[], list[Tensor]]) -> None:
        """End the attachment of another optimizer to parameters that this one is about to move."""
        if self._looked_at == Clock.time:
            return
        for other, shared in attaching.owners_of(set(params()), self.follower).items():
            warnings.warn(takeover.message(optimizer, other.optimizer), stacklevel=takeover.CALLER)
            other.give_up(shared, False)
        self._looked_at = Clock.time

    def look_again(self) -> None:
        """The optimizer has new parameters, and the models may have new modules."""
        self._looked_at = -1
        for tie in self.models:
            tie.hook()

    # Following.

    def flags(self) -> list[bool]:
        """The flags of the models."""
        return [tie.training for tie in self.models]

    def wanted_at_x(self, params: Iterable[Tensor]) -> set[Tensor]:
        """The parameters of models in eval mode, and those of no attached model if any is in eval mode."""
        if all(self.flags()):
            return set()
        params = set(params)
        held = [(tie.own_of(params), tie.training) for tie in self.models]
        of_none = params.difference(*(some for some, _ in held))
        return of_none.union(*(some for some, training in held if not training))

    def switched(self) -> None:
        """The parameters were moved from y to x or back."""
        for tie in self.models:
            tie.switched()

    def look_for_other_parameters(self) -> None:
        """No parameter has a gradient: those of the model may be others by now, as after sharding, or of a pickle.

        Raises:
            RuntimeError: if this is a copy of an attached optimizer that has never had any.
        """
        if self.was_copied:
            raise RuntimeError(
                "no parameter of this optimizer has a gradient: it was copied from one that was attached to a model, "
                "and a pickled model has parameters of its own. Make an optimizer of these, attach it, and load the "
                "state_dict() of this one"
            )
        self.switched()

    def names(self, groups: list[Group]) -> dict[Tensor, str]:
        """The names of all parameters: those given to the optimizer, or those in the models.

        Two models may have the same names. If any parameter has none, there are none.
        """
        names: dict[Tensor, str] = {}
        for tie in self.models:
            for name, param in tie.model.named_parameters():
                names.setdefault(param, plain_name(name))
        for group in groups:
            names.update(zip(group["params"], map(plain_name, group.get("param_names", ())), strict=False))
        return names if all(param in names for param in params_of(groups)) else {}
