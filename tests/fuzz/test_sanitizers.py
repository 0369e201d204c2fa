"""The engine under address and undefined-behaviour sanitizers, fed with anything at all.

No switch turns this off: the package is built from source, so the compiler is there.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine_sources import SUPPORTED, engine_sources

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = [
    "-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all",
    "-D_GLIBCXX_ASSERTIONS", f"-I{ROOT / 'cpp/include'}", f"-I{ROOT / 'cpp/src'}",
    "-DFRCNN_PAST_CACHES=4096",  # bytes from which results are streamed: small ones are too
    "-DFRCNN_QUAD_COST=0",  # maxima of 2 x 2 cells are made for few RoIs too
]  # fmt: skip
# Leaks need ptrace, which containers often refuse; everything else stays on.
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=0"}


def compile_sanitized(folder: Path, *sources: tuple[Path, list[str]]) -> Path:
    """One program from (source, its own flags), objects built side by side."""

    def to_object(number: int) -> Path:
        source, own_flags = sources[number]
        target = folder / f"{number}.o"
        command = [COMPILER, *FLAGS, *own_flags, "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(to_object, range(len(sources))))
    program = folder / "program"
    command = [COMPILER, *FLAGS, *map(str, objects), "-o", str(program), "-pthread", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory) -> Path:
    driver = ROOT / "tests/fuzz/fuzz_engine.cpp", []
    return compile_sanitized(tmp_path_factory.mktemp("fuzz"), driver, *engine_sources())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("instruction_set", SUPPORTED)
def test_any_input_stays_inside_its_buffers(fuzzer, instruction_set, seed):
    rounds = 20000 if os.environ.get("FRCNN_FUZZ") == "thorough" else 1500
    done = subprocess.run(
        [str(fuzzer), str(seed), str(rounds)], capture_output=True, text=True,
        env={**ENVIRONMENT, "FRCNN_INSTRUCTION_SET": instruction_set},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"{rounds} rounds" in done.stdout


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("int* p = new int[argc + 2]; return p[argc + 2];", "heap-buffer-overflow"),
        ("return 2147483647 + argc;", "signed integer overflow"),
        ("float f = 1e30f * argc; return (int)f;", "outside the range"),
    ],
)
def test_the_build_notices_a_planted_error(tmp_path, body, says):
    source = tmp_path / "planted.cpp"
    source.write_text(f"int main(int argc, char**) {{ {body} }}\n")
    program = compile_sanitized(tmp_path, (source, []))
    done = subprocess.run([str(program)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode != 0
    assert says in done.stderr
