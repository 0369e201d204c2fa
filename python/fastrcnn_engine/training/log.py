"""The log of a training run: one line of JSON every so many iterations."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastrcnn_engine.files import whole_file, write_row


def summary_writer() -> type:
    """torch's SummaryWriter. Raises ImportError that says what to install."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"tensorboard: the package is missing or incomplete ({error}): pip install tensorboard"
        ) from error
    return SummaryWriter


class TrainLog:
    """``log.jsonl``: emptied by a new run; one that goes on drops the lines after its checkpoint.

    Whatever a kill leaves behind, the next start makes a whole log of it. For TensorBoard the
    numbers of all its lines are written anew at each start, so that it never shows others.
    """

    def __init__(self, path: Path, start: int, *, tensorboard: bool = False):
        self.path = path
        lines = _lines_until(path, start)
        with whole_file(path, replace_link=True) as file:
            file.writelines(lines)
        self.events = None
        if tensorboard:
            folder = path.with_name("tensorboard")
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            self.events = summary_writer()(folder)
            for line in lines:
                _show(self.events, json.loads(line))
        # Without a buffer: what cannot be written now is not tried again while the file is closed.
        self.file = open(path, "ab", buffering=0)

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()
        if self.events is not None:
            self.events.close()

    def write(self, entry: dict[str, Any]) -> None:
        """Add a line. Raises OSError that names the file, on a full disk for example."""
        write_row(self.file, entry, f"the log {self.path}")
        if self.events is not None:
            _show(self.events, entry)
            self.events.flush()  # to be looked at now, not in two minutes

    def sync(self) -> None:
        """Have everything on the disk: a checkpoint must not know more than the log."""
        os.fsync(self.file.fileno())


def _show(events: Any, entry: dict[str, Any]) -> None:
    """Add the numbers of a line to what TensorBoard shows."""
    for name, value in entry.items():
        if isinstance(value, float):
            events.add_scalar(name, value, entry["iteration"])


def _lines_until(path: Path, iteration: int) -> list[bytes]:
    """The lines of a log up to an iteration, and no further than the first that is none."""
    kept = []
    if iteration and path.is_file():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                if not line.endswith(b"\n") or json.loads(line)["iteration"] > iteration:
                    break
            except (ValueError, KeyError, TypeError, RecursionError):
                break
            kept.append(line)
    return kept


class Meter:
    """Means since the last line of the log. What it has seen goes into checkpoints too."""

    KEPT = ("cls", "box", "batches", "images", "rois", "foreground")

    def __init__(self):
        self.loss = math.nan  # of the last batch
        self.bad_images: list[str] = []  # all that were met: "id: why"
        self._clear()

    def _clear(self) -> None:
        self.cls = self.box = 0.0
        self.batches = self.images = self.rois = self.foreground = 0
        self.new_bad_images = 0
        self.start_clock()

    def start_clock(self) -> None:
        self.started = time.perf_counter()
        self.images_before = self.images

    def add(
        self, loss_cls: float, loss_box: float, *, images: int, rois: int, foreground: int
    ) -> None:
        self.loss = loss_cls + loss_box
        self.cls += loss_cls
        self.box += loss_box
        self.batches += 1
        self.images += images
        self.rois += rois
        self.foreground += foreground

    def add_bad_images(self, found: Iterable[str]) -> None:
        """Images that could not be read; each counts once."""
        for image in found:
            if image not in self.bad_images:
                self.bad_images.append(image)
                self.new_bad_images += 1

    def read(self) -> dict[str, Any]:
        """The means, and the ids of unreadable images that are new, if there are any."""
        seconds = time.perf_counter() - self.started
        means: dict[str, Any] = {
            "loss": (self.cls + self.box) / self.batches,
            "loss_cls": self.cls / self.batches,
            "loss_box": self.box / self.batches,
            "images_per_second": (self.images - self.images_before) / seconds,
            "foreground": self.foreground / self.batches,
            "rois": self.rois / self.batches,
        }
        if self.new_bad_images:
            means["bad_images"] = [
                image.partition(": ")[0] for image in self.bad_images[-self.new_bad_images :]
            ]
        self._clear()
        return means

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint: the next line is that of a run never interrupted."""
        kept = {name: getattr(self, name) for name in self.KEPT}
        return kept | {
            "bad_images": list(self.bad_images), "new_bad_images": self.new_bad_images,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.start_clock()
