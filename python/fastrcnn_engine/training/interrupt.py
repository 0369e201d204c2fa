"""Ctrl-C between two iterations instead of anywhere."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupt:
    """Within the block the first Ctrl-C only sets ``asked``; a second one interrupts at once.

    A block that ends without having acted on it raises KeyboardInterrupt. Where Ctrl-C does not
    mean KeyboardInterrupt (another thread, a background job, a handler of the host), nothing
    changes.
    """

    def __init__(self):
        self.asked = False
        self.installed = False

    def __enter__(self) -> Interrupt:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self.installed = True
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        if self.installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.installed = False

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._restore()
        if self.asked and kind is None:
            raise KeyboardInterrupt
