"""Every instruction set of this machine gives the results of the one that is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine_sources import CHOSEN, SUPPORTED

TESTS = Path(__file__).parent
VARIABLE = "FRCNN_INSTRUCTION_SET"


def run(command: list[str], instruction_set: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, VARIABLE: instruction_set}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


# The rooms in which results of the engine are checked; the others are about files and pictures.
ROOMS = ("ops", "fuzz/test_properties.py", "models", "training", "evaluation")
# Within them, what is about files, processes and other programs.
OTHERS = ("ops/test_onnx.py", "ops/test_data_parallel.py", "training/test_faults.py",
          "training/test_distributed.py", "evaluation/test_export.py")  # fmt: skip


@pytest.mark.skipif(VARIABLE in os.environ, reason="one instruction set was asked for")
@pytest.mark.parametrize("instruction_set", [name for name in SUPPORTED if name != CHOSEN])
def test_the_tests_pass_on(instruction_set):
    command = [sys.executable, "-m", "pytest", "-q", "-x", *(str(TESTS / room) for room in ROOMS),
               *(f"--ignore={TESTS / other}" for other in OTHERS)]  # fmt: skip
    done = run(command, instruction_set)
    assert done.returncode == 0, done.stdout[-3000:]


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
