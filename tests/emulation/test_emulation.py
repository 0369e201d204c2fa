"""The CUDA kernels, compiled by g++ for an emulated device, agree with the CPU engine bit by bit.

Needs no GPU and no CUDA toolkit, and proves nothing about a GPU: `cuda_runtime.h` beside this file
says what is emulated and what is not.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine_sources import engine_sources

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TESTS = (
    "roi_pool_forward",
    "roi_pool_backward",
    "smooth_l1",
    "box_codec",
    "box_iou",
    "nms",
    "nms_at_threshold",
    "detections",
    "device_errors",
    "the_emulator_notices",
)
# -ffp-contract=off as in the product: a fused multiply-add would be another result.
COMPILE = (
    "g++ -std=c++20 -g1 -Wall -Wextra -Werror -ffp-contract=off -fno-sanitize-recover=all"
    " -fsanitize=address,undefined,float-cast-overflow"
).split()


def run(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr[-5000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program: the emulator, the kernels as they are, and the CPU engine."""
    folder = tmp_path_factory.mktemp("emulation")
    here = [*sorted(HERE.glob("*.cpp")), *sorted((ROOT / "cuda").glob("*.cu"))]
    sources = [*((source, []) for source in here), *engine_sources()]

    def compile_one(number: int) -> Path:
        source, own_flags = sources[number]
        target = folder / f"{number}.o"
        includes = ["-I", HERE, "-I", ROOT / "cpp" / "include"]
        # The cases compile twice as fast without optimisation; only kernels are worth it.
        optimisation = "-O0" if source.name.startswith("test_") else "-O1"
        flags = [*COMPILE, optimisation, *own_flags, *includes]
        run([*flags, "-x", "c++", "-c", source, "-o", target])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, range(len(sources))))
    run([*COMPILE, *objects, "-o", folder / "test_kernels"])
    return folder / "test_kernels"


def test_no_test_is_forgotten(program: Path) -> None:
    assert run([program]).split() == list(TESTS)


@pytest.mark.parametrize("name", TESTS)
def test_kernels(program: Path, name: str) -> None:
    assert run([program, name]).endswith(" 0 failed\n")
