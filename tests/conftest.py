"""What every room of the tests shares: the import path, Hypothesis settings, the CUDA switch,
benchmarks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

try:
    from hypothesis import settings
except ImportError:  # the operators' tests do without it: a borrowed machine may not have it
    settings = None

# `reference` and `ops.cases` are imported by several rooms, whatever folder pytest was started in.
sys.path.insert(0, str(Path(__file__).resolve().parent))

# Fixed examples: a failure seen once is seen again. FRCNN_FUZZ=thorough explores with fresh seeds.
if settings is not None:
    settings.register_profile(
        "default", deadline=None, derandomize=True, database=None, max_examples=150
    )
    settings.register_profile("thorough", deadline=None, database=None, max_examples=4000)
    settings.load_profile(os.environ.get("FRCNN_FUZZ", "default"))


@pytest.fixture(scope="session")
def cuda_device():
    """The torch device for CUDA checks; FRCNN_REQUIRE_CUDA=1 turns its absence into a failure."""
    torch = pytest.importorskip("torch")
    import fastrcnn_engine

    build = fastrcnn_engine.build_info()
    if not build["cuda"]:
        missing = f"this build has no CUDA kernels: {build}"
    elif not torch.cuda.is_available():
        missing = "torch finds no CUDA device"
    else:
        return torch.device("cuda")
    if os.environ.get("FRCNN_REQUIRE_CUDA") == "1":
        pytest.fail(f"FRCNN_REQUIRE_CUDA=1 but {missing}")
    pytest.skip(missing)


@pytest.fixture(scope="module")
def benchmarks_on_the_path():
    """benchmarks/ can be imported; the threads it sets are as before when the module is done."""
    import torch

    benchmarks = str(Path(__file__).resolve().parents[1] / "benchmarks")
    sys.path.insert(0, benchmarks)
    threads = torch.get_num_threads()
    yield
    sys.path.remove(benchmarks)
    torch.set_num_threads(threads)
