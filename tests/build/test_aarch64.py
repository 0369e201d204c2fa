"""Another processor gives the same bits: the engine cross-compiled for aarch64, run by QEMU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from build.steps import ROOT, cmake, run
from engine_sources import SUPPORTED

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None,
    reason="needs Debian's g++-aarch64-linux-gnu and qemu-user-static",
)


def compiled(source: Path, compiler: str, prefix: Path, target: Path, *flags: str) -> Path:
    library = next(prefix.glob("lib*/libfastrcnn_engine.a"))
    done = run(
        compiler, "-std=c++20", "-O2", "-ffp-contract=off", f"-I{prefix / 'include'}", *flags,
        source, "-o", target, library, "-pthread", "-ldl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aarch64")
    for step in (
        (cmake(), "-S", ROOT, "-B", folder / "build", "-DFRCNN_CUDA=OFF",
         "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
         f"-DCMAKE_CXX_COMPILER={COMPILER}", "-DCMAKE_CXX_FLAGS=-Werror"),
        (cmake(), "--build", folder / "build", "--parallel", "2"),
        (cmake(), "--install", folder / "build", "--prefix", folder / "prefix"),
    ):  # fmt: skip
        done = run(*step)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "prefix"


def there(program: Path, *arguments: str) -> str:
    done = run(EMULATOR, "-L", "/usr/aarch64-linux-gnu", program, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_results_are_those_of_every_instruction_set_here(built, prefix, tmp_path):
    source = ROOT / "tests/build/print_results.cpp"
    printed = there(compiled(source, COMPILER, prefix, tmp_path / "there")).splitlines()
    assert len(printed) == 100
    here = compiled(source, "g++", built / "prefix", tmp_path / "here")
    for instruction_set in SUPPORTED:
        done = run(here, FRCNN_INSTRUCTION_SET=instruction_set)
        assert done.stdout.splitlines() == printed, instruction_set


def test_any_input_is_handled(prefix, tmp_path):
    """The fuzz program, without sanitizers."""
    source = ROOT / "tests/fuzz/fuzz_engine.cpp"
    program = compiled(source, COMPILER, prefix, tmp_path / "fuzz", f"-I{ROOT / 'cpp/src'}")
    there(program, "1", "300")
