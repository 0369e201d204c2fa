"""Compiling the kernels for the emulated device."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# -ffp-contract=off as in the product: a fused multiply-add would be another result. The pragma that
# g++ does not know is nvcc's unroll.
COMPILE = (
    "g++ -std=c++20 -g1 -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off"
    " -fno-sanitize-recover=all -fsanitize=address,undefined,float-cast-overflow"
).split()


def run(command: Sequence[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr[-5000:]}"
    return done.stdout


def compile_one(source: Path, target: Path, flags: Sequence[str] = ()) -> Path:
    includes = ["-I", HERE, "-I", ROOT / "cpp" / "include", "-I", ROOT / "cuda"]
    # The cases compile twice as fast without optimisation; only kernels are worth it.
    optimisation = "-O0" if source.name.startswith("test_") else "-Og"
    run([*COMPILE, optimisation, *flags, *includes, "-x", "c++", "-c", source, "-o", target])
    return target


def link(objects: Sequence[Path], target: Path) -> Path:
    run([*COMPILE, *objects, "-o", target])
    return target
