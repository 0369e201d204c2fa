"""Picks the test images worth looking at and draws the verdicts on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.evaluation.voc import (
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    ImageMatch,
    VOCResult,
    evaluate_voc,
)
from fastrcnn_engine.ops import Detections
from fastrcnn_engine.report.draw import Mark, class_colour, draw_marks, verdict_marks

if TYPE_CHECKING:
    from fastrcnn_engine.data.records import Dataset, ImageRecord

# How many pictures there are, and their width in pixels.
GALLERY, GALLERY_WIDTH = 6, 640
SAMPLES, SAMPLE_WIDTH = 9, 420


@dataclass(frozen=True)
class Drawn:
    """The detections that are drawn, those of at least `score`, and what is right of them.

    detections: image id -> Detections in their old order.
    """

    score: float
    detections: Mapping[str, Detections]
    result: VOCResult


@dataclass(frozen=True)
class Shown:
    """One picture of the gallery: (h, w, 3) uint8 with its verdicts drawn, and their counts."""

    image_id: str
    picture: np.ndarray
    right: int
    wrong: int
    missed: int


@dataclass(frozen=True)
class Gallery:
    """The best and the worst images."""

    best: tuple[Shown, ...]
    worst: tuple[Shown, ...]


def drawn_at(
    records: Sequence[ImageRecord],
    classes: Sequence[str],
    detections: Mapping[str, Detections],
    *,
    score: float = 0.5,
    iou_threshold: float = 0.5,
) -> Drawn:
    """The detections with at least that score, evaluated for themselves. Raises as evaluate_voc."""
    kept = {}
    for image_id, found in detections.items():
        keep = np.asarray(found.scores) >= score
        kept[image_id] = Detections(*(np.asarray(values)[keep] for values in found))
    return Drawn(score, kept, evaluate_voc(records, classes, kept, iou_threshold=iou_threshold))


def make_gallery(
    records: Sequence[ImageRecord], classes: Sequence[str], drawn: Drawn
) -> Gallery:
    """Draws the GALLERY best and GALLERY worst images with their detections.

    Images are ranked by F1 = 2 right / (2 right + wrong + missed), ties by more objects found and
    then by their order; an image without objects and detections has F1 1. No image is shown twice:
    a small set is split in halves.
    """

    def rank(record: ImageRecord) -> tuple[float, int]:
        right, wrong, missed = verdict_counts(record, drawn.result.matches[record.image_id])
        total = 2 * right + wrong + missed
        return (2 * right / total if total else 1.0, right)

    ranked = sorted(records, key=rank, reverse=True)
    best = min(GALLERY, (len(ranked) + 1) // 2)
    worst = min(GALLERY, len(ranked) - best)

    def show(record: ImageRecord) -> Shown:
        match = drawn.result.matches[record.image_id]
        marks = verdict_marks(record, drawn.detections[record.image_id], match, classes)
        picture = draw_marks(load_image(record.image_path), marks, width=GALLERY_WIDTH)
        return Shown(record.image_id, picture, *verdict_counts(record, match))

    return Gallery(
        best=tuple(show(record) for record in ranked[:best]),
        worst=tuple(show(record) for record in ranked[::-1][:worst]),
    )


def verdict_counts(record: ImageRecord, match: ImageMatch) -> tuple[int, int, int]:
    """(right, wrong, missed) of one image; difficult objects count in none of them."""
    right = int((match.status == TRUE_POSITIVE).sum())
    wrong = int((match.status == FALSE_POSITIVE).sum())
    return right, wrong, int((~match.found & ~record.difficult).sum())


def sample_pictures(dataset: Dataset) -> list[np.ndarray]:
    """SAMPLES images from all over a data set with their objects drawn in, dashed where difficult.

    Images with objects come first, those that cannot be decoded are left out. (h, w, 3) uint8 each.
    """
    pictures: list[np.ndarray] = []
    step = max(len(dataset.records) // SAMPLES, 1)
    spread = {record.image_id: record for record in [*dataset.records[::step], *dataset.records]}
    for record in sorted(spread.values(), key=lambda record: not len(record.boxes)):
        if len(pictures) == SAMPLES:
            break
        marks = [
            Mark(tuple(box), class_colour(label), dataset.classes[label - 1], bool(difficult))
            for box, label, difficult in zip(
                record.boxes.tolist(), record.labels.tolist(), record.difficult, strict=True
            )
        ]
        try:
            pictures.append(draw_marks(load_image(record.image_path), marks, width=SAMPLE_WIDTH))
        except (OSError, ValueError):
            continue
    return pictures
