"""What kinds of mistakes a detector makes (Hoiem et al., Diagnosing Error in Object Detectors, ECCV
2012, section 3.1), and which classes it takes for which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrcnn_engine.evaluation.voc import FALSE_POSITIVE, VOCResult
from fastrcnn_engine.ops import box_iou

if TYPE_CHECKING:
    from fastrcnn_engine.data.records import ImageRecord

# Of a false positive, the first that holds: its class is found already where it lies; an object of
# its class overlaps it by less than a match needs; one of another class overlaps it; neither.
# Hoiem et al. count the first two as one and split the third by how alike the classes are.
KINDS = ("duplicate", "localisation", "other class", "background")
SOME_OVERLAP = 0.1  # IoU from which a mistake has to do with an object


@dataclass(frozen=True)
class FalsePositive:
    """One wrong detection, row `row` of those of its image.

    kind: one of KINDS. truth: the object that the kind is about, of the background the one that
    overlaps most; None where none overlaps. iou: how much it does.
    """

    image_id: str
    row: int
    score: float
    kind: str
    truth: int | None
    iou: float


@dataclass(frozen=True)
class MissedObject:
    """Object `truth` of an image, which has no true positive.

    row: the detection of any class that overlaps it most; None where none does. iou: how much.
    """

    image_id: str
    truth: int
    row: int | None
    iou: float


@dataclass(frozen=True)
class Mistakes:
    """The mistakes in a set of images. K classes.

    Attributes:
        wrong: the false positives by falling score.
        lost: the missed objects, largest first. Ties are in the order of the images.
        kinds: (K, 4) false positives by class and KINDS.
        missed: (K,) objects without a true positive.
        confusion: (K + 1, K + 1), row: what it is, the last row nothing; column: what it was
            called, the last column nothing (missed). An object goes to the strongest detection of
            any class that overlaps it enough; further ones stand in the last row. Difficult
            objects, and what is matched to them, are left out.
    """

    classes: tuple[str, ...]
    wrong: tuple[FalsePositive, ...]
    lost: tuple[MissedObject, ...]
    kinds: np.ndarray
    missed: np.ndarray
    confusion: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain values for JSON."""
        return {
            "false_positives": {
                name: dict(zip(KINDS, row, strict=True))
                for name, row in zip(self.classes, self.kinds.tolist(), strict=True)
            },
            "missed": dict(zip(self.classes, self.missed.tolist(), strict=True)),
            "confusion": self.confusion.tolist(),
        }


def find_mistakes(
    records: Sequence[ImageRecord],
    classes: Sequence[str],
    detections: Mapping[str, Any],
    result: VOCResult,
) -> Mistakes:
    """The mistakes of detections, as evaluate_voc takes them; `result` is what it said of them."""
    count = len(classes)
    wrong: list[FalsePositive] = []
    lost: list[tuple[float, MissedObject]] = []
    kinds = np.zeros((count, len(KINDS)), np.int64)
    missed = np.zeros(count, np.int64)
    confusion = np.zeros((count + 1, count + 1), np.int64)
    threshold = np.float32(result.iou_threshold)
    for record in records:
        found = detections[record.image_id]
        boxes = np.asarray(found.boxes, np.float32).reshape(-1, 4)
        labels = np.asarray(found.labels, np.int64)
        scores = np.asarray(found.scores, np.float64)  # of any type, as evaluate_voc takes them
        match = result.matches[record.image_id]
        iou = np.asarray(box_iou(boxes, record.boxes, inclusive=True))
        same = labels[:, None] == record.labels[None, :]
        own = np.where(same, iou, 0)
        nearest = np.max(own, axis=1, initial=0)
        other = np.max(np.where(same, 0, iou), axis=1, initial=0)
        some = np.float32(SOME_OVERLAP)
        kind = np.select([nearest >= threshold, nearest >= some, other >= some], [0, 1, 2], 3)
        for row in np.flatnonzero(match.status == FALSE_POSITIVE).tolist():
            kinds[labels[row] - 1, kind[row]] += 1
            truth, overlap = _most(own[row] if kind[row] < 2 else iou[row])
            wrong.append(
                FalsePositive(
                    record.image_id, row, float(scores[row]), KINDS[kind[row]], truth, overlap
                )
            )
        for truth in np.flatnonzero(~match.found & ~record.difficult).tolist():
            missed[record.labels[truth] - 1] += 1
            x1, y1, x2, y2 = record.boxes[truth].tolist()
            area = (x2 - x1 + 1) * (y2 - y1 + 1)
            lost.append((area, MissedObject(record.image_id, truth, *_most(iou[:, truth]))))
        _confuse(confusion, record, iou, scores, labels, threshold)
    return Mistakes(
        classes=tuple(classes),
        wrong=tuple(sorted(wrong, key=lambda one: -one.score)),
        lost=tuple(one for _, one in sorted(lost, key=lambda pair: -pair[0])),
        kinds=kinds,
        missed=missed,
        confusion=confusion,
    )


def _most(overlaps: np.ndarray) -> tuple[int | None, float]:
    """The first of the largest overlaps and how large it is; None where nothing overlaps."""
    best = int(np.argmax(overlaps)) if len(overlaps) else None
    if best is None or overlaps[best] <= 0:
        return None, 0.0
    return best, float(overlaps[best])


def _confuse(
    confusion: np.ndarray,
    record: ImageRecord,
    iou: np.ndarray,  # (M, G)
    scores: np.ndarray,
    labels: np.ndarray,
    threshold: np.float32,
) -> None:
    nothing = len(confusion) - 1
    free = np.ones(len(record.labels), bool)
    for row in np.argsort(-scores, kind="stable"):
        best = int(np.argmax(np.where(free, iou[row], -1))) if free.any() else -1
        truth = nothing
        if best >= 0 and iou[row, best] >= threshold:
            if record.difficult[best]:
                continue
            free[best] = False
            truth = record.labels[best] - 1
        confusion[truth, labels[row] - 1] += 1
    for label in record.labels[free & ~record.difficult]:
        confusion[label - 1, nothing] += 1
