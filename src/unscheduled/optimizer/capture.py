"""The numbers that change from step to step, on the device, where a captured step reads and writes them.

With ``capturable=True``, ``step()`` may be captured in a CUDA graph. A replay then makes the next step, and nothing in
it waits for the device. As always with such graphs, what is no tensor is what it was at the capture:

- A learning rate that is to change has to be a tensor on the device.
- Numbers on the device are not checked: that the learning rate is >= 0, and c and beta are in [0, 1].
- The other options of a group, its averaging and its interpolation are those of the capture. What
  ``restart_averaging()`` and ``freeze_averaging()`` do holds for the replays too.
- Parameters with gradients are those of the capture. Before the first capture, make a step with the gradients of each:
  it makes the buffers, and tells apart the parameters that have seen different numbers of gradients. If they differ,
  make them all twice: only the second time is it known which are apart, and what has to be compiled.
- How many gradients a parameter has seen is known to the device alone: what is written to its ``"step"`` is not.
- The state has to stay where it is: capture anew after ``load_state_dict()`` and ``add_param_group()``.
- Replay a step in train mode. ``eval()``, ``train()``, ``state_dict()``, ``metrics()`` and whatever else asks for the
  numbers of the group reads them back, which waits for the device, and cannot be captured.
"""
# torch publishes its foreach operations under names with an underscore:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from unscheduled.kernels import all_same
from unscheduled.state.device_number import DeviceNumber, as_tensor
from unscheduled.state.param_groups import AVERAGING_STATES, Group
from unscheduled.state.parameter import State

COUNTS = ("step", "averaging_start")
NUMBERS = (*COUNTS, "averaging_state", "weight_sum", "lr_max", "beta", "c", "effective_lr")


class DeviceCounters:
    """The numbers of a group, and how many gradients each of its parameters has seen, in one tensor on their device.

    The tensor keeps its address. A captured step that is replayed advances it, of which the host is told nothing: the
    numbers in the group are those of the last :meth:`read_back`.
    """

    def __init__(self, group: Group, states: Mapping[Tensor, State]) -> None:
        self.group, self.params = group, list(cast(list[Tensor], group["params"]))
        self.device = self.params[0].device
        self.steps_were_made = group["step"] > 0
        self._all = torch.zeros(len(NUMBERS) + len(self.params), dtype=torch.float64, device=self.device)
        self._numbers = self._all.narrow(0, 0, len(NUMBERS))
        self._in_group = dict(zip(NUMBERS, map(DeviceNumber, self._numbers.unbind()), strict=True))
        self._seen = self._all.narrow(0, len(NUMBERS), len(self.params))
        self._each_seen = self._seen.unbind()
        self._kinds = [0] * len(self.params)  # for each, the first one of those that have always moved together
        self._moved: list[Tensor] = []  # in the last step
        self._known: Group = {}  # the numbers in the group, when both were the same
        self.write(states)

    def write(self, states: Mapping[Tensor, State]) -> None:
        """Bring the numbers of the host to the device."""
        refuse_to_set(self.device)
        seen: list[int] = [states[param]["step"] if states.get(param) else 0 for param in self.params]
        self._kinds = _firsts(list(zip(self._kinds, seen, strict=True)))  # steps that were captured part them, too
        self._known = {name: self.group[name] for name in NUMBERS}
        state = AVERAGING_STATES.index(self.group["averaging_state"])
        numbers = [self._known[name] if name != "averaging_state" else state for name in NUMBERS]
        self._all.copy_(torch.tensor([*numbers, *seen], dtype=torch.float64, device="cpu"))

    def read_back(self, states: Mapping[Tensor, State]) -> None:
        """Bring the numbers of the device to the host, but for those that were set there; it waits for the device."""
        if is_capturing(self.device):
            raise RuntimeError("the numbers of the step are asked for while it is captured: ask after the capture")
        values = cast(list[float], cast(Any, self._all).tolist())
        for name, value in zip(NUMBERS, values, strict=False):
            if self.group[name] == self._known[name]:
                if name == "averaging_state":
                    self.group[name] = AVERAGING_STATES[int(value)]
                else:
                    self.group[name] = int(value) if name in COUNTS else value
                self._known[name] = self.group[name]
        for param, seen in zip(self.params, values[len(NUMBERS) :], strict=True):
            if state := states.get(param):
                state["step"] = int(seen)

    def are_current(self) -> bool:
        """Whether they fit the group, and no number was set there."""
        return self.fit() and all(self.group[name] == self._known[name] for name in NUMBERS)

    def fit(self) -> bool:
        """Whether the group has the same parameters, on the same device."""
        params = cast(list[Tensor], self.group["params"])
        return all_same(params, self.params) and params[0].device == self.device

    def in_group(self) -> Group:
        """The group, with the numbers of the device in place of its own, and a learning rate that is a tensor."""
        lr = self.group["lr"]
        if not isinstance(lr, Tensor):
            return self.group | self._in_group
        check_lr(lr, self.device)
        return self.group | self._in_group | {"lr": DeviceNumber(lr.detach().reshape(()).to(torch.float64))}

    def kinds(self, params: list[Tensor]) -> list[int]:
        """For each of these parameters, which are to move, a number that those share that have always moved together.

        They have seen as many gradients, however often the steps that were made until now are replayed.
        """
        if not all_same(params, self._moved):
            self._part(set(params))
            self._moved = list(params)
        if len(params) == len(self.params):
            return self._kinds
        kind_of = dict(zip(self.params, self._kinds, strict=True))
        return [kind_of[param] for param in params]

    def start(self, params: Iterable[Tensor]) -> None:
        """Note that these parameters, which have a new state, have seen no gradient."""
        new = set(params)
        torch._foreach_zero_(self._seen_by(new))
        self._part(new)

    def seen(self, kind: int) -> DeviceNumber:
        """How many gradients the parameters of a kind have seen."""
        return DeviceNumber(self._each_seen[kind])

    def advance(self, params: list[Tensor], numbers: Group) -> None:
        """Note that a step was made, in which these parameters moved."""
        if len(params) == len(self.params):
            self._seen += 1.0
        elif params:
            torch._foreach_add_(self._seen_by(set(params)), 1.0)
        after = self._in_group | numbers
        self._numbers.copy_(torch.stack([as_tensor(after[name], self.device) for name in NUMBERS]))
        self.steps_were_made = True

    def _part(self, some: set[Tensor]) -> None:
        """Tell these parameters apart from the others from now on."""
        self._kinds = _firsts([(kind, param in some) for kind, param in zip(self._kinds, self.params, strict=True)])

    def _seen_by(self, some: set[Tensor]) -> list[Tensor]:
        return [seen for param, seen in zip(self.params, self._each_seen, strict=True) if param in some]


def check(group: Group, params: Iterable[Tensor]) -> None:
    """Raise ValueError unless the numbers of a group can be on the device of its parameters."""
    devices = {param.device for param in params}
    if len(devices) > 1:
        raise ValueError(
            f"capturable = True, but the parameters are on {' and '.join(sorted(map(str, devices)))}: "
            "make a group for each device"
        )
    for device in devices:
        check_lr(group["lr"], device)


def check_lr(lr: float | Tensor, device: torch.device) -> None:
    """Raise ValueError if a learning rate is a tensor elsewhere than on this device."""
    if isinstance(lr, Tensor) and lr.device != device:
        raise ValueError(
            f"capturable = True, but lr = a tensor on {lr.device}, the parameters are on {device}: "
            "put it there, or give a float"
        )


def tried(group: Group) -> Group:
    """A group before its first step with numbers that the host does not know, to see whether its formulas allow it."""
    numbers = dict.fromkeys(NUMBERS, DeviceNumber(torch.zeros((), dtype=torch.float64, device="cpu")))
    return group | numbers | {"lr": 1.0}


def refuse_to_set(device: torch.device) -> None:
    """Raise RuntimeError while a step is captured, which would then set the numbers in every replay."""
    if is_capturing(device):
        raise RuntimeError(
            "the numbers of the step are to be set anew while it is captured: make a step before the capture"
        )


def is_capturing(device: torch.device) -> bool:
    """Whether what is done on a device is recorded in a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _firsts(keys: list[Any]) -> list[int]:
    """For each key the position at which it first stands."""
    first: dict[Any, int] = {}
    return [first.setdefault(key, position) for position, key in enumerate(keys)]
