"""The hot kernels do not get slower unseen: instructions are counted, for counts repeat."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from build.steps import ROOT, run
from engine_sources import SUPPORTED

# Millions of instructions of one call on AVX2 (Valgrind does not know AVX-512) with GCC 12; a fifth
# more is allowed, for its other versions. Lower them when a kernel gets better.
COUNTS = {
    "values": 1.31,
    "values, channels-last": 0.74,
    "values of many": 4.88,
    "values of many, channels-last": 2.85,
    "argmax": 1.94,
    "argmax, channels-last": 1.06,
    "gradient": 2.52,
    "gradient, channels-last": 3.06,
    "nms": 1.38,
}
SPARE = 1.2


@pytest.fixture(scope="module")
def program(built: Path) -> Path:
    target = built / "count_instructions"
    done = run(
        os.environ.get("CXX", "g++"), "-std=c++20", "-O2", f"-I{built / 'prefix/include'}",
        ROOT / "tests/build/count_instructions.cpp", "-o", target,
        next((built / "prefix").glob("lib*/libfastrcnn_engine.a")), "-pthread", "-ldl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs Valgrind")
@pytest.mark.skipif("avx2" not in SUPPORTED, reason="the counts are for AVX2")
@pytest.mark.skipif("clang" in os.environ.get("CXX", ""), reason="the counts are GCC's")
@pytest.mark.parametrize("name", COUNTS)
def test_instructions(program: Path, tmp_path: Path, name: str) -> None:
    done = run(
        "valgrind", "--tool=callgrind", "--toggle-collect=measured",
        f"--callgrind-out-file={tmp_path / 'out'}", program, name,
        FRCNN_INSTRUCTION_SET="avx2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    millions = int(re.search(r"Collected : (\d+)", done.stderr)[1]) / 1e6
    assert 0.5 * COUNTS[name] < millions < SPARE * COUNTS[name], f"{millions:.3f} million"
