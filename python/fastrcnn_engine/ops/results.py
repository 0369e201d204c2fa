"""The tuples that suppression and detection give. Their types are in results.pyi."""

from __future__ import annotations

from typing import Any, NamedTuple


class PaddedIndices(NamedTuple):
    """Indices of a fixed number, and how many of them count."""

    indices: Any  # (M,) int64, -1 behind the first `count`
    count: Any  # () int64, on the device of the boxes


class Detections(NamedTuple):
    """M detections by falling score."""

    boxes: Any  # (M, 4)
    scores: Any  # (M,)
    labels: Any  # (M,) int64, 1..K
    rows: Any  # (M,) int64, the proposal each came from


class PaddedDetections(NamedTuple):
    """Detections of a fixed number M, and how many of them count.

    Behind the first `count`, boxes, scores and labels are 0 and rows -1.
    """

    boxes: Any  # (M, 4)
    scores: Any  # (M,)
    labels: Any  # (M,) int64, 1..K
    rows: Any  # (M,) int64, the proposal each came from
    count: Any  # () int64, on the device of the boxes
