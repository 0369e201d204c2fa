"""What a type checker makes of the package: the operators, and a program that uses them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import fastrcnn_engine as fe
from build.steps import ROOT, run


def checked(*options: str) -> dict[str, Any]:
    checker = Path(sys.executable).with_name("basedpyright")
    assert checker.exists(), "basedpyright is needed: it is in the package's [test] extra"
    # An editable installation is found by import alone; PYTHONPATH shows the checker the source.
    result = run(
        checker, "--outputjson", "--level", "error", "--project", ROOT, "--pythonpath",
        sys.executable, *options, PYTHONPATH=str(ROOT / "python"),
    )  # fmt: skip
    return json.loads(result.stdout)


def test_the_package_and_a_program_that_uses_it_are_clean() -> None:
    """The files that pyproject.toml names ([tool.pyright])."""
    report = checked()
    messages = [f"{x['file']}:{x['range']['start']['line'] + 1}: {x['message']}"
                for x in report["generalDiagnostics"]]  # fmt: skip
    assert messages == []
    assert report["summary"]["filesAnalyzed"] > 50


def test_every_public_name_has_a_type() -> None:
    """None is left to what a checker infers."""
    report = checked("--verifytypes", "fastrcnn_engine", "--ignoreexternal")
    completeness = report["typeCompleteness"]
    assert completeness["pyTypedPath"]
    known = {x["name"]: x["isTypeKnown"] for x in completeness["symbols"]}
    for name in set(fe.__all__) - {"ops"}:
        defined = f"{getattr(fe, name).__module__}.{name}"
        assert known[defined], defined


def test_results_have_the_fields_of_their_types() -> None:
    """results.pyi is written by hand beside results.py."""
    types = (ROOT / "python/fastrcnn_engine/ops/results.pyi").read_text()
    for name in ("PaddedIndices", "Detections", "PaddedDetections"):
        body = types.split(f"class {name}(")[1].split("class ")[0].splitlines()[1:]
        fields = tuple(line.split(":")[0].strip() for line in body if ":" in line)
        assert fields == getattr(fe, name)._fields, name


def test_compiled_module_has_the_functions_of_its_types() -> None:
    """So has _core.pyi."""
    from fastrcnn_engine import _core

    types = (ROOT / "python/fastrcnn_engine/_core.pyi").read_text()
    declared = set(re.findall(r"^(?:def )?(\w+)(?=\(|: float$)", types, re.MULTILINE))
    assert declared == {name for name in dir(_core) if not name.startswith("_")}
