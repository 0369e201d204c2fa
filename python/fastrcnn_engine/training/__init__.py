"""Training: settings, RoI sampling, regression targets, checkpoints, the loop."""

from __future__ import annotations

from fastrcnn_engine.training.checkpoint import load_checkpoint, load_network, save_checkpoint
from fastrcnn_engine.training.config import RECIPES, TrainConfig
from fastrcnn_engine.training.loop import TrainResult, settled, train
from fastrcnn_engine.training.svm import train_svms

__all__ = [
    "RECIPES",
    "TrainConfig",
    "TrainResult",
    "load_checkpoint",
    "load_network",
    "save_checkpoint",
    "settled",
    "train",
    "train_svms",
]
