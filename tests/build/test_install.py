"""The engine as a C++ library: `cmake --install`, `find_package`, a program without Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.steps import ROOT, cmake, run


@pytest.fixture(scope="module")
def prefix(built: Path) -> Path:
    return built / "prefix"


def test_kernels_of_one_instruction_set_stay_in_their_namespace(built: Path) -> None:
    """Of a function that two sets share by name the linker keeps one: perhaps the wrong one."""
    objects = list(built.glob("build/CMakeFiles/frcnn_kernels_*.dir/**/*.o"))
    assert objects
    for path in objects:
        name = next(p for p in path.parts if p.startswith("frcnn_kernels_"))
        name = name.removeprefix("frcnn_kernels_").removesuffix(".dir")
        defined = run("nm", "--defined-only", "--demangle", path).stdout.splitlines()
        assert any(f"cpu::{name}::" in line for line in defined)
        weak = [line for line in defined if " W " in line or " V " in line or " u " in line]
        assert [line for line in weak if f"cpu::{name}::" not in line] == [], path


def test_example_links_and_runs_without_python(prefix: Path, tmp_path: Path) -> None:
    for step in (
        (cmake(), "-S", ROOT / "examples/cpp", "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}"),
        (cmake(), "--build", tmp_path),
    ):
        result = run(*step)
        assert result.returncode == 0, result.stdout + result.stderr
    program = run(tmp_path / "pool_and_suppress")
    assert program.returncode == 0, program.stderr
    lines = program.stdout.splitlines()
    # An 8 x 8 map counted from 0: the maxima of its quarters are their last cells.
    assert lines[1] == "pooled: 27 31 59 63 91 95 123 127 35 37 51 53 99 101 115 117"
    assert lines[2] == "kept: 1 2"
    assert lines[3] == "refused: boxes[1]: batch index must be in [0, 1), got 3"


def test_installed_headers_know_neither_python_nor_torch(prefix: Path) -> None:
    headers = list((prefix / "include").rglob("*.h"))
    assert len(headers) > 10
    for header in headers:
        text = header.read_text()
        assert "Python.h" not in text and "torch/" not in text and "pybind11" not in text


def test_cuda_on_without_a_compiler_stops_with_the_reason(tmp_path: Path) -> None:
    result = run(
        cmake(), "-S", ROOT, "-B", tmp_path, "-DFRCNN_CUDA=ON",
        "-DCMAKE_CUDA_COMPILER=CMAKE_CUDA_COMPILER-NOTFOUND",
        PATH="/usr/bin:/bin", CUDACXX="", CUDA_PATH="",
    )  # fmt: skip
    assert result.returncode != 0
    assert "no CUDA compiler was found" in result.stderr
    assert "FRCNN_CUDA=AUTO" in result.stderr


def test_unknown_cuda_choice_is_refused(tmp_path: Path) -> None:
    result = run(cmake(), "-S", ROOT, "-B", tmp_path, "-DFRCNN_CUDA=MAYBE")
    assert result.returncode != 0
    assert "must be AUTO, ON or OFF" in result.stderr
