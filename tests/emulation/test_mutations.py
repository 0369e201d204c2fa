"""Bugs planted in the kernels, each of which the emulation must notice.

A bug that no test sees is a test that is missing.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from emulation.steps import ROOT, compile_one, link


@dataclass
class Bug:
    name: str
    source: str  # of cuda/
    old: str  # stands there once
    new: str
    test: str  # that must fail


BUGS = [
    Bug(
        "a slab is read before it is filled", "roi_pool.cu",
        "    fill_slab<T, Quads>(call.features, image, first, slab);\n    __syncthreads();\n",
        "    fill_slab<T, Quads>(call.features, image, first, slab);\n",
        "roi_pool_forward",
    ),
    Bug(
        "a slab is overwritten before all have read it", "roi_pool.cu",
        "    __syncthreads();  // the slab before this one is done with\n", "",
        "roi_pool_forward",
    ),
    Bug(
        "the last of equal maxima wins", "roi_pool.cu",
        "        const bool better = semantics::beats(value, best[c]);\n",
        "        const bool better = !semantics::beats(best[c], value);\n",
        "roi_pool_forward",
    ),
    Bug(
        "NaN is taken for a maximum", "roi_pool.cu",
        "    if (!semantics::beats(best[c], Maximum<T>::lowest())) ", "    if (false) ",
        "roi_pool_forward",
    ),
    Bug(
        "the quads of a cell change places", "roi_pool.cu",
        "  const Quad<T>* const mine = slab + quad;\n",
        "  const Quad<T>* const mine = slab + (quad ^ 1) % Quads;\n",
        "roi_pool_forward",
    ),
    Bug(
        "a vector load that is not aligned", "roi_pool.cu",
        "map.layout == Layout::nhwc && map.c % kQuad<T> == 0 &&", "map.layout == Layout::nhwc &&",
        "roi_pool_forward",
    ),
    Bug(
        "bins beyond the first rows are the row above's", "roi_pool.cu",
        "        if (bin_x >= pw) bin_x -= pw, ++bin_y;\n",
        "        if (bin_x >= pw) bin_x -= pw;\n",
        "roi_pool_forward",
    ),
    Bug(
        "rows of no image are left as they were", "roi_pool.cu",
        "      if (roi.image != image && !(roi.image < 0 && image == 0)) continue;\n",
        "      if (roi.image != image) continue;\n",
        "roi_pool_forward",
    ),
    Bug(
        "a share of the RoIs is pooled by nobody", "roi_pool.cu",
        "row < rois; row += shares * warps)", "row < rois - 1; row += shares * warps)",
        "roi_pool_forward",
    ),
    Bug(
        "lanes of one cell add at once", "roi_pool.cu",
        "    const int turn = __popc(sharing & lower_lanes);\n", "    const int turn = 0;\n",
        "roi_pool_backward",
    ),
    Bug(
        "the higher bin adds first", "roi_pool.cu",
        "    const int turn = __popc(sharing & lower_lanes);\n",
        "    const int turn = __popc(sharing & ~lower_lanes) - 1;\n",
        "roi_pool_backward",
    ),
    Bug(
        "the gradients taken next are lost", "roi_pool.cu",
        "      now = next;\n", "      now = next;\n      if (now.count < kStepsAhead) break;\n",
        "roi_pool_backward",
    ),
    Bug(
        "a cell beyond the map is added to", "roi_pool.cu",
        "      if (cell >= 0 && cell < cells) {\n", "      if (cell >= 0) {\n",
        "roi_pool_backward",
    ),
    Bug(
        "the sums are not zero at first", "roi_pool.cu",
        "      if (has_channel) sums.at(cell, channel) = 0;\n", "      {}\n",
        "roi_pool_backward",
    ),
]  # fmt: skip


def notices(bug: Bug, objects: list[tuple[Path, Path]], folder: Path) -> str:
    """What the test printed last, if it failed; else nothing."""
    folder.mkdir()
    original = (ROOT / "cuda" / bug.source).read_text()
    assert original.count(bug.old) == 1, f"{bug.name}: the place has changed"
    (folder / bug.source).write_text(original.replace(bug.old, bug.new))
    planted = compile_one(folder / bug.source, folder / "planted.o", ["-Wno-error"])
    others = [made for source, made in objects if source.name != bug.source]
    program = link([planted, *others], folder / "test_kernels")
    done = subprocess.run([program, bug.test, "stop"], capture_output=True, text=True, timeout=300)
    return "" if done.returncode == 0 else (done.stderr or done.stdout).splitlines()[0]


def test_every_planted_bug_is_noticed(
    objects: list[tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with ThreadPoolExecutor(2) as pool:
        seen = list(
            pool.map(lambda i: notices(BUGS[i], objects, tmp_path / str(i)), range(len(BUGS)))
        )
    with capsys.disabled():
        for bug, what in zip(BUGS, seen, strict=True):
            print(f"\n{'noticed' if what else 'MISSED '}  {bug.name}: {what[:90]}", end="")
    assert [bug.name for bug, what in zip(BUGS, seen, strict=True) if not what] == []
