"""Files that a kill, a full disk or another process cannot spoil, and who may write to them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def write_row(file: FileIO, row: dict[str, Any], name: str) -> None:
    """Add a line of JSON. Raises OSError that names the file."""
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    try:
        while line:
            line = line[file.write(line) :]
    except OSError as error:
        raise OSError(f"cannot write {name}: {error.strerror}") from error


def is_alone(descriptor: int) -> bool:
    """Whether no other process, and nobody else in this one, holds an open file or folder. It is
    held by the caller then until it is closed, at the latest with the process; where a file system
    has no locks, by everybody.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other runs on this machine out of it for the block. ValueError
    where one is in it: each would replace the log and the checkpoints of the other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        if not is_alone(held):
            raise ValueError(
                f"another run is at work in {folder}; wait for its end, or give another folder"
            )
        yield
    finally:
        os.close(held)


def check_idle(folder: Path) -> None:
    """ValueError where a run is at work in the folder. Makes nothing and keeps nobody out."""
    if folder.is_dir():
        with alone_in(folder):
            pass
