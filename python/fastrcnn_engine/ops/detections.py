"""From the network's outputs to the detections of one image, in one call."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastrcnn_engine import _core
from fastrcnn_engine.ops._arrays import arrays_of, shape_of
from fastrcnn_engine.ops.box_codec import MAX_LOG_RATIO


class Detections(NamedTuple):
    """M detections by falling score."""

    boxes: Any  # (M, 4)
    scores: Any  # (M,)
    labels: Any  # (M,) int64, 1..K
    rows: Any  # (M,) int64, the proposal each came from


def detections(
    boxes: Any,
    scores: Any,
    deltas: Any,
    image_size: tuple[int, int],
    *,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.3,
    max_detections: int = 100,
    inclusive: bool = False,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Detections:
    """Decode, clip, threshold, suppress per class, and keep the best overall. No gradient.

    Args:
        boxes: (R, 4) proposals in image pixels, float32 or float64.
        scores: (R, K + 1) class probabilities, background in column 0.
        deltas: (R, 4 * (K + 1)) un-normalised box deltas, or None: the proposals as they are.
        image_size: (height, width) in pixels, to clip to.
        score_threshold: a class counts for a proposal when its score is greater.
        nms_threshold: overlap above which the weaker box of a class goes; the paper's is 0.3.
        max_detections: the most to return.
        inclusive: corners name pixels (VOC): +1 in overlaps, clip to width - 1.
        max_log_ratio: as in `decode_boxes`.

    Returns:
        `Detections`. A NaN score or a box with NaN is never detected.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, thresholds or sizes out of range.

    Source: paper section 3; score threshold and the limit over all classes are today's habit.
    """
    if max_detections < 0:
        raise ValueError(f"max_detections must be >= 0, got {max_detections}")
    arrays = arrays_of(boxes, "boxes")
    boxes = arrays.take(boxes, "boxes")
    scores = arrays.take(scores, "scores")
    if deltas is not None:
        deltas = arrays.take(deltas, "deltas")
    rows, columns = shape_of(scores, 2, "scores")
    capacity = min(max_detections, rows * max(columns - 1, 0))
    dtype = boxes.dtype
    out = Detections(
        boxes=arrays.empty((capacity, 4), dtype, boxes),
        scores=arrays.empty((capacity,), dtype, boxes),
        labels=arrays.empty((capacity,), "int64", boxes),
        rows=arrays.empty((capacity,), "int64", boxes),
    )
    height, width = image_size
    found = _core.detect_boxes(
        boxes, scores, deltas, float(height), float(width), float(max_log_ratio),
        float(score_threshold), float(nms_threshold), inclusive, *out, arrays.stream,
    )  # fmt: skip
    return Detections(*[arrays.give(arrays.first(array, found)) for array in out])
