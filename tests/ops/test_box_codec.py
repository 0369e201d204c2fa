"""Box encoding, decoding and clipping against the reference."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch

import fastrcnn_engine as fe
from ops.checks import FACES, assert_no_worse, give, take
from ops.nms_cases import random_boxes
from reference import box_codec as reference

every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_face = pytest.mark.parametrize("face", FACES)
INF, NAN = float("inf"), float("nan")


def random_deltas(rows: int, groups: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 4 * groups))


@every_dtype
@every_face
@pytest.mark.parametrize("rows", [0, 1, 7, 300])
def test_encode_equals_the_reference(dtype, face, rows):
    targets, proposals = (random_boxes(rows, seed).astype(dtype) for seed in (1, 2))
    actual = take(fe.encode_boxes(give(targets, face), give(proposals, face)))
    plain = reference.encode(targets, proposals)
    exact = reference.encode(targets.astype(np.longdouble), proposals)
    assert_no_worse(actual, plain, exact)


@every_dtype
@every_face
@pytest.mark.parametrize("groups", [0, 1, 2, 21])
def test_decode_equals_the_reference(dtype, face, groups):
    boxes = random_boxes(50, 3).astype(dtype)
    deltas = random_deltas(50, groups, 4).astype(dtype)
    actual = take(fe.decode_boxes(give(deltas, face), give(boxes, face)))
    plain = reference.decode(deltas, boxes)
    exact = reference.decode(deltas.astype(np.longdouble), boxes)
    assert_no_worse(actual, plain, exact)


@every_dtype
def test_zero_deltas_return_the_box(dtype):
    """Widths have no + 1 in either direction; integer corners come back exactly."""
    boxes = np.random.default_rng(1).integers(0, 500, (60, 4)).astype(dtype)
    np.testing.assert_array_equal(fe.decode_boxes(np.zeros((60, 4), dtype), boxes), boxes)


@every_dtype
def test_decode_inverts_encode(dtype):
    targets, proposals = (random_boxes(200, seed).astype(dtype) for seed in (5, 6))
    back = fe.decode_boxes(fe.encode_boxes(targets, proposals), proposals)
    np.testing.assert_allclose(back, targets, atol=100 * np.finfo(dtype).eps * 150)


def test_deltas_of_size_are_held_before_exp():
    box = np.float32([[10, 20, 26, 52]])
    for huge in (50, 1e30, INF):
        x1, y1, x2, y2 = fe.decode_boxes(np.float32([[0, 0, huge, huge]]), box)[0]
        assert x2 - x1 == pytest.approx(16 * 62.5, rel=1e-6)
        assert y2 - y1 == pytest.approx(32 * 62.5, rel=1e-6)
    x1, _, x2, _ = fe.decode_boxes(np.float32([[0, 0, 50, 0]]), box, max_log_ratio=math.log(2))[0]
    assert x2 - x1 == pytest.approx(32, rel=1e-6)
    held = fe.decode_boxes(np.float32([[0, 0, -INF, -200]]), box)
    assert held.tolist() == [[18, 36, 18, 36]]


def test_a_nan_delta_reaches_only_its_own_box():
    deltas = np.float32([[NAN, 0, 0, 0, 0, 0, 0, NAN, 0, 0, 0, 0]])
    decoded = fe.decode_boxes(deltas, np.float32([[0, 0, 4, 8]]))
    assert np.isnan(decoded[0]).tolist() == [True, False] * 2 + [False, True] * 2 + [False] * 4
    assert decoded[0, 8:].tolist() == [0, 0, 4, 8]


@pytest.mark.parametrize(
    "bad",
    [
        [3, 3, 3, 9], [3, 3, 9, 3], [9, 3, 3, 9], [3, 9, 9, 3], [NAN, 3, 9, 9], [3, 3, 9, INF],
        [-INF, 3, 9, 9], [-3e38, 0, 3e38, 9],
    ],
)  # fmt: skip
@pytest.mark.parametrize("argument", ["proposals", "reference_boxes"])
@every_face
def test_encode_names_the_row_that_has_no_size(bad, argument, face):
    boxes = {"proposals": random_boxes(6, 1), "reference_boxes": random_boxes(6, 2)}
    boxes[argument][4] = bad
    with pytest.raises(ValueError, match=rf"{argument}\[4\]"):
        fe.encode_boxes(give(boxes["reference_boxes"], face), give(boxes["proposals"], face))


def boxes_to_clip() -> np.ndarray:
    return np.concatenate([
        random_boxes(50, 7) * 2 - 40,
        [[-5, -5, -1, -1], [80, 60, 90, 70], [0, 0, 79, 59], [79.5, 59.5, 80, 60], [9, 9, 3, 3]],
        [[NAN, 0, INF, -INF], [-INF, -INF, INF, INF], [-0.0, 0.0, 1e30, -1e30]],
    ])  # fmt: skip


@every_dtype
@every_face
@pytest.mark.parametrize("inclusive", [False, True])
def test_clip_equals_the_reference(dtype, face, inclusive):
    boxes = boxes_to_clip().astype(dtype)
    for size in ((60, 80), (1, 1)):
        actual = fe.clip_boxes_to_image(give(boxes, face), size, inclusive=inclusive)
        np.testing.assert_array_equal(take(actual), reference.clip(boxes, size, inclusive))


def test_clip_holds_all_four_sides():
    """The original clips the left of x1 and the right of x2 only, which leaves x1 > x2."""
    boxes = torch.tensor([[-9.0, -9, -2, -2], [90, 70, 99, 88]])
    assert fe.clip_boxes_to_image(boxes, (60, 80)).tolist() == [[0, 0, 0, 0], [80, 60, 80, 60]]
    assert fe.clip_boxes_to_image(boxes, (60, 80), inclusive=True).tolist() == [
        [0, 0, 0, 0],
        [79, 59, 79, 59],
    ]


@every_face
def test_clip_takes_any_leading_dimensions(face):
    boxes = random_boxes(12, 8)
    flat = take(fe.clip_boxes_to_image(give(boxes, face), (50, 50)))
    stacked = take(fe.clip_boxes_to_image(give(boxes.reshape(2, 3, 2, 4), face), (50, 50)))
    np.testing.assert_array_equal(stacked, flat.reshape(2, 3, 2, 4))
    assert fe.clip_boxes_to_image(give(boxes[:0], face), (50, 50)).shape == (0, 4)
    assert take(fe.clip_boxes_to_image(give(boxes[0], face), (50, 50))).tolist() == flat[0].tolist()


def test_clip_leaves_its_input_alone():
    boxes = random_boxes(5, 9) - 50
    before = boxes.copy()
    fe.clip_boxes_to_image(boxes, (10, 10))
    np.testing.assert_array_equal(boxes, before)


@every_dtype
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.cuda
def test_cuda_clips_like_the_cpu(dtype, inclusive, cuda_device):
    boxes = give(boxes_to_clip().astype(dtype), "torch")
    clipped = fe.clip_boxes_to_image(boxes.to(cuda_device), (60, 80), inclusive=inclusive)
    expected = fe.clip_boxes_to_image(boxes, (60, 80), inclusive=inclusive)
    np.testing.assert_array_equal(take(clipped), expected.numpy())


@every_dtype
@pytest.mark.parametrize("coded", ["encode", "decode"])
@pytest.mark.cuda
def test_cuda_encodes_and_decodes_like_the_cpu(dtype, coded, cuda_device):
    """Where exp and log of the two may differ in the last place."""
    boxes, others = (random_boxes(300, seed).astype(dtype) for seed in (3, 5))
    first = others if coded == "encode" else random_deltas(300, 5, 4).astype(dtype)
    operator = getattr(fe, f"{coded}_boxes")
    here = [give(x, "torch") for x in (first, boxes)]
    actual, plain = (take(operator(*(x.to(d) for x in here))) for d in (cuda_device, "cpu"))
    assert_no_worse(actual, plain, getattr(reference, coded)(first.astype(np.longdouble), boxes))


def test_positional_arguments():
    names = {
        "encode_boxes": ["reference_boxes", "proposals"],
        "decode_boxes": ["deltas", "boxes"],
        "clip_boxes_to_image": ["boxes", "size"],  # torchvision's
    }
    for operator, expected in names.items():
        parameters = inspect.signature(getattr(fe, operator)).parameters.values()
        assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == expected


BOXES, DELTAS = random_boxes(4, 2), np.zeros((4, 8), np.float32)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fe.encode_boxes(BOXES, BOXES[:3]), "reference_boxes.*proposals.*3.*4"),
        (lambda: fe.encode_boxes(BOXES[:, :3], BOXES),
         r"reference_boxes must be \(R, 4\).*\(4, 3\)"),
        (lambda: fe.encode_boxes(BOXES.astype(np.float64), BOXES),
         "reference_boxes must be float32, got float64"),
        (lambda: fe.encode_boxes(BOXES.astype(int), BOXES.astype(int)),
         "proposals must be .*int64"),
        (lambda: fe.decode_boxes(DELTAS, BOXES[:3]), "deltas.*3.*4"),
        (lambda: fe.decode_boxes(DELTAS[:, :6], BOXES),
         r"deltas must be \(R, 4 \* classes\).*\(4, 6\)"),
        (lambda: fe.decode_boxes(DELTAS[0], BOXES), r"deltas must have 2 dimensions.*\(8,\)"),
        (lambda: fe.decode_boxes(DELTAS, BOXES, max_log_ratio=0),
         "max_log_ratio must be positive, got 0"),
        (lambda: fe.decode_boxes(DELTAS, BOXES, max_log_ratio=NAN),
         "max_log_ratio must be positive, got nan"),
        (lambda: fe.clip_boxes_to_image(BOXES[:, :3], (9, 9)), r"boxes must be .*4.*\(4, 3\)"),
        (lambda: fe.clip_boxes_to_image(BOXES, (0, 9)), "size.*positive.*0"),
        (lambda: fe.clip_boxes_to_image(BOXES, (9, -1)), "size.*positive.*-1"),
        (lambda: fe.clip_boxes_to_image(BOXES, (12345678.5, -0.1)), r"\(12345678.5, -0.1\)$"),
        (lambda: fe.clip_boxes_to_image(BOXES, (9, NAN)), "size.*nan"),
        (lambda: fe.clip_boxes_to_image(BOXES, (9, 0.5), inclusive=True),
         r"size must be at least \(1, 1\) where boxes are inclusive, got \(9, 0.5\)"),
        (lambda: fe.clip_boxes_to_image(BOXES, 9), r"size must be \(height, width\), got 9"),
        (lambda: fe.clip_boxes_to_image(BOXES.astype(np.int64), (9, 9)), "boxes must be .*int64"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_clip_passes_the_gradient_of_sides_that_stay() -> None:
    boxes = torch.tensor([[-3.0, 2.0, 40.0, 9.0]], requires_grad=True)
    fe.clip_boxes_to_image(boxes, (20, 30)).sum().backward()
    assert boxes.grad.tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (4,)])
def test_clipped_boxes_can_be_changed_in_place(shape) -> None:
    boxes = torch.full(shape, 2.0, requires_grad=True)
    clipped = fe.clip_boxes_to_image(boxes, (20, 30))
    clipped[..., 2:] += 1
    clipped.mul_(2)
    clipped.sum().backward()
    assert torch.equal(boxes.grad, torch.full(shape, 2.0))


@pytest.mark.parametrize(("call", "names"), [
    (lambda b: fe.box_iou(b.detach(), b), "box_iou has no gradient in boxes2"),
    (lambda b: fe.encode_boxes(b.detach(), b), "encode_boxes has no gradient in proposals"),
    (lambda b: fe.decode_boxes(b.detach(), b), "decode_boxes has no gradient in boxes"),
    (lambda b: fe.smooth_l1(b, b), "smooth_l1 has no gradient in targets"),
    (lambda b: fe.smooth_l1(b, b.detach(), weights=b), "smooth_l1 has no gradient in weights"),
])  # fmt: skip
def test_a_gradient_is_refused_rather_than_lost(call, names) -> None:
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0]], requires_grad=True)
    for way in (call, torch.compile(call, backend="eager"), torch.func.grad(call)):
        with pytest.raises(ValueError, match=names):
            way(boxes)
    with torch.no_grad():
        call(boxes)


def test_a_gradient_of_the_first_argument_alone_is_refused_too() -> None:
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0]], requires_grad=True)
    for operator, name in (
        (fe.box_iou, "boxes1"), (fe.encode_boxes, "reference_boxes"), (fe.decode_boxes, "deltas"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"has no gradient in {name}"):
            operator(boxes, boxes.detach())
