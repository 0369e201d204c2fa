"""The engine as a C++ library: `cmake --install`, `find_package`, a program without Python."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest

import fastrcnn_engine as fe
from build.steps import ROOT, cmake, run

MINOR_VERSION = ".".join(str(fe.build_info()["version"]).split(".")[:2])


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


def test_a_program_may_ask_for_cuda_where_there_is_none(prefix: Path, tmp_path: Path) -> None:
    source = tmp_path / "asks.cpp"
    source.write_text("""
        #include <fastrcnn_engine/build_info.h>
        #include <iostream>
        int main() { std::cout << fastrcnn_engine::cuda::why_unavailable(); }
    """)
    built = run(
        "g++", "-std=c++20", f"-I{prefix / 'include'}", source, "-o", tmp_path / "asks",
        next(prefix.glob("lib*/libfastrcnn_engine.a")),
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert run(tmp_path / "asks").stdout == "switched off (FRCNN_CUDA=OFF)"


def test_example_in_c_runs(prefix: Path, tmp_path: Path) -> None:
    """A C compiler, the header and the shared library are all it takes."""
    library = next(prefix.glob("lib*/**/libfastrcnn_engine_c.so")).parent
    program = tmp_path / "program"
    built = run(
        "cc", "-std=c99", "-pedantic-errors", "-Wall", "-Wextra", "-Werror",
        ROOT / "examples/c/pool_and_suppress.c", f"-I{prefix / 'include'}", f"-L{library}",
        f"-Wl,-rpath,{library}", "-lfastrcnn_engine_c", "-o", program,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    result = run(program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "pooled: 27 31 59 63 91 95 123 127 35 37 51 53 99 101 115 117",
        "kept: 1 2",
        "refused: boxes[1]: batch index must be in [0, 1), got 3",
        "refused: output must not be null",
    ]
    needed = run("readelf", "-d", program).stdout
    assert f"[libfastrcnn_engine_c.so.{MINOR_VERSION}]" in needed
    shown = run("nm", "-D", "--defined-only", library / "libfastrcnn_engine_c.so").stdout
    functions = {line.split()[2] for line in shown.splitlines() if line.split()[1] == "T"}
    names = {"last_error", "version", "roi_pool", "decode_boxes", "nms", "detections"}
    assert functions == {f"frcnn_{name}" for name in names}


def test_a_project_can_hold_the_source(tmp_path: Path) -> None:
    """By add_subdirectory: both targets have the names, and the headers, of the installed ones."""
    (tmp_path / "CMakeLists.txt").write_text(f"""
        cmake_minimum_required(VERSION 3.24)
        project(whole LANGUAGES CXX)
        set(FRCNN_CUDA OFF)
        set(CMAKE_INSTALL_INCLUDEDIR headers/of/engines)
        add_subdirectory({ROOT} engine)
        foreach(name fastrcnn_engine fastrcnn_engine_c)
          file(GENERATE OUTPUT ${{CMAKE_BINARY_DIR}}/${{name}} CONTENT
            $<TARGET_PROPERTY:fastrcnn_engine::${{name}},INTERFACE_INCLUDE_DIRECTORIES>)
        endforeach()
    """)
    result = run(cmake(), "-S", tmp_path, "-B", tmp_path / "build")
    assert result.returncode == 0, result.stderr
    for name in ("fastrcnn_engine", "fastrcnn_engine_c"):
        folder = (tmp_path / "build" / name).read_text()
        assert (Path(folder) / "fastrcnn_engine/c_api.h").exists(), name
    exported = next((tmp_path / "build").rglob("fastrcnn_engine-targets.cmake")).read_text()
    assert exported.count('DIRECTORIES "${_IMPORT_PREFIX}/headers/of/engines"') == 2
    assert "headers/of/engines" in (tmp_path / "build/engine/cmake_install.cmake").read_text()


def test_an_unknown_component_is_not_found(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text("""
        cmake_minimum_required(VERSION 3.24)
        project(asks LANGUAGES CXX)
        find_package(fastrcnn_engine REQUIRED COMPONENTS training)
    """)
    asks = run(cmake(), "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    assert "fastrcnn_engine_FOUND to FALSE" in " ".join(asks.stderr.split())


def test_every_call_in_c_equals_python(prefix: Path) -> None:
    """From a language that calls C: this one, by ctypes."""
    header = (prefix / "include/fastrcnn_engine/c_api.h").read_text()
    library = ctypes.CDLL(str(next(prefix.glob("lib*/**/libfastrcnn_engine_c.so"))))
    library.frcnn_last_error.restype = ctypes.c_char_p
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (40, 2))
    boxes = np.hstack([corner, corner + rng.uniform(5, 40, (40, 2))]).astype(np.float32)
    scores = rng.dirichlet(np.ones(3), 40).astype(np.float32)
    deltas = rng.normal(0, 0.3, (40, 12)).astype(np.float32)

    def call(name: str, *more, **fields) -> None:
        values = arguments_of(header, name)()
        for field, value in fields.items():
            setattr(values, field, value.ctypes.data if isinstance(value, np.ndarray) else value)
        code = getattr(library, f"frcnn_{name}")(ctypes.byref(values), *more)
        assert code == 0, library.frcnn_last_error()

    moved = np.empty((40, 12), np.float32)
    call("decode_boxes", proposals=boxes, deltas=deltas, r=40, g=3, boxes=moved)
    np.testing.assert_array_equal(moved, fe.decode_boxes(deltas, boxes))

    out = [np.empty((9, 4), np.float32), np.empty(9, np.float32), np.empty(9, np.int64)]
    rows, count = np.empty(9, np.int64), ctypes.c_int64()
    call(
        "detections", ctypes.byref(count), proposals=boxes, scores=scores, deltas=deltas, r=40, k=2,
        image_height=90, image_width=100, score_threshold=0.05, nms_threshold=0.3, boxes=out[0],
        box_scores=out[1], labels=out[2], rows=rows, m=9,
    )  # fmt: skip
    expected = fe.detections(boxes, scores, deltas, (90, 100), max_detections=9)
    assert count.value == len(expected.rows) > 3
    for ours, theirs in zip((*out, rows), expected, strict=True):
        np.testing.assert_array_equal(ours[: count.value], theirs)

    features = rng.normal(size=(1, 8, 8, 3)).astype(np.float32)
    rois = np.hstack([np.zeros((40, 1), np.float32), boxes])
    pooled, argmax = np.empty((40, 2, 3, 3), np.float32), np.empty((40, 2, 3, 3), np.int32)
    call(
        "roi_pool", features=features, n=1, c=3, h=8, w=8, channels_last=1, rois=rois, r=40,
        spatial_scale=0.1, pooled_h=2, pooled_w=3, output=pooled, argmax=argmax,
    )  # fmt: skip
    expected = fe.roi_pool_with_argmax(features.transpose(0, 3, 1, 2), rois, (2, 3), 0.1)
    for ours, theirs in zip((pooled, argmax), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.transpose(0, 2, 3, 1))


def arguments_of(header: str, name: str) -> type[ctypes.Structure]:
    """The struct of a call, read from the header."""
    body = header.split(f"}} frcnn_{name}_args;")[0].rpartition("typedef struct {")[2]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
    kinds = {"int64_t": ctypes.c_int64, "int32_t": ctypes.c_int32, "float": ctypes.c_float,
             "double": ctypes.c_double}  # fmt: skip
    fields = []
    for kind, pointer, names in re.findall(r"(\w+)(\*?) +([\w, ]+);", body):
        of = ctypes.c_void_p if pointer else kinds[kind]
        fields += [(field.strip(), of) for field in names.split(",")]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        # As CMake finds Visual Studio's; both options keep it from looking for itself.
        (("-DCMAKE_CXX_COMPILER_ID=MSVC", "-DCMAKE_CXX_COMPILER_ID_RUN=1",
          "-DCMAKE_CXX_COMPILER_FORCED=1"), "needs GCC or Clang, got"),
        (("-DCMAKE_OSX_ARCHITECTURES=x86_64;arm64",), "one architecture at a time, got"),
    ],
)  # fmt: skip
def test_what_cannot_build_it_is_refused(
    tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    result = run(cmake(), "-S", ROOT, "-B", tmp_path, "-DFRCNN_CUDA=OFF", *options)
    assert result.returncode != 0
    assert says in " ".join(result.stderr.split())
