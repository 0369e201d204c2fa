"""A drawn data set, and a run of the train command on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrcnn_engine.data.demo_set import write_demo_set

from .steps import run


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """A VOC directory of four images to train on and two to test on."""
    return write_demo_set(tmp_path_factory.mktemp("drawn"), seed=1, train=4, test=2)


@pytest.fixture(scope="session")
def trained(drawn, tmp_path_factory) -> Path:
    """Folder of a run of the train command, tested too."""
    out = tmp_path_factory.mktemp("runs") / "micro"
    run(
        "train", "--data", drawn, "--network", "tiny", "--split", "train", "--test-split", "test",
        "--out", out, "--iterations", 4, "--short-side", 120, "--log-every", 2,
        "--search.short-side", 80,
    )  # fmt: skip
    return out
