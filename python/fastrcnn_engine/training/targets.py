"""Box regression targets and their statistics (original code, lib/roi_data_layer/roidb.py)."""

from __future__ import annotations

import numpy as np

from fastrcnn_engine.ops import encode_boxes
from fastrcnn_engine.training.sampling import RoiEntry, drawn_boxes


def target_statistics(
    entries: list[RoiEntry], classes: int, *, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of the targets, per class and coordinate.

    They are taken over all foreground RoIs of the training set and, with ``flip``, over their
    mirror images, whose horizontal offset has the opposite sign.

    Args:
        entries: the training set.
        classes: K.

    Returns:
        mean and std, each (K+1, 4) float32. The background, a class without foreground RoIs and a
        coordinate that never varies have mean 0 or their constant, and std 1: nothing to scale.
    """
    count = np.zeros((classes + 1, 1))
    total = np.zeros((classes + 1, 4))
    squares = np.zeros((classes + 1, 4))
    for entry in entries:
        rows = entry.foreground
        if len(rows) == 0:
            continue
        boxes, labels, matched = drawn_boxes(entry, False, rows)
        targets = np.asarray(encode_boxes(matched, boxes), np.float64)
        np.add.at(count, labels, 1)
        np.add.at(total, labels, targets)
        np.add.at(squares, labels, targets**2)
    if flip:  # both sums double, as do the counts; only the horizontal offsets cancel out
        total[:, 0] = 0
    mean = total / np.maximum(count, 1)
    variance = squares / np.maximum(count, 1) - mean**2
    # Below this the difference of the two sums is rounding error, not spread.
    std = np.sqrt(np.where(variance > 1e-10, variance, 1))
    return mean.astype(np.float32), std.astype(np.float32)


def normalised_targets(
    boxes: np.ndarray, matched: np.ndarray, labels: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
    """Regression targets (R, 4) float32 of boxes (R, 4) towards their matched objects (R, 4).

    Each row is normalised by the statistics (K+1, 4) of its own class. Background rows are 0; the
    loss does not look at them.
    """
    targets = np.zeros((len(boxes), 4), dtype=np.float32)
    rows = np.flatnonzero(labels)
    raw = np.asarray(encode_boxes(matched[rows], boxes[rows]))
    targets[rows] = (raw - mean[labels[rows]]) / std[labels[rows]]
    return targets
