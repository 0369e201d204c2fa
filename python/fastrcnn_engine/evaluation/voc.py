"""PASCAL VOC average precision: 11 points (VOC07) and area (VOC10 and later).

The rules follow the development kit: areas and IoU count both end pixels (+1); a detection is
compared with all ground truths of its class in its image and belongs to the best one (the first on
ties), taken or not, where IoU >= threshold; one ground truth is found once; difficult objects are
ignored and never used up. Scores keep full precision: the original wrote three decimals into its
result files and so made ties of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastrcnn_engine.data.records import Dataset, ImageRecord, check_labels
from fastrcnn_engine.files import write_whole
from fastrcnn_engine.ops import Detections, box_iou

VOCMetric = Literal["area", "11point"]
METRICS: tuple[VOCMetric, ...] = ("area", "11point")

# What became of a detection.
TRUE_POSITIVE = 1
FALSE_POSITIVE = 0
IGNORED = -1


@dataclass(frozen=True)
class ImageMatch:
    """The verdicts on one image.

    Attributes:
        status: (M,) int8 in the order of the detections: TRUE_POSITIVE, FALSE_POSITIVE or IGNORED
            (matched to a difficult object).
        found: (G,) bool, the ground truths that have a true positive; always False for difficult
            ones.
    """

    status: np.ndarray
    found: np.ndarray


@dataclass(frozen=True)
class ClassResult:
    """Counts and curve of one class.

    npos counts the ground truths that are not difficult; ndet = tp + fp + ignored. scores, recall
    and precision are the curve, one entry for each counted detection (tp + fp) by falling score.
    The APs are None where npos is 0.
    """

    name: str
    npos: int
    ndet: int
    tp: int
    fp: int
    ignored: int
    ap_area: float | None
    ap_11point: float | None
    scores: np.ndarray
    recall: np.ndarray
    precision: np.ndarray

    def ap(self, metric: VOCMetric) -> float | None:
        return self.ap_area if metric == "area" else self.ap_11point


@dataclass(frozen=True)
class VOCResult:
    """One ClassResult per class, in the order of `classes`, and the verdicts per image id."""

    metric: VOCMetric
    iou_threshold: float
    images: int
    per_class: tuple[ClassResult, ...]
    matches: dict[str, ImageMatch]

    @property
    def mean_ap(self) -> float | None:
        """Mean AP under `metric` over the classes with ground truth; None without any."""
        return self.mean_ap_of(self.metric)

    def mean_ap_of(self, metric: VOCMetric) -> float | None:
        """Mean AP under one of METRICS over the classes with ground truth; None without any."""
        values = [c.ap(metric) for c in self.per_class]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a JSON file, without curves. A class without ground truth: AP null."""
        return {
            "mAP": self.mean_ap,
            "metric": self.metric,
            "iou_threshold": self.iou_threshold,
            "images": self.images,
            "mAP_area": self.mean_ap_of("area"),
            "mAP_11point": self.mean_ap_of("11point"),
            "classes": {
                c.name: {
                    "AP": c.ap(self.metric),
                    "AP_area": c.ap_area,
                    "AP_11point": c.ap_11point,
                    "ground_truths": c.npos,
                    "detections": c.ndet,
                    "true_positives": c.tp,
                    "false_positives": c.fp,
                    "ignored": c.ignored,
                }
                for c in self.per_class
            },
        }


def evaluate_voc(
    records: Sequence[ImageRecord],
    classes: Sequence[str],
    detections: Mapping[str, Any],
    *,
    iou_threshold: float = 0.5,
    metric: VOCMetric = "area",
) -> VOCResult:
    """Average precision per class over a set of images.

    Args:
        records: the images with their ground truth (boxes (G, 4), labels 1..K, difficult).
        classes: K names without the background; label k is classes[k - 1].
        detections: image id -> an object with boxes (M, 4) in image pixels, both ends inclusive,
            scores (M,) and labels (M,) 1..K. Every image needs an entry; an image without
            detections has an empty one.
        iou_threshold: a match needs IoU >= this value (0.5 in VOC).
        metric: the headline AP, "area" (VOC10 and later) or "11point" (VOC07). Both are computed.

    Detections are ranked by falling score; on equal scores by the order of the images, then of the
    detections.

    Raises ValueError for an image id unknown to records or without an entry, wrong shapes, labels
    out of range, NaN scores, NaN or infinite coordinates, and an unknown metric or threshold.
    Source: VOCdevkit2007 VOCevaldet.m (11 points), VOCdevkit2010 (area).
    """
    check_settings(metric, iou_threshold)
    _check_image_ids(records, detections)

    matches: dict[str, ImageMatch] = {}
    all_scores, all_labels, all_status = [], [], []
    npos = np.zeros(len(classes) + 1, np.int64)
    for record in records:
        boxes, scores, labels = _checked(record.image_id, detections[record.image_id], len(classes))
        truth = _truth(record, len(classes))
        match = _match(boxes, scores, labels, *truth, iou_threshold)
        matches[record.image_id] = match
        npos += np.bincount(truth[1][~truth[2]], minlength=len(classes) + 1)
        all_scores.append(scores)
        all_labels.append(labels)
        all_status.append(match.status)

    scores = np.concatenate(all_scores) if all_scores else np.zeros(0)
    labels = np.concatenate(all_labels) if all_labels else np.zeros(0, np.int64)
    status = np.concatenate(all_status) if all_status else np.zeros(0, np.int8)
    per_class = tuple(
        _class_result(name, int(npos[label]), scores[labels == label], status[labels == label])
        for label, name in enumerate(classes, start=1)
    )
    return VOCResult(metric, float(iou_threshold), len(records), per_class, matches)


def check_settings(metric: str, iou_threshold: float) -> None:
    """Raises ValueError for a metric or a threshold that evaluate_voc does not take."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, got {metric!r}")
    if not 0.0 < iou_threshold <= 1.0:
        raise ValueError(f"iou_threshold must lie in (0, 1], got {iou_threshold}")


def average_precision(tp: np.ndarray, fp: np.ndarray, npos: int, metric: VOCMetric) -> float | None:
    """AP of one class from running counts.

    tp, fp: (D,) true and false positives among the first 1..D detections by falling score.
    npos: number of ground truths; 0 gives None.

    "11point": mean over recall t = 0, 0.1 .. 1 of the largest precision at recall >= t, compared in
    whole numbers (10 * tp >= k * npos): np.arange lies above 0.3, 0.6 and 0.7 and loses a point.
    "area": area under the precision envelope that falls with recall.
    """
    if npos == 0:
        return None
    if len(tp) == 0:
        return 0.0
    precision = tp / (tp + fp)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if metric == "11point":
        # At the first rank that reaches a recall, the envelope is the largest precision from there.
        reached = [np.flatnonzero(10 * tp >= tenth * npos) for tenth in range(11)]
        best = [float(envelope[ranks[0]]) if len(ranks) else 0.0 for ranks in reached]
        return float(np.mean(best))
    steps = np.diff(tp, prepend=0)
    return float(np.sum(steps * envelope) / npos)


def _class_result(name: str, npos: int, scores: np.ndarray, status: np.ndarray) -> ClassResult:
    order = np.argsort(-scores, kind="stable")
    order = order[status[order] != IGNORED]
    hit = status[order] == TRUE_POSITIVE
    tp, fp = np.cumsum(hit), np.cumsum(~hit)
    return ClassResult(
        name=name,
        npos=npos,
        ndet=len(status),
        tp=int(hit.sum()),
        fp=int((~hit).sum()),
        ignored=int((status == IGNORED).sum()),
        ap_area=average_precision(tp, fp, npos, "area"),
        ap_11point=average_precision(tp, fp, npos, "11point"),
        scores=scores[order],
        recall=tp / npos if npos else np.zeros(len(tp)),
        precision=tp / (tp + fp),
    )


def _match(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    truth_boxes: np.ndarray,
    truth_labels: np.ndarray,
    truth_difficult: np.ndarray,
    iou_threshold: float,
) -> ImageMatch:
    # A stable sort of one image is the global ranking restricted to it: images go one by one.
    status = np.full(len(scores), FALSE_POSITIVE, np.int8)
    found = np.zeros(len(truth_labels), bool)
    if len(scores) == 0 or len(truth_labels) == 0:
        return ImageMatch(status, found)
    # IoU is float32, so the threshold is too: an IoU of exactly 7/10 must pass a threshold of 0.7.
    threshold = np.float32(iou_threshold)
    iou = np.asarray(box_iou(boxes, truth_boxes, inclusive=True))
    iou = np.where(labels[:, None] == truth_labels[None, :], iou, np.float32(-1.0))
    best = iou.argmax(axis=1)
    best_iou = iou[np.arange(len(best)), best]
    for row in np.argsort(-scores, kind="stable"):
        truth = best[row]
        if best_iou[row] < threshold:
            continue
        if truth_difficult[truth]:
            status[row] = IGNORED
        elif not found[truth]:
            found[truth] = True
            status[row] = TRUE_POSITIVE
    return ImageMatch(status, found)


def _check_image_ids(records: Sequence[ImageRecord], detections: Mapping[str, Any]) -> None:
    known: set[str] = set()
    for record in records:
        if record.image_id in known:
            raise ValueError(f"records: image id {record.image_id!r} occurs more than once")
        known.add(record.image_id)
    for image_id in detections:
        if image_id not in known:
            raise ValueError(
                f"detections: image id {image_id!r} is not among the {len(known)} records; "
                "evaluate the split the detections were made for"
            )
    for record in records:
        if record.image_id not in detections:
            raise ValueError(
                f"detections: no entry for image id {record.image_id!r}; "
                "an image in which nothing was detected needs an empty one"
            )


def _truth(record: ImageRecord, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes = np.asarray(record.boxes, np.float32).reshape(-1, 4)
    labels = np.asarray(record.labels).reshape(-1)
    difficult = np.asarray(record.difficult, bool).reshape(-1)
    if not len(boxes) == len(labels) == len(difficult):
        raise ValueError(
            f"records: image {record.image_id!r} has {len(boxes)} boxes, {len(labels)} labels and "
            f"{len(difficult)} difficult flags; the numbers must agree"
        )
    check_labels("records", record.image_id, labels, count)
    return boxes, labels.astype(np.int64), difficult


def _checked(image_id: str, found: Any, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes = np.asarray(found.boxes, np.float32)
    scores = np.asarray(found.scores)
    if scores.dtype.kind not in "fiu":
        raise ValueError(
            f"detections: image {image_id!r}: scores must be numbers, got {scores.dtype}"
        )
    scores = scores.astype(np.float64)  # unsigned ones have no order once they are negated
    labels = np.asarray(found.labels)
    rows = boxes.shape[:1]
    if boxes.shape[1:] != (4,) or scores.shape != rows or labels.shape != rows:
        raise ValueError(
            f"detections: image {image_id!r} needs boxes (M, 4), scores (M,) and labels (M,), "
            f"got {boxes.shape}, {scores.shape} and {labels.shape}"
        )
    for name, bad in (("score", np.isnan(scores)), ("box", ~np.isfinite(boxes).all(axis=1))):
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            value = (scores if name == "score" else boxes)[row].tolist()
            raise ValueError(
                f"detections: image {image_id!r}, row {row}: {name} is {value}, not a finite number"
            )
    check_labels("detections", image_id, labels, count)
    return boxes, scores, labels.astype(np.int64)


def write_voc_results(folder: Path, dataset: Dataset, found: Mapping[str, Detections]) -> None:
    """comp4_det_SPLIT_CLASS.txt for each class, as VOC's own programs read them.

    A line is `image-id score x1 y1 x2 y2`, coordinates 1-based. Numbers keep all their digits. A
    slash in a name is written as _, and what is too long for a file's name is cut off, with more _
    where that is the name of another class.
    """
    begin = f"comp4_det_{dataset.split.replace('/', '_')}_"
    room = 255 - len(f"{begin}.txt".encode())
    taken = set(dataset.classes)
    for label, name in enumerate(dataset.classes, start=1):
        shown = name
        if "/" in name or len(name.encode()) > room:
            plain = name.replace("/", "_").encode()
            ways = (plain[: room - n].decode(errors="ignore") + "_" * n for n in itertools.count())
            shown = next(way for way in ways if way not in taken)
        taken.add(shown)
        path = folder / f"{begin}{shown}.txt"
        lines = []
        for image_id, one in found.items():
            own = one.labels == label
            for score, box in zip(one.scores[own], one.boxes[own] + 1, strict=True):
                lines.append(f"{image_id} {score:.9g} {' '.join(f'{x:.9g}' for x in box)}\n")
        write_whole(path, "".join(lines))
