"""The operators exported to ONNX: onnxruntime's results are ours."""

from __future__ import annotations

import functools
import io
import re
import warnings
from pathlib import Path
from typing import get_type_hints

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import fastrcnn_engine as fe
from fastrcnn_engine.ops import torch_ops
from ops.nms_cases import NMS_CASES, random_boxes
from ops.test_torch_ops import CALLS

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = torch.Generator().manual_seed(3)
ROWS = torch.export.Dim("rows")
ROIS = torch.tensor(
    [[0.0, 0, 0, 30, 30], [1, 4, 8, 70, 60], [0, 300, 300, 400, 400], [0, 9, 9, 9, 9],
     [1, 8, 5, 3, 2]],
)  # fmt: skip


def session_of(function, tensors, dynamic_shapes, *, dynamo=True):
    """The function as onnxruntime runs it, called with tensors."""

    class Module(torch.nn.Module):
        def forward(self, *arguments):
            return function(*arguments)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        if dynamo:
            program = torch.onnx.export(
                Module(), tuple(tensors), dynamo=True, verbose=False,
                dynamic_shapes={"arguments": tuple(dynamic_shapes)},
                custom_translation_table=fe.onnx_translations(),
            )  # fmt: skip
            model = program.model_proto
        else:
            names = [f"argument{i}" for i in range(len(tensors))]
            file = io.BytesIO()
            torch.onnx.export(
                Module(), tuple(tensors), file, dynamo=False, input_names=names,
                dynamic_axes=dict(zip(names, map(list, dynamic_shapes), strict=True)),
            )  # fmt: skip
            model = onnx.load_from_string(file.getvalue())
    assert {node.domain for node in model.graph.node} == {""}  # standard operators alone
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [tensor.name for tensor in session.get_inputs()]

    def run(*arguments: torch.Tensor) -> list[np.ndarray]:
        return session.run(None, dict(zip(names, [x.numpy() for x in arguments], strict=True)))

    run.operators = {node.op_type for node in model.graph.node}
    return run


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def exported(request):
    """`session_of`, by each of torch's exporters."""
    return functools.partial(session_of, dynamo=request.param == "dynamo")


@pytest.fixture(scope="module")
def pooling(exported):
    x = torch.randn(2, 4, 9, 11, generator=GENERATOR)
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    run = exported(lambda x, r: fe.roi_pool(x, r, (3, 2), 0.125), (x, ROIS), (sizes, {0: ROWS}))
    assert "MaxRoiPool" in run.operators
    return run


def test_roi_pool_of_features_after_relu_is_exact(pooling):
    for size in ((1, 4, 20, 33), (2, 4, 9, 11)):
        x = torch.randn(size, generator=GENERATOR).relu()
        x[:, 0] = 0  # whole planes without a positive number
        rois = torch.cat([ROIS] * 3)
        rois[:, 0].clamp_(max=size[0] - 1)
        expected = fe.roi_pool(x, rois, (3, 2), 0.125)
        assert (expected == 0).any() and (expected > 0).any()
        np.testing.assert_array_equal(pooling(x, rois)[0], expected.numpy())
        x += 1  # without a zero
        expected = fe.roi_pool(x, rois, (3, 2), 0.125)
        np.testing.assert_array_equal(pooling(x, rois)[0], expected.numpy())


@pytest.mark.parametrize("outlier", [0, -1e5, -3e38, -torch.inf, 3e38, torch.inf])
def test_roi_pool_of_negative_features_is_rounded_twice(pooling, outlier):
    x = torch.randn(2, 4, 9, 11, generator=GENERATOR) - 1
    x[1, 2, 0, 0] = outlier  # in no RoI
    x[0, 1, 3] = -torch.inf
    x[0, 3] = -torch.inf  # a whole plane
    expected = fe.roi_pool(x, ROIS, (3, 2), 0.125).numpy()
    for kind in (expected < 0, expected == 0, expected > 0, expected == -np.inf):
        assert kind.any()
    pooled = pooling(x, ROIS)[0]
    below = expected < 0
    np.testing.assert_array_equal(pooled[~below], expected[~below])
    # The reciprocal and its own: half a unit in the last place each time.
    np.testing.assert_allclose(
        pooled[below], expected[below], rtol=2 * np.finfo(np.float32).eps, atol=0
    )


def test_roi_pool_of_a_bin_with_the_lowest_feature_alone(pooling):
    x = torch.full((1, 4, 9, 11), -2.0)
    x[0, 0, 0, 0] = 3
    rois = torch.tensor([[0.0, 16, 16, 80, 64], [0, 300, 300, 400, 400]])
    expected = fe.roi_pool(x, rois, (3, 2), 0.125)
    assert (expected[0] == -2).all() and (expected[1] == 0).all()
    np.testing.assert_array_equal(pooling(x, rois)[0], expected.numpy())


def test_roi_pool_of_other_types(exported):
    x, rois = torch.randn(2, 4, 9, 11, generator=GENERATOR).relu().half(), ROIS.double()
    (pooled,) = exported(lambda x, r: fe.roi_pool(x, r, 2, 0.125), (x, rois), ({}, {}))(x, rois)
    expected = fe.roi_pool(x, rois, 2, 0.125).numpy()
    assert pooled.dtype == expected.dtype
    np.testing.assert_array_equal(pooled, expected)


def test_an_argmax_is_not_made_up():
    tensors = torch.randn(1, 2, 5, 5), torch.zeros(1, 5)
    function = lambda x, r: fe.roi_pool_with_argmax(x, r, 2)  # noqa: E731
    argmax = session_of(function, tensors, ({}, {}))(*tensors)[1]
    assert argmax == "ONNX has no argmax of RoI pooling"
    with pytest.raises(Exception, match="error"):
        session_of(lambda x, r: fe.roi_pool_with_argmax(x, r, 2)[1] + 1, tensors, ({}, {}))


def test_the_older_exporter_makes_no_argmax_up_either():
    tensors = torch.randn(1, 2, 5, 5), torch.zeros(1, 5)

    class Module(torch.nn.Module):
        def forward(self, x, r):
            return fe.roi_pool_with_argmax(x, r, 2)

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Module(), tensors, file, dynamo=False)
    with pytest.raises(Exception, match="ONNX_has_no_argmax_of_RoI_pooling"):
        onnxruntime.InferenceSession(file.getvalue())


def test_the_older_exporter_names_what_has_no_translation():
    with pytest.raises(NotImplementedError, match="fastrcnn_engine::encode_boxes"):
        session_of(fe.encode_boxes, (BOXES, BOXES), ({}, {}), dynamo=False)


def test_the_documentation_lists_what_is_written():
    """The operators whose calls have translations; of one of them no file has the argmax."""
    translated = {overload.name().partition(".")[0] for overload in fe.onnx_translations()}
    written = set()
    for name, (function, tensors, _) in CALLS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer
            graph = torch.jit.trace(function, tuple(x.contiguous() for x in tensors)).graph
        ours = {node.kind() for node in graph.nodes() if "fastrcnn_engine" in node.kind()}
        if ours <= translated:
            written.add(name)
    written &= set(fe.__all__) - {"roi_pool_with_argmax"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "in-other-detectors.md").read_text(encoding="utf-8")
    for text, begin in (
        (readme, r"`torch\.onnx\.export` writes"),
        (page, "Written as standard operators are"),
        (fe.onnx_translations.__doc__, "Translated:"),
    ):
        listed = re.search(rf"{begin}((?:\s+(?:and\s+)?`\w+`,?)+)", text)
        assert listed and set(re.findall(r"`(\w+)`", listed[1])) == written


def test_the_older_exporter_is_given_classes_to_ask_about(monkeypatch):
    """That of torch 2.4 asks issubclass() of the first parameter's type. Any is one since 3.11."""
    given = []
    monkeypatch.setattr(
        torch.onnx, "register_custom_op_symbolic", lambda name, write, opset: given.append(write)
    )
    torch_ops._tell_the_older_onnx_exporter.__wrapped__()
    assert given and {get_type_hints(write)["graph"] for write in given} == {object}


BOXES = torch.from_numpy(random_boxes(60, 1))
SCORES = torch.rand(60, generator=GENERATOR)
LABELS = torch.arange(60) % 7 * 11 - 20
DELTAS = 0.3 * torch.randn(60, 12, generator=GENERATOR)
DELTAS[3, 2] = 9  # more than a box may grow


@pytest.mark.parametrize("inclusive", [False, True])
def test_nms(exported, inclusive):
    """All hard cases that ONNX's operator knows: finite boxes with ordered corners."""
    run = exported(
        lambda b, s: fe.nms(b, s, 0.5, inclusive=inclusive), (BOXES, SCORES),
        ({0: ROWS}, {0: ROWS}),
    )  # fmt: skip
    assert "NonMaxSuppression" in run.operators
    for case in NMS_CASES:
        boxes, scores = torch.from_numpy(case.boxes), torch.from_numpy(case.scores)
        ordered = (boxes[:, 2:] >= boxes[:, :2]).all() and boxes.abs().lt(1e6).all()
        if not ordered or "every-size" in case.name:
            continue
        expected = fe.nms(boxes, scores, 0.5, inclusive=inclusive)
        assert run(boxes, scores)[0].tolist() == expected.tolist(), case.name


# Below zero, too, and some that are never kept.
WILD_SCORES = torch.where(torch.arange(60) % 5 == 3, torch.nan, SCORES.double() - 0.5)
WILD_SCORES[::4] = -torch.inf
# All kept with one score: in the order of the index, not class by class.
APART = 10 * torch.arange(60.0)[:, None] + torch.tensor([0.0, 0, 5, 5])


@pytest.mark.parametrize(
    ("function", "tensors"),
    [
        (lambda b, s, i: fe.batched_nms(b, s, i, 0.3), (BOXES, SCORES, LABELS)),
        (
            lambda b, s, i: fe.batched_nms(b, s, i, 0.3, inclusive=True),
            (BOXES.double(), WILD_SCORES, LABELS),
        ),
        (lambda b, s, i: fe.batched_nms(b, s, i, 0.3), (APART, torch.full((60,), 0.5), LABELS)),
        (lambda b, s: tuple(fe.nms_padded(b, s, 0.3, 5)), (BOXES, SCORES)),
        (lambda b, s: tuple(fe.nms_padded(b, s, 0.3, 100)), (BOXES, SCORES)),
        (lambda b: fe.clip_boxes_to_image(b, (50, 60), inclusive=True), (BOXES.double() - 9,)),
        (lambda b: fe.clip_boxes_to_image(b, (30.1, 40.3)), (BOXES.double(),)),
        (lambda b: fe.clip_boxes_to_image(b, (30.1, 40.3), inclusive=True), (BOXES,)),
        (lambda b: fe.box_iou(b, b.flip(0)), (BOXES,)),
        (lambda b: fe.box_iou(b, b.flip(0), inclusive=True), (BOXES.double(),)),
    ],
)
def test_exact(exported, function, tensors):
    run = exported(function, tensors, [{0: ROWS}] * len(tensors))
    for count in (len(BOXES), 17, 0):
        shorter = [t[:count] for t in tensors]
        expected = function(*shorter)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for left, right in zip(run(*shorter), expected, strict=True):
            np.testing.assert_array_equal(left, right.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decode_boxes(exported, dtype):
    tensors = DELTAS.to(dtype), BOXES.to(dtype)
    run = exported(fe.decode_boxes, tensors, ({0: ROWS}, {0: ROWS}))
    # exp of two libraries may differ in the last place; corners are at most a few hundred, but one.
    eps = torch.finfo(dtype).eps
    for count in (len(BOXES), 0):
        deltas, boxes = (x[:count] for x in tensors)
        expected = fe.decode_boxes(deltas, boxes).numpy()
        assert expected.shape == (count, 12)
        np.testing.assert_allclose(run(deltas, boxes)[0], expected, rtol=4 * eps, atol=2e3 * eps)
