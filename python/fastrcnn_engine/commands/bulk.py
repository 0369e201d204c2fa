"""Detection on very many images: a row for each, kept so that a stopped run goes on.

A row is {"image": path, "detections": [{"class", "score", "box"}, ...]}, box inclusive pixels
x1, y1, x2, y2, or {"image": path, "error": why} for a file that is missing, is no image, or has
proposals that cannot be used.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn_engine.commands.shards import WHOLE, shard_file, shard_files
from fastrcnn_engine.commands.stages import detection_rows
from fastrcnn_engine.data.cores import usable_cores
from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.progress import progress_bar
from fastrcnn_engine.evaluation.detect import detect_image
from fastrcnn_engine.files import read_json, try_lock, whole_file, write_json, write_row
from fastrcnn_engine.models import FastRCNN

Propose = Callable[[np.ndarray, Path], np.ndarray]  # an image and its file -> its proposals
Prepared = tuple[np.ndarray, np.ndarray]  # image and proposals
# A part of Parquet is written after so many images, or seconds: a kill costs no more than these.
PART_IMAGES = 4096
PART_SECONDS = 600


class JsonLines:
    """A file with a line of JSON for each row, on the disk at once. `known` are the images of it
    and of the job's other parts, and whether their rows tell an error.

    A last line that was cut off is taken away. Raises ValueError for a file of other content, or
    that another run is writing, before anything is written to it, and OSError when it cannot be
    written.
    """

    def __init__(self, whole: Path, shard: str = WHOLE):
        """whole: the file of the whole job; that of a part lies beside it."""
        self.path = path = shard_file(whole, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer: what cannot be written now is not tried again while the file is closed.
        self.file = open(path, "ab", buffering=0)
        try:
            if not try_lock(self.file.fileno()):
                raise ValueError(f"{path}: another run works on the same part; wait for its end")
            # Of all parts, of a job that was cut otherwise too, as with Parquet.
            self.known = {}
            for part in _files_of(whole):
                known, size = _whole_lines(part)
                self.known |= known
                if part == path:
                    self.file.truncate(size)
        except BaseException:
            self.file.close()
            raise

    def add(self, row: dict[str, Any]) -> None:
        write_row(self.file, row, str(self.path))

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


class ParquetParts:
    """A folder of Parquet files with some thousand rows each. `known` are the images in them, and
    whether their rows tell an error.

    A row is that of an image: `image` (string), `error` (string, or null) and `detections`, a list
    of structs of `class` (string), `score` (float) and `box` (list of four floats), null beside an
    error. A file is written whole or not at all; leaving the block writes what is left, after an
    error or Ctrl-C too. The parts of a job (`shard`) have files of their own in one folder.

    Raises ImportError without pyarrow, ValueError for a file of other content.
    """

    def __init__(self, path: Path, shard: str = WHOLE):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError("the format parquet needs pyarrow: pip install pyarrow") from error
        self.path, self.shard, self.arrow = path, shard, pyarrow
        box = pyarrow.list_(pyarrow.float32())
        found = [("class", pyarrow.string()), ("score", pyarrow.float32()), ("box", box)]
        self.schema = pyarrow.schema([
            ("image", pyarrow.string()), ("error", pyarrow.string()),
            ("detections", pyarrow.list_(pyarrow.struct(found))),
        ])  # fmt: skip
        path.mkdir(parents=True, exist_ok=True)
        own = sorted(path.glob(self._part("?????").name))
        # Of all parts, of a job that was cut otherwise too: the folder is one table.
        parts = path.glob("part-*.parquet")
        self.known = {image: failed for part in parts for image, failed in self._images(part)}
        self.next = int(own[-1].name[5:10]) + 1 if own else 0
        self._start()

    def _part(self, number: str) -> Path:
        return shard_file(self.path / f"part-{number}.parquet", self.shard)

    def _images(self, part: Path) -> list[tuple[str, bool]]:
        try:
            file = self.arrow.parquet.ParquetFile(part)
            if file.schema_arrow != self.schema:
                raise ValueError("columns of another kind")
            rows = file.read(["image", "error"])
            failed = rows["error"].is_valid()
            return list(zip(rows["image"].to_pylist(), failed.to_pylist(), strict=True))
        except (ValueError, OSError) as error:  # pyarrow's own are either
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's, of a part that may be good
            raise ValueError(
                f"{part}: not a part of detections ({error}); give another folder"
            ) from None

    def _start(self) -> None:
        self.rows: list[Any] = []  # a batch each: much smaller than Python's own objects
        self.started = time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(self.arrow.RecordBatch.from_pylist([row], self.schema))
        late = time.monotonic() - self.started > PART_SECONDS
        if late or len(self.rows) >= PART_IMAGES:
            self._write()

    def _write(self) -> None:
        part = self._part(f"{self.next:05}")
        table = self.arrow.Table.from_batches(self.rows).combine_chunks()
        with whole_file(part) as file:
            self.arrow.parquet.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())  # which takes long, so the look comes after it
            if part.exists():
                raise FileExistsError(f"{part} is there: another run works on the same part")
        self.next += 1
        self._start()

    def __enter__(self) -> ParquetParts:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.rows:
            self._write()


def check_made_by(path: Path, made_by: dict[str, Any]) -> None:
    """What is at `path` (the file or folder of the whole; its parts count) was made as `made_by`
    says, plain values. That is written down beside it before the first row.

    Raises ValueError when it was something else, naming what differs, or is not written down.
    """
    note = path.with_name(f"{path.name}.made-by.json")
    if path.is_dir():
        rows = any(path.glob("part-*.parquet"))
    else:
        rows = any(one.stat().st_size for one in _files_of(path))
    if not rows and not note.is_file():
        write_json(note, made_by)
        return
    if not note.is_file():
        raise ValueError(
            f"{path} has rows, and {note.name}, which says what made them, is not there; give "
            "another folder"
        )
    before = read_json(note)
    changed = [
        f"{name} was {before.get(name)!r}, is {made_by.get(name)!r}"
        for name in before | made_by
        if before.get(name) != made_by.get(name)
    ]
    if changed and not rows:  # yet: what is being searched or pooled has none
        raise ValueError(
            f"{path} is of a run with other settings ({note.name}): {'; '.join(changed)}; give "
            f"another folder, or delete {note} if nobody is at work there"
        )
    if changed:
        raise ValueError(
            f"{path} has rows that were made in another way ({note.name}): {'; '.join(changed)}; "
            "give another folder, or the same settings"
        )


@dataclass(frozen=True)
class BulkResult:
    """What a run did: the file or folder, and numbers of images."""

    path: Path
    done: int  # by this run
    before: int  # found there
    failed: int  # of both, those whose row tells an error
    seconds: float


def detect_many(
    model: FastRCNN,
    images: Sequence[Path],
    rows: JsonLines | ParquetParts,
    *,
    propose: Propose,
    detection: Mapping[str, Any],
) -> BulkResult:
    """Detects on each image and adds a row, in the order of the images.

    No image stops the run, but a fault of the GPU does; those that have a row already are passed
    over. Only some images are in memory at a time: a thread for each core decodes and searches,
    ahead of the network where that is on a GPU, else by turns with it, as torch's threads wait for
    each other by spinning and would share the cores with them badly.

    Args:
        propose: called by several threads.
        detection: keyword arguments of detect_image.

    Raises OSError when a row cannot be written; what was written stays.
    """
    images = list(dict.fromkeys(images))
    left = [image for image in images if _text(image) not in rows.known]

    def prepare(image: Path) -> Prepared:
        pixels = load_image(image)
        return pixels, propose(pixels, image)

    failed = sum(rows.known.get(_text(image), False) for image in images)
    with progress_bar(True) as bar:
        task = bar.add_task("detection", total=len(images), completed=len(images) - len(left))
        by_turns = next(model.parameters()).device.type == "cpu"
        for image, prepared in _ahead(prepare, left, usable_cores(), by_turns=by_turns):
            row: dict[str, Any] = {"image": _text(image)}
            try:
                found = detect_image(model, *prepared.result(), **detection)
                row["detections"] = detection_rows(found, model.classes)
            except (OSError, ValueError, RuntimeError) as error:
                # torch's, of an image that does not fit the network. On a GPU it may be the GPU's.
                if isinstance(error, RuntimeError) and not by_turns:
                    raise
                row["error"] = _text(error)
                failed += 1
            rows.add(row)
            bar.advance(task)
        seconds = bar.tasks[task].elapsed or 0.0
    return BulkResult(rows.path, len(left), len(images) - len(left), failed, seconds)


def _ahead(
    prepare: Callable[[Path], Prepared], images: Sequence[Path], workers: int, *, by_turns: bool
) -> Iterator[tuple[Path, Future[Prepared]]]:
    """Each image with what is made of it, in order, never more than some made and not taken.

    by_turns: nothing is being made while one is out.
    """
    coming = iter(images)
    pool = ThreadPoolExecutor(workers)

    def begun(count: int) -> list[tuple[Path, Future[Prepared]]]:
        return [(image, pool.submit(prepare, image)) for image in islice(coming, count)]

    try:
        queue = deque(begun(8 * workers))
        while queue:
            if by_turns:
                wait([future for _, future in queue])
            yield queue.popleft()
            if not by_turns or not queue:
                queue.extend(begun(8 * workers if by_turns else 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _text(value: object) -> str:
    """As text that any file takes: of a file name that is not UTF-8 the bytes are spelt out."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _files_of(whole: Path) -> list[Path]:
    """The files of JSON lines that are there, of the whole job and of parts."""
    return [one for one in (whole, *shard_files(whole)) if one.is_file()]


def _whole_lines(path: Path) -> tuple[dict[str, bool], int]:
    """The images that have a line, and whether it tells an error; and where the last whole line
    ends.

    Raises ValueError for a file of other content.
    """
    known: dict[str, bool] = {}
    size = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                known[row["image"]] = "error" in row
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ValueError(
                    f"{path}, line {number}: not a line of detections; give another folder"
                ) from None
            size += len(line)
    return known, size
