"""The engine as a C++ library: `cmake --install`, `find_package`, a program without Python."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastrcnn_engine as fe
from build.steps import ROOT, cmake, run

MINOR_VERSION = ".".join(str(fe.build_info()["version"]).split(".")[:2])


@pytest.fixture(scope="module")
def prefix(built: Path) -> Path:
    return built / "prefix"


def test_the_build_has_no_warning(built: Path) -> None:
    """A project that holds the source may take warnings for errors."""
    log = (built / "build.log").read_text()
    assert "libfastrcnn_engine.a" in log
    assert "warning:" not in log.lower()


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
    reason = "switched off (FRCNN_CUDA=OFF)"
    assert run(tmp_path / "asks").stdout == reason
    assert run(tmp_path / "asks", FRCNN_INSTRUCTION_SET="sse").stdout == reason


def test_memory_that_was_forgotten_is_named(prefix: Path, tmp_path: Path) -> None:
    source = tmp_path / "forgets.cpp"
    source.write_text("""
        #include <fastrcnn_engine/error.h>
        #include <fastrcnn_engine/nms.h>
        #include <fastrcnn_engine/roi_pool.h>
        #include <fastrcnn_engine/smooth_l1.h>
        #include <iostream>
        using namespace fastrcnn_engine;
        template <typename Call> void refused(Call call) {
          try {
            call();
          } catch (const InvalidArgument& error) {
            std::cout << error.what() << std::endl;
          }
        }
        int main() {
          float numbers[12] = {0, 0, 0, 1, 1};
          Nms<float> nms;
          nms.boxes = {nullptr, {3, 4}}, nms.scores = {numbers, {3}};
          refused([&] { cpu::nms(nms); });
          nms.boxes.data = numbers;
          refused([&] { cpu::nms(nms); });
          RoiPoolForward<float> pool;
          pool.features = {numbers, 1, 1, 3, 4}, pool.rois = {numbers, {1, 5}};
          pool.output = {nullptr, 1, 1, 2, 2};
          refused([&] { cpu::roi_pool_forward(pool); });
          constexpr int64_t garbage = int64_t{1} << 32;
          pool.features.h = pool.features.w = garbage;
          refused([&] { cpu::roi_pool_forward(pool); });
          pool.features = {numbers, 1, 1, 3, 4}, pool.output.data = numbers, pool.threads = -1;
          refused([&] { cpu::roi_pool_forward(pool); });
          nms.scores.shape[0] = nms.boxes.shape[0] = int64_t{1} << 60;
          refused([&] { cpu::nms(nms); });
          const SmoothL1<float> loss{{numbers, {3, 4}}, {numbers, {3, 4}}};
          refused([&] { cpu::smooth_l1_forward<float>(loss, nullptr); });
          refused([&] { cpu::smooth_l1_backward<float>(loss, nullptr, {numbers, {3, 4}}); });
        }
    """)
    built = run(
        "g++", "-std=c++20", f"-I{prefix / 'include'}", source, "-o", tmp_path / "forgets",
        next(prefix.glob("lib*/libfastrcnn_engine.a")),
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert run(tmp_path / "forgets").stdout.splitlines() == [
        "boxes must point to memory of its shape (3, 4), got null",
        "keep must be given memory and its shape, no size below 0, got shape (-1,)",
        "output must point to memory of its shape (1, 1, 2, 2), got null",
        "input must be given its shape, got (1, 1, 4294967296, 4294967296), of more bytes than "
        "there can be",
        "threads must be at least 0, got -1",
        "boxes must be given its shape, got (1152921504606846976, 4), of more bytes than there can "
        "be",
        "loss must point to memory of one number, got null",
        "grad_loss must point to memory of one number, got null",
    ]


# Counts the threads that two calls, which may use two threads each, begin.
_BEGINS_THREADS = """
    #include <dlfcn.h>
    #include <fastrcnn_engine/roi_pool.h>
    #include <iostream>
    #include <vector>
    int begun = 0;
    extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*run)(void*),
                                  void* data) {
      ++begun;
      return reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"))(
          thread, how, run, data);
    }
    int main() {
      const std::vector<float> map(512 * 40 * 40), rois = {0, 0, 0, 39, 39};
      std::vector<float> pooled(512 * 40 * 40);
      fastrcnn_engine::RoiPoolForward<float> call;
      call.features = {map.data(), 1, 512, 40, 40}, call.rois = {rois.data(), {1, 5}};
      call.output = {pooled.data(), 1, 512, 40, 40}, call.threads = 2;
      fastrcnn_engine::cpu::roi_pool_forward(call);
      fastrcnn_engine::cpu::roi_pool_forward(call);
      std::cout << begun;
    }
"""


@pytest.mark.parametrize(
    ("flags", "begun"), [([], "2"), (["-Wl,--no-as-needed", "-fopenmp"], "1")], ids=str
)
def test_a_program_with_openmp_begins_its_threads_once(
    prefix: Path, tmp_path: Path, flags: list[str], begun: str
) -> None:
    source, program = tmp_path / "threads.cpp", tmp_path / "threads"
    source.write_text(_BEGINS_THREADS)
    built = run(
        "g++", "-std=c++20", f"-I{prefix / 'include'}", source, "-o", program,
        next(prefix.glob("lib*/libfastrcnn_engine.a")), *flags,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert run(program, OMP_NUM_THREADS="2").stdout == begun


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
        "refused: output must point to memory of its shape (2, 2, 2, 2), got null",
    ]
    needed = run("readelf", "-d", program).stdout
    assert f"[libfastrcnn_engine_c.so.{MINOR_VERSION}]" in needed
    shown = run("nm", "-D", "--defined-only", library / "libfastrcnn_engine_c.so").stdout
    functions = {line.split()[-1] for line in shown.splitlines()}
    names = {"last_error", "version", "get_num_threads", "set_num_threads", "roi_pool",
             "decode_boxes", "nms", "detections"}  # fmt: skip
    assert functions == {f"frcnn_{name}" for name in names}


@pytest.mark.parametrize("installs", [False, True])
def test_a_project_can_hold_the_source(tmp_path: Path, installs: bool) -> None:
    """By add_subdirectory: both targets have the names, and the headers, of the installed ones.
    The project installs none of it unless it says so, and builds for C only if it links that."""
    (tmp_path / "CMakeLists.txt").write_text(f"""
        cmake_minimum_required(VERSION 3.24)
        project(whole LANGUAGES CXX)
        set(FRCNN_CUDA OFF)
        set(CMAKE_INSTALL_INCLUDEDIR headers/of/engines)
        {"set(FRCNN_INSTALL ON)" if installs else ""}
        add_subdirectory({ROOT} engine)
        foreach(name fastrcnn_engine fastrcnn_engine_c)
          file(GENERATE OUTPUT ${{CMAKE_BINARY_DIR}}/${{name}} CONTENT
            $<TARGET_PROPERTY:fastrcnn_engine::${{name}},INTERFACE_INCLUDE_DIRECTORIES>)
        endforeach()
        file(GENERATE OUTPUT ${{CMAKE_BINARY_DIR}}/left_out CONTENT
          $<BOOL:$<TARGET_PROPERTY:fastrcnn_engine::fastrcnn_engine_c,EXCLUDE_FROM_ALL>>)
    """)
    result = run(cmake(), "-S", tmp_path, "-B", tmp_path / "build")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "build/left_out").read_text() == f"{not installs:d}"
    if not installs:
        done = run(cmake(), "--install", tmp_path / "build", "--prefix", tmp_path / "prefix")
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "prefix").exists()
    for name in ("fastrcnn_engine", "fastrcnn_engine_c"):
        folder = (tmp_path / "build" / name).read_text()
        assert (Path(folder) / "fastrcnn_engine/c_api.h").exists(), name
    if not installs:
        return
    exported = next((tmp_path / "build").rglob("fastrcnn_engine-targets.cmake")).read_text()
    assert exported.count('DIRECTORIES "${_IMPORT_PREFIX}/headers/of/engines"') == 2
    assert "headers/of/engines" in (tmp_path / "build/engine/cmake_install.cmake").read_text()


def test_a_project_in_c_finds_the_library_for_c(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(f"""
        cmake_minimum_required(VERSION 3.24)
        project(calls LANGUAGES C)
        find_package(fastrcnn_engine REQUIRED)
        add_executable(program {ROOT}/examples/c/pool_and_suppress.c)
        target_link_libraries(program PRIVATE fastrcnn_engine::fastrcnn_engine_c)
    """)
    for step in (
        (cmake(), "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}"),
        (cmake(), "--build", tmp_path / "build"),
        (tmp_path / "build/program",),
    ):
        result = run(*step)
        assert result.returncode == 0, result.stdout + result.stderr
    assert "kept: 1 2" in result.stdout


def test_the_library_for_c_needs_no_cuda_toolkit(prefix: Path, tmp_path: Path) -> None:
    """The CUDA runtime is in it; only who links the static library needs a toolkit."""
    shutil.copytree(prefix, tmp_path / "prefix", symlinks=True)
    package = next((tmp_path / "prefix").glob("lib*/cmake/fastrcnn_engine"))
    for name, old, new in (
        ("config", 'fastrcnn_engine_CUDA ""', 'fastrcnn_engine_CUDA "90"'),
        ("targets", "Threads::Threads", "CUDA::cudart_static;Threads::Threads"),
    ):
        path = package / f"fastrcnn_engine-{name}.cmake"
        text = path.read_text()
        path.write_text(text.replace(old, new))
        assert path.read_text() != text

    def configured(library: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "CMakeLists.txt").write_text(f"""
            cmake_minimum_required(VERSION 3.24)
            project(calls LANGUAGES C CXX)
            find_package(fastrcnn_engine REQUIRED)
            add_executable(program {ROOT}/examples/c/pool_and_suppress.c)
            target_link_libraries(program PRIVATE fastrcnn_engine::{library})
        """)
        return run(
            cmake(), "-S", tmp_path, "-B", tmp_path / library,
            f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}",
            "-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON",
        )  # fmt: skip

    alone = configured("fastrcnn_engine_c")
    assert alone.returncode == 0, alone.stdout + alone.stderr
    static = configured("fastrcnn_engine")
    assert static.returncode != 0 and "CUDA::cudart_static" in static.stderr


def test_an_unknown_component_is_not_found(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text("""
        cmake_minimum_required(VERSION 3.24)
        project(asks LANGUAGES CXX)
        find_package(fastrcnn_engine REQUIRED COMPONENTS training)
    """)
    asks = run(cmake(), "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    assert "fastrcnn_engine_FOUND to FALSE" in " ".join(asks.stderr.split())


class InC:
    """The engine from a language that calls C: this one, by ctypes."""

    def __init__(self, prefix: Path) -> None:
        self.header = (prefix / "include/fastrcnn_engine/c_api.h").read_text()
        self.library = ctypes.CDLL(str(next(prefix.glob("lib*/**/libfastrcnn_engine_c.so"))))
        self.library.frcnn_last_error.restype = ctypes.c_char_p

    def call(self, name: str, *more, **fields) -> int:
        values = arguments_of(self.header, name)()
        for field, value in fields.items():
            setattr(values, field, value.ctypes.data if isinstance(value, np.ndarray) else value)
        return getattr(self.library, f"frcnn_{name}")(ctypes.byref(values), *more)

    def last_error(self) -> str:
        return self.library.frcnn_last_error().decode()


@pytest.fixture(scope="module")
def in_c(prefix: Path) -> InC:
    return InC(prefix)


_RNG = np.random.default_rng(0)
_CORNERS = _RNG.uniform(0, 60, (40, 2))
BOXES = np.hstack([_CORNERS, _CORNERS + _RNG.uniform(5, 40, (40, 2))]).astype(np.float32)
SCORES = _RNG.dirichlet(np.ones(3), 40).astype(np.float32)
DELTAS = _RNG.normal(0, 0.3, (40, 12)).astype(np.float32)
ROIS = np.hstack([np.zeros((40, 1), np.float32), BOXES])
COUNT = ctypes.c_int64()


@pytest.mark.parametrize("max_log_ratio", [None, 0.1])
def test_decoding_in_c_equals_python(in_c: InC, max_log_ratio: float | None) -> None:
    moved = np.empty((40, 12), np.float32)
    given = {} if max_log_ratio is None else {"max_log_ratio": max_log_ratio}  # else left at 0
    arrays = {"proposals": BOXES, "deltas": DELTAS, "boxes": moved}
    code = in_c.call("decode_boxes", r=40, g=3, **arrays, **given)
    assert code == 0
    np.testing.assert_array_equal(moved, fe.decode_boxes(DELTAS, BOXES, **given))


@pytest.mark.parametrize("idxs", [None, np.arange(40) % 3], ids=["one-class", "classes"])
@pytest.mark.parametrize("inclusive", [False, True])
def test_suppression_in_c_equals_python(in_c: InC, idxs, inclusive: bool) -> None:
    scores, keep = np.ascontiguousarray(SCORES[:, 1]), np.empty(30, np.int64)
    code = in_c.call(
        "nms", ctypes.byref(COUNT), boxes=BOXES, scores=scores, class_ids=idxs, b=40,
        iou_threshold=0.2, inclusive=inclusive, keep=keep, m=30,
    )  # fmt: skip
    assert code == 0
    expected = fe.nms_padded(BOXES, scores, 0.2, 30, idxs=idxs, inclusive=inclusive)
    assert COUNT.value == expected.count > 3
    np.testing.assert_array_equal(keep, expected.indices)


@pytest.mark.parametrize(
    "options",
    [{}, {"inclusive": True}, {"max_log_ratio": 0.1}, {"score_threshold": 0.6},
     {"nms_threshold": 0.6}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "deltas", [DELTAS, DELTAS[:, 4:8].copy(), None], ids=["deltas", "class-agnostic", "no-deltas"]
)
def test_detections_in_c_equal_python(in_c: InC, deltas, options: dict) -> None:
    out = [np.empty((9, 4), np.float32), np.empty(9, np.float32), np.empty(9, np.int64)]
    rows = np.empty(9, np.int64)
    thresholds = {"score_threshold": 0.05, "nms_threshold": 0.3, **options}
    agnostic = deltas is not None and deltas.shape[1] == 4
    code = in_c.call(
        "detections", ctypes.byref(COUNT), proposals=BOXES, scores=SCORES, deltas=deltas, r=40, k=2,
        image_height=70, image_width=80, boxes=out[0], box_scores=out[1], labels=out[2], rows=rows,
        m=9, class_agnostic=agnostic, **thresholds,
    )  # fmt: skip
    assert code == 0
    expected = fe.detections(BOXES, SCORES, deltas, (70, 80), max_detections=9, **options)
    assert COUNT.value == len(expected.rows) > 3
    for ours, theirs in zip((*out, rows), expected, strict=True):
        np.testing.assert_array_equal(ours[: COUNT.value], theirs)


@pytest.mark.parametrize("with_argmax", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_pooling_in_c_equals_python(in_c: InC, channels_last: bool, with_argmax: bool) -> None:
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    features = _RNG.normal(size=(1, 3, 8, 9)).astype(np.float32)
    values, where = fe.roi_pool_with_argmax(features, ROIS, (2, 4), 0.1)
    pooled = np.empty(np.transpose(values, order).shape, np.float32)
    argmax = np.empty(pooled.shape, np.int32) if with_argmax else None
    code = in_c.call(
        "roi_pool", features=np.ascontiguousarray(features.transpose(order)), n=1, c=3, h=8, w=9,
        channels_last=channels_last, rois=ROIS, r=40, spatial_scale=0.1, pooled_h=2, pooled_w=4,
        output=pooled, argmax=argmax,
    )  # fmt: skip
    assert code == 0
    np.testing.assert_array_equal(pooled, values.transpose(order))
    if with_argmax:
        np.testing.assert_array_equal(argmax, where.transpose(order))


_POOL = {"features": DELTAS, "n": 1, "c": 1, "h": 8, "w": 9, "rois": ROIS, "r": 2, "pooled_h": 1,
         "pooled_w": 1, "spatial_scale": 0.1, "output": np.empty(2, np.float32)}  # fmt: skip
_NMS = {"boxes": BOXES, "scores": SCORES, "b": 40, "keep": np.empty(9, np.int64), "m": 9}
_DECODE = {"proposals": BOXES, "deltas": DELTAS, "r": 2, "g": 3, "boxes": np.empty(24, np.float32)}
_DETECT = {
    "proposals": BOXES, "scores": SCORES, "r": 9, "k": 2, "image_height": 9, "image_width": 9,
    "boxes": np.empty((9, 4), np.float32), "box_scores": np.empty(9, np.float32),
    "labels": np.empty(9, np.int64), "rows": np.empty(9, np.int64), "m": 9,
}  # fmt: skip
_CALLS = {"roi_pool": _POOL, "nms": _NMS, "decode_boxes": _DECODE, "detections": _DETECT}
# What messages call a field.
_NAMES = {
    "roi_pool": {"features": "input", "rois": "boxes"},
    "decode_boxes": {"proposals": "boxes", "boxes": "output"},
    "detections": {"proposals": "boxes", "box_scores": "output scores", "labels": "output labels",
                   "rows": "output rows"},
}  # fmt: skip


def refused(in_c: InC, name: str, counted: bool = True, **changed) -> str:
    more = [ctypes.byref(COUNT) if counted else None] if name in ("nms", "detections") else []
    assert in_c.call(name, *more, **{**_CALLS[name], **changed}) == 1
    return in_c.last_error()


@pytest.mark.parametrize("name", _CALLS)
def test_what_c_forgot_is_named(in_c: InC, name: str) -> None:
    function = getattr(in_c.library, f"frcnn_{name}")
    assert function(*[None] * (2 if name in ("nms", "detections") else 1)) == 1
    assert in_c.last_error() == "args must not be null"
    for field, value in _CALLS[name].items():
        if isinstance(value, np.ndarray):
            says = refused(in_c, name, **{field: None})
            called = _NAMES.get(name, {}).get(field, field)
            points = rf"{called} must point to memory of its shape \(.*\), got null"
            assert re.fullmatch(rf"{points}|(keep|output boxes) must not be null", says)
        elif isinstance(value, int) and not field.startswith("image"):
            assert re.search(r"got .*-\d", refused(in_c, name, **{field: -1}))
    if name in ("nms", "detections"):
        assert refused(in_c, name, counted=False) == "count must not be null"
        results, called = ("keep", "keep") if name == "nms" else ("boxes", "output boxes")
        assert refused(in_c, name, **{results: None}, m=0) == f"{called} must not be null"
        assert in_c.call(name, ctypes.byref(COUNT), **{**_CALLS[name], "m": 0}) == COUNT.value == 0


def test_threads_are_set_in_c(in_c: InC) -> None:
    before = in_c.library.frcnn_get_num_threads()
    assert before == len(os.sched_getaffinity(0))
    try:
        assert in_c.library.frcnn_set_num_threads(3) == 0
        assert in_c.library.frcnn_get_num_threads() == 3
        assert in_c.library.frcnn_set_num_threads(0) == 1
        assert in_c.last_error() == "threads must be at least 1, got 0"
        assert in_c.library.frcnn_get_num_threads() == 3
    finally:
        in_c.library.frcnn_set_num_threads(before)


def test_the_version_is_told_whatever_the_environment_says(prefix: Path) -> None:
    library = next(prefix.glob("lib*/**/libfastrcnn_engine_c.so"))
    asks = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).frcnn_version; "
    asks += "f.restype = ctypes.c_char_p; print(f().decode())"
    told = run(sys.executable, "-c", asks, library, FRCNN_INSTRUCTION_SET="sse")
    assert told.stdout.strip() == fe.__version__, told.stderr


def test_what_c_asks_wrongly_is_told_to_its_thread(in_c: InC) -> None:
    assert "output_size must be positive, got (0, 1)" in refused(in_c, "roi_pool", pooled_h=0)
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        says = f"spatial_scale must be a positive number, got {scale:g}"
        assert refused(in_c, "roi_pool", spatial_scale=scale) == says
    for name, field in (("decode_boxes", "g"), ("detections", "k")):
        says_count = f"{field} must be in [0, {2**60}], got {2**62}"
        assert refused(in_c, name, **{field: 2**62}) == says_count
    assert refused(in_c, "roi_pool", spatial_scale=scale) == says
    with ThreadPoolExecutor(1) as pool:
        assert "iou_threshold" in pool.submit(refused, in_c, "nms", iou_threshold=2).result()
    assert in_c.last_error() == says


def test_what_c_cannot_have_is_no_exception(in_c: InC) -> None:
    """No memory for so many: an exception that crossed into C would end the program."""
    assert in_c.call("nms", ctypes.byref(COUNT), **{**_NMS, "b": 2**50}) == 2
    assert in_c.last_error() != ""
    assert in_c.call("decode_boxes", **_DECODE) == 0
    assert in_c.last_error() == ""


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


def test_installed_headers_know_neither_python_nor_torch(prefix: Path, tmp_path: Path) -> None:
    """And they have no warning for the program that includes them."""
    headers = list((prefix / "include").rglob("*.h"))
    assert len(headers) > 10
    for header in headers:
        text = header.read_text()
        assert "Python.h" not in text and "torch/" not in text and "pybind11" not in text
    source = tmp_path / "includes.cpp"
    source.write_text("".join(f'#include "{header}"\n' for header in headers))
    done = run(
        "g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wconversion",
        "-Wsign-conversion", "-Werror", f"-I{prefix / 'include'}", source,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_cuda_on_without_a_compiler_stops_with_the_reason(tmp_path: Path) -> None:
    result = run(
        cmake(), "-S", ROOT, "-B", tmp_path, "-DFRCNN_CUDA=ON",
        "-DCMAKE_CUDA_COMPILER=CMAKE_CUDA_COMPILER-NOTFOUND",
        PATH="/usr/bin:/bin", CUDACXX="", CUDA_PATH="",
    )  # fmt: skip
    assert result.returncode != 0
    assert "no CUDA compiler (nvcc) was found" in re.sub(r"\s+", " ", result.stderr)
    assert "FRCNN_CUDA=AUTO" in result.stderr


def test_a_cuda_compiler_that_does_not_work_is_named(tmp_path: Path) -> None:
    """As one does that is older than the compiler of C++ beside it."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho unsupported >&2\nexit 1\n")
    nvcc.chmod(0o755)
    asked = (cmake(), "-S", ROOT, "-B", tmp_path / "build")
    found = run(*asked, PATH="/usr/bin:/bin", CUDACXX=str(nvcc))
    assert f"CUDA {nvcc} could compile nothing" in found.stdout, found.stdout + found.stderr
    refused = run(*asked, "-DFRCNN_CUDA=ON", PATH="/usr/bin:/bin", CUDACXX=str(nvcc))
    assert refused.returncode != 0
    assert "could compile nothing" in re.sub(r"\s+", " ", refused.stderr)


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
