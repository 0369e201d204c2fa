"""The engine's C++ files and how each is compiled, for the tests that build it with sanitizers.

The instruction sets and their flags are read from CMakeLists.txt, where they are decided; which of
them this machine has, and which it runs on, from build_info().
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from fastrcnn_engine import build_info

ROOT = Path(__file__).resolve().parents[1]
X86 = platform.machine() in ("x86_64", "AMD64")
SETS = {
    name: flags.split()
    for name, flags in re.findall(
        r"^ *frcnn_add_kernels\((\w+)([^)]*)\)", (ROOT / "CMakeLists.txt").read_text(), re.M
    )
    if X86 or name == "baseline"
}
CHOSEN, _, _supported = str(build_info()["instruction_sets"]).rstrip(")").partition(" (of ")
SUPPORTED = _supported.split()


def engine_sources() -> list[tuple[Path, list[str]]]:
    """(source, flags beyond the common ones) of every object of the CPU engine.

    Without build_info.cpp, which holds strings that only CMake knows, and c_api.cpp and
    without_cuda.cpp, which ask it.
    """
    found = []
    for source in sorted((ROOT / "cpp/src").glob("*.cpp")):
        if source.stem.endswith("_kernels"):
            found += [(source, [f"-DFRCNN_SET={name}", *flags]) for name, flags in SETS.items()]
        elif source.stem not in ("build_info", "c_api", "without_cuda"):
            found.append((source, []))
    return found


def skip_unless_watched(errors: str) -> None:
    """Some kernels place memory more at random than a compiler's thread sanitizer takes."""
    if "unexpected memory mapping" in errors:
        pytest.skip("the thread sanitizer of this compiler does not run on this kernel")
