"""Compiling the kernels for the emulated device, as they are and with bugs planted in them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engine_sources import engine_sources

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# -ffp-contract=off as in the product: a fused multiply-add would be another result. The pragma that
# g++ does not know is nvcc's unroll.
COMPILE = (
    "g++ -std=c++20 -g1 -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off"
    " -fno-sanitize-recover=all"
).split()
# What is watched: each access of memory, or whether two threads' accesses are in order.
WATCH = {
    "nothing": [],
    "memory": ["-fsanitize=address,undefined,float-cast-overflow"],
    "races": ["-fsanitize=thread", "-DFRCNN_RACES", "--param=tsan-distinguish-volatile=1"],
}
# Memory: what takes the least time, with its compiling. Races: GCC does not watch a result that a
# function returns into memory, unless it is inlined.
OPTIMISATION = {"nothing": "-Og", "memory": "-Og", "races": "-O1"}

# What a test of pooling needs to notice bugs.
POOLED = {
    "roi_pool_forward": "FRCNN_INSTANTIATE(float, int32_t)",
    "roi_pool_forward_of_16_bits": "FRCNN_INSTANTIATE(float16, int32_t)",
    "roi_pool_backward": "FRCNN_INSTANTIATE(float, int32_t) FRCNN_INSTANTIATE(float16, uint16_t)",
}


def run(command: Sequence[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr[-5000:]}"
    return done.stdout


def compile_one(source: Path, target: Path, flags: Sequence[str], watch: str) -> Path:
    includes = ["-I", HERE, "-I", ROOT / "cpp" / "include", "-I", ROOT / "cuda"]
    # The cases compile twice as fast without optimisation; only kernels are worth it.
    optimisation = "-O0" if source.name.startswith("test_") else OPTIMISATION[watch]
    flags = [*WATCH[watch], optimisation, *flags]
    if source.name == "emulator.cpp":  # most of the time is spent in it, and races are in its lists
        flags = [*(flag for flag in flags if "sanitize" not in flag), "-O2"]
    run([*COMPILE, *flags, *includes, "-x", "c++", "-c", source, "-o", target])
    return target


def compile_all(folder: Path, watch: str) -> list[tuple[Path, Path]]:
    """The emulator, the kernels as they are, and the CPU engine: every source and its object."""
    here = [*sorted(HERE.glob("*.cpp")), *sorted((ROOT / "cuda").glob("*.cu"))]
    sources = [*((source, []) for source in here), *engine_sources()]

    def compile_numbered(number: int) -> tuple[Path, Path]:
        source, flags = sources[number]
        return source, compile_one(source, folder / f"{number}.o", flags, watch)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_numbered, range(len(sources))))


def link(objects: Sequence[Path], target: Path, watch: str) -> Path:
    run([*COMPILE, *WATCH[watch], *objects, "-o", target])
    return target


@dataclass
class Bug:
    name: str
    source: str  # of cuda/
    old: str  # stands there once
    new: str
    test: str  # that must fail
    unit: str = ""  # what is compiled, where `source` is a header


def notices(bug: Bug, objects: list[tuple[Path, Path]], folder: Path, watch: str = "memory") -> str:
    """What the test said first, if it failed; else nothing."""
    folder.mkdir()
    unit = bug.unit or bug.source
    for name in {bug.source, unit}:
        text = (ROOT / "cuda" / name).read_text()
        if name == bug.source:
            assert text.count(bug.old) == 1, f"{bug.name}: the place has changed"
            text = text.replace(bug.old, bug.new)
        # Some of the types are enough, and compile in a fraction of the time: the linker finds the
        # kernels of the others as they are.
        text = text.replace(
            "\nFRCNN_FOR_EACH_POOLED(FRCNN_INSTANTIATE)\n", f"\n{POOLED.get(bug.test, '')}\n"
        )
        (folder / name).write_text(text)
    # The emulator stays first: what it shares with others is its own, and not watched for races.
    objects = sorted(objects, key=lambda one: one[0].name != "emulator.cpp")
    emulator, *others = (made for _, made in objects)
    # Most bugs show in the results, and what is not watched compiles in half the time.
    for how in ("nothing", watch) if watch == "memory" else (watch,):
        planted = compile_one(folder / unit, folder / "planted.o", ["-Wno-error"], how)
        program = link([emulator, planted, *others], folder / "test_kernels", watch)
        done = subprocess.run(
            [program, bug.test, "stop"], capture_output=True, text=True, timeout=300,
            env={"TSAN_OPTIONS": "halt_on_error=1"},
        )  # fmt: skip
        if done.returncode != 0:
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip("= ")]
            return said[0] if said else f"ended with {done.returncode}"
    return ""
