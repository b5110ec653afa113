"""The limit of the machine: the memory traffic of AdamW (four arrays read, three written) with little arithmetic."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

SHARE = 1e-3


class Stream(torch.optim.Optimizer):
    """Adds a share of the gradient to the parameter and to two buffers, in as many threads as PyTorch has."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, {})
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads)
        self._parts: list[tuple[Any, ...]] = []
        for param in params:
            self.state[param] = {"first": torch.zeros_like(param), "second": torch.zeros_like(param)}
            arrays = (param.detach(), *self.state[param].values())
            self._parts += zip(*map(self._pieces, arrays), strict=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Stream all parameters once."""
        grads = [
            piece for group in self.param_groups for param in group["params"] for piece in self._pieces(param.grad)
        ]
        parts = iter(list(zip(self._parts, grads, strict=True)))  # its ``next`` is safe between threads
        list(self._pool.map(self._work, [parts] * self._threads))

    def _work(self, parts: Iterator[tuple[tuple[Any, ...], Any]]) -> None:
        for arrays, grad in parts:
            self._add(*arrays, grad)

    @abstractmethod
    def _pieces(self, tensor: Tensor) -> Iterable[Any]:
        """The pieces of a tensor for calls of :meth:`_add`."""

    @abstractmethod
    def _add(self, param: Any, first: Any, second: Any, grad: Any) -> None:
        """Stream one piece."""


class TorchStream(Stream):
    """Streams with three additions of PyTorch, on pieces that fit into the cache and for which it uses one thread."""

    def _pieces(self, tensor: Tensor) -> Iterable[Tensor]:
        return tensor.view(-1).split(32_768)

    @torch.no_grad()
    def _add(self, param: Tensor, first: Tensor, second: Tensor, grad: Tensor) -> None:
        for tensor in (param, first, second):
            tensor.add_(grad, alpha=SHARE)


class NumbaStream(Stream):
    """Streams with one loop, compiled by Numba."""

    def _pieces(self, tensor: Tensor) -> Iterable[Any]:
        array = tensor.view(-1).numpy()
        return [array[start : start + 262_144] for start in range(0, len(array), 262_144)]

    def _add(self, param: Any, first: Any, second: Any, grad: Any) -> None:
        _compiled()(param, first, second, grad)


@cache
def _compiled() -> Callable[..., None]:
    import numba
    import numpy as np

    share = np.float32(SHARE)

    @numba.njit("void(f4[::1], f4[::1], f4[::1], f4[::1])", nogil=True, fastmath=True, error_model="numpy")
    def add(param, first, second, grad):  # type: ignore[no-untyped-def]
        for i in range(param.size):
            change = share * grad[i]
            param[i] += change
            first[i] += change
            second[i] += change

    return add
