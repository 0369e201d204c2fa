"""Parts of a long job for several machines: which items are in one, and what its file is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

WHOLE = "1/1"


def shard_of(items: Sequence[Item], shard: str) -> list[Item]:
    """Every N-th item from the I-th on, for a shard "I/N", I from 1 to N.

    Raises ValueError for another text.
    """
    number, count = _numbers(shard)
    return list(items[number - 1 :: count])


def shard_file(path: Path, shard: str) -> Path:
    """The file of a part beside that of the whole: boxes.npz of shard 3/12 is boxes.03-of-12.npz.

    Raises ValueError as shard_of.
    """
    number, count = _numbers(shard)
    if count == 1:
        return path
    return path.with_name(f"{path.stem}.{number:0{len(str(count))}}-of-{count}{path.suffix}")


def shard_files(path: Path) -> list[Path]:
    """The files of parts that are there beside that of the whole, by name."""
    part = re.compile(rf"{re.escape(path.stem)}\.\d+-of-\d+{re.escape(path.suffix)}")
    if not path.parent.is_dir():
        return []
    return sorted(one for one in path.parent.iterdir() if part.fullmatch(one.name))


def _numbers(shard: str) -> tuple[int, int]:
    first, slash, count = shard.partition("/")
    good = bool(slash) and first.isdecimal() and count.isdecimal()
    if not good or not 1 <= int(first) <= int(count):
        raise ValueError(f"shard is {shard!r}; it must be I/N with I from 1 to N, such as 1/4")
    return int(first), int(count)
