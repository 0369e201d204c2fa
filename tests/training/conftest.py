"""Settings of a short run on a small data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrcnn_engine.data.proposals import write_proposals
from fastrcnn_engine.training import TrainConfig

from .small import jittered, write_voc


@pytest.fixture
def voc(tmp_path: Path) -> TrainConfig:
    """Settings of a short run on four images, one of them without objects."""
    objects = {
        "first": [("brick", (10, 10, 39, 33)), ("leaf", (50, 20, 85, 60))],
        "second": [("leaf", (5, 30, 40, 65))],
        "empty": [],
        "third": [("brick", (40, 8, 80, 50))],
    }
    write_voc(tmp_path / "voc", objects)
    write_proposals(
        tmp_path / "proposals.npz",
        ((name, jittered([box for _, box in things], seed=len(name)))
         for name, things in objects.items()),
    )  # fmt: skip
    return TrainConfig(
        data=tmp_path / "voc",
        proposals=tmp_path / "proposals.npz",
        output=tmp_path / "run",
        split="train",
        network="tiny",
        iterations=6,
        warmup=0,
        learning_rate=0.01,
        short_side=72,
        max_side=96,
        log_every=2,
        checkpoint_every=3,
    )
