"""The switches that a kernel makes in one pass over the memory, where it can."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from unscheduled import kernels
from unscheduled.state import Started


class Swaps:
    """Of an optimizer: it remembers the checksums of the x that it has put into parameters, in this process alone."""

    def __init__(self) -> None:
        self._places: dict[Tensor, Any] = {}

    def forget(self) -> None:
        """The state is another."""
        self._places.clear()

    @contextmanager
    def averages(
        self, implementation: str, started: list[Started], written: dict[Tensor, Tensor]
    ) -> Generator[list[Started], None, None]:
        """Put x into parameters that hold y, and keep y aside, as :func:`unscheduled.state.put_averages` does.

        Those for which a kernel is no help are given to the ``with`` block. If that fails, all is as before.
        """
        on_cpu = any(param.is_cpu and param.dtype == torch.float32 for param, _, _ in started)
        kernel: Any = kernels.import_swap() if on_cpu and implementation in ("auto", "fused") else None
        places: dict[Tensor, Any] = {}
        for param, state, beta in started if kernel else ():
            if param not in written and (place := kernel.place(param, state["gap"], beta)):
                places[param] = place
        if not places or kernel.overlap(list(places)):
            yield started
            return
        swap = kernel.away(list(places.values()))
        try:
            swap.put_averages()
            yield [entry for entry in started if entry[0] not in places]
            for param, state, _ in started:
                if param in places:
                    state["kept"] = places[param].kept
        except BaseException:
            swap.put_gradient_points()
            for param, state, _ in started:
                if param in places:
                    state.pop("kept", None)
            raise
        self._places |= places

    @contextmanager
    def gradient_points(
        self, started: list[Started], written: dict[Tensor, Tensor]
    ) -> Generator[list[Started], None, None]:
        """Put y back into parameters that hold x, as :func:`unscheduled.state.put_gradient_points` does.

        Those for which there is no checksum, or another, are given to the ``with`` block. If that fails, all is as
        before.
        """
        places = {
            param: place
            for param, state, beta in started
            if (place := self._places.get(param)) is not None
            and param not in written
            and place.is_same(state["gap"], state.get("kept"), beta)
        }
        if places:
            swap = cast(Any, kernels.import_swap()).back(list(places.values()))
            try:
                for place in swap.put_gradient_points():
                    del places[place.param]
                yield [entry for entry in started if entry[0] not in places]
            except BaseException:
                swap.put_averages()
                raise
        else:
            yield started
        for param, state, _ in started:
            if param in places:
                del state["kept"]
            self._places.pop(param, None)
