"""No kernel has a race: what two threads do to the same memory, a barrier puts in order.

The kernels run on the emulated device under the thread sanitizer, to which each CUDA thread is a
thread. It does not need them to run in the wrong order: it knows that nothing forbids it. Blocks
are in no order at all, and a shuffle orders no memory. Races that are meant are volatile or atomic.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from emulation import test_mutations
from emulation.steps import Bug, compile_all, link, notices
from emulation.test_emulation import TESTS
from engine_sources import skip_unless_watched

# Numbers of 16 bits are pooled at the same places as floats.
WATCHED = [name for name in TESTS if name != "roi_pool_forward_of_16_bits"]
CLEAN = [name for name in WATCHED if name != "the_emulator_notices"]
# Of the bugs that the wrong order shows, these are races.
IN_ANY_ORDER = {
    "a slab is overwritten before all have read it",
    "a word is read before all have put their bits there",
    "a word is made zero before all have read it",
}
BUGS = [
    *(bug for bug in test_mutations.BUGS if bug.name in IN_ANY_ORDER),
    Bug(
        "ranges are overwritten before all have read them", "roi_pool.cu",
        "    __syncwarp();  // the ranges before these are done with\n", "",
        "roi_pool_forward",
    ),
    Bug(
        "ranges are read before they are found", "roi_pool.cu",
        "find_ranges(call, rois, memory.ranges);\n    __syncwarp();\n",
        "find_ranges(call, rois, memory.ranges);\n",
        "roi_pool_forward",
    ),
    Bug(
        "a RoI's part of the planes is overwritten before it is copied", "roi_pool.cu",
        "        __syncwarp();  // the next RoI's may lie there\n", "",
        "roi_pool_forward",
    ),
    Bug(
        "all blocks of a slab pool all RoIs", "roi_pool.cu",
        "pool_rois<true, WithArgmax, ByPlanes, Quads>(call, image, share, shares,",
        "pool_rois<true, WithArgmax, ByPlanes, Quads>(call, image, 0, 1,",
        "roi_pool_forward",
    ),
    Bug(
        "all lanes add before anything is prepared", "roi_pool_gradient.cu",
        "++i) cell[i] = kNoCell;\n  }", "++i) cell[i] = 0;\n  }",
        "roi_pool_backward",
    ),
    Bug(
        "columns are overwritten before all lanes have compared", "nms_steps.cuh",
        "      __syncwarp();\n    }\n    // Volatile", "    }\n    // Volatile",
        "nms_of_long_lists", "nms.cu",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    return compile_all(tmp_path_factory.mktemp("races"), "races")


@pytest.fixture(scope="module")
def done(
    objects: list[tuple[Path, Path]],
) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """What became of every test, two running at a time."""
    made = [made for _, made in objects]
    program = link(made, made[0].with_name("test_kernels"), "races")

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, name], capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, name) for name in WATCHED}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", CLEAN)
def test_kernels(done: dict[str, Future[subprocess.CompletedProcess[str]]], name: str) -> None:
    ended = done[name].result()
    skip_unless_watched(ended.stderr)
    assert ended.returncode == 0, ended.stderr[:5000]
    assert ended.stdout.endswith(" 0 failed\n")


def test_a_kernel_with_a_race_is_noticed(
    done: dict[str, Future[subprocess.CompletedProcess[str]]],
) -> None:
    ended = done["the_emulator_notices"].result()
    skip_unless_watched(ended.stderr)
    assert "in racing_kernel" in ended.stderr


def test_every_planted_race_is_noticed(
    done: dict[str, Future[subprocess.CompletedProcess[str]]],
    objects: list[tuple[Path, Path]],
    tmp_path: Path,
) -> None:
    skip_unless_watched(done["box_iou"].result().stderr)
    with ThreadPoolExecutor(2) as pool:
        seen = pool.map(
            lambda i: notices(BUGS[i], objects, tmp_path / str(i), "races"), range(len(BUGS))
        )
        missed = [b.name for b, what in zip(BUGS, seen, strict=True) if "data race" not in what]
    assert missed == []
