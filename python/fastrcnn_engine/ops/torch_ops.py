"""The operators as torch knows them: `torch.ops.fastrcnn_engine.*`.

What looks at a call instead of making it (torch.compile, torch.export, fake tensors, vmap) must not
look into the engine. The public functions send it here (`_arrays.is_traced`); all other calls go
straight to the engine, which costs half as much.

Each operator has a schema, an implementation, a fake one that knows shapes alone, and where it is
differentiable a gradient. Importing this module registers them; `import fastrcnn_engine` does so
where torch is imported already, so that saved programs find them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree

from fastrcnn_engine.ops._arrays import TorchArrays, arrays_of, shape_of, widened
from fastrcnn_engine.ops.autograd import gradients_of_maxima
from fastrcnn_engine.ops.box_codec import clip, decode, encode, require_rows_of_four
from fastrcnn_engine.ops.detections import found
from fastrcnn_engine.ops.detections import padded as padded_detections
from fastrcnn_engine.ops.nms import iou, kept
from fastrcnn_engine.ops.nms import padded as padded_indices
from fastrcnn_engine.ops.results import Detections, PaddedDetections, PaddedIndices
from fastrcnn_engine.ops.roi_pool import pool, scatter
from fastrcnn_engine.ops.smooth_l1 import gradient_of, loss_of, take_operands

LIBRARY = torch.library.Library("fastrcnn_engine", "DEF")
_TENSORS: dict[str, list[str]] = {}  # of each operator's first arguments, "name?" where optional
_ARRAYS = TorchArrays()


def call(name: str, *arguments: Any, detached: bool = False) -> Any:
    """The result of an operator of this module, its tensors `detached` where it is outside
    autograd. 16-bit tensors of autocast become float32, except the maps of RoI pooling.
    """
    tensors = _TENSORS[name]
    # Cut, because torch.compile of torch 2.4 refuses to zip unequal lengths.
    for argument, given in zip(tensors, arguments[: len(tensors)], strict=True):
        if not (given is None and argument.endswith("?")):
            _ARRAYS.require_dense(given, argument)
    if detached:
        arguments = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in arguments)
    if not name.startswith("roi_pool"):
        arguments = tuple(widened(x) if isinstance(x, torch.Tensor) else x for x in arguments)
    if torch._C._get_tracing_state() is not None:
        _tell_the_older_onnx_exporter()
    registered: Any = getattr(torch.ops.fastrcnn_engine, name)
    if not torch.compiler.is_compiling() and (
        _is_transformed() or torch.autograd.forward_ad._current_level >= 0
    ):
        return (_UNDER_TRANSFORMS.get(name) or registered)(*arguments)
    return registered(*arguments)


def _is_transformed() -> bool:
    """Whether torch.func's grad or vmap is at work. Functionalization takes what is registered."""
    if not torch._C._are_functorch_transforms_active():
        return False
    from torch._functorch import pyfunctorch

    innermost = pyfunctorch.retrieve_current_functorch_interpreter()
    return not isinstance(innermost, pyfunctorch.FunctionalizeInterpreter)


@functools.cache
def _tell_the_older_onnx_exporter() -> None:
    """`torch.onnx.export(dynamo=False)` traces, and then asks for each operator what to write.

    Told with the first trace only: it costs the import of that exporter.
    """

    def writer(name: str) -> Callable[..., Any]:
        # torch asks issubclass() of the first one's type: Any is no class before Python 3.11.
        def write(graph: object, *values: Any) -> Any:
            from fastrcnn_engine.ops import onnx_ops

            return onnx_ops.write_torchscript(name, graph, *values)

        return write

    register: Any = getattr(torch.onnx, "register_custom_op_symbolic", None)
    if register is not None:  # else this torch has that exporter no more
        for name in _TENSORS:
            register(f"fastrcnn_engine::{name}", writer(name), 15)


def is_channels_last(tensor: Any) -> bool:
    """Whether RoI pooling takes a map as channels-last."""
    return _ARRAYS.is_channels_last(tensor)


def indexed_boxes(boxes: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """A list of (L_i, 4) boxes, one tensor an image, as (R, 5) rows with the image's index."""
    return _ARRAYS.indexed_boxes(boxes, like)


def written(out: Any, result: torch.Tensor, name: str) -> torch.Tensor:
    """`out` with the result of a traced call in it; ValueError where the engine would raise it."""
    _ARRAYS.require_dense(out, name)
    for what in ("dtype", "device"):
        expected, given = getattr(result, what), getattr(out, what)
        if given != expected:
            raise ValueError(f"{name} must be {expected}, got {given}")
    return out.copy_(result)


def written_argmax(out: Any, result: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """As `written`: the argmax in a map of this size, of which uint16 cannot number all cells."""
    h, w = size
    if str(out.dtype) == "torch.uint16":
        if h * w > 65535:
            raise ValueError(f"argmax is uint16: a map of {h} x {w} cells is too large for it")
        result = result.to(out.dtype)
    return written(out, result, "argmax_out")


def _operator(schema: str, fake: Callable) -> Callable[[Callable], Callable]:
    """Registers an operator: the function it decorates runs it on tensors of any device."""
    name = schema.partition("(")[0]

    def register(function: Callable) -> Callable:
        arguments, _, _ = schema.partition("->")
        _TENSORS[name] = [f"{x}{mark}" for mark, x in re.findall(r"Tensor(\??) (\w+)", arguments)]
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, function, "CPU")
        LIBRARY.impl(name, function, "CUDA")
        torch.library.register_fake(f"fastrcnn_engine::{name}", fake, lib=LIBRARY)
        return function

    return register


_UNDER_TRANSFORMS: dict[str, Callable] = {}


def _differentiable(name: str, setup_context: Callable, backward: Callable) -> None:
    """Registers a gradient, for autograd and for torch.func (grad, vmap of grad), which does not
    take that of a registered operator. Forward mode would pass over a registered operator in
    silence; a Function without it is an error.
    """
    torch.library.register_autograd(
        f"fastrcnn_engine::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )

    def forward(*arguments: Any) -> Any:
        return getattr(torch.ops.fastrcnn_engine, name)(*arguments)

    methods = {"forward": forward, "setup_context": setup_context, "backward": backward}
    members = {key: staticmethod(method) for key, method in methods.items()}
    function = type(name, (torch.autograd.Function,), {"generate_vmap_rule": True, **members})
    _UNDER_TRANSFORMS[name] = function.apply


def _not_differentiable(name: str, missing: str = "gradient") -> None:
    """Asking for its gradient is an error, not a zero."""

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(f"{name} has no {missing}")

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.mark_non_differentiable(*[x for x in outputs if not x.is_floating_point()])

    _differentiable(name, setup_context, refuse)


# ---- RoI pooling --------------------------------------------------------------------------------


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _empty_map(shape: Sequence[int], dtype: Any, like: torch.Tensor) -> torch.Tensor:
    """As the engine makes it: channels-last where `like` is."""
    return _ARRAYS.empty_map(shape, dtype, like)


def _require_columns(tensor: torch.Tensor, name: str, columns: int = 4) -> None:
    """What no operator does without, told where only shapes are known."""
    shape = shape_of(tensor, 2, name)
    if shape[1] != columns:
        raise ValueError(f"{name} must be (R, {columns}), got {shape}")


def _fake_roi_pool(input, boxes, output_size, spatial_scale):
    _require_columns(boxes, "boxes", 5)
    _, channels, _, _ = shape_of(input, 4, "input")
    shape = (boxes.shape[0], channels, *output_size)
    return _empty_map(shape, input.dtype, input), _empty_map(shape, torch.int32, input)


@_operator(
    "roi_pool(Tensor input, Tensor boxes, SymInt[2] output_size, float spatial_scale)"
    " -> (Tensor, Tensor)",
    _fake_roi_pool,
)
def _roi_pool(input, boxes, output_size, spatial_scale):
    arrays = arrays_of(input, "input")
    boxes = arrays.take(boxes, "boxes", "float32")
    size = tuple(output_size)
    return pool(arrays, input, boxes, size, spatial_scale, argmax_dtype="int32")


def _keep_argmax(ctx, inputs, output):
    input, boxes, _, ctx.spatial_scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], boxes)
    ctx.input_shape = input.shape
    ctx.channels_last = is_channels_last(input)


def _roi_pool_gradient(ctx, grad_output, grad_argmax):
    argmax, boxes = ctx.saved_tensors
    gradient = call(
        "roi_pool_backward", grad_output, argmax, boxes, ctx.input_shape, ctx.channels_last,
        ctx.spatial_scale,
    )  # fmt: skip
    return gradient, None, None, None


_differentiable("roi_pool", _keep_argmax, _roi_pool_gradient)


@_operator(
    "roi_pool_backward(Tensor grad_output, Tensor argmax, Tensor boxes, SymInt[4] input_shape,"
    " bool channels_last, float spatial_scale=0.0) -> Tensor",
    lambda grad_output, argmax, boxes, input_shape, channels_last, spatial_scale=0.0: torch.empty(
        tuple(input_shape),
        dtype=grad_output.dtype,
        device=grad_output.device,
        memory_format=_memory_format(channels_last),
    ),
)
def _roi_pool_backward(grad_output, argmax, boxes, input_shape, channels_last, spatial_scale=0.0):
    # The layout is told, because without RoIs an argmax has none to go by.
    gradient = scatter(grad_output, argmax, boxes, input_shape, spatial_scale)
    return gradient.contiguous(memory_format=_memory_format(channels_last))


def _keep_where_gradients_went(ctx, inputs, output):
    _, argmax, boxes, *_ = inputs
    ctx.save_for_backward(argmax, boxes)


def _roi_pool_second_gradient(ctx, grad_gradient):
    argmax, boxes = ctx.saved_tensors
    return gradients_of_maxima(grad_gradient, argmax, boxes), None, None, None, None, None


_differentiable("roi_pool_backward", _keep_where_gradients_went, _roi_pool_second_gradient)


# vmap. Where all of a batch have the same RoIs, its members are more channels; where they have not,
# more images.


def _first(tensor: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    """With the batch in front; an operand that all share is repeated, without a copy."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _as_channels(tensor: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    """(B, A, C, H, W) -> (A, B * C, H, W)."""
    return _first(tensor, dim, size).movedim(0, 1).flatten(1, 2)


def _from_channels(tensor: torch.Tensor, size: int, channels: int) -> torch.Tensor:
    """(A, B * C, H, W) -> (A, B, C, H, W)."""
    return tensor.unflatten(1, (size, channels))


def _rois_of_all(boxes: torch.Tensor, dim: int | None, size: int, images: int) -> torch.Tensor:
    """(B, R, 5) -> (B * R, 5), where member b has images b * N .. b * N + N - 1."""
    rows = _first(boxes, dim, size).float()  # 16 bits would not tell the images apart
    index, corners = rows[..., :1], rows[..., 1:]
    offset = images * torch.arange(size, device=rows.device, dtype=rows.dtype)
    # An index that is wrong must not become a neighbour's, nor one just below a whole one, of which
    # the engine cuts the fraction off.
    own = (index > -1) & (index < images)
    index = torch.where(own, index.int() + offset.view(-1, 1, 1), -1.0)
    return torch.cat([index, corners], dim=-1).flatten(0, 1)


def _vmap_roi_pool(info, in_dims, input, boxes, output_size, spatial_scale):
    of_input, of_boxes, *_ = in_dims
    size, op = info.batch_size, torch.ops.fastrcnn_engine.roi_pool
    images = _first(input, of_input, size)
    if of_boxes is None:
        pooled = op(_as_channels(input, of_input, size), boxes, output_size, spatial_scale)
        return tuple(_from_channels(x, size, images.shape[2]) for x in pooled), (1, 1)
    rois = _rois_of_all(boxes, of_boxes, size, images.shape[1])
    rows = _first(boxes, of_boxes, size).shape[1]
    try:
        pooled = op(images.flatten(0, 1), rois, output_size, spatial_scale)
    except ValueError:  # of all rows and images; the member that is wrong names its own
        for x, own in zip(images, _first(boxes, of_boxes, size), strict=True):
            op(x, own, output_size, spatial_scale)
        raise
    return tuple(x.unflatten(0, (size, rows)) for x in pooled), (0, 0)


def _vmap_roi_pool_backward(
    info, in_dims, grad_output, argmax, boxes, input_shape, channels_last, spatial_scale=0.0
):
    of_gradient, of_argmax, of_boxes, *_ = in_dims
    size, op = info.batch_size, torch.ops.fastrcnn_engine.roi_pool_backward
    n, c, h, w = input_shape
    if of_boxes is None:
        operands = (
            _as_channels(grad_output, of_gradient, size),
            _as_channels(argmax, of_argmax, size),
        )
        gradient = op(*operands, boxes, (n, size * c, h, w), channels_last, spatial_scale)
        return _from_channels(gradient, size, c), 1
    operands = (_first(grad_output, of_gradient, size), _first(argmax, of_argmax, size))
    rois = _rois_of_all(boxes, of_boxes, size, n)
    shape = (size * n, c, h, w)
    try:
        flat = (x.flatten(0, 1) for x in operands)
        gradient = op(*flat, rois, shape, channels_last, spatial_scale)
    except ValueError:  # as above
        for *own, its_rois in zip(*operands, _first(boxes, of_boxes, size), strict=True):
            op(*own, its_rois, input_shape, channels_last, spatial_scale)
        raise
    return gradient.unflatten(0, (size, n)), 0


def _vmap_in_turn(name: str) -> Callable:
    """The members one after the other. torch's own loop warns, and where a member fails Python may
    find that warning in the error's place.
    """

    def rule(info, in_dims, *arguments):
        if info.batch_size == 0:
            raise ValueError(f"vmap of {name} must have members, got a batch of 0")
        op, results = getattr(torch.ops.fastrcnn_engine, name), []
        for i in range(info.batch_size):
            own = zip(arguments, in_dims, strict=True)
            results.append(op(*[x if dim is None else x.select(dim, i) for x, dim in own]))
        several = isinstance(results[0], tuple)
        kinds = list(zip(*results, strict=True)) if several else [results]
        if len({one.shape for one in kinds[0]}) > 1:
            raise ValueError(f"vmap of {name} must have results of one size: use {name}_padded")
        stacked = tuple(torch.stack(kind) for kind in kinds)
        return (stacked, (0,) * len(stacked)) if several else (stacked[0], 0)

    return rule


# ---- the box loss -------------------------------------------------------------------------------


@_operator(
    "smooth_l1(Tensor deltas, Tensor targets, Tensor? labels, Tensor? weights, float beta,"
    " Scalar? normalizer) -> Tensor",
    lambda deltas, *others: deltas.new_empty(()),
)
def _smooth_l1(deltas, targets, labels, weights, beta, normalizer):
    arrays = arrays_of(deltas, "deltas")
    operands = take_operands(arrays, deltas, targets, labels, weights)
    return loss_of(arrays, operands, beta, normalizer)


@_operator(
    "smooth_l1_backward(Tensor grad_loss, Tensor deltas, Tensor targets, Tensor? labels,"
    " Tensor? weights, float beta, Scalar? normalizer) -> Tensor",
    lambda grad_loss, deltas, *others: deltas.new_empty(deltas.shape),
)
def _smooth_l1_backward(grad_loss, deltas, targets, labels, weights, beta, normalizer):
    arrays = arrays_of(deltas, "deltas")
    operands = take_operands(arrays, deltas, targets, labels, weights)
    return gradient_of(arrays, grad_loss, operands, beta, normalizer)


def _keep_operands(ctx, inputs, output):
    *tensors, ctx.beta, ctx.normalizer = inputs
    ctx.save_for_backward(*tensors)


def _smooth_l1_gradient(ctx, grad_loss):
    if any(ctx.needs_input_grad[1:4]):
        raise RuntimeError("smooth_l1 has no gradient in targets and weights")
    gradient = call(
        "smooth_l1_backward", grad_loss, *ctx.saved_tensors, ctx.beta, ctx.normalizer
    )
    return gradient, None, None, None, None, None


_differentiable("smooth_l1", _keep_operands, _smooth_l1_gradient)
_not_differentiable("smooth_l1_backward", "second derivative")

# ---- boxes --------------------------------------------------------------------------------------


def _fake_encode_boxes(reference_boxes, proposals):
    _require_columns(reference_boxes, "reference_boxes")
    _require_columns(proposals, "proposals")
    return proposals.new_empty(proposals.shape)


_operator(
    "encode_boxes(Tensor reference_boxes, Tensor proposals) -> Tensor", _fake_encode_boxes
)(encode)


def _fake_decode_boxes(deltas, boxes, max_log_ratio):
    _require_columns(boxes, "boxes")
    return deltas.new_empty(shape_of(deltas, 2, "deltas"))


_operator(
    "decode_boxes(Tensor deltas, Tensor boxes, float max_log_ratio) -> Tensor", _fake_decode_boxes
)(decode)


def _fake_clip_boxes(boxes, height, width, inclusive):
    require_rows_of_four(boxes)
    return boxes.new_empty(boxes.shape)


@_operator(
    "clip_boxes(Tensor boxes, Scalar height, Scalar width, bool inclusive) -> Tensor",
    _fake_clip_boxes,
)
def _clip_boxes(boxes, height, width, inclusive):
    return clip(boxes, (height, width), inclusive)


def _keep_what_stayed(ctx, inputs, output):
    ctx.save_for_backward(output == inputs[0])


def _clip_gradient(ctx, gradient):
    (stayed,) = ctx.saved_tensors
    return torch.where(stayed, gradient, 0), None, None, None


_differentiable("clip_boxes", _keep_what_stayed, _clip_gradient)


def _fake_box_iou(boxes1, boxes2, inclusive):
    _require_columns(boxes1, "boxes1")
    _require_columns(boxes2, "boxes2")
    return boxes1.new_empty((boxes1.shape[0], boxes2.shape[0]))


_operator("box_iou(Tensor boxes1, Tensor boxes2, bool inclusive) -> Tensor", _fake_box_iou)(iou)

for _name in ("encode_boxes", "decode_boxes", "box_iou"):
    _not_differentiable(_name)


# ---- suppression and detections -----------------------------------------------------------------


def _unknown_size() -> Any:
    """Of a result whose size the data decides."""
    return torch.library.get_ctx().new_dynamic_size()


def _fake_nms(boxes, scores, idxs, iou_threshold, inclusive):
    _require_columns(boxes, "boxes")
    shape_of(scores, 1, "scores")
    return boxes.new_empty((_unknown_size(),), dtype=torch.int64)


_operator(
    "nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, bool inclusive) -> Tensor",
    _fake_nms,
)(kept)


def _fake_nms_padded(boxes, scores, idxs, iou_threshold, max_output_size, inclusive):
    _require_columns(boxes, "boxes")
    shape_of(scores, 1, "scores")
    places = boxes.new_empty((max_output_size,), dtype=torch.int64)
    return places, boxes.new_empty((), dtype=torch.int64)


@_operator(
    "nms_padded(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold,"
    " SymInt max_output_size, bool inclusive) -> (Tensor, Tensor)",
    _fake_nms_padded,
)
def _nms_padded(boxes, scores, idxs, iou_threshold, max_output_size, inclusive):
    return tuple(padded_indices(boxes, scores, idxs, iou_threshold, max_output_size, inclusive))


def _empty_detections(boxes: torch.Tensor, places: Any) -> tuple[torch.Tensor, ...]:
    return (
        boxes.new_empty((places, 4)),
        boxes.new_empty((places,)),
        boxes.new_empty((places,), dtype=torch.int64),
        boxes.new_empty((places,), dtype=torch.int64),
    )


_DETECTION_ARGUMENTS = (
    "(Tensor boxes, Tensor scores, Tensor? deltas, Scalar height, Scalar width,"
    " float score_threshold, float nms_threshold, SymInt max_detections, bool inclusive,"
    " float max_log_ratio)"
)


def _fake_detections(boxes, scores, *others):
    _require_columns(boxes, "boxes")
    shape_of(scores, 2, "scores")
    return _empty_detections(boxes, _unknown_size())


def _fake_detections_padded(boxes, scores, deltas, height, width, score_threshold, nms_threshold,
                            max_detections, inclusive, max_log_ratio):  # fmt: skip
    _require_columns(boxes, "boxes")
    shape_of(scores, 2, "scores")
    count = boxes.new_empty((), dtype=torch.int64)
    return (*_empty_detections(boxes, max_detections), count)


@_operator(
    f"detections{_DETECTION_ARGUMENTS} -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_detections,
)
def _detections(*arguments):
    return tuple(found(*arguments))


@_operator(
    f"detections_padded{_DETECTION_ARGUMENTS} -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_detections_padded,
)
def _detections_padded(*arguments):
    return tuple(padded_detections(*arguments))


for _name in ("detections", "detections_padded"):
    _not_differentiable(_name)

# A program that returns these as they are can be saved.
_register = getattr(_pytree, "_register_namedtuple", None)
if _register is not None:
    for _type in (Detections, PaddedDetections, PaddedIndices):
        _register(_type, serialized_type_name=f"fastrcnn_engine.{_type.__name__}")

_VMAP = {"roi_pool": _vmap_roi_pool, "roi_pool_backward": _vmap_roi_pool_backward}
if hasattr(torch.library, "register_vmap"):  # torch 2.5
    for _name in _TENSORS:
        _rule = _VMAP.get(_name) or _vmap_in_turn(_name)
        torch.library.register_vmap(f"fastrcnn_engine::{_name}", _rule, lib=LIBRARY)
