"""What a linter finds in the Python of the repository (pyproject.toml, [tool.ruff])."""

from __future__ import annotations

import sys

from build.steps import ROOT, run


def test_ruff_finds_nothing() -> None:
    result = run(sys.executable, "-m", "ruff", "check", "--no-cache", ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
