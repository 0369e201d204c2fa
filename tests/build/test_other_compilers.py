"""Other compilers, processors and systems: the engine builds and gives the same bits.

Each is tried where its compiler is installed, and run where something here runs it.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from build.steps import ROOT, cmake, run
from engine_sources import SUPPORTED

PRINT_RESULTS = "tests/build/print_results.cpp"
# Clang for many systems, with their libraries, as a Python package.
ZIG = (sys.executable, "-m", "ziglang")


@dataclass(frozen=True)
class Target:
    compiler: tuple[str, ...]
    system: str = "Linux"
    runner: tuple[str, ...] | None = ()  # what its programs are started by; None: nothing does
    instruction_sets: tuple[str, ...] = ("",)  # that are run, "" is the one it chooses


QEMU = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")
TARGETS = {
    "aarch64": Target(("aarch64-linux-gnu-g++",), runner=QEMU),
    "clang": Target(("clang++",), instruction_sets=tuple(SUPPORTED)),
    "clang-aarch64": Target((*ZIG, "c++", "-target", "aarch64-linux-gnu"), runner=QEMU),
    "macos-arm64": Target((*ZIG, "c++", "-target", "aarch64-macos"), "Darwin", None),
    "macos-x86_64": Target((*ZIG, "c++", "-target", "x86_64-macos"), "Darwin", None),
    # Runs the baseline: what tells instruction sets apart is Zig's own, and knows of no other.
    "windows": Target((*ZIG, "c++", "-target", "x86_64-windows-gnu"), "Windows", ("wine",)),
}


def lacking(target: Target) -> str | None:
    if target.compiler[: len(ZIG)] == ZIG:
        return None if importlib.util.find_spec("ziglang") else "needs the package ziglang"
    return None if shutil.which(target.compiler[0]) else f"needs {target.compiler[0]}"


@dataclass(frozen=True)
class Built:
    target: Target
    prefix: Path

    def program(self, source: str, folder: Path, *flags: str) -> Path:
        path = folder / "program.exe"  # as Windows wants it; others do not mind
        done = run(
            *self.target.compiler, "-std=c++20", "-O2", "-ffp-contract=off",
            f"-I{self.prefix / 'include'}", *flags, ROOT / source, "-o", path,
            next(self.prefix.glob("lib*/libfastrcnn_engine.a")), "-pthread",
            *([] if self.target.system == "Windows" else ["-ldl"]),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return path

    def printed(self, program: Path, *arguments: str) -> list[str]:
        """On each of the instruction sets."""
        runner = self.target.runner
        if runner is None or (runner and shutil.which(runner[0]) is None):
            pytest.skip("nothing here runs it")
        found = []
        for name in self.target.instruction_sets:
            done = run(*runner, program, *arguments, FRCNN_INSTRUCTION_SET=name)
            assert done.returncode == 0, done.stdout + done.stderr
            found.append(done.stdout)
        return found


@pytest.fixture(scope="module", params=TARGETS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    target = TARGETS[request.param]
    if (reason := lacking(target)) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp(request.param)
    options = [
        "-DFRCNN_CUDA=OFF", f"-DCMAKE_SYSTEM_NAME={target.system}",
        "-DCMAKE_CXX_COMPILER=" + ";".join(target.compiler),
        # Clang tells that the library of GCC 12 uses what that library deprecates.
        "-DCMAKE_CXX_FLAGS=-Werror -Wno-deprecated-declarations",
    ]  # fmt: skip
    if target.compiler[: len(ZIG)] == ZIG:  # the archiver of this system knows no other's objects
        for tool in ("ar", "ranlib"):
            script = folder / tool
            script.write_text(f'#!/bin/sh\nexec {" ".join(ZIG)} {tool} "$@"\n')
            script.chmod(0o755)
            options.append(f"-DCMAKE_{tool.upper()}={script}")
    for step in (
        (cmake(), "-S", ROOT, "-B", folder / "build", *options),
        (cmake(), "--build", folder / "build", "--parallel", "2"),
        (cmake(), "--install", folder / "build", "--prefix", folder / "prefix"),
    ):
        done = run(*step)
        assert done.returncode == 0, done.stdout + done.stderr
    return Built(target, folder / "prefix")


def test_it_builds_without_a_warning_and_links(other, tmp_path):
    assert other.program(PRINT_RESULTS, tmp_path).exists()


def test_results_are_those_of_every_instruction_set_here(built, other, tmp_path_factory):
    here = Built(Target(("g++",), instruction_sets=tuple(SUPPORTED)), built / "prefix")
    printed = []
    for build in (other, here):
        printed += build.printed(build.program(PRINT_RESULTS, tmp_path_factory.mktemp("results")))
    assert len(printed[0].splitlines()) == 100
    assert set(printed) == {printed[0]}


def test_any_input_is_handled(other, tmp_path):
    """The fuzz program, without sanitizers."""
    source = "tests/fuzz/fuzz_engine.cpp"
    other.printed(other.program(source, tmp_path, f"-I{ROOT / 'cpp/src'}"), "1", "300")
