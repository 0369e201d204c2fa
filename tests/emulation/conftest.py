"""The kernels compiled by g++ for the emulated device, once for every test here."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from emulation.steps import HERE, ROOT, compile_one, link
from engine_sources import engine_sources


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """The emulator, the kernels as they are, and the CPU engine: every source and its object."""
    folder = tmp_path_factory.mktemp("emulation")
    here = [*sorted(HERE.glob("*.cpp")), *sorted((ROOT / "cuda").glob("*.cu"))]
    sources = [*((source, []) for source in here), *engine_sources()]

    def compile_numbered(number: int) -> tuple[Path, Path]:
        source, flags = sources[number]
        return source, compile_one(source, folder / f"{number}.o", flags)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_numbered, range(len(sources))))


@pytest.fixture(scope="session")
def program(objects: list[tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    return link([made for _, made in objects], folder / "test_kernels")
