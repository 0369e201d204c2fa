"""Scores and deltas of one image to its detections (py-faster-rcnn, lib/fast_rcnn/test.py)."""

from __future__ import annotations

import numpy as np

from reference.box_codec import clip, decode
from reference.nms import nms


def detections(
    boxes: np.ndarray,
    scores: np.ndarray,
    deltas: np.ndarray | None,
    image_size: tuple[int, int],
    *,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.3,
    max_detections: int = 100,
    inclusive: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """boxes (M, 4), scores (M,), labels (M,), rows (M,) by falling score, then row, then label.

    Class 0 is background. Without deltas the proposals are the boxes; deltas of four columns are
    those of every class. A box with a NaN is no candidate, nor is a NaN score or one that does not
    exceed the threshold.
    """
    classes = scores.shape[1]
    if deltas is None:
        moved = np.repeat(boxes[:, None], classes, axis=1)
    else:
        moved = decode(deltas, boxes).reshape(len(boxes), deltas.shape[1] // 4, 4)
        moved = np.broadcast_to(moved, (len(boxes), classes, 4))
    moved = clip(moved, image_size, inclusive)
    whole = ~np.isnan(moved).any(axis=2)
    found = []
    for label in range(1, classes):
        rows = np.flatnonzero((scores[:, label] > score_threshold) & whole[:, label])
        kept = nms(moved[rows, label], scores[rows, label], nms_threshold, inclusive)
        found += [(-float(scores[rows[k], label]), int(rows[k]), label) for k in kept]
    found = sorted(found)[:max_detections]
    rows = np.array([row for _, row, _ in found], np.int64)
    labels = np.array([label for _, _, label in found], np.int64)
    return moved[rows, labels], scores[rows, labels], labels, rows
