"""From the network's outputs to the detections of one image, in one call."""

from __future__ import annotations

from typing import Any

from fastrcnn_engine import _core
from fastrcnn_engine.ops._arrays import (
    AnyArray,
    Array,
    Arrays,
    arrays_of,
    count_of,
    flag_of,
    is_traced,
    number_of,
    shape_of,
)
from fastrcnn_engine.ops.box_codec import MAX_LOG_RATIO, height_and_width
from fastrcnn_engine.ops.results import Detections, PaddedDetections


def detections(
    boxes: Array,
    scores: AnyArray,
    deltas: AnyArray | None,
    image_size: tuple[int, int],
    *,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.3,
    max_detections: int = 100,
    inclusive: bool = False,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Detections[Array]:
    """Decode, clip, threshold, suppress per class, and keep the best overall. Outside autograd:
    tensors that require a gradient are taken, and results require none.

    Args:
        boxes: (R, 4) proposals, corners x1, y1, x2, y2 in image pixels, float32 or float64.
        scores: (R, K + 1) class probabilities, background in column 0.
        deltas: (R, 4 * (K + 1)) un-normalised box deltas, (R, 4) for all classes (class-agnostic),
            or None: the proposals as they are.
        image_size: (height, width) in pixels, to clip to.
        score_threshold: a class counts for a proposal when its score is greater.
        nms_threshold: overlap above which the weaker box of a class goes; the paper's is 0.3.
        max_detections: the most to return.
        inclusive: corners name pixels (VOC): +1 in overlaps, clip to width - 1.
        max_log_ratio: as in `decode_boxes`.

    Returns:
        `Detections`; of equal scores the lower row and then the lower label comes first. A NaN
        score or a box with NaN is never detected. Boxes are decoded as by `decode_boxes`, whose
        exp() may differ in the last place between CPU and GPU.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, thresholds or sizes out of range.
        TypeError: an argument that is no array.

    Source: paper section 3; score threshold and the limit over all classes are today's habit.
    """
    arguments = _arguments(
        boxes, scores, deltas, image_size, score_threshold, nms_threshold, max_detections,
        inclusive, max_log_ratio,
    )  # fmt: skip
    if is_traced(boxes):
        from fastrcnn_engine.ops import torch_ops

        return Detections(*torch_ops.call("detections", *arguments, detached=True))
    return found(*arguments)


def detections_padded(
    boxes: Array,
    scores: AnyArray,
    deltas: AnyArray | None,
    image_size: tuple[int, int],
    *,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.3,
    max_detections: int = 100,
    inclusive: bool = False,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> PaddedDetections[Array]:
    """`detections` as a result whose shape does not depend on what is found.

    On a GPU nothing waits for the result, so the call can be captured in a CUDA graph.

    Arguments, errors and source: as `detections`.

    Returns:
        `PaddedDetections` with M = max_detections.
    """
    arguments = _arguments(
        boxes, scores, deltas, image_size, score_threshold, nms_threshold, max_detections,
        inclusive, max_log_ratio,
    )  # fmt: skip
    if is_traced(boxes):
        from fastrcnn_engine.ops import torch_ops

        return PaddedDetections(
            *torch_ops.call("detections_padded", *arguments, detached=True)
        )
    return padded(*arguments)


def _arguments(
    boxes: Any, scores: Any, deltas: Any, image_size: tuple[int, int], score_threshold: float,
    nms_threshold: float, max_detections: int, inclusive: bool, max_log_ratio: float,
) -> tuple:  # fmt: skip
    """The arguments, checked and in the types of the operator's schema (torch_ops.py)."""
    height, width = height_and_width(image_size, "image_size")
    return (
        boxes, scores, deltas, height, width, number_of(score_threshold, "score_threshold"),
        number_of(nms_threshold, "nms_threshold"), count_of(max_detections, "max_detections"),
        flag_of(inclusive, "inclusive"), number_of(max_log_ratio, "max_log_ratio"),
    )  # fmt: skip


def found(boxes: Any, scores: Any, deltas: Any, *settings: Any) -> Detections[Any]:
    """`detections` after argument checks."""
    arrays, out, count = _detect(boxes, scores, deltas, *settings, is_padded=False)
    return Detections(*[arrays.give(arrays.first(array, count)) for array in out])


def padded(boxes: Any, scores: Any, deltas: Any, *settings: Any) -> PaddedDetections[Any]:
    """`detections_padded` after argument checks."""
    arrays, out, count = _detect(boxes, scores, deltas, *settings, is_padded=True)
    return PaddedDetections(*[arrays.give(array) for array in (*out, count)])


def _detect(
    boxes: Any, scores: Any, deltas: Any, height: float, width: float, score_threshold: float,
    nms_threshold: float, max_detections: int, inclusive: bool, max_log_ratio: float, *,
    is_padded: bool,
) -> tuple[Arrays, Detections[Any], Any]:  # fmt: skip
    """The adaptor, the results, and how many there are: an array where padded, else an int."""
    arrays = arrays_of(boxes, "boxes")
    boxes = arrays.take(boxes, "boxes")
    scores = arrays.take(scores, "scores")
    shape_of(boxes, 2, "boxes")
    rows, columns = shape_of(scores, 2, "scores")
    if deltas is not None:
        deltas = arrays.take(deltas, "deltas")
        shape_of(deltas, 2, "deltas")
    places = max_detections if is_padded else min(max_detections, rows * max(columns - 1, 0))
    out = Detections(
        boxes=arrays.empty((places, 4), boxes.dtype, boxes),
        scores=arrays.empty((places,), boxes.dtype, boxes),
        labels=arrays.empty((places,), "int64", boxes),
        rows=arrays.empty((places,), "int64", boxes),
    )
    count = arrays.empty((), "int64", boxes) if is_padded else None
    written = _core.detect_boxes(
        boxes, scores, deltas, float(height), float(width), max_log_ratio, score_threshold,
        nms_threshold, inclusive, *out, count, arrays.stream, arrays.new_bytes,
    )  # fmt: skip
    return arrays, out, count if is_padded else written
