"""Automatic mixed precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


class Amp:
    """How a network computes: "bf16", "fp16" with a loss scale that adapts, or None, float32."""

    def __init__(self, name: str | None, device: torch.device):
        self.type = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.device = device.type
        self.scaler = torch.amp.GradScaler(self.device) if name == "fp16" else None

    def forward(self) -> AbstractContextManager[Any]:
        """The context of the forward pass."""
        return nullcontext() if self.type is None else torch.autocast(self.device, self.type)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """A step of the optimiser; with a scale none where a gradient has left float16's range."""
        if self.scaler is None:
            optimiser.step()
        else:
            self.scaler.step(optimiser)
            self.scaler.update()
