"""The test protocol of the paper: which detections of a whole set of images are kept.

The paper leaves it at the algorithm and settings of R-CNN (section 3); these are the steps of the
original code (lib/fast_rcnn/test.py). For each class, without a score threshold:

1. of an image, the 100 best boxes;
2. of the set, the best 40 x (number of images) of these. The lowest score among them is the
   threshold of the class, and what stays must be above it: the threshold itself, and what ties with
   it, goes (R-CNN kept it). A set with no more boxes than that has no threshold;
3. non-maximum suppression in each image, last.

Today's protocol, a score threshold, suppression and the best 100 of an image over all classes, is
that of ``detect_image``.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fastrcnn_engine.evaluation.detect import score_proposals
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.ops import Detections, batched_nms, clip_boxes_to_image, decode_boxes

PER_IMAGE = 100
PER_SET = 40  # times the number of images


def _alone(value: Any) -> list[Any]:
    return [value]


def detect_set(
    model: FastRCNN,
    images: Iterable[tuple[str, np.ndarray, np.ndarray]],
    total: int,
    *,
    nms_threshold: float = 0.3,
    box_regression: bool = True,
    gathered: Callable[[Any], list[Any]] = _alone,
) -> dict[str, Detections]:
    """Detect objects in a set of images by the paper's protocol.

    Args:
        model: in evaluation mode, on any device.
        images: image id, image (H, W, 3) uint8 RGB and proposals (P, 4), one image at a time.
        total: number of images of the set; its limits depend on it.
        nms_threshold: overlap above which the weaker box of a class goes.
        box_regression: as in ``detect_image``.
        gathered: as in ``best_of_set``, of several processes that share the set.

    Returns:
        Detections of each image by id, as ``detect_image`` returns them.

    Raises:
        ValueError: as ``detect_image``.
    """
    outputs = (
        (image_id, *_scored_boxes(model, image, proposals, box_regression))
        for image_id, image, proposals in images
    )
    return best_of_set(outputs, total, nms_threshold=nms_threshold, gathered=gathered)


def _scored_boxes(
    model: FastRCNN, image: np.ndarray, proposals: np.ndarray, box_regression: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Clipped boxes (P, K+1, 4) of every class, and their scores (P, K+1)."""
    scores, deltas = score_proposals(model, image, proposals)
    boxes = np.ascontiguousarray(proposals, dtype=np.float32)
    if box_regression and model.box_regression:
        boxes = decode_boxes(deltas, boxes).reshape(*scores.shape, 4)
    else:
        boxes = np.broadcast_to(boxes[:, None], (*scores.shape, 4))
    return clip_boxes_to_image(boxes, image.shape[:2], inclusive=True), scores


def best_of_set(
    outputs: Iterable[tuple[str, np.ndarray, np.ndarray]],
    total: int,
    *,
    nms_threshold: float,
    gathered: Callable[[Any], list[Any]] = _alone,
) -> dict[str, Detections]:
    """Keep the detections of a set of images that the paper's protocol keeps.

    The threshold of a class rises while the images go by: it is the lowest of the best scores so
    far, and what does not pass it now could not pass it at the end. So the result does not depend
    on the order of the images, and no more is held than 100 boxes of an image and class.

    Several processes with a part of the set each tell one another their best scores before anything
    is dropped for good. The threshold of a part is at most that of the set, so no part has lost a
    box or a score that counts: the result is that of one process.

    Args:
        outputs: image id, boxes (P, K+1, 4) and scores (P, K+1), background in column 0, of one
            image at a time.
        total: number of images of the whole set.
        nms_threshold: as in ``detect_set``.
        gathered: gives the values of all processes for that of this one; each calls it once.

    Returns:
        Detections of each image by id: boxes (M, 4), scores (M,), labels (M,) and rows (M,), by
        falling score. A NaN score or a box with NaN is never detected.
    """
    candidates: dict[str, Detections] = {}
    best: dict[int, list[float]] = defaultdict(list)  # a heap for each class, its lowest first
    thresholds: dict[int, float] = defaultdict(lambda: -np.inf)
    for image_id, boxes, scores in outputs:
        found = []
        for label in range(1, scores.shape[1]):
            above = scores[:, label] > thresholds[label]
            rows = np.flatnonzero(above & ~np.isnan(boxes[:, label]).any(axis=1))
            rows = rows[np.argsort(-scores[rows, label], kind="stable")[:PER_IMAGE]]
            for score in scores[rows, label].tolist():
                heapq.heappush(best[label], score)
                if len(best[label]) > PER_SET * total:
                    heapq.heappop(best[label])
                    thresholds[label] = best[label][0]
            labels = np.full(len(rows), label)
            found.append((boxes[rows, label], scores[rows, label], labels, rows))
        candidates[image_id] = Detections(*map(np.concatenate, zip(*found, strict=True)))

    thresholds = _joint_thresholds(
        gathered({label: (best[label], thresholds[label]) for label in best}), PER_SET * total
    )
    kept = {}
    for image_id, one in candidates.items():
        above = one.scores > [thresholds[label] for label in one.labels.tolist()]
        one = Detections(*(values[above] for values in one))
        keep = batched_nms(one.boxes, one.scores, one.labels, nms_threshold, inclusive=True)
        kept[image_id] = Detections(*(values[keep] for values in one))
    return kept


def _joint_thresholds(
    parts: list[dict[int, tuple[list[float], float]]], limit: int
) -> dict[int, float]:
    """The thresholds of the set from the `limit` best scores and the threshold of each part."""
    thresholds = {}
    for label in {label for part in parts for label in part}:
        scores, lowest = zip(*(part[label] for part in parts if label in part), strict=True)
        together = np.concatenate(scores)
        # One part alone may have been over the limit, and then holds exactly as many as it is.
        over = len(together) > limit
        thresholds[label] = np.partition(together, -limit)[-limit] if over else max(lowest)
    return thresholds
