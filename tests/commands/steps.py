"""How the tests of the commands run one, and what they read of its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastrcnn_engine import cli
from fastrcnn_engine.commands import detection, evaluation, training


def run(*arguments) -> None:
    """One command, as from a shell. Leaves by SystemExit when it fails."""
    cli.main([str(argument) for argument in arguments])


def run_with_failures(*arguments) -> None:
    """A command that does what it can, and tells by exit code 1 that something was left out."""
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 1


def failure(capsys, *arguments) -> str:
    """The line a mistaken command prints; it must end with exit code 2 and no traceback."""
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return printed.err + printed.out


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def nothing_is_begun(monkeypatch):
    """Whatever takes long fails the test."""
    begins = [(training, "run_training"), (training, "search_datasets"),
              (evaluation, "search_datasets"), (evaluation, "detect_dataset"),
              (detection, "detect_files")]  # fmt: skip
    for module, name in begins:
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("went on"))
