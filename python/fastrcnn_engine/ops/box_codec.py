"""Box regression targets, their inverse, and clipping (R-CNN's parametrisation)."""

from __future__ import annotations

import math
from typing import Any

from fastrcnn_engine import _core
from fastrcnn_engine.ops._arrays import (
    AnyArray,
    Array,
    arrays_of,
    flag_of,
    is_traced,
    number_of,
    require_no_gradient,
    shape_of,
    widened,
)

# A box grows at most this much in one step (in log space): exp() of an untrained network overflows.
MAX_LOG_RATIO = _core.MAX_LOG_RATIO  # log(1000 / 16)


def encode_boxes(reference_boxes: AnyArray, proposals: Array) -> Array:
    """What to add to each proposal to get its reference box: (dx, dy, dw, dh).

    dx = (centre difference) / proposal width, dw = log(width ratio); widths are x2 - x1. No
    gradient.

    Args:
        reference_boxes: (R, 4) corners x1, y1, x2, y2, the box each proposal should become.
        proposals: (R, 4) corners, the same dtype, float32 or float64.

    Returns:
        (R, 4) deltas, not normalised. log() of CPU and GPU may differ in the last place.

    Raises:
        ValueError: shapes or dtypes that do not fit, or (host memory) a box that is not finite or
            has no area, naming the row. On a GPU such a row may become infinite or NaN instead.
            Also an argument that requires a gradient.
        TypeError: an argument that is no array.

    Source: paper section 2.3 ("the parameterization given in R-CNN"); widths of the original code.
    """
    require_no_gradient(
        "encode_boxes", ("reference_boxes", "proposals"), reference_boxes, proposals
    )
    if is_traced(proposals):
        from fastrcnn_engine.ops import torch_ops

        return torch_ops.call("encode_boxes", reference_boxes, proposals)
    return encode(reference_boxes, proposals)


def encode(reference_boxes: Any, proposals: Any) -> Any:
    """`encode_boxes` after argument checks."""
    arrays = arrays_of(proposals, "proposals")
    proposals = arrays.take(proposals, "proposals")
    targets = arrays.take(reference_boxes, "reference_boxes")
    shape = shape_of(proposals, 2, "proposals")
    out = arrays.empty((shape[0], 4), proposals.dtype, proposals)
    _core.encode_boxes(targets, proposals, out, arrays.stream)
    return arrays.give(out)


def decode_boxes(
    deltas: Array, boxes: AnyArray, *, max_log_ratio: float = MAX_LOG_RATIO
) -> Array:
    """Applies per-class deltas to boxes; the inverse of `encode_boxes`. No gradient.

    Args:
        deltas: (R, 4 * G) un-normalised (dx, dy, dw, dh) for each of G classes (1 for agnostic).
        boxes: (R, 4) corners x1, y1, x2, y2, the same dtype.
        max_log_ratio: dw and dh are held at this before exp().

    Returns:
        (R, 4 * G) corners, not clipped. exp() of CPU and GPU may differ in the last place.

    Raises:
        ValueError: shapes or dtypes that do not fit, or an argument that requires a gradient.
        TypeError: an argument that is no array.

    Source: as `encode_boxes`; the hold on dw, dh from later detectors.
    """
    require_no_gradient("decode_boxes", ("deltas", "boxes"), deltas, boxes)
    max_log_ratio = number_of(max_log_ratio, "max_log_ratio")
    if is_traced(deltas):
        from fastrcnn_engine.ops import torch_ops

        return torch_ops.call("decode_boxes", deltas, boxes, max_log_ratio)
    return decode(deltas, boxes, max_log_ratio)


def decode(deltas: Any, boxes: Any, max_log_ratio: float) -> Any:
    """`decode_boxes` after argument checks."""
    arrays = arrays_of(deltas, "deltas")
    deltas = arrays.take(deltas, "deltas")
    boxes = arrays.take(boxes, "boxes")
    out = arrays.empty(shape_of(deltas, 2, "deltas"), deltas.dtype, deltas)
    _core.decode_boxes(deltas, boxes, max_log_ratio, out, arrays.stream)
    return arrays.give(out)


def clip_boxes_to_image(
    boxes: Array, size: tuple[int, int], *, inclusive: bool = False
) -> Array:
    """Moves all four sides into the image. Signature of `torchvision.ops.clip_boxes_to_image`.

    Differentiable for torch tensors: the gradient passes where a side was not moved.

    Args:
        boxes: (..., 4) corners x1, y1, x2, y2 in pixels, float32 or float64.
        size: (height, width) in pixels.
        inclusive: corners name pixels of the box (VOC): the largest x is width - 1, else width.

    Returns:
        (..., 4). NaN stays NaN.

    Raises:
        ValueError: a dtype or a last dimension that does not fit, a size that is not positive or,
            where boxes are inclusive, below 1.
        TypeError: boxes that are no array.

    Source: the original code (lib/fast_rcnn/test.py), which clips inclusive corners.
    """
    boxes = widened(boxes)
    sides, inclusive = height_and_width(size, "size"), flag_of(inclusive, "inclusive")
    if is_traced(boxes):
        from fastrcnn_engine.ops import torch_ops

        return torch_ops.call("clip_boxes", boxes, *sides, inclusive)
    if getattr(boxes, "requires_grad", False):
        from fastrcnn_engine.ops import autograd

        if autograd.is_enabled():
            return autograd.ClipFunction.apply(boxes, sides, inclusive)
    return clip(boxes, sides, inclusive)


def height_and_width(size: Any, name: str) -> tuple[float, float]:
    """The two numbers of an image's size; ValueError, naming the argument, for anything else."""
    try:
        height, width = size
        return number_of(height, name), number_of(width, name)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be (height, width), got {size!r}") from None


def clip(boxes: Any, size: tuple[float, float], inclusive: bool) -> Any:
    """`clip_boxes_to_image`, outside autograd."""
    arrays = arrays_of(boxes, "boxes")
    boxes = arrays.take(boxes, "boxes")
    shape = require_rows_of_four(boxes)
    rows = (math.prod(shape[:-1]), 4)
    out = arrays.empty_like(boxes)  # not a view of one: torch lets nobody change such a result
    height, width = size
    _core.clip_boxes(
        boxes.reshape(rows), float(height), float(width), inclusive, out.reshape(rows),
        arrays.stream,
    )  # fmt: skip
    return arrays.give(out)


def require_rows_of_four(boxes: Any) -> tuple[int, ...]:
    """The shape of boxes (..., 4); ValueError for any other."""
    shape = shape_of(boxes, None, "boxes")
    if not shape or shape[-1] != 4:
        raise ValueError(f"boxes must be (..., 4) rows of [x1, y1, x2, y2], got shape {shape}")
    return shape
