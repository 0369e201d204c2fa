"""Network outputs to detections, the whole chain against the reference."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import fastrcnn_engine as fe
from ops.checks import FACES, give, take
from ops.nms_cases import random_boxes
from reference import detections as reference

every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_face = pytest.mark.parametrize("face", FACES)
NAN, INF = float("nan"), float("inf")
SIZE = (90, 120)


@dataclass(frozen=True)
class DetectionCase:
    name: str
    boxes: np.ndarray  # (R, 4)
    scores: np.ndarray  # (R, K + 1)
    deltas: np.ndarray | None  # (R, 4 (K + 1)), or (R, 4)
    options: dict = field(default_factory=dict)


def _random(name: str, rows: int, classes: int, seed: int = 0, **options) -> DetectionCase:
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.full(classes + 1, 0.3), rows).astype(np.float32)
    deltas = 0.3 * rng.standard_normal((rows, 4 * (classes + 1)))
    boxes = random_boxes(rows, seed + 1)
    return DetectionCase(name, boxes, scores.reshape(rows, classes + 1), deltas, options)


def _without_deltas(case: DetectionCase) -> DetectionCase:
    return DetectionCase(case.name + "-no-deltas", case.boxes, case.scores, None, case.options)


def _class_agnostic(case: DetectionCase) -> DetectionCase:
    deltas = case.deltas[:, 4:8].copy()
    return DetectionCase(case.name + "-agnostic", case.boxes, case.scores, deltas, case.options)


def _coarse(name: str) -> DetectionCase:
    """Scores from a grid of ten, so that ties are everywhere, also across classes."""
    case = _random(name, 60, 4, 3)
    return DetectionCase(name, case.boxes, np.round(case.scores, 1), case.deltas, {})


def _with_nan() -> DetectionCase:
    case = _random("nan-scores-and-deltas", 60, 4, 4)
    rng = np.random.default_rng(5)
    case.scores[rng.uniform(size=case.scores.shape) < 0.2] = NAN
    case.deltas[rng.uniform(size=case.deltas.shape) < 0.05] = NAN
    case.boxes[7, 2] = NAN
    return case


def _nan_in_each_corner() -> DetectionCase:
    case = _random("nan-in-each-corner", 12, 3, 7)
    case.boxes[range(4), range(4)] = NAN
    return DetectionCase(case.name, case.boxes, np.full((12, 4), 0.25, np.float32), None)


_MANY = _random("many", 300, 20, 1)

DETECTION_CASES = [
    _MANY,
    _without_deltas(_MANY),
    _class_agnostic(_MANY),
    _random("inclusive", 300, 20, 2, inclusive=True),
    _random("one-class", 40, 1),
    _random("crowd-of-one-class", 2200, 1, 8, max_detections=2000, score_threshold=0.0),
    _random("background-only", 40, 0),
    _random("one-proposal", 1, 3),
    _random("no-proposals", 0, 3),
    _without_deltas(_random("no-proposals", 0, 3)),
    _class_agnostic(_random("no-proposals", 0, 3)),
    _random("at-most-7", 100, 5, max_detections=7),
    _random("at-most-0", 100, 5, max_detections=0),
    _random("at-most-a-billion", 50, 3, max_detections=10**9),
    _random("nothing-passes", 50, 3, score_threshold=1.0),
    _random("everything-passes", 50, 3, score_threshold=-INF),
    _random("no-suppression", 50, 3, nms_threshold=1.0),
    _random("all-overlap-suppresses", 50, 3, nms_threshold=0.0),
    _coarse("tied-scores"),
    _with_nan(),
    _class_agnostic(_with_nan()),
    _nan_in_each_corner(),
    DetectionCase(
        "deltas-explode",
        random_boxes(20, 6),
        _random("", 20, 2).scores,
        np.tile([50.0, -1e30, 1e30, 50.0, INF, -INF, -INF, INF], (20, 2))[:, :12],
    ),
]
every_case = pytest.mark.parametrize("case", DETECTION_CASES, ids=lambda case: case.name)


def operands(case: DetectionCase, dtype, face) -> list:
    arrays = [case.boxes, case.scores, case.deltas]
    with np.errstate(over="ignore"):
        return [x if x is None else give(x.astype(dtype), face) for x in arrays]


def tolerance(dtype) -> float:
    """exp of two libraries may differ in the last place; corners are at most a few hundred."""
    return 2e3 * np.finfo(dtype).eps


def places_of(case: DetectionCase) -> int:
    return min(case.options.get("max_detections", 100), 3000)


@every_case
@every_dtype
@every_face
def test_equal_to_the_reference(case: DetectionCase, dtype, face):
    arrays = operands(case, dtype, face)
    found = fe.detections(*arrays, SIZE, **case.options)
    plain = [x if x is None else take(x) for x in arrays]
    boxes, scores, labels, rows = reference.detections(*plain, SIZE, **case.options)
    assert type(found.boxes) is type(arrays[0])
    np.testing.assert_array_equal(take(found.rows), rows)
    np.testing.assert_array_equal(take(found.labels), labels)
    np.testing.assert_array_equal(take(found.scores), scores)
    np.testing.assert_allclose(take(found.boxes), boxes, rtol=0, atol=tolerance(dtype))
    assert [take(x).dtype for x in found] == [dtype, dtype, np.int64, np.int64]
    assert take(found.boxes).shape == (len(rows), 4)


@every_case
@every_dtype
@every_face
def test_padded_are_the_same_and_then_nothing(case: DetectionCase, dtype, face):
    arrays = operands(case, dtype, face)
    places = places_of(case)
    options = {**case.options, "max_detections": places}
    padded = fe.detections_padded(*arrays, SIZE, **options)
    found = fe.detections(*arrays, SIZE, **options)
    count = len(found.scores)
    assert int(padded.count) == count
    for name, blank in (("boxes", 0), ("scores", 0), ("labels", 0), ("rows", -1)):
        result, expected = take(getattr(padded, name)), take(getattr(found, name))
        assert (result.dtype, len(result)) == (expected.dtype, places)
        np.testing.assert_array_equal(result[:count], expected)
        assert (result[count:] == blank).all()


@every_dtype
@pytest.mark.cuda
def test_cuda_finds_the_same(dtype, cuda_device):
    for case in DETECTION_CASES:
        here = operands(case, dtype, "torch")
        there = [x if x is None else x.to(cuda_device) for x in here]
        places = {"max_detections": places_of(case)}
        for detect, options in (
            (fe.detections, case.options), (fe.detections_padded, case.options | places),
        ):  # fmt: skip
            found, expected = (detect(*given, SIZE, **options) for given in (there, here))
            for name in expected._fields:
                result, wanted = getattr(found, name).cpu(), getattr(expected, name)
                if name == "boxes":
                    torch.testing.assert_close(result, wanted, rtol=0, atol=tolerance(dtype))
                else:
                    assert torch.equal(result, wanted), f"{case.name}: {name}"


@pytest.mark.cuda
def test_a_cuda_graph_replays_pooling_decoding_and_suppression(cuda_device):
    """Captured once, replayed on other features, boxes and scores than it was captured with."""
    generator = torch.Generator().manual_seed(3)
    count = 700  # in nms one list, and too long for one block

    def operands_of(run: int) -> list[torch.Tensor]:
        rows = torch.from_numpy(random_boxes(count, run))
        rois = torch.cat([torch.zeros(count, 1), rows], dim=1)
        features = torch.randn(1, 16, 20, 30, generator=generator)
        return [features, rois, torch.randn(16 * 9, 5 * 4, generator=generator) / 100]

    def detect(features, rois, weight):
        pooled = fe.roi_pool(features, rois, 3, 1 / 4).flatten(1)
        deltas = pooled @ weight
        scores = pooled[:, :5].softmax(dim=1)
        moved = fe.decode_boxes(deltas, rois[:, 1:])[:, 4:8].contiguous()
        moved = fe.clip_boxes_to_image(moved, SIZE)
        kept = fe.nms_padded(moved, scores[:, 1].contiguous(), 0.3, 50)
        return fe.detections_padded(rois[:, 1:], scores, deltas, SIZE, max_detections=2000), kept

    static = [x.to(cuda_device) for x in operands_of(0)]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        detect(*static)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found, kept = detect(*static)
    for run in range(1, 4):
        for target, source in zip(static, operands_of(run), strict=True):
            target.copy_(source)
        graph.replay()
        again, kept_again = detect(*static)
        assert 0 < int(again.count) < 2000
        for left, right in zip((*found, *kept), (*again, *kept_again), strict=True):
            assert torch.equal(left, right)


@every_dtype
def test_score_at_the_threshold_is_no_detection(dtype):
    at = dtype(0.05)
    scores = np.array([[0.9, at], [0.9, np.nextafter(at, dtype(1))]], dtype)
    boxes = np.array([[0, 0, 9, 9], [50, 50, 60, 60]], dtype)
    assert fe.detections(boxes, scores, None, SIZE).rows.tolist() == [1]


def test_background_is_never_detected():
    scores = np.float32([[1.0, 0.0]] * 3)
    assert len(fe.detections(random_boxes(3, 1), scores, None, SIZE).rows) == 0


def test_equal_scores_come_by_proposal_then_class():
    boxes = np.float32([[0, 0, 9, 9], [50, 50, 60, 60]])
    scores = np.float32([[0.2, 0.4, 0.4], [0.2, 0.4, 0.4]])
    found = fe.detections(boxes, scores, None, SIZE)
    assert list(zip(found.rows, found.labels, strict=True)) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    best = fe.detections(boxes, scores, None, SIZE, max_detections=3)
    assert list(zip(best.rows, best.labels, strict=True)) == [(0, 1), (0, 2), (1, 1)]


def test_classes_do_not_suppress_each_other():
    boxes = np.float32([[0, 0, 9, 9], [0, 0, 9, 9]])
    scores = np.float32([[0.1, 0.6, 0.3], [0.1, 0.5, 0.4]])
    found = fe.detections(boxes, scores, None, SIZE)
    assert list(zip(found.rows, found.labels, strict=True)) == [(0, 1), (1, 2)]


def test_defaults_are_those_of_the_plan():
    case = _MANY
    arrays = operands(case, np.float32, "numpy")
    stated = {"score_threshold": 0.05, "nms_threshold": 0.3, "max_detections": 100}
    for left, right in zip(
        fe.detections(*arrays, SIZE),
        fe.detections(*arrays, SIZE, **stated, inclusive=False),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


B, S, D = random_boxes(4, 2), np.full((4, 3), 0.3, np.float32), np.zeros((4, 12), np.float32)


@pytest.mark.parametrize(
    ("rows", "shape"), [(4, (0, 12)), (4, (4, 0)), (4, (0, 0)), (0, (0, 8)), (0, (0, 0))]
)
@every_face
def test_deltas_without_elements_are_not_none(rows, shape, face):
    arrays = [give(array, face) for array in (B[:rows], S[:rows], np.zeros(shape, np.float32))]
    says = re.escape(f"deltas must be ({rows}, 12), or ({rows}, 4) for all classes, got {shape}")
    with pytest.raises(ValueError, match=says):
        fe.detections(*arrays, SIZE)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fe.detections(B[:, :3], S, D, SIZE), r"boxes must be \(R, 4\).*\(4, 3\)"),
        (lambda: fe.detections(B, S[:3], D, SIZE), "scores.*boxes.*4.*3"),
        (lambda: fe.detections(B, S[:, 0], D, SIZE), "scores must have 2 dimensions"),
        (lambda: fe.detections(B, S[:, :0], D[:, :0], SIZE), r"scores must be \(R, K \+ 1\)"),
        (lambda: fe.detections(B, S, D[:, :8], SIZE),
         r"deltas must be \(4, 12\), or \(4, 4\) for all classes, got \(4, 8\)"),
        (lambda: fe.detections(B, S, D[:3], SIZE), r"deltas must be .*, got \(3, 12\)"),
        (lambda: fe.detections(B, S, D[:3, :4], SIZE), r"deltas must be .*, got \(3, 4\)"),
        (lambda: fe.detections(B, S.astype(np.float64), D, SIZE),
         "scores must be float32, got float64"),
        (lambda: fe.detections(B.astype(int), S, D, SIZE), "boxes must be .*, got int64"),
        (lambda: fe.detections(B, S, D, (0, 5)), "image_size.*positive.*0"),
        (lambda: fe.detections(B, S, D, (0.5, 5), inclusive=True), r"size.*at least.*\(0.5, 5\)"),
        (lambda: fe.detections(B, S, D, (3, 5, 5)), r"image_size must be \(height, width\), got"),
        (lambda: fe.detections(B, S, D, SIZE, nms_threshold=2),
         r"nms_threshold must be in \[0, 1\], got 2"),
        (lambda: fe.detections(B, S, D, SIZE, score_threshold=NAN), "score_threshold.*nan"),
        (lambda: fe.detections(B, S, D, SIZE, max_detections=-1),
         "max_detections must be an int >= 0, got -1"),
        (lambda: fe.detections(B, S, D, SIZE, max_detections=None),
         "max_detections must be .* got None"),
        (lambda: fe.detections_padded(B, S, D, SIZE, max_detections=2.5),
         "max_detections must be .* got 2.5"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, says):
    with pytest.raises(ValueError, match=says):
        call()
