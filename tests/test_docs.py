"""The Python of the documentation runs, and the tests that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The other pages show commands and pieces that need a data set.
PAGES = ("docs/in-other-detectors.md",)


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, match.start()) + 1
        found.append("\n" * line + match[1])  # errors name the line of the page
    return found


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore")
def test_python_of_a_page_runs(page):
    names: dict = {}
    found = blocks(page)
    assert found
    for block in found:
        exec(compile(block, str(ROOT / page), "exec"), names)


def test_first_example_of_the_readme_runs():
    names: dict = {}
    exec(compile(blocks("README.md")[0], "README.md", "exec"), names)
    assert names["pooled"].shape == (2, 512, 7, 7)


EVERY_PAGE = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", EVERY_PAGE, ids=lambda path: path.name)
def test_files_that_a_page_names_are_there(path):
    text = path.read_text(encoding="utf-8")
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    tests = [f"tests/{name}" for name in re.findall(r"`(?:tests/)?((?:\w+/)?test_\w+\.py)`", text)]
    missing = [link for link in links if not (path.parent / link).exists()]
    missing += [name for name in tests if not (ROOT / name).is_file()]
    assert not missing
