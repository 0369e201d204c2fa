"""The operators in ONNX: what `torch.onnx.export` writes for a call of ours.

    torch.onnx.export(model, arguments, "model.onnx", dynamo=True,
                      custom_translation_table=fastrcnn_engine.onnx_translations())

The files use standard operators alone, so any runtime of ONNX can run them. RoI pooling becomes
MaxRoiPool, suppression NonMaxSuppression. Needs onnxscript, as torch.onnx does. The older exporter
(`dynamo=False`) needs neither the table nor onnxscript: `torch_ops` tells it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch

from fastrcnn_engine.ops import torch_ops  # noqa: F401  # registers what is translated

FLOAT = 1
NO_ARGMAX = "ONNX has no argmax of RoI pooling"
SMALLEST_NORMAL = 2.0**-126
# What features become where some are negative, so that all are positive and in the same order:
# negative ones NEGATIVE / x, from FURTHEST, which is -inf, to NEAREST; zero NO_FEATURE; positive
# ones POSITIVE * x, which changes no digit, from LEAST on.
NEGATIVE, FURTHEST, NEAREST = -(2.0**-64), 2.0**-124, 2.0**-4
NO_FEATURE = 2.0**-3
LEAST, POSITIVE = 2.0**2, 2.0**62
LOWEST = -3.4028234663852886e38
NEXT_TO_LOWEST = -3.4028232635611926e38
END = 2**31

# The graph that the older exporter is writing, if it is at work.
_graph: ContextVar[Any] = ContextVar("_graph", default=None)


class _Operators:
    """ONNX's operators, `op.Add(x, y)`, written by whichever exporter is at work.

    onnxscript's have types that describe the values of a script; a translation gets symbols.
    """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        graph = _graph.get()
        if graph is not None:
            return lambda *inputs, **attributes: _node(graph, name, inputs, attributes)
        from onnxscript import opset18

        return getattr(opset18, name)


op = _Operators()


def _node(graph: Any, name: str, inputs: tuple, attributes: dict[str, Any]) -> Any:
    """An operator in the older exporter's graph; there attributes end in their type's letter."""
    if name == "Constant":
        ((kind, value),) = attributes.items()
        if kind == "value_string":  # unknown to it; an operator that no runtime knows says the same
            missing = graph.op("fastrcnn_engine::" + value.replace(" ", "_"))
            return missing.setType(torch._C.TensorType.create_from_tensor(torch.zeros(0)))
        dtype = {"value_double": torch.float64, "value_float": torch.float32,
                 "value_floats": torch.float32}.get(kind, torch.int64)  # fmt: skip
        return graph.op("Constant", value_t=torch.tensor(value, dtype=dtype))
    letters = {int: "i", float: "f", str: "s"}
    typed = {
        f"{key}_{letters[type(value[0] if isinstance(value, (list, tuple)) else value)]}": value
        for key, value in attributes.items()
    }
    return graph.op(name, *inputs, outputs={"TopK": 2, "Unique": 4}.get(name, 1), **typed)


def write_torchscript(name: str, graph: Any, *values: Any) -> Any:
    """What the older exporter calls for an operator of ours (its "symbolic function").

    Raises:
        NotImplementedError: for an operator that has no translation.
    """
    overload = getattr(torch.ops.fastrcnn_engine, name).default
    translation = onnx_translations().get(overload)
    if translation is None:
        raise NotImplementedError(f"fastrcnn_engine::{name} cannot be written as ONNX operators")
    arguments = [
        _python_value(value, str(argument.type))
        for value, argument in zip(values, overload._schema.arguments, strict=True)
    ]
    token = _graph.set(graph)
    try:
        return translation(*arguments)
    finally:
        _graph.reset(token)


def _python_value(value: Any, schema_type: str) -> Any:
    """A number, size or flag out of the older exporter's graph; a tensor stays a value of it."""
    from torch.onnx import symbolic_helper

    if schema_type == "Optional[Tensor]" and symbolic_helper._is_none(value):
        return None
    kinds = {"float": "f", "number": "f", "int": "i", "bool": "b", "List[int]": "is"}
    kind: Any = kinds.get(schema_type, "v")
    return symbolic_helper._parse_arg(value, kind)


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What `torch.onnx.export(custom_translation_table=...)` needs to know about the operators.

    Translated: `roi_pool` and `spp_pool`, `nms`, `batched_nms`, `nms_padded`, `box_iou`,
    `decode_boxes` and `clip_boxes_to_image`. What onnxruntime does is what we do, bit for bit but
    for the last places of exp() in `decode_boxes`, and for maxima below zero in RoI pooling, which
    are rounded twice. Where a feature is below zero, those beyond -2^60 and 2^66 count as infinite,
    and none is nearer to zero than 2^-60.

    Not kept in ONNX: an argmax; a NaN in boxes; and what NonMaxSuppression makes of a box whose
    corners are swapped (it swaps them back). RoI pooling rounds float64 features to float32, and
    suppression boxes and scores; with `inclusive` it rounds x2 + 1 and y2 + 1: where those are not
    exact, an overlap next to the threshold may fall on its other side.
    """
    ours = torch.ops.fastrcnn_engine
    return {
        ours.roi_pool.default: roi_pool,
        ours.nms.default: nms,
        ours.nms_padded.default: nms_padded,
        ours.box_iou.default: box_iou,
        ours.decode_boxes.default: decode_boxes,
        ours.clip_boxes.default: clip_boxes,
    }


def _number(value: float) -> Any:
    return op.Constant(value_float=value)


def _like(value: float, tensor: Any) -> Any:
    return op.CastLike(_double(value), tensor)


def _double(value: float) -> Any:
    if _graph.get() is not None:
        return op.Constant(value_double=value)
    from onnx import TensorProto, helper

    return op.Constant(value=helper.make_tensor("", TensorProto.DOUBLE, [], [value]))


def _integers(*numbers: int) -> Any:
    return op.Constant(value_ints=numbers)


def roi_pool(input, boxes, output_size, spatial_scale: float):
    """MaxRoiPool. In some versions of onnxruntime it begins at the smallest normal number: it gives
    that for zeros, and for whatever is negative. So where some features are negative, all are made
    positive before it. An outlier, an infinite one too, reaches no bin but its own."""
    zero, features = _number(0.0), op.Cast(input, to=FLOAT)
    some = op.Less(op.ReduceMin(features, keepdims=0), zero)
    negative = op.Clip(
        op.Div(_number(NEGATIVE), features), _number(FURTHEST), _number(NEAREST)
    )  # fmt: skip
    positive = op.Max(op.Mul(features, _number(POSITIVE)), _number(LEAST))
    pooled = op.MaxRoiPool(
        op.Where(some, _by_sign(features, 0.0, negative, NO_FEATURE, positive), features),
        op.Cast(boxes, to=FLOAT), pooled_shape=list(output_size), spatial_scale=spatial_scale,
    )  # fmt: skip
    is_infinite = op.Equal(pooled, _number(FURTHEST))
    negative = op.Where(is_infinite, _number(-math.inf), op.Div(_number(NEGATIVE), pooled))
    positive = op.Mul(pooled, _number(1 / POSITIVE))
    result = op.Where(some, _by_sign(pooled, NO_FEATURE, negative, 0.0, positive), pooled)
    is_zero = op.LessOrEqual(pooled, _number(SMALLEST_NORMAL))
    result = op.Where(is_zero, zero, result)
    # No operator of ONNX gives the argmax. Where nobody asks for it, this is not written; nobody
    # who does can take it for numbers.
    return op.CastLike(result, input), op.Constant(value_string=NO_ARGMAX)


def _by_sign(values, middle: float, below, there: float, above):
    """What stands for values below the middle, for the middle, and for those above it."""
    is_above = op.Greater(values, _number(middle))
    return op.Where(
        op.Less(values, _number(middle)), below, op.Where(is_above, above, _number(there))
    )


def _kept(boxes, scores, idxs, iou_threshold: float, inclusive: bool):
    """Indices of kept boxes by falling score, then rising index."""
    boxes, scores = op.Cast(boxes, to=FLOAT), op.Cast(scores, to=FLOAT)
    if inclusive:  # one pixel more to the right and below
        boxes = op.Add(boxes, op.Constant(value_floats=[0.0, 0.0, 1.0, 1.0]))
    # NonMaxSuppression keeps what is above its threshold: all but a NaN, also -inf.
    above = op.Max(scores, _number(NEXT_TO_LOWEST))
    scores = op.Where(op.IsNaN(scores), _number(LOWEST), above)
    count = op.Shape(scores)
    if idxs is None:
        by_class = op.Unsqueeze(scores, _integers(0))
    else:  # a row for each class, in which the boxes of the others have the lowest score
        classes, _, _, _ = op.Unique(idxs, sorted=1)
        mine = op.Equal(op.Unsqueeze(classes, _integers(1)), op.Unsqueeze(idxs, _integers(0)))
        by_class = op.Where(mine, scores, _number(LOWEST))
    selected = op.NonMaxSuppression(
        op.Unsqueeze(boxes, _integers(0)), op.Unsqueeze(by_class, _integers(0)), count,
        _number(iou_threshold), _number(LOWEST),
    )  # fmt: skip
    kept = op.Squeeze(op.Slice(selected, _integers(2), _integers(3), _integers(1)), _integers(1))
    # TopK gives the lower place first where values are equal: sorted by index, then by score.
    how_many = op.Shape(kept)
    kept, _ = op.TopK(kept, how_many, largest=0)
    _, order = op.TopK(op.Gather(scores, kept), how_many)
    return op.Gather(kept, order)


def nms(boxes, scores, idxs, iou_threshold: float, inclusive: bool):
    return _kept(boxes, scores, idxs, iou_threshold, inclusive)


def nms_padded(boxes, scores, idxs, iou_threshold: float, max_output_size, inclusive: bool):
    kept = _kept(boxes, scores, idxs, iou_threshold, inclusive)
    places = op.Constant(value_int=max_output_size)
    count = op.Min(op.Squeeze(op.Shape(kept)), places)
    filled = op.Concat(kept, op.Expand(_integers(-1), _integers(max_output_size)), axis=0)
    return op.Slice(filled, _integers(0), _integers(max_output_size), _integers(0)), count


def _corners(boxes) -> list[Any]:
    return [op.Slice(boxes, _integers(i), _integers(i + 1), _integers(-1)) for i in range(4)]


def box_iou(boxes1, boxes2, inclusive: bool):
    one = _like(1.0 if inclusive else 0.0, boxes1)
    zero = _like(0.0, boxes1)
    first = _corners(boxes1)
    second = [op.Transpose(corner, perm=[1, 0]) for corner in _corners(boxes2)]

    def area(x1, y1, x2, y2):
        return op.Mul(op.Add(op.Sub(x2, x1), one), op.Add(op.Sub(y2, y1), one))

    def overlap(low, high):
        return op.Max(op.Add(op.Sub(high, low), one), zero)

    shared = op.Mul(
        overlap(op.Max(first[0], second[0]), op.Min(first[2], second[2])),
        overlap(op.Max(first[1], second[1]), op.Min(first[3], second[3])),
    )
    return op.Div(shared, op.Sub(op.Add(area(*first), area(*second)), shared))


def decode_boxes(deltas, boxes, max_log_ratio: float):
    half, most = _like(0.5, boxes), _like(max_log_ratio, boxes)
    x1, y1, x2, y2 = _corners(op.Unsqueeze(boxes, _integers(1)))  # (R, 1, 1)
    # (R, G, 1), by strides: of no rows, Reshape could not tell how many groups there are.
    dx, dy, dw, dh = [
        op.Unsqueeze(op.Slice(deltas, _integers(i), _integers(END), _integers(1), _integers(4)),
                     _integers(2))
        for i in range(4)
    ]  # fmt: skip
    moved = []
    for low, high, shift, growth in ((x1, x2, dx, dw), (y1, y2, dy, dh)):
        side = op.Sub(high, low)
        centre = op.Add(op.Mul(shift, side), op.Add(low, op.Mul(half, side)))
        reach = op.Mul(half, op.Mul(op.Exp(op.Min(growth, most)), side))
        moved.append((op.Sub(centre, reach), op.Add(centre, reach)))
    (x1, x2), (y1, y2) = moved
    return op.Reshape(op.Concat(x1, y1, x2, y2, axis=-1), op.Shape(deltas))


def clip_boxes(boxes, height: float, width: float, inclusive: bool):
    limits = [_like(side, boxes) for side in (width, height)]
    if inclusive:
        limits = [op.Sub(limit, _like(1.0, boxes)) for limit in limits]
    flat = [op.Unsqueeze(limit, _integers(0)) for limit in limits]
    return op.Min(op.Max(boxes, _like(0.0, boxes)), op.Concat(*flat, *flat, axis=0))
