"""Threads change nothing but the time, and survive what processes do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import fastrcnn_engine as fe
from ops.checks import channels_last

every_layout = pytest.mark.parametrize("layout", ["nchw", "channels_last"])


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = fe.get_num_threads(), torch.get_num_threads()
    yield
    fe.set_num_threads(before[0])
    torch.set_num_threads(before[1])


def problem(layout: str, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Enough work for every thread asked for; sums in which another order would show."""
    rng = np.random.default_rng(8)
    corners = rng.uniform(0, 300, (400, 2))
    sides = rng.uniform(0, 150, (400, 2))
    images = rng.integers(0, 3, (400, 1))
    rois = np.hstack([images, corners, corners + sides]).astype(np.float32)
    features = rng.standard_normal((3, 70, 25, 30)).astype(dtype)
    return (channels_last(features) if layout == "channels_last" else features), rois


def results(features, rois) -> list[np.ndarray]:
    values, argmax = fe.roi_pool_with_argmax(features, rois, 7, 1 / 16)
    gradient = fe.roi_pool_backward(values, argmax, rois, features.shape)
    return [np.asarray(array) for array in (values, argmax, gradient)]


def assert_all_equal(several: list[list[np.ndarray]]) -> None:
    for more in several[1:]:
        for array, expected in zip(more, several[0], strict=True):
            np.testing.assert_array_equal(array, expected)


@every_layout
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_threads_change_nothing(layout, dtype):
    found = []
    for threads in (1, 2, 3, 7):
        fe.set_num_threads(threads)
        assert fe.get_num_threads() == threads
        found.append(results(*problem(layout, dtype)))
    assert_all_equal(found)


@every_layout
def test_torchs_threads_change_nothing(layout):
    """Calls on tensors run on the threads of torch's own operators."""
    features, rois = (torch.from_numpy(array) for array in problem(layout, np.float32))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.ones(1000, 1000).sin().sum()  # torch's threads are awake
        found.append(results(features, rois))
    assert_all_equal(found)


def test_a_thread_count_must_be_positive():
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        fe.set_num_threads(0)


FORK = """
import os, signal, numpy as np, torch, fastrcnn_engine as fe
torch.set_num_threads(2)
fe.set_num_threads(2)
features = torch.randn(1, 256, 40, 40)
rois = torch.tensor([[0.0, 0, 0, 39, 39]]).repeat(300, 1)
expected = fe.roi_pool(features, rois, 7)
if os.fork() == 0:
    signal.alarm(30)
    on_tensors = fe.roi_pool(features, rois, 7).numpy()
    on_arrays = fe.roi_pool(features.numpy(), rois.numpy(), 7)
    same = [np.array_equal(found, expected.numpy()) for found in (on_tensors, on_arrays)]
    os._exit(0 if all(same) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_forked_process_computes():
    """The threads a process had are gone in its child: a call that counts on them never returns."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
