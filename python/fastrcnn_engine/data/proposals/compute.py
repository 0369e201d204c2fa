"""Proposals of many images, on all cores, into a file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rich import get_console

from fastrcnn_engine.data.cores import usable_cores
from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.progress import progress_bar
from fastrcnn_engine.data.proposals.opencv import one_thread_each
from fastrcnn_engine.data.proposals.search import Search, same_boxes
from fastrcnn_engine.data.proposals.store import ProposalStore, fingerprint, write_proposals
from fastrcnn_engine.data.records import collecting
from fastrcnn_engine.files import forget_unfinished, one_at_a_time

SAVE_SECONDS = 120  # a killed run loses at most this much work
UNREADABLE = "unreadable"  # in place of a checksum, so that the image is read again next time


def compute_proposals(
    items: Iterable[tuple[str, str | os.PathLike[str]]],
    out_path: str | os.PathLike[str],
    search: Search | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
    title: str = "proposals",
    parts: Sequence[Path] = (),
    errors: list[str] | None = None,
) -> ProposalStore:
    """Makes the proposals of (image id, image path) pairs, `workers` at once (None: all cores).

    search: how; None is `Search()`. title: what the live line says it is.

    Images that are in the file already are kept and not searched again, so an interrupted run goes
    on where it stopped: on Ctrl-C and on errors what is done is written first. An image whose file
    has changed since (by its checksum) is searched again. The file does not depend on `workers`.
    What is in `parts`, files made with the same settings, goes into the file as if found here.
    With a list of `errors` an image that cannot be read is told there, by every run, and has no
    boxes until it can be read. Of two searches into one file the second waits for the first.

    Threads, not processes: OpenCV lets go of Python's lock while it searches, so they fill the
    cores, and they work from any script and beside any thread pool of torch.

    Raises ValueError when a file was made with other settings or an id comes twice, and what
    `load_image` and `Search.boxes` raise.
    """
    search = search or Search()
    paths: dict[str, str | os.PathLike[str]] = {}
    for image_id, path in items:
        if image_id in paths:
            raise ValueError(f"image {image_id!r} comes twice among the images to search")
        paths[image_id] = path
    settings = search.to_dict()
    out_path = Path(out_path)

    def tell() -> None:
        if progress:
            line = f"waiting for another search, which writes {out_path}"
            get_console().print(line, markup=False, highlight=False, soft_wrap=True)

    with one_at_a_time(out_path, tell):
        forget_unfinished(out_path)
        fingerprints: dict[str, str] = {}
        for image_id, path in paths.items():
            with collecting(errors):
                fingerprints[image_id] = fingerprint(path)
        kept = _found_before((out_path,), settings, fingerprints)
        written = len(kept)
        kept |= _found_before(parts, settings, fingerprints)
        missing = [image_id for image_id in paths if image_id not in kept]
        if not missing and len(kept) == written and out_path.exists():
            return ProposalStore(out_path)

        def save() -> None:
            found = {i: f.result() for i, f in futures.items() if _succeeded(f)}
            if found or len(kept) > written or not out_path.exists():
                found = kept | found
                ids = [i for i in kept if i not in paths] + [i for i in paths if i in found]
                items = ((i, found[i]) for i in ids)
                write_proposals(out_path, items, settings=settings, fingerprints=fingerprints)

        def search_one(image_id: str) -> np.ndarray:
            image = None
            with collecting(errors):
                image = load_image(paths[image_id])
            if image is None:
                fingerprints[image_id] = UNREADABLE
                return np.zeros((0, 4), np.float32)
            return search.boxes(image, image_id)

        # One search, one core: the pool is the only one. A grid is not searched for.
        alone = nullcontext() if search.method == "grid" else one_thread_each()
        pool = ThreadPoolExecutor(workers or usable_cores())
        futures: dict[str, Future[np.ndarray]] = {}
        saved = time.monotonic()
        with alone:
            try:
                for image_id in missing:  # inside: the first can be done before the last is queued
                    futures[image_id] = pool.submit(search_one, image_id)
                with progress_bar(progress) as bar:
                    done = len(kept.keys() & paths)
                    task = bar.add_task(title, total=len(paths), completed=done)
                    for future in as_completed(futures.values()):
                        future.result()
                        bar.advance(task)
                        if time.monotonic() - saved > SAVE_SECONDS:
                            save()
                            saved = time.monotonic()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                save()
        return ProposalStore(out_path)


def _found_before(
    files: Iterable[Path], settings: Mapping[str, Any], fingerprints: dict[str, str]
) -> dict[str, np.ndarray]:
    """The boxes that files have of images as they are now. fingerprints: theirs are added to it."""
    kept: dict[str, np.ndarray] = {}
    for path in files:
        if not path.exists():
            continue
        old = ProposalStore(path)
        if not same_boxes(old.settings, settings):
            raise ValueError(
                f"{path}: holds proposals made with {old.settings}, asked for are "
                f"{settings}; give another file or remove this one"
            )
        for image_id, known in old.fingerprints.items():
            if fingerprints.setdefault(image_id, known) == known:
                kept[image_id] = old[image_id]
    return kept


def _succeeded(future: Future[np.ndarray]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
