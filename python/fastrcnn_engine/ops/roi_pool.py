"""RoI max pooling: every region of interest as a fixed grid of maxima (paper section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastrcnn_engine import _core
from fastrcnn_engine.ops._arrays import (
    AnyArray,
    Array,
    Arrays,
    arrays_of,
    is_bfloat16,
    is_tensor,
    is_traced,
    number_of,
    require_no_gradient,
    shape_of,
    whole,
    written,
)


def roi_pool(
    input: Array,
    boxes: AnyArray | Sequence[AnyArray],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    out: Array | None = None,
) -> Array:
    """Max-pools every RoI into a PH x PW grid. Signature of `torchvision.ops.roi_pool`.

    A RoI's corners are scaled to the map and rounded (halves away from zero), both ends inclusive.
    Bin p covers floor(p * size / P) to ceil((p + 1) * size / P), clipped to the map; an empty bin
    gives 0. Differentiable in `input` for torch tensors; the gradient goes to the first maximum of
    each bin in row-major order and is the same, bit for bit, on every run.

    Args:
        input: features (N, C, H, W), NCHW or channels-last; the result has the same memory layout.
            float16, bfloat16, float32 or float64.
        boxes: (R, 5) rows of [batch index, x1, y1, x2, y2] in image pixels, or a list of N arrays
            (L_i, 4). Coordinates are used as float32 whatever the type of the features. A fraction
            of the batch index is cut off.
        output_size: (PH, PW), or one number for both.
        spatial_scale: map cells per image pixel, 1/16 for the paper's networks.
        out: optional (R, C, PH, PW) array to write into and return, in memory of its own; not with
            gradients, nor where NumPy holds bfloat16 (as a type of `ml_dtypes`).

    Returns:
        (R, C, PH, PW), the kind and dtype of `input`.

    Raises:
        ValueError: a shape, dtype, device or layout that does not fit, a list longer than N, or
            (host memory) a batch index outside [0, N), naming the row. On a GPU such a RoI gives
            zeros instead.
        TypeError: an argument that is no array.

    Source: paper section 2.1; rounding as in the original Caffe layer.
    """
    size, scale = _pair(output_size), number_of(spatial_scale, "spatial_scale")
    if out is not None:
        require_no_gradient("roi_pool with out", ("input", "out"), input, out)
    if is_traced(input):
        return _traced(input, boxes, size, scale, out, None, detached=False)[0]
    arrays = arrays_of(input, "input")
    boxes = _rows(arrays, boxes, input)
    if getattr(input, "requires_grad", False):
        from fastrcnn_engine.ops import autograd

        if autograd.is_enabled():
            return autograd.RoIPoolFunction.apply(input, boxes, size, scale)
    output, _ = pool(arrays, input, boxes, size, scale, out)
    return output


def roi_pool_with_argmax(
    input: Array,
    boxes: AnyArray | Sequence[AnyArray],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    out: Array | None = None,
    argmax_out: Array | None = None,
) -> tuple[Array, Array]:
    """`roi_pool` and where each maximum came from. Outside autograd; see `roi_pool_backward`.

    Returns:
        (output, argmax), both (R, C, PH, PW). argmax holds, as int32, h * W + w of the maximum
        within its plane, -1 for an empty bin.

    Arguments, errors and source: as `roi_pool`; `argmax_out` is an array to write into, int32 or
    uint16, where 65535 stands for -1. A map with more cells than the type can number raises
    ValueError.
    """
    size, scale = _pair(output_size), number_of(spatial_scale, "spatial_scale")
    if out is not None:
        require_no_gradient("roi_pool_with_argmax", ("out",), out)
    if is_traced(input):
        return _traced(input, boxes, size, scale, out, argmax_out, detached=True)
    arrays = arrays_of(input, "input")
    boxes = _rows(arrays, boxes, input)
    return pool(arrays, input, boxes, size, scale, out, argmax_out, "int32")


def roi_pool_backward(
    grad_output: Array,
    argmax: AnyArray,
    boxes: AnyArray,
    input_shape: Sequence[int],
    spatial_scale: float | None = None,
) -> Array:
    """Gradient of `roi_pool` in its input: each output's gradient goes to its argmax cell.

    Sums run in ascending order of (RoI, bin), so the result never changes from run to run.
    Differentiable in `grad_output` for torch tensors.

    Args:
        grad_output: (R, C, PH, PW), the types of `roi_pool`. 16-bit ones are summed in float32 and
            rounded once.
        argmax: (R, C, PH, PW) of `roi_pool_with_argmax`. -1, or anything outside the map, passes
            nothing.
        boxes: the (R, 5) RoIs of the forward pass.
        input_shape: (N, C, H, W) of the forward pass.
        spatial_scale: that of the forward pass, or None. It says in which cells a RoI's argmax may
            be, which makes channels-last gradients faster on CPUs with AVX-512; the result is the
            same, whatever it is. Without it only the batch index of `boxes` is read.

    Returns:
        (N, C, H, W) in the kind and dtype of grad_output and the memory layout of argmax.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a spatial_scale that is negative or
            not finite, or (host memory) a batch index outside [0, N), naming the row. On a GPU such
            a RoI passes nothing.

    Source: paper section 2.3, equation 4.
    """
    shape = _four(input_shape)
    scale = 0.0 if spatial_scale is None else number_of(spatial_scale, "spatial_scale")
    if is_traced(grad_output):
        from fastrcnn_engine.ops import torch_ops

        layout = is_tensor(argmax) and torch_ops.is_channels_last(argmax)
        return torch_ops.call(
            "roi_pool_backward", grad_output, argmax, boxes, shape, layout, scale
        )
    if getattr(grad_output, "requires_grad", False):
        from fastrcnn_engine.ops import autograd

        if autograd.is_enabled():
            return autograd.RoIPoolBackwardFunction.apply(grad_output, argmax, boxes, shape, scale)
    return scatter(grad_output, argmax, boxes, shape, scale)


def scatter(
    grad_output: Any, argmax: Any, boxes: Any, input_shape: Sequence[int], spatial_scale: float
) -> Any:
    """`roi_pool_backward`, outside autograd; a scale of 0 is none."""
    arrays = arrays_of(argmax, "argmax")
    argmax = arrays.take_map(argmax, "argmax")
    gradient = arrays.take_like(grad_output, argmax, "grad_output")
    boxes = arrays.take(boxes, "boxes", "float32")
    shape_of(argmax, 4, "argmax")
    grad_input = arrays.empty_map(input_shape, gradient.dtype, argmax)
    _core.roi_pool_backward(
        gradient, argmax, boxes, spatial_scale, grad_input, arrays.stream, arrays.threads,
        arrays.new_bytes,
    )  # fmt: skip
    return arrays.give(grad_input, grad_output)


def pool(
    arrays: Arrays,
    input: Any,
    boxes: Any,
    size: tuple[int, int],
    spatial_scale: float,
    out: Any = None,
    argmax_out: Any = None,
    argmax_dtype: str | None = None,
) -> tuple[Any, Any]:
    """`roi_pool_with_argmax`, its arguments taken and outside autograd.

    A new argmax is made where `argmax_dtype` names its type; else it is what was given, or None.
    """
    features = arrays.take_map(input, "input")
    _, channels, _, _ = shape_of(features, 4, "input")
    try:
        shape = (boxes.shape[0], channels, *size)
    except (IndexError, RuntimeError):  # none, or of nested tensors; shape_of alone costs more
        shape_of(boxes, 2, "boxes")
        raise
    output = out
    if output is None:
        output = arrays.empty_map(shape, features.dtype, features)
    else:
        _require_shape(output, shape, "out")
        if is_bfloat16(output):
            raise ValueError("out cannot be bfloat16 but as a tensor of torch's; leave it out")
    argmax = argmax_out
    if argmax is None:
        if argmax_dtype is not None:
            argmax = arrays.empty_map(shape, argmax_dtype, features)
    else:
        _require_shape(argmax, shape, "argmax_out")
    _core.roi_pool_forward(
        features, boxes, spatial_scale, output, argmax, arrays.stream, arrays.threads
    )
    if out is None:
        output = arrays.give(output, input)
    else:
        written(output)
    if argmax_out is not None:
        written(argmax)
    elif argmax is not None:
        argmax = arrays.give(argmax)
    return output, argmax


def _require_shape(output: Any, shape: tuple[int, ...], name: str) -> None:
    # The engine tells of what is no array.
    has_shape = is_tensor(output) or hasattr(output, "shape")
    given = shape_of(output, None, name) if has_shape else shape
    if given != shape:
        raise ValueError(f"{name} must have shape {shape}, got {given}")


def _traced(
    input: Any, boxes: Any, size: tuple[int, int], spatial_scale: float, out: Any, argmax_out: Any,
    *, detached: bool,
) -> tuple[Any, Any]:  # fmt: skip
    from fastrcnn_engine.ops import torch_ops

    if isinstance(boxes, (list, tuple)):
        images, boxes = len(boxes), torch_ops.indexed_boxes(boxes, input)
        _require_images(images, input)
    output, argmax = torch_ops.call(
        "roi_pool", input, boxes, size, spatial_scale, detached=detached
    )
    if out is not None:
        _require_shape(out, tuple(output.shape), "out")
        output = torch_ops.written(out, output, "out")
    if argmax_out is not None:
        _require_shape(argmax_out, tuple(argmax.shape), "argmax_out")
        argmax = torch_ops.written_argmax(argmax_out, argmax, input.shape[2:])
    return output, argmax


def _rows(arrays: Arrays, boxes: Any, input: Any) -> Any:
    if isinstance(boxes, (list, tuple)):
        rows = arrays.indexed_boxes(boxes, input)
        _require_images(len(boxes), input)
        return rows
    return arrays.take(boxes, "boxes", "float32")


def _require_images(given: int, input: Any) -> None:
    images = shape_of(input, 4, "input")[0]
    if given > images:
        raise ValueError(f"boxes must be a list of at most one array for each of the {images} "
                         f"images of input, got {given}")


def _pair(output_size: int | tuple[int, int]) -> tuple[int, int]:
    given: Any = output_size
    try:
        if isinstance(given, (tuple, list)):
            height, width = given
        else:
            try:
                height = width = whole(given)
            except TypeError:  # an array of two has `__index__`, too
                height, width = given
        if not (type(height) is int and type(width) is int):
            height, width = whole(height), whole(width)
        if height > 0 and width > 0:
            return height, width
    except (TypeError, ValueError):
        pass  # the same message as for a size that is not positive
    raise ValueError(f"output_size must be a positive int or a pair of them, got {output_size!r}")


def _four(input_shape: Sequence[int]) -> tuple[int, int, int, int]:
    try:
        n, c, h, w = input_shape
        if not (type(n) is type(c) is type(h) is type(w) is int):
            n, c, h, w = map(whole, input_shape)
        if n >= 0 and c >= 0 and h >= 0 and w >= 0:
            return n, c, h, w
    except (TypeError, ValueError):
        pass  # the same message as for a side below 0
    raise ValueError(f"input_shape must be (N, C, H, W), got {input_shape!r}")
