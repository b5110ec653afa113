"""The tensors of a group, as a kernel is given them."""

from collections.abc import Iterator
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from unscheduled.kernels import Batch, Rule
from unscheduled.state import State

DTYPE, DEVICE = attrgetter("dtype"), attrgetter("device")


class Batches:
    """What a kernel can update in one call, of the parameters of one group; kept while these are the same tensors."""

    def __init__(self) -> None:
        self._batch: Batch | None = None  # without gradients, which are not to outlive the step
        self._rule: Rule | None = None
        self._grad_dtype: torch.dtype | None = None
        self._addresses: list[int] = []

    def of(
        self, params: list[Tensor], grads: list[Tensor], contiguous: bool, states: list[State], rule: Rule
    ) -> list[tuple[int, Batch]]:
        """The batches, each with the number of gradients that its parameters have seen, these included.

        Complex tensors are pairs of real numbers, as in ``torch.optim``.
        """
        gaps: list[Tensor] = [state["gap"] for state in states]
        buffers: list[list[Tensor]] = [[state[name] for state in states] for name in rule.buffers]
        seen: list[int] = [state["step"] + 1 for state in states]
        addresses = list(map(Tensor.data_ptr, params))
        kept = self._batch
        if (
            kept is not None
            and rule is self._rule
            and addresses == self._addresses
            and set(map(DTYPE, grads)) == {self._grad_dtype}
            and seen.count(seen[0]) == len(seen)
            and all(map(all_same, [params, gaps, *buffers], [kept.params, kept.gaps, *kept.buffers]))
        ):
            return [(seen[0], kept._replace(grads=grads, contiguous=contiguous, states=states))]
        found = list(_partition(params, grads, gaps, buffers, states, seen))
        self._batch = (
            found[0][1]._replace(grads=[], states=[]) if len(found) == 1 and not params[0].is_complex() else None
        )
        self._rule, self._grad_dtype, self._addresses = rule, grads[0].dtype if grads else None, addresses
        return found


def all_same(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether two lists are of the very same tensors."""
    return len(tensors) == len(others) and all(map(is_, tensors, others))


def _partition(
    params: list[Tensor],
    grads: list[Tensor],
    gaps: list[Tensor],
    buffers: list[list[Tensor]],
    states: list[State],
    seen: list[int],
) -> Iterator[tuple[int, Batch]]:
    dtypes = (map(DTYPE, tensors) for tensors in (params, grads, gaps))
    kinds = list(zip(seen, *dtypes, map(DEVICE, params), strict=True))
    for kind in dict.fromkeys(kinds):

        def of_kind(column: list[Any], kind: Any = kind) -> list[Any]:
            return [entry for entry, of in zip(column, kinds, strict=True) if of == kind]

        chosen = [of_kind(tensors) for tensors in (params, grads, gaps, *buffers)]
        if kind[1].is_complex:
            chosen = [[torch.view_as_real(tensor.resolve_conj()) for tensor in tensors] for tensors in chosen]
        yield kind[0], Batch(*chosen[:3], chosen[3:], of_kind(states), False, {})
