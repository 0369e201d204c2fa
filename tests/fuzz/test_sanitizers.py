"""The engine under address and undefined-behaviour sanitizers, fed with anything at all, and under
the thread sanitizer, called by several threads.

No switch turns this off: the package is built from source, so the compiler is there.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine_sources import SUPPORTED, engine_sources, skip_unless_watched

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = [
    "-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-fno-omit-frame-pointer",
    "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS",
    f"-I{ROOT / 'cpp/include'}", f"-I{ROOT / 'cpp/src'}",
    "-DFRCNN_PAST_CACHES=4096",  # bytes from which results are streamed: small ones are too
    "-DFRCNN_QUAD_COST=0",  # maxima of 2 x 2 cells are made for few RoIs too
]  # fmt: skip
MEMORY = ["-fsanitize=address,undefined,float-cast-overflow"]
THREADS = ["-fsanitize=thread", "-DFRCNN_THREAD_COST=0.1"]  # several for small calls too
# Leaks need ptrace, which containers often refuse; everything else stays on.
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=0"}


def compile_sanitized(
    folder: Path, sanitizer: list[str], *sources: tuple[Path, list[str]]
) -> Path:
    """One program from (source, its own flags), objects built side by side."""
    flags = [*FLAGS, *sanitizer]

    def to_object(number: int) -> Path:
        source, own_flags = sources[number]
        target = folder / f"{number}.o"
        command = [COMPILER, *flags, *own_flags, "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(to_object, range(len(sources))))
    program = folder / "program"
    command = [COMPILER, *flags, *map(str, objects), "-o", str(program), "-pthread", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


DRIVER = ROOT / "tests/fuzz/fuzz_engine.cpp", []


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory) -> Path:
    return compile_sanitized(tmp_path_factory.mktemp("fuzz"), MEMORY, DRIVER, *engine_sources())


SEEDS = range(3)
ROUNDS = 20000 if os.environ.get("FRCNN_FUZZ") == "thorough" else 1500


@pytest.fixture(scope="module")
def fuzzed(fuzzer):
    """What the program did with every seed on every instruction set, two running at a time."""

    def run(one: tuple[str, int]) -> subprocess.CompletedProcess[str]:
        instruction_set, seed = one
        return subprocess.run(
            [str(fuzzer), str(seed), str(ROUNDS)], capture_output=True, text=True,
            env={**ENVIRONMENT, "FRCNN_INSTRUCTION_SET": instruction_set},
        )  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        yield {one: pool.submit(run, one) for one in itertools.product(SUPPORTED, SEEDS)}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("instruction_set", SUPPORTED)
def test_any_input_stays_inside_its_buffers(fuzzed, instruction_set, seed):
    done = fuzzed[instruction_set, seed].result()
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"{ROUNDS} rounds" in done.stdout


def test_several_callers_with_several_threads_each_do_not_race(tmp_path):
    program = compile_sanitized(tmp_path, THREADS, DRIVER, *engine_sources())
    done = subprocess.run([str(program), "0", "40", "4"], capture_output=True, text=True)
    skip_unless_watched(done.stderr)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    ("sanitizer", "body", "says"),
    [
        (MEMORY, "int* p = new int[argc + 2]; return p[argc + 2];", "heap-buffer-overflow"),
        (MEMORY, "return 2147483647 + argc;", "signed integer overflow"),
        (MEMORY, "float f = 1e30f * argc; return (int)f;", "outside the range"),
        (THREADS, "std::thread t([&] { ++argc; }); ++argc; t.join(); return 0;", "data race"),
    ],
)
def test_the_build_notices_a_planted_error(tmp_path, sanitizer, body, says):
    source = tmp_path / "planted.cpp"
    source.write_text(f"#include <thread>\nint main(int argc, char**) {{ {body} }}\n")
    program = compile_sanitized(tmp_path, sanitizer, (source, []))
    done = subprocess.run([str(program)], capture_output=True, text=True, env=ENVIRONMENT)
    skip_unless_watched(done.stderr)
    assert done.returncode != 0
    assert says in done.stderr
