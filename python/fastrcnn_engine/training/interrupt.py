"""Ctrl-C, and a polite kill, between two iterations instead of anywhere."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A run has ended for a signal, of that number."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.number = number


class Interrupt:
    """Within the block the first Ctrl-C only sets ``asked``; a second one interrupts at once.

    SIGTERM, by which schedulers and torchrun end a process, is as good as Ctrl-C. ``asked`` is the
    number of the signal, 0 until one comes. A block that ends without having acted on it raises
    Stopped. Where a signal does not mean what it means by default (another thread, a background
    job, a handler of the host), nothing changes.
    """

    DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

    def __init__(self):
        self.asked = 0
        self.installed: set[int] = set()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number, default in self.DEFAULTS.items():
                if signal.getsignal(number) is default:
                    signal.signal(number, self._note)
                    self.installed.add(number)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        # torchrun sends SIGTERM on top of a Ctrl-C: that is not a second one.
        self.asked = self.asked or number
        self._restore(number)

    def _restore(self, number: int) -> None:
        signal.signal(number, self.DEFAULTS[signal.Signals(number)])
        self.installed.discard(number)  # by a signal meanwhile, it may be gone

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for number in list(self.installed):
            self._restore(number)
        if self.asked and kind is None:
            raise Stopped("", self.asked)
