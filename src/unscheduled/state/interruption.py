"""Defers signals, such as that of Ctrl-C, until a block of code is complete."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals whose handlers often raise: KeyboardInterrupt by default, or SystemExit in code that saves and exits."""

PATIENCE = 1.0
"""Seconds after the first signal after which a further signal takes effect at once, in case the block hangs."""


class Deferred:
    """Defers signals within the ``with`` block: their Python handlers are called at its end.

    In threads other than the main thread, where Python runs no handlers, it does nothing. It does not defer a signal
    whose handler is not a Python function or is replaced within the block.
    """

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}
        self._noted: list[tuple[int, FrameType | None]] = []
        self._first = 0.0
        self._is_over = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in SIGNALS:
                former = signal.getsignal(number)
                if callable(former):
                    self._former[number] = former
                    signal.signal(number, self)
        except BaseException:
            self._restore()
            raise

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, or call its handler if the block is over or hangs."""
        now = time.monotonic()
        if not self._noted:
            self._first = now
        if self._is_over or now - self._first > PATIENCE:
            self._former[number](number, frame)
        else:
            self._noted.append((number, frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()
        former = self._former
        for number, frame in {number: (number, frame) for number, frame in self._noted}.values():
            former[number](number, frame)

    def _restore(self) -> None:
        """Install the former handlers, and that of Ctrl-C last, since it may raise from then on."""
        try:
            for number, former in reversed(self._former.items()):
                handler = signal.signal(number, former)
                if handler is not self:  # the block has installed another handler
                    signal.signal(number, handler)
        finally:
            self._is_over = True
