"""Ctrl-C, and a polite kill, between two iterations instead of anywhere."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupt:
    """Within the block the first Ctrl-C only sets ``asked``; a second one interrupts at once.

    SIGTERM, by which schedulers and torchrun end a process, is as good as Ctrl-C. A block that ends
    without having acted on it raises KeyboardInterrupt. Where a signal does not mean what it means
    by default (another thread, a background job, a handler of the host), nothing changes.
    """

    DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

    def __init__(self):
        self.asked = False
        self.installed: list[int] = []

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number, default in self.DEFAULTS.items():
                if signal.getsignal(number) is default:
                    signal.signal(number, self._note)
                    self.installed.append(number)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore(number)  # torchrun sends SIGTERM on top of a Ctrl-C: that is not a second one

    def _restore(self, number: int) -> None:
        signal.signal(number, self.DEFAULTS[signal.Signals(number)])
        self.installed.remove(number)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for number in list(self.installed):
            self._restore(number)
        if self.asked and kind is None:
            raise KeyboardInterrupt
