"""What a kernel is given: a batch of tensors, with the rule of the algorithm and the scalars of the step."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter, is_, itemgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from unscheduled.formulas.iterates import Coefficients
from unscheduled.formulas.rule import Rule
from unscheduled.state.buffers import State, scale_names
from unscheduled.state.split_weights import is_split

Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]

PLAIN = {Tensor, Parameter}
"""The types of tensors that mean what stands in their memory."""

DTYPE, DEVICE = attrgetter("dtype"), attrgetter("device")


def all_same(some: Collection[object], others: Collection[object]) -> bool:
    """Whether both have the very same elements, in the same order."""
    return len(some) == len(others) and all(map(is_, some, others))


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, which it is to every rule, as in ``torch.optim``."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


@dataclass(eq=False)
class Kept:
    """The results of the first step of a batch that the fused kernel uses in later steps."""

    fit: bool = False  # all but the gradients can be taken as they are
    singles: list[int] | None = None  # where single numbers are, once it was looked at
    call: Any = None
    token: object = field(default_factory=object)  # which stands for it where it may not be referred to


class Batch(NamedTuple):
    """Tensors that are updated together: one count of gradients seen, one device, and one dtype in each list."""

    params: list[Tensor]
    grads: list[Tensor]
    gaps: list[Tensor]
    buffers: list[list[Tensor]]  # one list for each of the rule's buffers
    states: list[dict[str, Any]]  # where they are from
    contiguous: bool  # all gradients are known to be
    kept: Kept


class Scalars(NamedTuple):
    """The numbers of one step, float64.

    With ``capturable=True`` they are tensors: of no dimensions, or, where it depends on the gradients that a parameter
    has seen, with a number for each parameter of the batch.
    """

    step: int  # the gradients seen, this one included
    lr: float  # gamma: warmup and rectification included
    weight_decay: float
    weight_decay_of_gap: float
    coefficients: Coefficients
    maximize: bool
    direction: Mapping[str, float]  # the rule's own, by the names of its definition's arguments


Work: TypeAlias = tuple[Batch, Scalars]


def of_one(number: Any, position: int) -> Any:
    """A scalar for the parameter at a position of a batch."""
    return number[position] if isinstance(number, Tensor) and number.dim() else number


class KnownStates:
    """The states of parameters, looked up anew only where a parameter or a state is another object than before.

    Comparing two objects takes a tenth of the time of looking a tensor up in a dictionary.
    """

    def __init__(self) -> None:
        self._params: list[Tensor] = []
        self._states: list[State] = []
        self._groups: dict[int, tuple[list[Tensor], list[State | None]]] = {}

    def refresh(self, state: dict[Tensor, State]) -> None:
        """Forget what was looked up, unless these are all the parameters and states that there were."""
        if not (all_same(state, self._params) and all_same(state.values(), self._states)):
            self._params, self._states, self._groups = list(state), list(state.values()), {}

    def of(self, index: int, params: list[Tensor], state: dict[Tensor, State]) -> list[State | None]:
        """The states of parameters of the group at an index; None for one that has none."""
        known, states = self._groups.get(index, ([], []))
        if not all_same(params, known):
            states = list(map(state.get, params))
            self._groups[index] = list(params), states
        return states


class Facts(NamedTuple):
    """The facts that must be the same, besides the tensors themselves, for batches to be used again."""

    rule: Rule
    offsets: list[int] | None  # how many gradients more than the first each has seen; None if all have seen as many
    addresses: list[list[int]]  # a column for each kind of tensor: memory may move under a tensor
    contiguous: list[bool]
    sizes: list[int]  # of the gradients
    grad_dtypes: list[torch.dtype]


class Batches:
    """What a kernel can update in one call, of the parameters of one group; kept while these are the same tensors."""

    def __init__(self) -> None:
        self._params: list[Tensor] = []
        self._states: list[State] = []
        self._facts: Facts | None = None
        self._columns: list[list[Tensor]] = []
        self._names: tuple[str, ...] = ()  # of what is kept for a parameter
        self._batches: list[tuple[list[int] | None, Batch]] = []  # positions, and batches without gradients

    @property
    def rule(self) -> Rule | None:
        """That of the batches that are kept."""
        return self._facts.rule if self._facts else None

    def of(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        contiguous: bool,
        states: list[State],
        rule: Rule,
        seen: list[int],
    ) -> list[tuple[int, Batch]]:
        """The batches, each with the number of gradients that its parameters have ``seen``, or what stands for it.

        Complex tensors are pairs of real numbers, as in ``torch.optim``.
        """
        if not params:
            return []
        known = states is self._states or all_same(params, self._params)
        facts, columns = self._look(params, grads, seen, states, rule)
        if not (known and facts == self._facts and all(map(all_same, columns, self._columns))):
            split = ("low",) if any(is_split(param.dtype) for param in params) else ()
            self._names = ("gap", *rule.buffers, *scale_names(states), *split)
            self._facts, self._columns = self._look(params, grads, seen, states, rule)
            self._params, self._batches = list(params), list(_partition(params, grads, seen, states, rule))
        self._states = states
        found: list[tuple[int, Batch]] = []
        for positions, batch in self._batches:
            if positions is None:
                found.append((seen[0], batch._replace(grads=grads, states=states, contiguous=contiguous)))
            else:
                found.append((seen[positions[0]], _at(positions, batch, grads, states)))
        return found

    def _look(
        self, params: list[Tensor], grads: list[Tensor], seen: list[int], states: list[State], rule: Rule
    ) -> tuple[Facts, list[list[Tensor]]]:
        columns = [_column(states, name) for name in self._names]
        facts = Facts(
            rule,
            None if seen.count(seen[0]) == len(seen) else [count - seen[0] for count in seen],
            [list(map(Tensor.data_ptr, column)) for column in (params, *columns)],
            list(map(Tensor.is_contiguous, params)),
            list(map(Tensor.numel, grads)),
            list(map(DTYPE, grads)),
        )
        return facts, columns


def _column(states: list[State], name: str) -> list[Tensor]:
    """The entries with this name in these states; states without one are skipped."""
    try:
        return list(map(itemgetter(name), states))
    except KeyError:
        return [state[name] for state in states if name in state]


def with_gradients(params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that have gradients, and these."""
    grads = [grad for param in params if (grad := param.grad) is not None]
    return (params if len(grads) == len(params) else [param for param in params if param.grad is not None]), grads


def _partition(
    params: list[Tensor], grads: list[Tensor], seen: list[int], states: list[State], rule: Rule
) -> Iterator[tuple[list[int] | None, Batch]]:
    stored = [[state[name] for state in states] for name in ("gap", *rule.buffers)]
    dtypes = (map(DTYPE, column) for column in (params, grads, *stored))
    sharded = (hasattr(param, "to_local") for param in params)  # torch._foreach_* refuses DTensors beside plain ones
    kinds = list(zip(seen, map(DEVICE, params), sharded, *dtypes, strict=True))
    for kind in dict.fromkeys(kinds):
        positions = [position for position, other in enumerate(kinds) if other == kind]
        chosen = [[real(column[position]) for position in positions] for column in (params, *stored)]
        batch = Batch(chosen[0], [], chosen[1], chosen[2:], [], contiguous=False, kept=Kept())
        yield (None if len(positions) == len(kinds) and not params[0].is_complex() else positions), batch


def _at(positions: list[int], batch: Batch, grads: list[Tensor], states: list[State]) -> Batch:
    """A batch with the gradients and states at these positions."""
    here = [real(grads[position]) for position in positions]
    contiguous = all(map(Tensor.is_contiguous, here))
    return batch._replace(grads=here, states=[states[position] for position in positions], contiguous=contiguous)
