"""The mistakes one by one, each cut from its photo with what is around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.evaluation.mistakes import FalsePositive, MissedObject, Mistakes
from fastrcnn_engine.report.draw import (
    Mark,
    detection_mark,
    detection_name,
    draw_marks,
    truth_mark,
)
from fastrcnn_engine.report.gallery import Drawn

if TYPE_CHECKING:
    from fastrcnn_engine.data.records import ImageRecord

HIGHEST, OF_EACH_KIND = 24, 6  # false positives that are shown
LARGEST = 12  # missed objects that are shown
SIDE = 280  # the longer one of a picture, in pixels

Window = tuple[int, int, int, int]  # x1, y1 and, outside, x2, y2 in pixels of the image


@dataclass(frozen=True)
class Cut:
    """A piece of a photo, (h, w, 3) uint8, and what is told of it.

    name: class, and score of a detection. kind: one of KINDS, "" for a missed object. beside: the
    other box in the picture, "" if there is none.
    """

    picture: np.ndarray
    name: str
    kind: str
    beside: str
    image_id: str


def shown_wrong(wrong: Sequence[FalsePositive]) -> list[FalsePositive]:
    """The HIGHEST first of them, and of each kind the OF_EACH_KIND first, in their order."""
    seen: Counter[str] = Counter()
    shown = []
    for place, one in enumerate(wrong):
        seen[one.kind] += 1
        if place < HIGHEST or seen[one.kind] <= OF_EACH_KIND:
            shown.append(one)
    return shown


def cut_wrong(
    records: Sequence[ImageRecord], classes: Sequence[str], drawn: Drawn, mistakes: Mistakes
) -> list[Cut]:
    """The false positives of shown_wrong, by falling score, with the object beside each."""
    return _cuts(records, classes, drawn, shown_wrong(mistakes.wrong))


def cut_missed(
    records: Sequence[ImageRecord], classes: Sequence[str], drawn: Drawn, mistakes: Mistakes
) -> list[Cut]:
    """The LARGEST first of the missed objects, with the detection that overlaps each most."""
    return _cuts(records, classes, drawn, mistakes.lost[:LARGEST])


def _cuts(
    records: Sequence[ImageRecord],
    classes: Sequence[str],
    drawn: Drawn,
    mistakes: Sequence[FalsePositive | MissedObject],
) -> list[Cut]:
    by_id = {record.image_id: record for record in records}
    cuts = []
    for one in mistakes:
        record, found = by_id[one.image_id], drawn.detections[one.image_id]
        match = drawn.result.matches[one.image_id]
        marks, names = [], []
        if one.truth is not None:
            marks.append(truth_mark(record, match, one.truth))
            names.append(classes[int(record.labels[one.truth]) - 1])
        if one.row is not None:
            marks.append(detection_mark(found, match, one.row))
            names.append(detection_name(found, one.row, classes))
        kind = ""
        if isinstance(one, FalsePositive):
            kind = one.kind
            names.reverse()  # the detection is the mistake, the object stands beside it
        beside = _overlap(names[1], one.iou) if len(names) == 2 else ""
        cuts.append(Cut(_picture(record, marks), names[0], kind, beside, one.image_id))
    return cuts


def window_around(boxes: np.ndarray, height: int, width: int) -> Window:
    """The square that holds the boxes (n, 4), both ends inclusive, with half their extent around.

    At least 64 pixels wide. It is moved into an image of that height and width, and cut where it is
    larger than that.
    """
    x1, y1 = np.floor(boxes[:, :2].min(axis=0))
    x2, y2 = np.ceil(boxes[:, 2:].max(axis=0)) + 1
    side = round(max(1.5 * (x2 - x1), 1.5 * (y2 - y1), 64))
    left = min(max(round((x1 + x2 - side) / 2), 0), max(width - side, 0))
    top = min(max(round((y1 + y2 - side) / 2), 0), max(height - side, 0))
    return left, top, min(left + side, width), min(top + side, height)


def draw_cut(image: np.ndarray, window: Window, marks: Sequence[Mark], size: int) -> np.ndarray:
    """The window of an image, its longer side `size` pixels, with marks in pixels of the image."""
    left, top, right, bottom = window
    moved = [
        replace(mark, box=(x1 - left, y1 - top, x2 - left, y2 - top))
        for mark in marks
        for x1, y1, x2, y2 in [mark.box]
    ]
    scale = size / max(right - left, bottom - top)
    piece = np.ascontiguousarray(image[top:bottom, left:right])
    return draw_marks(piece, moved, width=max(round((right - left) * scale), 1))


def _picture(record: ImageRecord, marks: Sequence[Mark]) -> np.ndarray:
    image = load_image(record.image_path)
    window = window_around(np.array([mark.box for mark in marks]), *image.shape[:2])
    return draw_cut(image, window, marks, SIDE)


def _overlap(name: str, iou: float) -> str:
    return f"{name}, IoU " + (f"{iou:.2f}" if iou >= 0.005 else "below 0.01")
