"""recipe/recipe.yaml agrees with pyproject.toml, and its tests pass on what is installed here."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import yaml

import fastrcnn_engine as fe
from build.steps import ROOT, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest's

TEXT = (ROOT / "recipe/recipe.yaml").read_text()
RECIPE: dict[str, Any] = yaml.safe_load(TEXT)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA_NAMES = {"torch": "pytorch"}


def conda(requirement: str) -> str:
    """`numpy>=1.24` as conda writes it."""
    name, range_ = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
    return f"{CONDA_NAMES.get(name, name)} {range_}".strip()


def test_version_text_and_licence() -> None:
    project = PROJECT["project"]
    assert RECIPE["context"]["version"] == fe.__version__
    assert RECIPE["package"]["name"] == project["name"]
    assert RECIPE["about"]["summary"] == project["description"]
    assert RECIPE["about"]["license"] == project["license"]
    assert (ROOT / RECIPE["about"]["license_file"]).is_file()


def test_requirements_are_those_of_the_package() -> None:
    project, needs = PROJECT["project"], RECIPE["requirements"]
    oldest = project["requires-python"].removeprefix(">=")
    assert f'match(python, "<{oldest}")' in RECIPE["build"]["skip"]
    assert needs["run"] == ["python", *map(conda, project["dependencies"])]
    assert needs["host"] == ["python", "pip", *map(conda, PROJECT["build-system"]["requires"])]
    assert f"cmake {PROJECT['tool']['scikit-build']['cmake']['version']}" in needs["build"]
    (torch,) = (x for x in project["optional-dependencies"]["train"] if x.startswith("torch>"))
    assert needs["run_constraints"] == [conda(torch)]
    assert RECIPE["tests"][2]["requirements"]["run"] == [conda(torch)]


def test_its_build_asks_for_what_cmake_knows() -> None:
    options = re.findall(r"cmake\.define\.(\w+)=", RECIPE["build"]["script"])
    assert options
    for option in options:
        assert f"set({option} " in (ROOT / "CMakeLists.txt").read_text()


@pytest.mark.parametrize("which", [1, 2])
def test_its_tests_pass_here(which: int) -> None:
    result = run(sys.executable, "-c", RECIPE["tests"][which]["script"]["content"])
    assert result.returncode == 0, result.stderr
    for module in RECIPE["tests"][0]["python"]["imports"]:
        assert run(sys.executable, "-c", f"import {module}").returncode == 0
