"""Every instruction set of this machine gives the results of the one that is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine_sources import CHOSEN, SUPPORTED

TESTS = Path(__file__).parent
VARIABLE = "FRCNN_INSTRUCTION_SET"


def run(
    command: list[str], instruction_set: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, VARIABLE: instruction_set}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


# Where results of the engine are held against the reference; everything else is made of these.
ROOMS = ("ops", "fuzz/test_properties.py")
# Within them, what is about other programs and processes, and torch's tracing of the calls.
OTHERS = (
    "ops/test_onnx.py", "ops/test_data_parallel.py", "ops/test_jax.py", "ops/test_torch_ops.py",
)  # fmt: skip


@pytest.mark.skipif(VARIABLE in os.environ, reason="one instruction set was asked for")
def test_the_tests_pass_on_every_set():
    """On all at once, by one thread each: torch's threads would wait for each other's cores."""
    others = [name for name in SUPPORTED if name != CHOSEN]
    if not others:
        pytest.skip("this machine has one instruction set")
    command = [sys.executable, "-m", "pytest", "-q", "-x", *(str(TESTS / room) for room in ROOMS),
               *(f"--ignore={TESTS / other}" for other in OTHERS)]  # fmt: skip
    with ThreadPoolExecutor(len(others)) as pool:
        results = list(pool.map(lambda name: run(command, name, OMP_NUM_THREADS="1"), others))
    failed = [f"{name}: {done.stdout[-3000:]}"
              for name, done in zip(others, results, strict=True) if done.returncode]  # fmt: skip
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("instruction_set", [*SUPPORTED, ""])
def test_the_variable_decides(instruction_set):
    """Empty it is as if it were not there."""
    code = "import fastrcnn_engine as fe; print(fe.build_info()['instruction_sets'])"
    done = run([sys.executable, "-c", code], instruction_set)
    assert done.stdout.split(" ")[0] == (instruction_set or SUPPORTED[-1]), done.stderr


def test_an_unknown_set_is_refused_by_name():
    done = run([sys.executable, "-c", "import fastrcnn_engine"], "avx1024")
    assert done.returncode != 0
    expected = f"{VARIABLE} must be one of {', '.join(SUPPORTED)} on this machine, got avx1024"
    assert expected in done.stderr
