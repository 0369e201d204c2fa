"""Where the time of an iteration goes, by the parts of the loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastrcnn_engine.models import FastRCNN

# In the order in which they happen.
PARTS = ("waiting for data", "convolutions", "RoI pooling", "fully connected layers", "loss",
         "backward", "optimiser", "log, tests, checkpoints")  # fmt: skip


class Stopwatch:
    """Adds up the seconds between one mark and the next. Disabled, it does nothing.

    On a GPU a mark waits until everything asked for is done: the parts are right, and the whole is
    slower than without a stopwatch.
    """

    def __init__(self, device: torch.device, *, enabled: bool):
        self.device, self.enabled = device, enabled
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.iterations = 0
        self.last = time.perf_counter()

    def mark(self, part: str) -> None:
        """What has happened since the last mark was this part."""
        if not self.enabled:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now

    def means(self) -> dict[str, float] | None:
        """Seconds of an iteration, by its parts; None where nothing was measured."""
        if not self.enabled or not self.iterations:
            return None
        return {part: seconds / self.iterations for part, seconds in self.seconds.items()}

    @contextmanager
    def watching(self, model: FastRCNN) -> Iterator[None]:
        """Within the block the forward pass marks its own parts, up to the head's beginning."""
        if not self.enabled:
            yield
            return
        self.last = time.perf_counter()
        hooks = (
            model.backbone.register_forward_hook(lambda *_: self.mark("convolutions")),
            model.head.register_forward_pre_hook(lambda *_: self.mark("RoI pooling")),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
