"""Hypothesis: whatever the bits, the operators neither crash nor differ from the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastrcnn_engine as fe
from ops.checks import assert_same_bits, channels_last
from reference import box_codec, nms, roi_pool, smooth_l1
from reference.detections import detections


def any_bits(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    """float32 arrays of arbitrary bit patterns: NaN of every kind, denormals, infinities."""
    return hnp.arrays(np.uint32, shape, elements=st.integers(0, 2**32 - 1)).map(
        lambda bits: bits.view(np.float32)
    )


def numbers(shape: tuple[int, ...], limit: float = 100.0) -> st.SearchStrategy[np.ndarray]:
    """Mostly quarters, so that halves, ties and equal overlaps are common."""
    quarters = st.integers(int(-4 * limit), int(4 * limit)).map(lambda i: i / 4)
    anything = st.floats(-limit, limit, width=32)
    return hnp.arrays(np.float32, shape, elements=quarters | anything)


def either(shape: tuple[int, ...], limit: float = 100.0) -> st.SearchStrategy[np.ndarray]:
    return st.one_of(numbers(shape, limit), any_bits(shape))


side = st.integers(0, 9)


@st.composite
def pooling(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[int, int], float]:
    images, channels = draw(st.integers(1, 3)), draw(st.integers(0, 4) | st.integers(30, 35))
    height, width = draw(side), draw(side)
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    features = np.round(2 * rng.standard_normal((images, channels, height, width))) / 2
    features[rng.uniform(size=features.shape) < draw(st.sampled_from([0, 0.2]))] = np.nan
    features[rng.uniform(size=features.shape) < draw(st.sampled_from([0, 0.2]))] = -np.inf
    rows = draw(st.integers(0, 6))
    boxes = draw(either((rows, 4), 20))
    index = draw(hnp.arrays(np.float32, (rows, 1), elements=st.floats(0, images - 0.25, width=32)))
    size = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    scale = draw(st.sampled_from([1.0, 1 / 16, 0.7, 1e-3, 1e30]))
    return features, np.hstack([index, boxes]), size, scale


@given(pooling(), st.sampled_from([np.float32, np.float64]), st.booleans())
def test_roi_pool(call, dtype, last):
    features, rois, size, scale = call
    features = features.astype(dtype)
    values, argmax = fe.roi_pool_with_argmax(
        channels_last(features) if last else features, rois, size, scale
    )
    expected_values, expected_argmax = roi_pool.roi_pool(features, rois, size, scale)
    assert_same_bits(values, expected_values)
    assert_same_bits(argmax, expected_argmax)
    upstream = np.random.default_rng(0).standard_normal(values.shape).astype(dtype)
    gradient = fe.roi_pool_backward(upstream, argmax, rois, features.shape, scale)
    expected = roi_pool.roi_pool_backward(upstream, argmax, rois, features.shape)
    assert_same_bits(gradient, expected)


@given(any_bits((5,)))
def test_any_row_is_pooled_or_refused_by_name(row):
    features = np.arange(40, dtype=np.float32).reshape(2, 1, 4, 5)
    rois = np.stack([np.float32([0, 0, 0, 1, 1]), row])
    inside = row[0] > -1 and row[0] < 2
    if not inside:
        with pytest.raises(ValueError, match=r"boxes\[1\]: batch index"):
            fe.roi_pool(features, rois, 2)
        return
    expected, _ = roi_pool.roi_pool(features, rois, (2, 2), 1.0)
    assert_same_bits(fe.roi_pool(features, rois, 2), expected)


@st.composite
def ranked_boxes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = draw(st.integers(0, 20))
    boxes = draw(either((count, 4), 6))
    if draw(st.booleans()):
        low, high = boxes[:, :2], boxes[:, 2:]
        boxes = np.hstack([np.minimum(low, high), np.maximum(low, high)])
    scores = draw(either((count,), 2))
    label = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2)
    idxs = draw(hnp.arrays(np.int64, (count,), elements=label))
    return boxes, scores, idxs


@given(ranked_boxes(), st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]), st.booleans())
def test_nms(call, threshold, inclusive):
    boxes, scores, idxs = call
    kept = fe.nms(boxes, scores, threshold, inclusive=inclusive)
    assert kept.tolist() == nms.nms(boxes, scores, threshold, inclusive)
    kept = fe.batched_nms(boxes, scores, idxs, threshold, inclusive=inclusive)
    assert kept.tolist() == nms.batched_nms(boxes, scores, idxs, threshold, inclusive)


@given(st.integers(0, 5).flatmap(lambda n: either((n, 4))), either((4, 4)), st.booleans())
def test_box_iou_and_clip(boxes, others, inclusive):
    actual = fe.box_iou(boxes, others, inclusive=inclusive)
    np.testing.assert_array_equal(actual, nms.box_iou(boxes, others, inclusive))
    clipped = fe.clip_boxes_to_image(boxes, (30.5, 20), inclusive=inclusive)
    np.testing.assert_array_equal(clipped, box_codec.clip(boxes, (30.5, 20), inclusive))


@given(either((3, 4)), either((3, 4)))
def test_encode(targets, proposals):
    """Refused by name, or finite centres: never a silent NaN."""

    def has_size(boxes: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            sides = boxes[:, 2:] - boxes[:, :2]
        return (np.isfinite(boxes).all(axis=1)) & ((sides > 0) & np.isfinite(sides)).all(axis=1)

    good = has_size(proposals) & has_size(targets)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        name = "proposals" if not has_size(proposals)[row] else "reference_boxes"
        with pytest.raises(ValueError, match=rf"{name}\[{row}\]"):
            fe.encode_boxes(targets, proposals)
        return
    deltas = fe.encode_boxes(targets, proposals)
    expected = box_codec.encode(targets, proposals)
    np.testing.assert_allclose(deltas[:, :2], expected[:, :2], rtol=1e-6)
    np.testing.assert_allclose(deltas[:, 2:], expected[:, 2:], rtol=1e-6, atol=1e-6)


@given(either((4, 8), 8), numbers((4, 4), 1000))
def test_decode(deltas, boxes):
    actual = fe.decode_boxes(deltas, boxes)
    assert actual.dtype == np.float32
    # The reference in double tells how large the intermediate numbers were.
    exact = box_codec.decode(deltas.astype(np.float64), boxes)
    with np.errstate(all="ignore"):
        plain = box_codec.decode(deltas, boxes)
    ordinary = np.abs(deltas).reshape(4, 2, 4).max(axis=2) < 1e6
    ordinary = np.repeat(ordinary, 4, axis=1)
    shift = np.abs(deltas).astype(np.float64).reshape(4, 2, 4)[..., :2].max(axis=2)
    magnitude = np.repeat((shift + 64) * 2000, 4, axis=1) + 1000
    with np.errstate(all="ignore"):
        error = np.abs(actual - exact)
    assert (error <= 8 * np.finfo(np.float32).eps * magnitude)[ordinary].all()
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(plain))


@given(st.integers(0, 6).flatmap(lambda n: st.tuples(
    either((n, 6), 3), either((n, 2), 3), hnp.arrays(np.int64, n, elements=st.integers(-2, 4)),
)))  # fmt: skip
def test_smooth_l1(call):
    deltas, targets, labels = call
    bad = np.flatnonzero((labels < 0) | (labels > 2))
    if len(bad):
        with pytest.raises(ValueError, match=rf"labels\[{bad[0]}\] must be in \[0, 3\)"):
            fe.smooth_l1(deltas, targets, labels)
        return
    with np.errstate(all="ignore"):
        loss, gradient = smooth_l1.smooth_l1(deltas, targets, labels)
        expected = np.float32(loss)
    actual = fe.smooth_l1(deltas, targets, labels)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    one = np.ones((), np.float32)
    actual = fe.smooth_l1_backward(one, deltas, targets, labels)
    # Half of the smallest number there is may go either way.
    smallest = np.finfo(np.float32).smallest_subnormal
    np.testing.assert_allclose(actual, gradient, rtol=1e-6, atol=smallest)


@given(
    st.integers(0, 8).flatmap(lambda n: st.tuples(numbers((n, 4), 40), either((n, 3), 1))),
    st.booleans(),
    st.sampled_from([-np.inf, 0.05, 0.5]),
    st.integers(0, 20),
)
def test_detections_without_deltas(call, inclusive, threshold, most):
    """Without exp every number is exact, so everything must be equal."""
    boxes, scores = call
    options = {
        "score_threshold": threshold, "max_detections": most, "inclusive": inclusive,
    }  # fmt: skip
    found = fe.detections(boxes, scores, None, (30, 35), **options)
    expected = detections(boxes, scores, None, (30, 35), **options)
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right)


@given(any_bits((5, 4)), any_bits((5, 3)), any_bits((5, 12)))
def test_detections_of_any_bits(boxes, scores, deltas):
    found = fe.detections(boxes, scores, deltas, (30, 35), score_threshold=-np.inf)
    assert ((found.boxes >= 0) & (found.boxes <= 35)).all()
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert (found.scores == scores[found.rows, found.labels]).all()
    assert (found.labels >= 1).all()
