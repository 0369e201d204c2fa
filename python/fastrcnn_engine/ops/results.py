"""The tuples that suppression and detection give. Their types are in results.pyi."""

from __future__ import annotations

from typing import Any, NamedTuple


class PaddedIndices(NamedTuple):
    """Indices of a fixed number M, and how many of them count.

    Attributes:
        indices: (M,) int64, -1 behind the first `count`.
        count: () int64, on the device of the boxes.
    """

    indices: Any
    count: Any


class Detections(NamedTuple):
    """M detections by falling score.

    Attributes:
        boxes: (M, 4) corners x1, y1, x2, y2 in image pixels, clipped to the image.
        scores: (M,).
        labels: (M,) int64 classes, 1..K: columns of the scores that were given.
        rows: (M,) int64, the proposal that each came from.
    """

    boxes: Any
    scores: Any
    labels: Any
    rows: Any


class PaddedDetections(NamedTuple):
    """Detections of a fixed number M, and how many of them count.

    Behind the first `count`, boxes, scores and labels are 0 and rows -1.

    Attributes:
        boxes: (M, 4) corners x1, y1, x2, y2 in image pixels, clipped to the image.
        scores: (M,).
        labels: (M,) int64 classes, 1..K: columns of the scores that were given.
        rows: (M,) int64, the proposal that each came from.
        count: () int64, on the device of the boxes.
    """

    boxes: Any
    scores: Any
    labels: Any
    rows: Any
    count: Any
