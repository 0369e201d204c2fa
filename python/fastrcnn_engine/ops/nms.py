"""Overlap of boxes and greedy non-maximum suppression, plain or per class."""

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
    require_no_gradient,
    shape_of,
)
from fastrcnn_engine.ops.results import PaddedIndices


def box_iou(boxes1: Array, boxes2: AnyArray, *, inclusive: bool = False) -> Array:
    """Intersection over union of every pair. Signature of `torchvision.ops.box_iou`, without `fmt`.

    Args:
        boxes1: (A, 4) corners x1, y1, x2, y2 in any unit, float32 or float64.
        boxes2: (B, 4), the same dtype.
        inclusive: corners name pixels of the box (VOC): widths are x2 - x1 + 1, else x2 - x1.

    Returns:
        (A, B). Two boxes without area give NaN. No gradient.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or boxes that require a gradient.
        TypeError: an argument that is no array.

    Source: paper section 2.3, the overlap by which RoIs are labelled.
    """
    require_no_gradient("box_iou", ("boxes1", "boxes2"), boxes1, boxes2)
    inclusive = flag_of(inclusive, "inclusive")
    if is_traced(boxes1):
        from fastrcnn_engine.ops import torch_ops

        return torch_ops.call("box_iou", boxes1, boxes2, inclusive)
    return iou(boxes1, boxes2, inclusive)


def iou(boxes1: Any, boxes2: Any, inclusive: bool) -> Any:
    """`box_iou` after argument checks."""
    arrays = arrays_of(boxes1, "boxes1")
    boxes1 = arrays.take(boxes1, "boxes1")
    boxes2 = arrays.take(boxes2, "boxes2")
    rows, columns = shape_of(boxes1, 2, "boxes1")[0], shape_of(boxes2, 2, "boxes2")[0]
    out = arrays.empty((rows, columns), boxes1.dtype, boxes1)
    _core.box_iou(boxes1, boxes2, inclusive, out, arrays.stream)
    return arrays.give(out)


def nms(
    boxes: Array, scores: AnyArray, iou_threshold: float, *, inclusive: bool = False
) -> Array:
    """Keeps the best of every cluster of boxes. Signature of `torchvision.ops.nms`.

    Boxes are visited by falling score, then rising index; a box goes when one kept before it
    overlaps it by more than the threshold (a float32, strict). NaN scores are never kept. The same
    boxes are kept on CPU and GPU.

    Args:
        boxes: (B, 4) corners x1, y1, x2, y2 in any unit, float32 or float64.
        scores: (B,), the same dtype.
        iou_threshold: in [0, 1].
        inclusive: as in `box_iou`.

    Returns:
        int64 indices of the kept boxes by falling score.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a threshold outside [0, 1].
        TypeError: an argument that is no array.

    Source: paper section 3; the order of equal scores is ours.
    """
    return _nms(boxes, scores, None, iou_threshold, inclusive)


def batched_nms(
    boxes: Array,
    scores: AnyArray,
    idxs: AnyArray,
    iou_threshold: float,
    *,
    inclusive: bool = False,
) -> Array:
    """`nms` within every class at once. Signature of `torchvision.ops.batched_nms`.

    Classes are kept apart by comparing their numbers, not by moving boxes, so that coordinates keep
    their precision.

    Args:
        boxes, scores, iou_threshold, inclusive: as `nms`.
        idxs: (B,) integers, the class of each box; any values.

    Returns:
        int64 indices of the kept boxes of all classes by falling score.

    Raises:
        ValueError, TypeError: as `nms`, also for idxs.

    Source: paper section 3, "independently for each class".
    """
    if idxs is None:
        raise TypeError("idxs must be an array with the class of each box, got None")
    return _nms(boxes, scores, idxs, iou_threshold, inclusive)


def nms_padded(
    boxes: Array,
    scores: AnyArray,
    iou_threshold: float,
    max_output_size: int,
    *,
    idxs: AnyArray | None = None,
    inclusive: bool = False,
) -> PaddedIndices[Array]:
    """`nms` or, with `idxs`, `batched_nms`, as a result whose shape does not depend on the boxes.

    On a GPU nothing waits for the result, so the call can be captured in a CUDA graph.

    Args:
        boxes, scores, iou_threshold, inclusive: as `nms`.
        max_output_size: M; the best M are given where more are kept.
        idxs: (B,) integers, as `batched_nms`.

    Returns:
        `PaddedIndices`: (M,) int64 indices of kept boxes by falling score, then -1; how many count.

    Raises:
        ValueError, TypeError: as `nms`; also a negative max_output_size.

    Source: the interface is TensorFlow's non_max_suppression_padded.
    """
    threshold = number_of(iou_threshold, "iou_threshold")
    places = count_of(max_output_size, "max_output_size")
    inclusive = flag_of(inclusive, "inclusive")
    if is_traced(boxes):
        from fastrcnn_engine.ops import torch_ops

        return PaddedIndices(*torch_ops.call(
            "nms_padded", boxes, scores, idxs, threshold, places, inclusive
        ))  # fmt: skip
    return padded(boxes, scores, idxs, threshold, places, inclusive)


def _nms(boxes: Any, scores: Any, idxs: Any, iou_threshold: float, inclusive: bool) -> Any:
    threshold = number_of(iou_threshold, "iou_threshold")
    inclusive = flag_of(inclusive, "inclusive")
    if is_traced(boxes):
        from fastrcnn_engine.ops import torch_ops

        return torch_ops.call("nms", boxes, scores, idxs, threshold, inclusive)
    return kept(boxes, scores, idxs, threshold, inclusive)


def padded(
    boxes: Any, scores: Any, idxs: Any, iou_threshold: float, places: int, inclusive: bool
) -> PaddedIndices[Any]:
    """`nms_padded` after argument checks."""
    arrays, keep, count = _suppress(boxes, scores, idxs, iou_threshold, inclusive, places)
    return PaddedIndices(arrays.give(keep), arrays.give(count))


def kept(boxes: Any, scores: Any, idxs: Any, iou_threshold: float, inclusive: bool) -> Any:
    """`nms` or `batched_nms` after argument checks."""
    arrays, keep, count = _suppress(boxes, scores, idxs, iou_threshold, inclusive, None)
    return arrays.give(arrays.first(keep, count))


def _suppress(
    boxes: Any, scores: Any, idxs: Any, iou_threshold: float, inclusive: bool, places: int | None
) -> tuple[Arrays, Any, Any]:
    """The adaptor, the kept indices, and how many there are: an array where `places` are given."""
    arrays = arrays_of(boxes, "boxes")
    boxes = arrays.take(boxes, "boxes")
    scores = arrays.take(scores, "scores")
    if idxs is not None:
        idxs = arrays.take(idxs, "idxs", "int64")
    rows = shape_of(boxes, 2, "boxes")[0]
    keep = arrays.empty((rows if places is None else places,), "int64", boxes)
    count = None if places is None else arrays.empty((), "int64", boxes)
    found = _core.nms(
        boxes, scores, idxs, iou_threshold, inclusive, keep, count, arrays.stream,
        arrays.new_bytes,
    )  # fmt: skip
    return arrays, keep, found if places is None else count
