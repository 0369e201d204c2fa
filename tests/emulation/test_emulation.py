"""The CUDA kernels, compiled by g++ for an emulated device, agree with the CPU engine bit by bit.

Needs no GPU and no CUDA toolkit, and proves nothing about a GPU: `cuda_runtime.h` beside this file
says what is emulated and what is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from emulation.steps import run

TESTS = (
    "roi_pool_forward",
    "roi_pool_forward_of_16_bits",
    "roi_pool_backward",
    "smooth_l1",
    "box_codec",
    "box_iou",
    "nms",
    "nms_of_long_lists",
    "nms_at_threshold",
    "detections",
    "device_errors",
    "the_emulator_notices",
)


def test_no_test_is_forgotten(program: Path) -> None:
    assert run([program]).split() == list(TESTS)


@pytest.fixture(scope="module")
def said(program: Path) -> Iterator[dict[str, Future[str]]]:
    """What every test said, two running at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, [program, name]) for name in TESTS}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", TESTS)
def test_kernels(said: dict[str, Future[str]], name: str) -> None:
    assert said[name].result().endswith(" 0 failed\n")
