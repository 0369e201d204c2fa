"""Threads change nothing but the time, and survive what processes do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import fastrcnn_engine as fe
from fastrcnn_engine.ops._arrays import arrays_of
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
    sides = rng.uniform(0, 300, (400, 2))
    images = rng.integers(0, 3, (400, 1))
    rois = np.hstack([images, corners, corners + sides]).astype(np.float32)
    features = rng.standard_normal((3, 70, 25, 30)).astype(dtype)
    return (channels_last(features) if layout == "channels_last" else features), rois


def results(features, rois) -> list[np.ndarray]:
    alone = fe.roi_pool(features, rois, 7, 1 / 16)  # not as with argmax, for so many RoIs
    values, argmax = fe.roi_pool_with_argmax(features, rois, 7, 1 / 16)
    gradient = fe.roi_pool_backward(values, argmax, rois, features.shape, 1 / 16)
    return [np.asarray(array) for array in (alone, values, argmax, gradient)]


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


def test_denormals_are_what_they_are_to_the_caller():
    """Threads that were there before it decided have a mode of their own."""
    features, rois = (torch.from_numpy(array) for array in problem("nchw", np.float32))
    features *= 1e-39
    torch.set_num_threads(2)
    torch.ones(1000, 1000).sin().sum()  # the other thread is there
    kept = results(features, rois)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot count denormals as zeros")
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(results(features, rois))
    finally:
        torch.set_flush_denormal(False)
    assert_all_equal(found)
    assert (found[0][2] != kept[2]).any()  # other cells are the maxima


@every_layout
def test_torchs_threads_change_nothing(layout):
    """Calls on tensors run on the threads of torch's own operators."""
    features, rois = (torch.from_numpy(array) for array in problem(layout, np.float32))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.ones(1000, 1000).sin().sum()  # torch's threads are awake
        assert arrays_of(features, "features").threads == threads
        found.append(results(features, rois))
    assert_all_equal(found)


@pytest.mark.parametrize("threads", [0, -1, 2.0, True, None, "2"])
def test_a_thread_count_must_be_positive(threads):
    with pytest.raises(ValueError, match=f"threads must be an int >= 1, got {threads!r}"):
        fe.set_num_threads(threads)


def test_more_threads_than_the_engine_can_count():
    fe.set_num_threads(2**40)
    assert fe.get_num_threads() == 2**31 - 1


# What a child computes after a fork, the module imported before (early) or in the child (late).
FORK = """
import os, signal, sys, numpy as np, torch
if sys.argv[1] == "early":
    import fastrcnn_engine
torch.set_num_threads(2)
torch.ones(1000, 1000).sin().sum()  # torch's threads are there
if os.fork() == 0:
    signal.alarm(30)
    import fastrcnn_engine as fe
    features = np.random.default_rng(1).standard_normal((1, 256, 40, 40)).astype(np.float32)
    rois = np.tile(np.float32([[0, 0, 0, 39, 39]]), (300, 1))
    fe.set_num_threads(1)
    expected = fe.roi_pool(features, rois, 7)
    fe.set_num_threads(2)
    on_arrays = fe.roi_pool(features, rois, 7)
    on_tensors = fe.roi_pool(torch.from_numpy(features), torch.from_numpy(rois), 7).numpy()
    same = [np.array_equal(found, expected) for found in (on_tensors, on_arrays)]
    os._exit(0 if all(same) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
@pytest.mark.parametrize("imported", ["early", "late"])
def test_a_forked_process_computes(imported):
    """The threads a process had are gone in its child: a call that counts on them never returns."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, imported], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


# Daemon threads compute when the main thread ends: they ask for a lock that nobody gives any more.
DAEMONS = """
import sys, threading, time, numpy as np
if sys.argv[1] == "torch":
    import torch
import fastrcnn_engine as fe
features = np.random.default_rng(1).standard_normal((1, 256, 40, 40)).astype(np.float32)
rois = np.tile(np.float32([[0, 0, 0, 39, 39]]), (300, 1))
if sys.argv[1] == "refused":
    rois[-1, 0] = 1
begun = threading.Semaphore(0)
def work():
    while True:
        try:
            fe.roi_pool(features, rois, 7)
        except ValueError:
            pass
        begun.release()
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
for _ in range(20):
    begun.acquire()
"""


@pytest.mark.parametrize("kind", ["numpy", "torch", "refused"])
def test_a_process_ends_while_its_daemon_threads_compute(kind):
    done = subprocess.run(
        [sys.executable, "-c", DAEMONS, kind], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stderr == ""


# An OpenMP runtime of which there is one thread, as in a parallel region, or three: it says so.
RUNTIME = """
#include <stdio.h>
int omp_get_max_threads(void) { return 8; }
void GOMP_parallel(void (*run)(void*), void* data, unsigned team, unsigned flags) {
  (void)team, (void)flags;
  puts("borrowed");
  fflush(stdout);
  for (int i = 0; i < MEMBERS; ++i) run(data);
}
"""
CALL = """
import numpy as np, fastrcnn_engine as fe
from fastrcnn_engine import _core
rng = np.random.default_rng(2)
features = rng.standard_normal((2, 128, 40, 40)).astype(np.float32)
corners = rng.uniform(0, 20, (300, 4)) + [0, 0, 20, 20]
rois = np.hstack([rng.integers(0, 2, (300, 1)), corners]).astype(np.float32)
found = []
for threads in (1, 2):
    fe.set_num_threads(threads)
    found.append(fe.roi_pool(features, rois, 7))
out = np.empty_like(found[0])
_core.roi_pool_forward(features, rois, 1, out, None, 0, 1)  # one, as this call says
assert np.array_equal(*found) and np.array_equal(out, found[0])
"""


# A machine that gives no more threads.
NO_THREADS = """
#include <errno.h>
#include <stdio.h>
int pthread_create(void* thread, void* attributes, void* run, void* data) {
  (void)thread, (void)attributes, (void)run, (void)data;
  puts("refused");
  fflush(stdout);
  return EAGAIN;
}
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only looked for on Linux")
@pytest.mark.parametrize(
    ("library", "flags", "says"),
    [
        (RUNTIME, ["-DMEMBERS=1"], "borrowed"),
        (RUNTIME, ["-DMEMBERS=3"], "borrowed"),
        (NO_THREADS, [], "refused"),
    ],
    ids=["one-borrowed", "three-borrowed", "none-to-be-had"],
)
def test_the_threads_of_a_visible_openmp_are_borrowed_or_new_ones(tmp_path, library, flags, says):
    (tmp_path / "library.c").write_text(library)
    made = tmp_path / "library.so"
    compiler = os.environ.get("CC", "gcc")
    command = [compiler, "-shared", "-fPIC", *flags, tmp_path / "library.c", "-o", made]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", CALL], capture_output=True, text=True, timeout=120,
        env={**os.environ, "LD_PRELOAD": str(made), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{says}\n"
