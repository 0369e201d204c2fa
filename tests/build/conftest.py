"""The engine built and installed once, for every test that links it."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.steps import ROOT, cmake, run


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds build/, prefix/ and build.log, what was said meanwhile."""
    folder = tmp_path_factory.mktemp("engine")
    for step in (
        (cmake(), "-S", ROOT, "-B", folder / "build", "-DFRCNN_CUDA=OFF"),
        (cmake(), "--build", folder / "build", "--parallel", "2"),
        (cmake(), "--install", folder / "build", "--prefix", folder / "prefix"),
    ):
        result = run(*step)
        assert result.returncode == 0, result.stdout + result.stderr
        with (folder / "build.log").open("a") as log:
            log.write(result.stdout + result.stderr)
    return folder
