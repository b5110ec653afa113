"""Defers signals, as of Ctrl-C, until something is done as a whole."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals whose handlers often raise: KeyboardInterrupt by default, SystemExit in code that saves before it ends."""

PATIENCE = 1.0
"""Seconds after the first signal from which on another one takes effect at once, should the block never end."""


class Deferred:
    """Within the ``with`` block, signals whose handlers are Python's are noted; the handlers are called at its end.

    Elsewhere than in the main thread, where no such handler runs, it does nothing. A signal whose handler is not
    Python's, or is replaced within the block, is left alone.
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
        """Handle a signal: note it."""
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
        """Install the former handlers, that of Ctrl-C last: from then on it may raise."""
        try:
            for number, former in reversed(self._former.items()):
                handler = signal.signal(number, former)
                if handler is not self:  # another was installed within the block
                    signal.signal(number, handler)
        finally:
            self._is_over = True
