"""The arrows between the rooms, as the architecture states them, asserted by reading the files."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CPP_SUFFIXES = {".h", ".hpp", ".cuh", ".cpp", ".cu"}

# Python rooms, lowest first. A room imports itself, lower rooms, and its neighbours.
# The other modules beside the rooms, and commands/, serve the command line and belong to it.
LEVELS = {
    "files": 0,
    "ops": 0,
    "models": 1,
    "data": 1,
    "training": 2,
    "evaluation": 2,
    "report": 2,
    "cli": 3,
}

# Modules that import each other in a circle, and why they may.
CIRCLES = {
    frozenset(
        f"fastrcnn_engine.ops.{name}"
        for name in ("autograd", "box_codec", "detections", "nms", "onnx_ops", "roi_pool",
                     "smooth_l1", "torch_ops")
    ): "An operator and its torch half need each other: a call that torch traces or differentiates "
       "goes to the half that imports torch, which runs the operator, and the gradient of roi_pool "
       "is a public operator with a gradient of its own. Without a circle either each operator is "
       "cut in two files, or what torch is told of it stands in a file that must do without torch.",
}  # fmt: skip

FRAMEWORK = re.compile(r"torch/|torch\.h|ATen/|c10/|pybind11|nanobind|Python\.h|dlpack")
CUDA_HEADER = re.compile(r"cuda\.h|cuda_\w+|cub/|thrust/")
COMPILER_QUESTION = re.compile(r"__CUDACC__|__CUDA_ARCH__|__NVCC__")
BOX_ARITHMETIC = re.compile(
    r"\b_{0,2}(l?l?round|l?l?rint|nearbyint|floor|ceil|trunc|exp|exp2|expm1|log|log2|log1p)f?\s*\("
)


def code_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of C++ without comments and without the contents of string literals."""
    text = path.read_text()
    token = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)

    def blank(match: re.Match[str]) -> str:
        if match[0].startswith('"'):
            return match[0] if includes(text, match.start()) else '""'
        return "\n" * match[0].count("\n")

    def includes(whole: str, at: int) -> bool:
        return whole[whole.rfind("\n", 0, at) + 1 : at].lstrip().startswith("#include")

    yield from enumerate(token.sub(blank, text).splitlines(), start=1)


def cpp_files(root: Path, *folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in CPP_SUFFIXES:
                yield path


def included(line: str) -> str | None:
    match = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
    return match[1] if match else None


def cpp_violations(root: Path) -> Iterator[str]:
    for path in cpp_files(root, "cpp", "cuda", "bindings"):
        place = path.relative_to(root).as_posix()
        room = place.split("/")[0]
        in_semantics = "/semantics/" in place
        for number, line in code_lines(path):
            at = f"{place}:{number}"
            if header := included(line):
                if room != "bindings" and FRAMEWORK.search(header):
                    yield f"{at}: the engine knows no framework, yet includes {header}"
                if room == "cpp" and CUDA_HEADER.match(header):
                    yield f"{at}: CUDA header {header} under cpp/"
                if room != "bindings" and "bindings" in header:
                    yield f"{at}: bindings are a leaf, yet {header} is included"
                if header.startswith("fastrcnn_engine/"):
                    inner = header.removeprefix("fastrcnn_engine/")
                    lowest = inner == "host_device.h" or inner.startswith("semantics/")
                    if in_semantics and not lowest:
                        yield f"{at}: semantics include {header}, more than host_device.h"
                    public = place.startswith("cpp/include/") and not in_semantics
                    shared = {"host_device.h", "tensor.h", "stream.h", "error.h"}
                    if path.name == "detections.h":  # whose first step is the decoding
                        shared.add("box_codec.h")
                    if path.name == "roi_pool.h":  # whose features may have 16 bits
                        shared.add("semantics/half.h")
                    if public and inner not in shared:
                        yield f"{at}: a contract includes {header}"
            if "FRCNN_WITH_CUDA" in line and room != "bindings":
                yield f"{at}: asks for CUDA outside the bindings"
            # half.cuh asks which 16-bit instructions the device has.
            if COMPILER_QUESTION.search(line) and path.name not in ("host_device.h", "half.cuh"):
                yield f"{at}: asks which compiler this is outside host_device.h"
            if room != "bindings" and not in_semantics and BOX_ARITHMETIC.search(line):
                yield f"{at}: rounding or exponential outside semantics/: {line.strip()}"


def imported_modules(path: Path, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything a module of `package` imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{stem}.{alias.name}"


def python_violations(root: Path) -> Iterator[str]:
    source = root / "python"
    top = {path.stem for path in (source / "fastrcnn_engine").glob("*.py")}
    rooms = dict.fromkeys({*top, "commands"}, "cli") | {name: name for name in LEVELS}
    rooms["__init__"] = "ops"  # the package itself shows the operators and nothing heavier
    arrows: set[tuple[str, str]] = set()
    for path in sorted((source / "fastrcnn_engine").rglob("*.py")):
        place = path.relative_to(root).as_posix()
        package = path.relative_to(source).parent.parts
        inside = path.relative_to(source / "fastrcnn_engine").with_suffix("").parts
        room = rooms.get(inside[0], inside[0])
        if room not in LEVELS:
            yield f"{place}: the room {room} has no place among the levels"
            continue
        for number, name in imported_modules(path, package):
            parts = name.split(".")
            if parts[0] != "fastrcnn_engine" or len(parts) < 2:
                continue
            if parts[1] == "_core" and room != "ops":
                yield f"{place}:{number}: _core is imported outside ops/"
            target = rooms.get(parts[1], room)  # anything else is an operator's name
            if target == room:
                continue
            arrows.add((room, target))
            if LEVELS[target] > LEVELS[room]:
                yield f"{place}:{number}: {room} imports {target}, which stands above it"
    for room, target in sorted(arrows):
        if (target, room) in arrows and room < target:
            yield f"python: {room} and {target} import each other"


def circles(folder: Path) -> set[frozenset[str]]:
    """Modules under a folder that import each other, straight or by way of others: at the top, in
    functions or for type checkers alone."""
    parts_of = {
        path: path.relative_to(folder).with_suffix("").parts
        for path in (*folder.rglob("*.py"), *folder.rglob("*.pyi"))
    }
    names = {path: ".".join(parts).removesuffix(".__init__") for path, parts in parts_of.items()}
    arrows: dict[str, set[str]] = {name: set() for name in names.values()}
    for path, parts in parts_of.items():
        for _, name in imported_modules(path, parts[:-1]):
            while name and name not in arrows:  # something in a module
                name = name.rpartition(".")[0]
            arrows[names[path]] |= {name} - {"", names[path]}

    def reached(start: str) -> set[str]:
        found, left = set[str](), [start]
        while left:
            new = arrows[left.pop()] - found
            found |= new
            left += new
        return found

    reach = {name: reached(name) for name in arrows}
    return {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in arrows
        if name in reach[name]
    }


def circle_violations(root: Path) -> Iterator[str]:
    for folder in ("python", "benchmarks"):
        for circle in circles(root / folder) - set(CIRCLES):
            yield f"{folder}: a circle of imports: {', '.join(sorted(circle))}"


def arithmetic_in_ops(root: Path) -> Iterator[str]:
    """Box arithmetic that Python restates: the operators only allocate, check and dispatch."""
    names = {"round", "rint", "floor", "ceil", "trunc", "exp", "expm1"}
    for path in sorted((root / "python/fastrcnn_engine/ops").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in names:
                place = path.relative_to(root).as_posix()
                yield f"{place}:{node.lineno}: {name}() outside semantics/"


def half_written_files(root: Path) -> Iterator[str]:
    """What a kill or a full disk spoils. The drawn set is drawn anew, from its seed, after one."""
    writes = re.compile(
        r"os\.replace\(|\.write_(text|bytes)\(|open\([^)]*[\"'][wx]|tempfile"
        r"|\.save\((?!file|buffer|content, file)"
    )
    for path in sorted((root / "python/fastrcnn_engine").rglob("*.py")):
        place = path.relative_to(root / "python/fastrcnn_engine").as_posix()
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if writes.search(line) and place not in ("files.py", "data/demo_set.py"):
                yield f"{place}:{number}: written without files.whole_file"


def reference_violations(root: Path) -> Iterator[str]:
    allowed = {"numpy", "pytest", "reference"} | sys.stdlib_module_names
    for path in sorted((root / "tests/reference").rglob("*.py")):
        place = path.relative_to(root).as_posix()
        if "fastrcnn" + "_engine" in path.read_text():
            yield f"{place}: a reference names the package it is there to check"
        for number, name in imported_modules(path, ("reference",)):
            if name.split(".")[0] not in allowed:
                yield f"{place}:{number}: a reference imports {name}"


def violations(root: Path) -> list[str]:
    return [
        *cpp_violations(root),
        *python_violations(root),
        *circle_violations(root),
        *arithmetic_in_ops(root),
        *half_written_files(root),
        *reference_violations(root),
    ]


def test_arrows_point_one_way():
    assert violations(ROOT) == []


def test_circles_that_are_left_are_there():
    """One that has become smaller, or is gone, is listed so."""
    assert circles(ROOT / "python") == set(CIRCLES)


def test_the_scanner_reads_the_whole_tree():
    """A folder that moved away would otherwise be clean for ever."""
    stems = {"roi_pool", "smooth_l1", "box_codec", "nms", "detections"}
    for folder in ("cpp/include/fastrcnn_engine", "cpp/src", "cuda"):
        assert stems <= {path.stem for path in cpp_files(ROOT, folder)}, folder
    assert {path.stem for path in cpp_files(ROOT, "cpp/include/fastrcnn_engine/semantics")} >= {
        "roi_bins", "smooth_l1", "box_codec", "iou",
    }  # fmt: skip
    assert list(cpp_files(ROOT, "bindings"))
    for room in LEVELS:
        source = ROOT / "python/fastrcnn_engine"
        assert (source / f"{room}.py").exists() or list((source / room).glob("*.py")), room
    assert len(list((ROOT / "tests/reference").glob("*.py"))) >= 5


PLANTED = [
    ("cpp/src/a.cpp", "#include <torch/extension.h>\n", "no framework"),
    ("cpp/include/fastrcnn_engine/a.h", "#include <ATen/ATen.h>\n", "no framework"),
    ("cuda/a.cu", "# include <pybind11/pybind11.h>\n", "no framework"),
    ("cpp/src/a.cpp", "\n\n#include <Python.h>\n", "a.cpp:3: the engine knows no framework"),
    ("cpp/src/a.cpp", "#include <cuda_runtime.h>\n", "CUDA header"),
    ("cpp/src/a.cpp", '#include "cuda_fp16.h"\n', "CUDA header"),
    ("cuda/a.cu", '#include "bindings/arrays.h"\n', "leaf"),
    ("cpp/include/fastrcnn_engine/semantics/a.h",
     '#include "fastrcnn_engine/tensor.h"\n', "more than"),
    ("cpp/include/fastrcnn_engine/a.h", '#include "fastrcnn_engine/semantics/iou.h"\n', "contract"),
    ("cpp/src/a.cpp", "#if defined(__CUDACC__)\n#endif\n", "which compiler"),
    ("cuda/a.cu", "#ifdef __CUDA_ARCH__\n#endif\n", "which compiler"),
    ("cpp/src/a.cpp", "#ifdef FRCNN_WITH_CUDA\n#endif\n", "asks for CUDA"),
    ("cpp/src/a.cpp", "int f(float x) { return std::floor(x); }\n", "outside semantics"),
    ("cpp/src/a.cpp", "float f(float x) { return roundf (x); }\n", "outside semantics"),
    ("cuda/a.cuh", "/* exp( */ float f(float x) { return __expf(x); }\n", "outside semantics"),
    ("cpp/src/a.cpp", 'auto m = "// no comment"; float y = ceilf(2);\n', "outside semantics"),
    ("python/fastrcnn_engine/models/a.py", "from fastrcnn_engine import _core\n", "outside ops"),
    ("python/fastrcnn_engine/models/a.py", "from .. import _core\n", "outside ops"),
    ("python/fastrcnn_engine/cli.py", "def f():\n    import fastrcnn_engine._core as c\n",
     "outside ops"),
    ("python/fastrcnn_engine/cli.py", "from fastrcnn_engine._core import nms\n", "outside ops"),
    ("python/fastrcnn_engine/ops/a.py", "from ..models import network\n", "stands above"),
    ("python/fastrcnn_engine/data/a.py", "import fastrcnn_engine.training.loop\n", "stands above"),
    ("python/fastrcnn_engine/report/a.py", "from fastrcnn_engine.cli import main\n",
     "stands above"),
    ("python/fastrcnn_engine/__init__.py", "from .training import loop\n", "stands above"),
    ("python/fastrcnn_engine/files.py", "from fastrcnn_engine.data import voc\n", "stands above"),
    ("python/fastrcnn_engine/ops/a.py", "import math\ny = math.floor(2.5)\n", "outside semantics"),
    ("python/fastrcnn_engine/data/a.py", "path.write_text('half')\n", "without files.whole_file"),
    ("python/fastrcnn_engine/data/a.py", "file = open(path, 'wb')\n", "without files.whole_file"),
    ("python/fastrcnn_engine/data/a.py", "image.save(path)\n", "without files.whole_file"),
    ("python/fastrcnn_engine/data/a.py", "torch.save(x, path)\n", "without files.whole_file"),
    ("python/fastrcnn_engine/attic/a.py", "import math\n", "no place among"),
    ("tests/reference/a.py", "import torch\n", "reference imports torch"),
    ("tests/reference/a.py", "m = __import__('fastrcnn_engine')\n", "names the package"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "text", "says"), PLANTED)
def test_the_scanner_catches_a_planted_violation(tmp_path, place, text, says):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(text)
    found = violations(tmp_path)
    assert any(says in line for line in found), found


def test_the_scanner_catches_rooms_that_import_each_other(tmp_path):
    for room, target in (("data", "models"), ("models", "data")):
        path = tmp_path / f"python/fastrcnn_engine/{room}/a.py"
        path.parent.mkdir(parents=True)
        path.write_text(f"from fastrcnn_engine.{target} import a\n")
    assert violations(tmp_path) == [
        "python: data and models import each other",
        "python: a circle of imports: fastrcnn_engine.data.a, fastrcnn_engine.models.a",
    ]


@pytest.mark.parametrize(
    ("back", "place"),
    [
        ("from fastrcnn_engine.data import a", "data/c.py"),
        ("from . import a", "data/c.py"),
        ("import fastrcnn_engine.data.a as a", "data/c.py"),
        ("def f():\n    from fastrcnn_engine.data.a import b", "data/c.py"),
        ("if TYPE_CHECKING:\n    from .a import b", "data/c.py"),
        ("from ..a import b", "data/c/__init__.py"),
    ],
)
def test_the_scanner_catches_circles(tmp_path, back, place):
    package = tmp_path / "python/fastrcnn_engine"
    path = package / place
    path.parent.mkdir(parents=True)
    (package / "data/a.py").write_text("from fastrcnn_engine.data.b import x\n")
    (package / "data/b.py").write_text("def f():\n    from fastrcnn_engine.data import c\n")
    path.write_text(f"{back}\n")
    (package / "data/d.py").write_text("from . import a, b, c\n")  # is in no circle
    assert violations(tmp_path) == [
        "python: a circle of imports: fastrcnn_engine.data.a, fastrcnn_engine.data.b, "
        "fastrcnn_engine.data.c"
    ]


def test_the_scanner_knows_modules_beside_the_rooms(tmp_path):
    package = tmp_path / "python/fastrcnn_engine"
    (package / "data").mkdir(parents=True)
    (package / "commands").mkdir()
    (package / "commands/data.py").write_text("from fastrcnn_engine.data import a\n")
    (package / "data/a.py").write_text("from fastrcnn_engine import commands, nms\n")
    assert any("data imports cli" in line for line in violations(tmp_path))


INNOCENT = [
    ("cpp/src/a.cpp",
     "// torch's channels_last, floor(x), __CUDACC__\n/* roundf(1)\n ceil(2) */\n"),
    ("cpp/src/a.cpp", 'auto s = "exp(dw) \\" floor(x)";\n#include <cmath>\n'),
    ("cpp/src/a.cpp", '#include "fastrcnn_engine/semantics/roi_bins.h"\n'),
    ("cpp/src/a.cpp", "int f() { return expected(1) + background(2) + catalog(3); }\n"),
    ("cpp/include/fastrcnn_engine/host_device.h", "#if defined(__CUDACC__)\n#endif\n"),
    ("cuda/half.cuh", "#if __CUDA_ARCH__ < 800\n#endif\n"),
    ("cpp/include/fastrcnn_engine/roi_pool.h", '#include "fastrcnn_engine/semantics/half.h"\n'),
    ("cpp/include/fastrcnn_engine/semantics/a.h",
     "inline float f(float x) { return floorf(x); }\n"),
    ("cuda/a.cu", "#include <cuda_runtime.h>\n"),
    ("bindings/a.cpp", "#include <pybind11/pybind11.h>\n"),
    ("python/fastrcnn_engine/ops/a.py", "from fastrcnn_engine import _core\nfrom . import b\n"),
    ("python/fastrcnn_engine/training/a.py",
     "from ..models.tiny import Tiny\nfrom . import loop\n"),
    ("python/fastrcnn_engine/cli.py", "from fastrcnn_engine.report import html\n"),
    ("python/fastrcnn_engine/models/a.py", "import math\ny = math.exp(1)\n"),
    ("python/fastrcnn_engine/files.py", "file = open(path, 'xb')\n"),
    ("python/fastrcnn_engine/data/a.py", "x, y = open(path, 'rb'), open(path, 'ab')\n"),
    ("tests/reference/a.py", "import math\nimport numpy as np\nfrom reference.nms import nms\n"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "text"), INNOCENT)
def test_the_scanner_lets_clean_files_pass(tmp_path, place, text):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert violations(tmp_path) == []
