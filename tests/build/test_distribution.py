"""What is given to others: the source distribution, and the compiled module inside a wheel."""

from __future__ import annotations

import re
import sys
import tarfile
from pathlib import Path

from build.steps import ROOT, run
from fastrcnn_engine import _core

MODULE = Path(_core.__file__)


def test_source_distribution_holds_what_builds_the_package(tmp_path: Path) -> None:
    program = f"import scikit_build_core.build as b; b.build_sdist({str(tmp_path)!r})"
    result = run("env", "-C", ROOT, sys.executable, "-c", program)
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    assert {name.partition("/")[0] for name in inside} == {
        "CHANGELOG.md", "CMakeLists.txt", "CONTRIBUTING.md", "LICENSE", "PKG-INFO", "README.md",
        "bindings", "cmake", "cpp", "cuda", "examples", "pyproject.toml", "python",
    }  # fmt: skip
    for folder in ("bindings", "cmake", "cpp", "cuda", "python"):
        files = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()}
        missing = {name for name in files - inside if "__pycache__" not in name}
        assert missing == set()
    assert not [name for name in inside if name.endswith((".pyc", ".so", ".o"))]
    assert archive.stat().st_size < 1e6


def test_the_oldest_scikit_build_core_asked_for_takes_the_licence_as_it_is_written() -> None:
    """Before 0.11 it wants a table (PEP 621), and stops."""
    project = (ROOT / "pyproject.toml").read_text()
    release = (ROOT / "CONTRIBUTING.md").read_text()
    assert '\nlicense = "MIT"\n' in project
    oldest = re.findall(r"scikit-build-core>=([\d.]+)", project + release)
    assert oldest and set(oldest) == {"0.11"}


def test_module_needs_no_more_of_a_system_than_numpy_does() -> None:
    """Neither the C++ runtime nor CUDA's, torch's or a folder of the machine that built it."""
    text = run("readelf", "--dynamic", "--wide", MODULE).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
    system = r"lib(c|m|dl|rt|pthread|gcc_s)\.so\.\d+|ld-linux.*"
    assert needed and [name for name in needed if not re.fullmatch(system, name)] == []
    assert not re.search(r"\((RPATH|RUNPATH)\)", text)


def test_module_is_stripped_and_tells_no_path() -> None:
    sections = run("readelf", "--sections", "--wide", MODULE).stdout
    assert ".text" in sections and ".symtab" not in sections and ".debug" not in sections
    contents = MODULE.read_bytes()
    for place in (ROOT, Path(sys.prefix), Path.home()):
        assert place == Path("/") or str(place).encode() + b"/" not in contents, place


def test_module_shows_python_its_function_alone() -> None:
    """Names of the engine must not stand in for another library's, nor that one's for ours."""
    lines = run("nm", "--dynamic", "--defined-only", MODULE).stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["PyInit__core"]


def test_smoke_program_passes_here() -> None:
    """It is run beside other versions of torch and NumPy before a release."""
    result = run(sys.executable, ROOT / "tests/build/smoke.py")
    assert result.returncode == 0, result.stderr
    assert "torch.compile, opcheck" in result.stdout
