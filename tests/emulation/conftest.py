"""The kernels compiled by g++ for the emulated device, once for every test here."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulation.steps import compile_all, link


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    return compile_all(tmp_path_factory.mktemp("emulation"), "memory")


@pytest.fixture(scope="session")
def program(objects: list[tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    return link([made for _, made in objects], folder / "test_kernels", "memory")
