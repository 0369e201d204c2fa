"""torch looks at a call instead of making it: compile, export, vmap, meta; and autocast."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch.library import opcheck

import fastrcnn_engine as fe
from fastrcnn_engine.ops import torch_ops
from fastrcnn_engine.ops.autograd import gradients_of_maxima
from ops.nms_cases import random_boxes

GENERATOR = torch.Generator().manual_seed(3)
FEATURES = torch.randn(2, 4, 9, 11, generator=GENERATOR)
ROIS = torch.tensor([[0.0, 0, 0, 30, 30], [1, 4, 8, 70, 60], [0, 300, 300, 400, 400]])
POOLED, ARGMAX = fe.roi_pool_with_argmax(FEATURES, ROIS, (3, 2), 0.125)
BOXES = torch.from_numpy(random_boxes(20, 1))
OTHERS = torch.from_numpy(random_boxes(20, 2))
SCORES = torch.rand(20, generator=GENERATOR)
PROBABILITIES = torch.rand(20, 4, generator=GENERATOR).softmax(1)
DELTAS = 0.2 * torch.randn(20, 16, generator=GENERATOR)
TARGETS = torch.randn(20, 4, generator=GENERATOR)
LABELS = torch.arange(20) % 4
ONE = torch.tensor(1.0)
SIZE = (90, 120)

# Every public operator as (function, tensors); the first `differentiable` of them get a gradient.
CALLS = {
    "roi_pool": (lambda x, r: fe.roi_pool(x, r, (3, 2), 0.125), [FEATURES, ROIS], 1),
    "roi_pool_list": (
        lambda x, a, b: fe.roi_pool(x, [a, b], 2, 0.125), [FEATURES, BOXES[:3], BOXES[3:]], 1,
    ),
    "roi_pool_with_argmax": (
        lambda x, r: fe.roi_pool_with_argmax(x, r, (3, 2), 0.125), [FEATURES, ROIS], 0,
    ),
    "roi_pool_backward": (
        lambda g, a, r: fe.roi_pool_backward(g, a, r, FEATURES.shape), [POOLED, ARGMAX, ROIS], 1,
    ),
    "spp_pool": (lambda x, r: fe.spp_pool(x, r, (1, 2), 0.125), [FEATURES, ROIS], 1),
    "smooth_l1": (fe.smooth_l1, [DELTAS, TARGETS, LABELS], 1),
    "smooth_l1_weights": (
        lambda d, t, n, w: fe.smooth_l1(d, t, n, weights=w, beta=0.3, normalizer=7),
        [DELTAS, TARGETS, LABELS, SCORES[:, None].expand(-1, 4)], 1,
    ),
    "smooth_l1_backward": (fe.smooth_l1_backward, [ONE, DELTAS, TARGETS, LABELS], 0),
    "encode_boxes": (fe.encode_boxes, [OTHERS, BOXES], 0),
    "decode_boxes": (fe.decode_boxes, [DELTAS, BOXES], 0),
    "clip_boxes_to_image": (
        lambda b: fe.clip_boxes_to_image(b, (50, 60), inclusive=True), [BOXES], 1,
    ),
    "box_iou": (fe.box_iou, [BOXES, OTHERS], 0),
    "nms": (lambda b, s: fe.nms(b, s, 0.3), [BOXES, SCORES], 0),
    "batched_nms": (lambda b, s, i: fe.batched_nms(b, s, i, 0.3), [BOXES, SCORES, LABELS], 0),
    "nms_padded": (lambda b, s, i: fe.nms_padded(b, s, 0.3, 9, idxs=i), [BOXES, SCORES, LABELS], 0),
    "detections": (
        lambda b, s, d: fe.detections(b, s, d, SIZE), [BOXES, PROBABILITIES, DELTAS], 0,
    ),
    "detections_padded": (
        lambda b, s, d: fe.detections_padded(b, s, d, SIZE), [BOXES, PROBABILITIES, DELTAS], 0,
    ),
}  # fmt: skip
every_operator = pytest.mark.parametrize("operator", CALLS)


def flat(result: object) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def results_of(operator: str, transform=lambda function: function) -> list[torch.Tensor]:
    """Results, and the gradients of the sum of the first one."""
    function, tensors, differentiable = CALLS[operator]
    tensors = [t.clone().requires_grad_(i < differentiable) for i, t in enumerate(tensors)]
    results = flat(transform(function)(*tensors))
    if differentiable:
        results[0].square().sum().backward()
    return [r.detach() for r in results] + [t.grad for t in tensors[:differentiable]]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for left, right in zip(actual, expected, strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def test_every_operator_is_in_this_list():
    listed = {name.removesuffix("_weights").removesuffix("_list") for name in CALLS}
    assert listed == set(fe.__all__) - {
        "ops", "Detections", "PaddedDetections", "PaddedIndices", "build_info",
        "get_num_threads", "set_num_threads",
    }  # fmt: skip


OPCHECKS = {
    "roi_pool": (FEATURES.clone().requires_grad_(), ROIS, (3, 2), 0.125),
    "roi_pool_backward": (
        POOLED.clone().requires_grad_(), ARGMAX, ROIS, (2, 4, 9, 11), False, 1.0
    ),
    "smooth_l1": (DELTAS.clone().requires_grad_(), TARGETS, LABELS, None, 1.0, None),
    "smooth_l1_backward": (ONE, DELTAS, torch.randn(20, 16), None, None, 1.0, 3.0),
    "encode_boxes": (OTHERS, BOXES),
    "decode_boxes": (DELTAS, BOXES, 4.0),
    "clip_boxes": (BOXES.clone().requires_grad_(), 50.0, 60.0, True),
    "box_iou": (BOXES, OTHERS, False),
    "nms": (BOXES, SCORES, LABELS, 0.3, False),
    "nms_padded": (BOXES, SCORES, None, 0.3, 9, False),
    "detections": (BOXES, PROBABILITIES, DELTAS, 90.0, 120.0, 0.05, 0.3, 10, False, 4.0),
    "detections_padded": (BOXES, PROBABILITIES, None, 90.0, 120.0, 0.05, 0.3, 10, True, 4.0),
}


def test_every_registered_operator_is_checked():
    defined = torch_ops.LIBRARY._op_defs
    assert {name.partition("::")[2] for name in defined} == set(OPCHECKS)
    for name, device in itertools.product(defined, ("CPU", "CUDA")):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, device), (name, device)
    for name in OPCHECKS:
        tags = getattr(torch.ops.fastrcnn_engine, name).default.tags
        assert torch.Tag.pt2_compliant_tag in tags, name


@pytest.mark.parametrize("operator", OPCHECKS)
def test_opcheck(operator):
    opcheck(getattr(torch.ops.fastrcnn_engine, operator).default, OPCHECKS[operator])


@every_operator
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_as_one_graph(operator, dynamic):
    """Results and gradients bit for bit; backend aot_eager runs all of torch.compile but the C++
    compiler."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = results_of(
            operator,
            lambda f: torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager"),
        )
    assert_same(compiled, results_of(operator))


def test_one_compilation_serves_every_number_of_rois():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x, r: fe.roi_pool(x, r, 2, 0.125) + 1, fullgraph=True, dynamic=True, backend=counter
    )
    for count in (3, 5, 17, 2):
        rois = torch.cat([torch.zeros(count, 1), BOXES[:count]], 1)
        assert torch.equal(compiled(FEATURES, rois), fe.roi_pool(FEATURES, rois, 2, 0.125) + 1)
    assert counter.frame_count == 1


@every_operator
def test_exported_saved_and_loaded(operator, tmp_path):
    function, tensors, _ = CALLS[operator]

    class Module(torch.nn.Module):
        def forward(self, *arguments):
            return tuple(flat(function(*arguments)))

    torch.export.save(torch.export.export(Module(), tuple(tensors)), tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    assert_same(flat(loaded(*tensors)), flat(function(*tensors)))


def test_a_program_that_returns_our_tuples_can_be_saved(tmp_path):
    class Module(torch.nn.Module):
        def forward(self, boxes, scores, deltas):
            given = boxes, scores, deltas, (50, 60)
            return (
                fe.nms_padded(boxes, scores[:, 0], 0.3, 4), fe.detections(*given),
                fe.detections_padded(*given),
            )  # fmt: skip

    given = CALLS["detections"][1]
    torch.export.save(torch.export.export(Module(), tuple(given)), tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    for left, right in zip(loaded(*given), Module()(*given), strict=True):
        assert type(left) is type(right)
        assert_same(flat(left), flat(right))


@every_operator
def test_functionalized(operator):
    function, tensors, _ = CALLS[operator]
    assert_same(flat(torch.func.functionalize(function)(*tensors)), flat(function(*tensors)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace_keeps_the_call():
    traced = torch.jit.trace(lambda x, r: fe.roi_pool(x, r, 2, 0.125), (FEATURES, ROIS))
    assert torch.equal(traced(2 * FEATURES, ROIS), fe.roi_pool(2 * FEATURES, ROIS, 2, 0.125))


@every_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_meta_tensors_give_shapes(operator, dtype):
    function, tensors, _ = CALLS[operator]
    tensors = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
    if operator in ("nms", "batched_nms", "detections"):
        with pytest.raises(Exception, match="data-dependent|data dependent"):
            function(*[t.to("meta") for t in tensors])
        return
    expected = flat(function(*tensors))
    for left, right in zip(flat(function(*[t.to("meta") for t in tensors])), expected, strict=True):
        assert (left.device.type, left.shape, left.dtype) == ("meta", right.shape, right.dtype)


def test_channels_last_stays_so_when_traced():
    x = FEATURES.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(lambda x: fe.roi_pool(x, ROIS, 2), fullgraph=True, backend="aot_eager")
    assert compiled(x).is_contiguous(memory_format=torch.channels_last)
    rois = (ROIS[:2, 1:].to("meta"), ROIS[2:, 1:].to("meta"))
    pooled, argmax = fe.roi_pool_with_argmax(x.to("meta"), rois, 2)
    gradient = fe.roi_pool_backward(pooled.contiguous(), argmax, ROIS.to("meta"), x.shape)
    for meta in (pooled, argmax, gradient):
        assert meta.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("x", "rois", "size", "says"),
    [
        (FEATURES[0], ROIS, 2, "input must have 4 dimensions, got shape"),
        (FEATURES, ROIS[0], 2, "boxes must have 2 dimensions, got shape"),
        (FEATURES, ROIS, (0, 7), "output_size must be"),
        (FEATURES, ROIS, (7, 0), "output_size must be"),
    ],
)
def test_shapes_of_traced_calls_that_do_not_fit(x, rois, size, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        fe.roi_pool(x.to("meta"), rois.to("meta"), size)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda five, four: fe.roi_pool(five[None, None], four, 2), r"boxes must be \(R, 5\), got"),
        (lambda five, four: fe.encode_boxes(five, four), "reference_boxes must be"),
        (lambda five, four: fe.encode_boxes(four, five), "proposals must be"),
        (lambda five, four: fe.decode_boxes(four, five), r"boxes must be \(R, 4\), got \(3, 5\)"),
        (lambda five, four: fe.decode_boxes(four[0], four), "deltas must have 2 dimensions"),
        (lambda five, four: fe.clip_boxes_to_image(five, (9, 9)), "boxes must be .* rows of"),
        (lambda five, four: fe.box_iou(five, four), "boxes1 must be"),
        (lambda five, four: fe.box_iou(four, four[0]), "boxes2 must have 2 dimensions"),
        (lambda five, four: fe.nms(five, five[:, 0], 0.5), "boxes must be"),
        (lambda five, four: fe.nms_padded(four, four, 0.5, 2), "scores must have 1 dimensions"),
        (lambda five, four: fe.detections(five, four, None, (9, 9)), "boxes must be"),
        (lambda five, four: fe.detections_padded(four, four[0], None, (9, 9)), "scores must have"),
    ],
)
def test_shapes_of_other_traced_calls_that_do_not_fit(call, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        call(torch.empty(3, 5, device="meta"), torch.empty(3, 4, device="meta"))


def test_outputs_of_traced_calls():
    def pool(x, out, argmax):
        fe.roi_pool_with_argmax(x, ROIS, (3, 2), 0.125, out=out, argmax_out=argmax)
        return out + 0

    out, argmax = torch.empty_like(POOLED), torch.empty_like(ARGMAX)
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    assert_same([compiled(FEATURES, out, argmax), out, argmax], [POOLED, POOLED, ARGMAX])


@pytest.mark.parametrize(
    ("out", "argmax_out", "says"),
    [
        (torch.empty(5, *POOLED.shape), None, r"out must have shape \(3, 4, 3, 2\), got \(5, 3, 4"),
        (torch.empty(POOLED.shape, dtype=torch.int64), None, "out must be torch.float32, got"),
        (torch.empty(POOLED.shape, device="meta"), None, "out must be cpu, got meta"),
        (None, torch.empty(3, 4, 6, dtype=torch.int32), r"argmax_out must have shape"),
        (None, torch.empty(POOLED.shape, dtype=torch.uint8), "argmax_out must be torch.int32, got"),
        (torch.empty(POOLED.shape, requires_grad=True), None, "has no gradient in out"),
    ],
)
def test_outputs_of_traced_calls_that_do_not_fit(out, argmax_out, says):
    def pool(x):
        return fe.roi_pool_with_argmax(x, ROIS, (3, 2), 0.125, out=out, argmax_out=argmax_out)

    for way in (torch.compile(pool, backend="eager"), lambda x: torch.func.vmap(pool)(x[None])):
        with pytest.raises(ValueError, match=says):
            way(FEATURES)


def test_traced_calls_take_no_more_boxes_than_images():
    """Nor empty ones, which no batch index would tell of."""

    def pool(x):
        return fe.roi_pool(x, [BOXES, BOXES, BOXES[:0]], 2)

    for way in (torch.compile(pool, backend="eager"), lambda x: torch.func.vmap(pool)(x[None])):
        with pytest.raises(ValueError, match="at most one array for each of the 2 images of input"):
            way(FEATURES)


def test_an_output_of_a_traced_call_is_a_tensor():
    out = POOLED.numpy().copy()
    with pytest.raises(TypeError, match=r"out must be a torch\.Tensor like the other arguments"):
        torch.vmap(lambda x: fe.roi_pool(x, ROIS, (3, 2), out=out))(FEATURES[None])


def test_traced_calls_keep_to_what_the_argmax_can_number():
    def cell(x, out):
        return fe.roi_pool_with_argmax(x, torch.zeros(1, 5), 1, argmax_out=out)[1]

    compiled = torch.compile(cell, backend="eager", dynamic=True)
    out = torch.empty(1, 1, 1, 1, dtype=torch.uint16)
    assert compiled(torch.ones(1, 1, 255, 257), out).item() == 0
    with pytest.raises(ValueError, match="argmax is uint16: a map of 256 x 256 cells is too large"):
        compiled(torch.ones(1, 1, 256, 256), out)


def test_traced_calls_refuse_out_beside_a_gradient():
    def pool(x):
        return fe.roi_pool(x, ROIS, (3, 2), 0.125, out=torch.empty(POOLED.shape))

    for way in (torch.compile(pool, backend="eager"), torch.func.grad(lambda x: pool(x).sum())):
        with pytest.raises(ValueError, match="roi_pool with out has no gradient in input"):
            way(FEATURES.clone().requires_grad_())


def test_the_argmax_is_outside_autograd_however_it_is_called():
    x = FEATURES.clone().requires_grad_()
    call = torch.compile(
        lambda x: fe.roi_pool_with_argmax(x, ROIS, 2), fullgraph=True, backend="aot_eager"
    )
    for pooled, argmax in (fe.roi_pool_with_argmax(x, ROIS, 2), call(x)):
        assert not pooled.requires_grad and not argmax.requires_grad


@pytest.mark.parametrize("call", [fe.detections, fe.detections_padded])
def test_detections_are_outside_autograd_however_they_are_called(call):
    def scores(deltas):
        return call(BOXES, PROBABILITIES, deltas, SIZE).scores

    deltas = DELTAS.clone().requires_grad_()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")(deltas)
    assert not compiled.requires_grad and not scores(deltas).requires_grad
    assert torch.equal(compiled, scores(DELTAS))
    if call is fe.detections_padded:
        assert not torch.func.grad(lambda deltas: scores(deltas).sum())(DELTAS).any()


def test_one_graph_for_every_size_of_image():
    """More sizes than torch compiles for, of the image and of the divisor."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def head(image, boxes, scores, deltas):
        size = image.shape[-2:]
        clipped = fe.clip_boxes_to_image(boxes, size)
        loss = fe.smooth_l1(clipped, torch.zeros_like(clipped), normalizer=image.shape[-1])
        return (*fe.detections_padded(boxes, scores, deltas, size), loss)

    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend=counter)
    for i in range(12):
        operands = torch.empty(1, 3, 40 + 3 * i, 70 - 2 * i), BOXES, PROBABILITIES, DELTAS
        assert_same(list(compiled(*operands)), list(head(*operands)))
    assert counter.frame_count <= 2  # one for tall images, one for wide ones


@pytest.mark.parametrize(
    "call",
    [
        lambda n: fe.roi_pool(FEATURES, ROIS, n, 0.125),
        lambda n: fe.roi_pool(FEATURES, ROIS, (n, 2), 0.125),
        lambda n: fe.spp_pool(FEATURES, ROIS, (1, n), 0.125),
        lambda n: fe.nms_padded(BOXES, SCORES, 0.3, n).indices,
        lambda n: fe.detections_padded(BOXES, PROBABILITIES, None, SIZE, max_detections=n).rows,
    ],
)
def test_one_graph_for_every_size_of_the_result(call):
    """From a number, and from a shape that torch.export leaves open."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)

    class Module(torch.nn.Module):
        def forward(self, x):
            return call(x.shape[0])

    rows = {0: torch.export.Dim("rows", min=2)}
    program = torch.export.export(Module(), (torch.empty(3),), dynamic_shapes=(rows,)).module()
    compiled(3)
    compilations = counter.frame_count
    for count in (5, 7, 2):
        assert torch.equal(compiled(count), call(count))
        assert torch.equal(program(torch.empty(count)), call(count))
    assert counter.frame_count == compilations


def test_a_divisor_that_is_a_tensor_is_named_where_it_cannot_be_read():
    def loss(deltas):
        return fe.smooth_l1(deltas, TARGETS, LABELS, normalizer=torch.tensor(7.0))

    assert loss(DELTAS) == fe.smooth_l1(DELTAS, TARGETS, LABELS, normalizer=7)
    for way in (torch.compile(loss, backend="eager"), torch.func.grad(loss)):
        with pytest.raises(TypeError, match="normalizer must be a number where torch traces"):
            way(DELTAS)


def test_exported_for_every_size_of_image():
    class Clip(torch.nn.Module):
        def forward(self, image, boxes):
            return fe.clip_boxes_to_image(boxes, image.shape[-2:])

    sizes = {2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(
        Clip(), (torch.empty(1, 3, 40, 70), BOXES), dynamic_shapes=(sizes, None)
    ).module()
    for size in ((30, 80), (90, 20)):
        clipped = program(torch.empty(1, 3, *size), BOXES)
        assert torch.equal(clipped, fe.clip_boxes_to_image(BOXES, size))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [3, 0])  # no RoIs: the map alone tells
def test_a_traced_gradient_has_the_layout_of_the_map(layout, count):
    """Before it is accumulated, which gives every gradient the layout of its leaf."""
    x = FEATURES.clone().contiguous(memory_format=layout).requires_grad_()
    pooled, _ = torch.ops.fastrcnn_engine.roi_pool(x, ROIS[:count], (3, 2), 0.125)
    (gradient,) = torch.autograd.grad(pooled.sum(), x)
    assert gradient.is_contiguous(memory_format=layout)


def test_training_through_kept_boxes_and_channels_last():
    """The number of RoIs is known only when the graph runs, and nothing of the argmax's layout."""
    torch._dynamo.reset()

    def head(x):
        keep = fe.nms(BOXES, SCORES, 0.3)
        rois = torch.cat([torch.zeros(len(keep), 1), BOXES[keep]], 1)
        return fe.roi_pool(x, rois, 2, 0.125).square().sum()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
        for layout in (torch.contiguous_format, torch.channels_last):
            x = FEATURES.contiguous(memory_format=layout)
            mine, theirs = (x.clone().requires_grad_() for _ in range(2))
            compiled(mine).backward()
            head(theirs).backward()
            assert torch.equal(mine.grad, theirs.grad)
            assert mine.grad.stride() == theirs.grad.stride()


def test_inductor_compiles_a_head():
    """The default backend: C++ around the operators."""
    torch._dynamo.reset()
    weight = torch.randn(4, 4, 3, 3, generator=GENERATOR)

    def head(x):
        x = torch.nn.functional.conv2d(x, weight, padding=1).relu()
        return fe.smooth_l1(fe.roi_pool(x, ROIS, 2, 0.125).flatten(1), torch.zeros(3, 16))

    mine, theirs = (FEATURES.clone().requires_grad_() for _ in range(2))
    torch.compile(head, fullgraph=True)(mine).backward()
    head(theirs).backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_empty_boxes_and_maps_when_traced():
    """Nothing to go by: neither a layout nor a gradient comes out wrong."""
    x = FEATURES.contiguous(memory_format=torch.channels_last).requires_grad_()
    compiled = torch.compile(lambda x, r: fe.roi_pool(x, r, 2), fullgraph=True, backend="aot_eager")
    compiled(x, ROIS[:0]).sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last) and not x.grad.any()
    for shape in ((0, 2, 3, 3), (1, 2, 0, 5), (1, 0, 3, 3)):
        x = torch.randn(shape, requires_grad=True)
        rois = torch.zeros(shape[0], 5)
        (gradient,) = torch.autograd.grad(
            fe.roi_pool(x, rois, 2).square().sum(), x, create_graph=True
        )
        (second,) = torch.autograd.grad(gradient.square().sum(), x)
        assert second.shape == x.shape


# ---- what has no derivative says so -------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda d: fe.decode_boxes(d, BOXES),
        lambda d: fe.encode_boxes(d[:, :4] + BOXES, BOXES),
        lambda d: fe.box_iou(BOXES + d[:, :4], BOXES),
        lambda d: torch.func.grad(lambda d: fe.smooth_l1(d, TARGETS, LABELS))(d),
        lambda d: fe.smooth_l1(DELTAS, d[:, :4], LABELS) + d,
        lambda d: torch.vmap(lambda d: fe.smooth_l1(DELTAS, d, LABELS))(d[None, :, :4]) + d,
        lambda d: torch.vmap(
            lambda d: fe.smooth_l1(DELTAS, TARGETS, LABELS, weights=d)
        )(d[None, :, :4]) + d,
        lambda d: torch.vmap(lambda d: fe.box_iou(BOXES + d, BOXES))(d[None, :, :4]),
    ],
)
def test_no_derivative_is_an_error_and_not_a_zero(function):
    with pytest.raises((RuntimeError, ValueError), match="has no (gradient|second derivative)"):
        torch.func.grad(lambda d: function(d).sum())(DELTAS)


def test_forward_mode_is_refused():
    for function in (
        lambda x: fe.roi_pool(x, ROIS, 2),
        lambda x: fe.smooth_l1(x.flatten(1), torch.zeros(2, 396)),
        lambda x: fe.decode_boxes(x.flatten(1), BOXES[:2]),
    ):
        with pytest.raises(RuntimeError, match="jvp|forward"):
            torch.func.jvp(function, (FEATURES,), (FEATURES,))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(FEATURES, FEATURES)
            with pytest.raises((RuntimeError, ValueError), match="jvp|forward"):
                function(dual)


def test_many_gradients_at_once():
    rois = torch.tensor([[0.0, 0, 0, 3, 4], [0, 2, 1, 5, 3]])
    x = torch.randn(1, 2, 5, 6, generator=GENERATOR)

    def functions():
        yield lambda x: fe.roi_pool(x, rois, 2)
        yield lambda x: fe.smooth_l1(x.view(5, 12), torch.zeros(5, 12))

    for function in functions():
        expected = torch.autograd.functional.jacobian(function, x)
        at_once = torch.autograd.functional.jacobian(function, x, vectorize=True)
        torch.testing.assert_close(at_once, expected)


def test_vmap_of_narrow_rois_tells_images_apart():
    x = torch.arange(258.0).view(258, 1, 1, 1, 1)
    rois = torch.zeros(258, 1, 5, dtype=torch.bfloat16)
    pooled = torch.vmap(lambda x, r: fe.roi_pool(x, r, 1))(x, rois)
    assert torch.equal(pooled.flatten(), torch.arange(258.0))


# ---- vmap ---------------------------------------------------------------------------------------

MANY = torch.randn(3, 2, 4, 9, 11, generator=GENERATOR)
MANY_ROIS = torch.stack([ROIS, ROIS + torch.tensor([0.0, 5, 5, 9, 2]), ROIS.flip(0)])


@pytest.mark.parametrize(
    ("in_dims", "x", "rois"),
    [
        ((0, None), MANY, ROIS),
        ((2, None), MANY.movedim(0, 2), ROIS),
        ((None, 0), FEATURES, MANY_ROIS),
        ((0, 0), MANY, MANY_ROIS),
        ((1, 1), MANY.movedim(0, 1), MANY_ROIS.movedim(0, 1)),
        ((0, None), MANY.movedim(2, -1).contiguous().movedim(-1, 2), ROIS),  # channels-last
        ((0, 0), MANY.movedim(2, -1).contiguous().movedim(-1, 2), MANY_ROIS),
        ((0, None), MANY[..., 1:], ROIS.double()),
        ((0, 0), MANY, MANY_ROIS[:, :0]),
        ((4, None), MANY.movedim(0, -1).contiguous(), ROIS),
    ],
)
def test_vmap_is_a_loop_without_one(in_dims, x, rois):
    def loss(x, rois):
        return fe.roi_pool(x, rois, (3, 2), 0.125).square().sum()

    def member(tensor, dim, i):
        return tensor if dim is None else tensor.movedim(dim, 0)[i]

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a slow fallback warns
        pooled = torch.vmap(lambda x, r: fe.roi_pool(x, r, (3, 2), 0.125), in_dims)(x, rois)
        gradients = torch.vmap(torch.func.grad(loss), in_dims)(x, rois)
    for i in range(3):
        one = member(x, in_dims[0], i), member(rois, in_dims[1], i)
        assert torch.equal(pooled[i], fe.roi_pool(*one, (3, 2), 0.125))
        assert torch.equal(gradients[i], torch.func.grad(loss)(*one))


@pytest.mark.parametrize("step", [1, 3])  # three RoIs, and one, whose stride says nothing
def test_vmap_keeps_the_layout_of_an_argmax(step):
    def backward(gradient, argmax, rois):
        return fe.roi_pool_backward(gradient, argmax, rois, FEATURES.shape)

    for layout in (torch.contiguous_format, torch.channels_last):
        gradient, argmax = (torch.stack([x] * 3) for x in (POOLED, ARGMAX))
        argmax = argmax.flatten(0, 1).contiguous(memory_format=layout).unflatten(0, (3, 3))
        gradient, argmax = gradient[:, ::step], argmax[:, ::step]
        many = torch.vmap(backward)(gradient, argmax, MANY_ROIS[:, ::step])
        for member, *one in zip(many, gradient, argmax, MANY_ROIS[:, ::step], strict=True):
            assert member.is_contiguous(memory_format=layout)
            assert torch.equal(member, backward(*one))
        rois = ROIS[::step]  # of all: members lie beside each other, as more channels
        for member in torch.vmap(backward, (0, 0, None))(gradient, argmax, rois):
            assert (member.stride(1) == 1) == (layout is torch.channels_last)


@pytest.mark.parametrize("image", [2, -1])  # of images 0 and 1: not one of a neighbour's
def test_vmap_keeps_a_wrong_image_wrong(image):
    rois = MANY_ROIS.clone()
    rois[1, 0, 0] = image
    says = rf"boxes\[0\]: batch index must be in \[0, 2\), got {image}"  # as without vmap
    with pytest.raises(ValueError, match=says):
        torch.vmap(lambda r: fe.roi_pool(FEATURES, r, 2))(rois)
    with pytest.raises(ValueError, match=says):
        torch.vmap(lambda r: fe.roi_pool_backward(POOLED, ARGMAX, r, FEATURES.shape))(rois)


def test_vmap_cuts_off_fractions_of_an_image_as_one_call_does():
    """The next image, to float32, where it is far enough from zero."""
    rois = ROIS.repeat(4, 1, 1)
    for image in (-0.5, 0.99999994, 1.75):
        rois[..., 0] = image
        pooled = torch.vmap(lambda x, r: fe.roi_pool(x, r, 2))(FEATURES.repeat(4, 1, 1, 1, 1), rois)
        assert torch.equal(pooled, fe.roi_pool(FEATURES, rois[0], 2).expand_as(pooled))


@every_operator
def test_vmap_of_every_operator_is_as_one_call_after_the_other(operator):
    function, tensors, _ = CALLS[operator]
    others = [x.flip(0) if x.dim() else 2 * x for x in tensors]
    pairs = [torch.stack(pair) for pair in zip(tensors, others, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = flat(torch.vmap(function)(*pairs))
    for i, own in enumerate((tensors, others)):
        for result, expected in zip(mapped, flat(function(*own)), strict=True):
            assert torch.equal(result[i], expected)


def test_vmap_of_what_does_not_fit_is_the_callers_error():
    pairs, two = torch.stack([BOXES, BOXES.flip(1)]), torch.stack([BOXES, BOXES / 100])
    with pytest.raises(ValueError, match=r"proposals\[0\] must be finite with x2 > x1"):
        torch.vmap(lambda b: fe.encode_boxes(BOXES, b))(pairs)
    with pytest.raises(ValueError, match="vmap of nms must have results of one size: use nms_pad"):
        torch.vmap(lambda b: fe.nms(b, SCORES, 0.3, inclusive=True))(two)
    with pytest.raises(ValueError, match="vmap of box_iou must have members, got a batch of 0"):
        torch.vmap(lambda b: fe.box_iou(b, BOXES))(pairs[:0])


def test_vmap_of_no_maps():
    for in_dims in ((0, None), (0, 0)):
        rois = ROIS if in_dims[1] is None else MANY_ROIS[:0]
        pooled = torch.vmap(lambda x, r: fe.roi_pool(x, r, 2), in_dims)(MANY[:0], rois)
        assert pooled.shape == (0, 3, 4, 2, 2)
        gradient = torch.func.grad(lambda x, r: fe.roi_pool(x, r, 2).sum())
        assert torch.vmap(gradient, in_dims)(MANY[:0], rois).shape == MANY[:0].shape


# ---- second derivatives -------------------------------------------------------------------------


# Two images; bins that overlap, that are empty, that one cell fills.
SECOND_ROIS = torch.tensor([[0.0, 0, 0, 3, 4], [1, 2, 1, 5, 3], [0, 9, 9, 12, 12], [1, 4, 4, 4, 4]])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("traced", [False, True])
def test_second_derivative_by_finite_differences(layout, traced):
    x = torch.randn(2, 3, 5, 6, generator=GENERATOR, dtype=torch.float64)
    x = x.contiguous(memory_format=layout).requires_grad_()

    def pool(x: torch.Tensor) -> torch.Tensor:
        if traced:
            return torch.ops.fastrcnn_engine.roi_pool(x, SECOND_ROIS, (2, 2), 1.0)[0]
        return fe.roi_pool(x, SECOND_ROIS, 2)

    # The square makes the first derivative depend on the features.
    assert torch.autograd.gradgradcheck(lambda x: pool(x).square(), x)

    pooled, argmax = fe.roi_pool_with_argmax(x, SECOND_ROIS, 2)
    operands = argmax, SECOND_ROIS, x.shape
    operator = torch.ops.fastrcnn_engine.roi_pool_backward
    traced_operands = *operands, layout is torch.channels_last

    def scatter(gradient: torch.Tensor) -> torch.Tensor:
        if traced:
            return operator(gradient, *traced_operands)
        return fe.roi_pool_backward(gradient, *operands)

    gradient = pooled.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda gradient: scatter(gradient).square(), gradient)


def test_what_a_gpu_does_not_refuse_has_no_second_derivative():
    """A RoI of no image, whose gradient there is zero."""
    rois = torch.tensor([[-1.0, 0, 0, 3, 3], [2, 0, 0, 3, 3], [1, 0, 0, 3, 3]])
    argmax = torch.full((3, 1, 1, 1), 7)
    gradient = torch.ones(2, 1, 5, 6)
    gradient[0, 0, 0, 0] = torch.inf  # which is no one's
    assert gradients_of_maxima(gradient, argmax, rois).flatten().tolist() == [0, 0, 1]
    no_images = torch.empty(0, 1, 5, 6)
    assert gradients_of_maxima(no_images, argmax, rois).flatten().tolist() == [0, 0, 0]


def test_gradient_penalty():
    """What second derivatives are wanted for: a loss of a gradient, learned from."""
    x = torch.randn(2, 3, 5, 6, generator=GENERATOR, requires_grad=True)
    score = fe.roi_pool(x, SECOND_ROIS, 2).square().sum()
    (gradient,) = torch.autograd.grad(score, x, create_graph=True)
    gradient.square().sum().backward()
    # score is the sum of n x^2, n how often a cell is a maximum: the penalty's gradient is 8 n^2 x.
    pooled, argmax = fe.roi_pool_with_argmax(x.detach(), SECOND_ROIS, 2)
    times = fe.roi_pool_backward(torch.ones_like(pooled), argmax, SECOND_ROIS, x.shape)
    torch.testing.assert_close(x.grad, 8 * times.square() * x.detach())


@pytest.mark.parametrize("traced", [False, True])
def test_a_missing_second_derivative_is_an_error_beside_other_terms(traced):
    """A penalty on the gradient is not left out because something else has a gradient, too."""
    d = DELTAS.clone().requires_grad_()

    def loss(d: torch.Tensor) -> torch.Tensor:
        if traced:
            return torch.ops.fastrcnn_engine.smooth_l1(d, TARGETS, LABELS, None, 1.0, None)
        return fe.smooth_l1(d, TARGETS, LABELS)

    for scale in (lambda x: x, torch.square):
        (gradient,) = torch.autograd.grad(scale(loss(d)), d, create_graph=True)
        assert torch.equal(gradient, torch.autograd.grad(scale(loss(d)), d)[0])
        with pytest.raises(RuntimeError, match="smooth_l1_backward has no second derivative"):
            torch.autograd.grad(gradient.square().sum() + d.sum(), d)
    for function in (torch.autograd.functional.hvp, torch.autograd.functional.jvp):
        with pytest.raises(RuntimeError, match="smooth_l1_backward has no second derivative"):
            function(loss, d.detach(), torch.ones_like(d))


@pytest.mark.parametrize("traced", [False, True])
def test_clipping_is_differentiated_as_clamp_is(traced):
    boxes = torch.tensor([[-1.0, 1, 2, 30]], requires_grad=True)

    def clip(boxes: torch.Tensor) -> torch.Tensor:
        if traced:
            return torch.ops.fastrcnn_engine.clip_boxes(boxes, 5, 5, False)
        return fe.clip_boxes_to_image(boxes, (5, 5))

    def penalty(clip) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(clip(boxes).square().sum(), boxes, create_graph=True)
        return torch.autograd.grad(gradient.square().sum() + boxes.sum(), boxes)[0]

    def of_logarithm(clip) -> torch.Tensor:  # whose gradient at the side that was moved is infinite
        return torch.autograd.grad(clip(boxes).log().sum(), boxes)[0]

    for function in (penalty, of_logarithm):
        assert torch.equal(function(clip), function(lambda boxes: boxes.clamp(0, 5)))


def test_a_gradient_that_torch_keeps_with_the_other_sign():
    """The imaginary part of a conjugate is a view of memory that is read with a minus."""
    minus = torch.complex(ONE, ONE).conj().imag
    assert minus.is_neg() and minus.is_contiguous()
    operands = DELTAS, TARGETS, LABELS
    gradient = fe.smooth_l1_backward(minus, *operands)
    assert torch.equal(gradient, fe.smooth_l1_backward(-ONE, *operands))
    minus, where = minus.view(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    assert fe.roi_pool_backward(minus, where, ROIS[:1], (1, 1, 1, 1)).item() == -1


def test_arguments_that_torch_keeps_with_the_other_sign():
    minus, zero = torch.complex(ONE, ONE).conj().imag, torch.zeros(1, 1, 1, 1)
    assert fe.roi_pool(minus.view(1, 1, 1, 1), torch.zeros(1, 5), 1).item() == -1
    out = torch.zeros(1, dtype=torch.complex64).conj().imag.view(1, 1, 1, 1)
    assert out.is_neg() and fe.roi_pool(zero + 3, torch.zeros(1, 5), 1, out=out) is out
    assert out.item() == 3
    assert fe.smooth_l1(minus.view(1, 1), torch.ones(1, 1)).item() == 1.5
    assert fe.smooth_l1(torch.ones(1, 1), minus.view(1, 1)).item() == 1.5
    assert fe.smooth_l1(2 * torch.ones(1, 1), zero[0, 0], weights=minus.view(1, 1)).item() == -1.5


# ---- autocast, determinism ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_pools_16_bit_features_and_keeps_boxes_wide(dtype):
    """A convolution's 16-bit map and float32 RoIs, of which 16 bits would lose coordinates."""
    rois = torch.tensor([[0.0, 2049, 0, 2049, 0]])
    x = torch.arange(2100.0).view(1, 1, 1, -1) % 128
    with torch.autocast("cpu", dtype=dtype):
        pooled = fe.roi_pool(x.to(dtype), rois, 1)
        assert pooled.dtype == dtype
        assert pooled.item() == 2049 % 128
        deltas = DELTAS.to(dtype).requires_grad_()
        loss = fe.smooth_l1(deltas, TARGETS, LABELS)
        assert loss.dtype == torch.float32
        loss.backward()
        assert deltas.grad.dtype == dtype
        assert len(fe.nms(BOXES.to(dtype), SCORES.to(dtype), 0.3))
        found = fe.detections(BOXES.to(dtype), PROBABILITIES.to(dtype), DELTAS.to(dtype), SIZE)
        assert found.boxes.dtype == torch.float32
        assert fe.box_iou(BOXES.to(dtype), OTHERS.to(dtype)).dtype == torch.float32
    with pytest.raises(ValueError, match="boxes must be float32 or float64"):
        fe.nms(BOXES.to(dtype), SCORES.to(dtype), 0.3)


def test_autocast_compiled():
    torch._dynamo.reset()
    weight = torch.randn(4, 4, 3, 3, generator=GENERATOR)

    def head(x, rois):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = torch.nn.functional.conv2d(x, weight, padding=1)
            pooled = fe.roi_pool(x, rois, 2, 0.125)
            loss = fe.smooth_l1(pooled.flatten(1), torch.zeros(3, 16))
            boxes = BOXES.bfloat16()
            return pooled, loss, fe.box_iou(boxes, boxes), fe.decode_boxes(0.1 * boxes, boxes)

    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    assert_same(list(compiled(FEATURES, ROIS)), list(head(FEATURES, ROIS)))


@every_operator
def test_deterministic_mode_neither_warns_nor_refuses(operator):
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results_of(operator)
            x = FEATURES.clone().requires_grad_()
            score = fe.roi_pool(x, ROIS, 2).square().sum()
            (gradient,) = torch.autograd.grad(score, x, create_graph=True)
            gradient.square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


# ---- registration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("imports", "registered"),
    [("torch, fastrcnn_engine", True), ("fastrcnn_engine, torch", False)],
)
def test_registered_on_import_where_torch_is_there(imports, registered):
    code = f"import {imports}; print(hasattr(torch.ops.fastrcnn_engine, 'roi_pool'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(registered)


def test_compiled_where_torch_came_later():
    code = (
        "import fastrcnn_engine as fe, torch; x = torch.ones(1, 1, 3, 3); r = torch.zeros(1, 5);"
        "f = torch.compile(lambda x: fe.roi_pool(x, r, 1), fullgraph=True, backend='aot_eager');"
        "print(f(x).item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "1.0", done.stderr
    assert np.isfinite(float(done.stdout))
