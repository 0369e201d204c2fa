"""Files that a kill, a full disk or another process cannot spoil, and who may write to them."""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def whole_file(path: Path, *, replace_link: bool = False) -> Iterator[BinaryIO]:
    """A file for the block to write. At its end it is on the disk in place of `path`, with the same
    permissions; after an exception `path` is what it was. Makes the folder.

    Where a link is, what it leads to is replaced, or with `replace_link` the link. Raises OSError
    that names the file where it cannot be written.
    """
    if path.exists() and not path.is_file():  # a pipe or device, which nothing must replace
        try:
            with open(path, "wb") as file:
                yield file
        except OSError as error:
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error
        return
    if not replace_link:
        path = Path(os.path.realpath(path))
    partial = path.with_name(f"{_begin(path)}{os.urandom(4).hex()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as file:
            with suppress(OSError):  # there is none, or its file system has no permissions
                shutil.copymode(path, partial)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.strerror is None or error.filename not in (None, str(partial)):
            raise  # it says already what it is about
        left = "; what was there is untouched" if path.is_file() else ""
        raise OSError(f"cannot write {path}: {error.strerror}{left}") from error
    finally:
        with suppress(OSError):  # it has its name, or the disk is gone
            partial.unlink()
    sync_folder(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """As `whole_file`, text in UTF-8; of a file name in it that is not, the bytes are spelt out."""
    with whole_file(path) as file:
        text = isinstance(content, str)
        file.write(content.encode("utf-8", "backslashreplace") if text else content)


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """As `write_whole`. Raises ValueError for a number that JSON has not."""
    write_whole(path, json.dumps(content, indent=indent, default=str, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The keys and values of a JSON file. Raises ValueError, naming it, for other content."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold keys and values, got {content!r:.60}")
    return content


def crc32_of(path: str | os.PathLike[str]) -> str:
    """The checksum of a file, by which it is known from another or an earlier one."""
    checksum = 0
    with open(path, "rb") as file:  # a checkpoint of VGG16 has a gigabyte
        while part := file.read(2**20):
            checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"


def sync_folder(path: Path) -> None:
    """Has the names of its files on the disk too."""
    with suppress(OSError):  # Windows
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def forget_unfinished(path: Path) -> None:
    """Takes away what was left of `path` where its writing was killed, an hour ago or more."""
    path = Path(os.path.realpath(path))
    for partial in path.parent.glob(".*.partial"):
        with suppress(OSError):  # another process was quicker
            old = time.time() - partial.stat().st_mtime > 3600  # nobody is writing it any more
            if old and partial.name.startswith(_begin(path)):
                partial.unlink()


def _begin(path: Path) -> str:
    # Readers of a folder pass over a dot. Cut, as the longest of names must have room.
    return f".{path.name[-50:]}."


def write_row(file: FileIO, row: dict[str, Any], name: str) -> None:
    """Add a line of JSON. Raises OSError that names the file."""
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    try:
        while line:
            line = line[file.write(line) :]
    except OSError as error:
        raise OSError(f"cannot write {name}: {error.strerror}") from error


def try_lock(descriptor: int) -> bool:
    """Locks an open file or folder until it is closed, at the latest with the process. False where
    another process, or somebody else in this one, holds it; where a file system has no locks,
    everybody gets one.
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
        if not try_lock(held):
            raise ValueError(
                f"another run is at work in {folder}; wait for its end, or give another folder"
            )
        yield
    finally:
        os.close(held)


@contextmanager
def one_at_a_time(path: Path, tell: Callable[[], None]) -> Iterator[None]:
    """Keeps others on this machine, who ask here too, from changing a file for the block. Where
    one is at it already, calls `tell` and waits for its end. Makes the folder.

    A file beside it is locked, and gone afterwards: `path` itself is replaced by a new one each
    time it is written. Where none can be made nobody can write `path` either, and nobody waits.
    """
    path = Path(os.path.realpath(path))
    lock = path.with_name(f"{_begin(path)}lock")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(lock, "ab")
        except OSError:
            break
        with file:
            if fcntl is not None and not try_lock(file.fileno()):
                tell()
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink == 0:
                continue  # whoever had it took it away, and the next would make another
            try:
                yield
            finally:
                with suppress(OSError):  # Windows keeps what is open
                    lock.unlink()
            return
    yield  # not where the error is handled: what goes wrong in the block has nothing to do with it


def check_idle(folder: Path) -> None:
    """ValueError where a run is at work in the folder. Makes nothing and keeps nobody out."""
    if folder.is_dir():
        with alone_in(folder):
            pass
