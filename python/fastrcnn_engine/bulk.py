"""Detection on very many images: a line for each, at once, so that a stopped run goes on."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.progress import progress_bar
from fastrcnn_engine.data.proposals import Search
from fastrcnn_engine.evaluation.detect import detect_image
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.pipeline import detection_rows

Prepared = tuple[np.ndarray, np.ndarray]  # image and proposals


@dataclass(frozen=True)
class BulkResult:
    """What a run did: the file, and numbers of images."""

    path: Path
    done: int  # by this run
    before: int  # found in the file
    unreadable: int  # of `done`, those whose line tells an error
    seconds: float


def shard_of(images: Sequence[Path], shard: str) -> list[Path]:
    """Every N-th image from the I-th on, for a shard "I/N", I from 1 to N.

    Raises ValueError for another text.
    """
    first, slash, count = shard.partition("/")
    good = bool(slash) and first.isdecimal() and count.isdecimal()
    if not good or not 1 <= int(first) <= int(count):
        raise ValueError(f"shard is {shard!r}; it must be I/N with I from 1 to N, such as 1/4")
    return list(images[int(first) - 1 :: int(count)])


def detect_many(
    model: FastRCNN,
    images: Sequence[Path],
    path: Path,
    *,
    search: Search,
    detection: Mapping[str, Any],
    workers: int | None = None,
    progress: bool = True,
) -> BulkResult:
    """Detects on each image and adds a line of JSON to `path`, in the order of the images.

    A line is {"image": path, "detections": [{"class", "score", "box"}, ...]}, box inclusive pixels
    x1, y1, x2, y2, or {"image": path, "error": why} for a file that is missing or no image: nothing
    stops the run. Images that have a line already are passed over, a last line that was cut off is
    made anew. Only some images are in memory at a time: `workers` threads (None: all cores) decode
    and search, ahead of the network where that is on a GPU, else by turns with it, as torch's
    threads wait for each other by spinning and would share the cores with them badly.

    Args:
        search: how proposals are made; an image goes by its name without folder and suffix there.
        detection: keyword arguments of detect_image.

    Raises OSError when the file cannot be written; what it holds then stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _whole_lines(path)
    images = list(dict.fromkeys(images))
    left = [image for image in images if str(image) not in known]

    def prepare(image: Path) -> Prepared:
        pixels = load_image(image)
        return pixels, search.boxes(pixels, image.stem)

    unreadable = 0
    with progress_bar(progress) as bar, open(path, "a", encoding="utf-8") as file:
        task = bar.add_task("detection", total=len(images), completed=len(images) - len(left))
        by_turns = next(model.parameters()).device.type == "cpu"
        for image, prepared in _ahead(
            prepare, left, workers or os.cpu_count() or 1, by_turns=by_turns
        ):
            line: dict[str, Any] = {"image": str(image)}
            try:
                pixels, proposals = prepared.result()
            except (OSError, ValueError) as error:
                line["error"] = str(error)
                unreadable += 1
            else:
                found = detect_image(model, pixels, proposals, **detection)
                line["detections"] = detection_rows(found, model.classes)
            file.write(json.dumps(line) + "\n")
            file.flush()
            bar.advance(task)
        seconds = bar.tasks[task].elapsed or 0.0
    return BulkResult(path, len(left), len(images) - len(left), unreadable, seconds)


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


def _whole_lines(path: Path) -> set[str]:
    """The images that have a line; what follows the last whole line is cut off.

    Raises ValueError for a file of other content, before anything is written to it.
    """
    known: set[str] = set()
    if not path.is_file():
        return known
    size = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                known.add(json.loads(line)["image"])
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{path}, line {number}: not a line of detections; give another folder"
                ) from None
            size += len(line)
    with open(path, "r+b") as file:
        file.truncate(size)
    return known
