"""The references against numbers worked out by hand or stated by the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reference.box_codec import clip, decode, encode
from reference.detections import detections
from reference.nms import batched_nms, box_iou, nms
from reference.roi_pool import bin_edges, nearest_cell, roi_pool, roi_pool_backward, window
from reference.smooth_l1 import smooth_l1

BELOW_HALF = float(np.nextafter(np.float32(0.5), np.float32(0)))


@pytest.mark.parametrize(
    ("coordinate", "scale", "cell"),
    [
        (0.5, 1, 1), (1.5, 1, 2), (2.5, 1, 3), (-0.5, 1, -1), (-2.5, 1, -3), (BELOW_HALF, 1, 0),
        (-BELOW_HALF, 1, 0), (8, 1 / 16, 1), (24, 1 / 16, 2), (8388609, 1, 8388609),
        (-8388611, 1, -8388611), (5, 0.7, 4), (15, 0.7, 11), (1e30, 1, 10**9), (-3e9, 1, -(10**9)),
        (math.inf, 1, 10**9), (-math.inf, 1, -(10**9)), (math.nan, 1, -(10**9)),
    ],
)  # fmt: skip
def test_nearest_cell(coordinate, scale, cell):
    assert nearest_cell(coordinate, scale) == cell


def test_window_is_inclusive_and_never_empty():
    assert window(np.float32([0, 1, 2, 4, 6]), 1) == (1, 2, 4, 5)
    assert window(np.float32([0, 4, 6, 1, 2]), 1) == (4, 6, 1, 1)


def overshooting(bins: int, kind: type) -> list[int]:
    sides = []
    for side in range(1, 1025):
        step = kind(kind(side) / kind(bins))
        if math.ceil(float(kind(kind(bins) * step))) > side:
            sides.append(side)
    return sides


def test_bins_reach_too_far_for_the_sizes_the_original_does():
    sides = [s for s in range(1, 1025) if bin_edges(0, s, 7, 4096)[-1][1] > s]
    assert sides[:7] == [57, 114, 121, 228, 235, 242, 249]
    assert len(sides) == 34
    assert sides == overshooting(7, np.float32)
    assert overshooting(7, np.float64)[:5] == [29, 58, 116, 123, 225]
    for bins in (1, 2, 3, 4, 5, 6, 8, 10):
        assert all(bin_edges(0, s, bins, 4096)[-1][1] == s for s in range(1, 1025))
    thirteen = [s for s in range(1, 1025) if bin_edges(0, s, 13, 4096)[-1][1] > s]
    assert thirteen[:7] == [7, 14, 28, 56, 112, 115, 125]
    assert bin_edges(0, 62, 14, 4096)[7][0] == 30


def test_bins_of_exact_division_tile_and_others_overlap():
    assert bin_edges(1, 4, 2, 9) == [(1, 3), (3, 5)]
    assert bin_edges(0, 5, 2, 9) == [(0, 3), (2, 5)]
    assert bin_edges(-2, 4, 2, 9) == [(0, 0), (0, 2)]
    assert bin_edges(0, 1, 3, 9) == [(0, 1), (0, 1), (0, 1)]


def test_pooling_by_hand():
    features = np.float32([[[[1, 5, 2], [7, 7, 0], [3, 4, 9]]]])
    values, argmax = roi_pool(features, np.float32([[0, 0, 0, 2, 2], [0, 1, 1, 9, 9]]), (2, 2), 1)
    assert values[0, 0].tolist() == [[7, 7], [7, 9]]  # 3 cells in 2 bins: [0, 2) and [1, 3)
    assert argmax[0, 0].tolist() == [[3, 4], [3, 8]]  # first of two equal cells, row by row
    assert values[1, 0].tolist() == [[9, 0], [0, 0]]  # 9 cells from 1: [1, 6) and [5, 10)
    assert argmax[1, 0].tolist() == [[8, -1], [-1, -1]]


def test_pooling_of_values_that_are_no_numbers():
    nan, inf = math.nan, math.inf
    features = np.float64([[[[nan, -inf, -1e300, nan]]]])
    rois = np.float32([[0, 0, 0, 1, 0], [0, 1, 0, 3, 0], [0, 3, 0, 3, 0]])
    values, argmax = roi_pool(features, rois, (1, 1), 1)
    assert argmax.ravel().tolist() == [0, 2, 3]
    assert np.isnan(values[0, 0, 0, 0])
    assert values[1, 0, 0, 0] == -1e300
    with pytest.raises(ValueError, match="row 0"):
        roi_pool(features, np.float32([[1, 0, 0, 0, 0]]), (1, 1), 1)


def test_backward_by_hand():
    argmax = np.int32([[[[0, 2]]], [[[2, -1]]]])
    gradient = np.float32([[[[1, 2]]], [[[4, 8]]]])
    rois = np.zeros((2, 5), np.float32)
    result = roi_pool_backward(gradient, argmax, rois, (1, 1, 1, 3))
    assert result.ravel().tolist() == [1, 0, 6]


def test_smooth_l1_by_hand():
    deltas = np.float64([[9, 9, 0.5, 3.0], [7, 7, 7, 7]])
    targets = np.float64([[0, 1.0], [0, 0]])
    loss, gradient = smooth_l1(deltas, targets, np.array([1, 0]))
    assert loss == (0.125 + 1.5) / 2
    assert gradient.tolist() == [[0, 0, 0.25, 0.5], [0, 0, 0, 0]]
    assert smooth_l1(np.zeros((0, 4)), np.zeros((0, 2)))[0] == 0
    assert smooth_l1(np.float64([[1.0]]), np.float64([[0.0]]))[0] == 0.5
    assert smooth_l1(np.float64([[-2.0]]), np.float64([[0.0]]), beta=0.0)[0] == 2


def test_codec_by_hand():
    proposal, target = np.float64([[0, 0, 10, 20]]), np.float64([[5, 10, 25, 20]])
    deltas = encode(target, proposal)
    np.testing.assert_allclose(deltas, [[1.0, 0.25, math.log(2), math.log(0.5)]])
    np.testing.assert_allclose(decode(deltas, proposal), target)
    wide = decode(np.float64([[0, 0, 50, 0]]), proposal)
    np.testing.assert_allclose(wide[0, 2] - wide[0, 0], 10 * 1000 / 16)
    assert clip(np.float32([[-1, 3, 99, 30]]), (20, 50)).tolist() == [[0, 3, 50, 20]]
    assert clip(np.float32([[-1, 3, 99, 30]]), (20, 50), True).tolist() == [[0, 3, 49, 19]]


def test_overlap_and_suppression_by_hand():
    boxes = np.float32([[0, 0, 2, 1], [0, 0, 1, 1], [8, 8, 9, 9], [8, 8, 8, 8]])
    assert box_iou(boxes, boxes)[0].tolist() == [1, 0.5, 0, 0]
    assert np.isnan(box_iou(boxes, boxes)[3, 3])
    assert box_iou(boxes, boxes, True)[0, 1] == np.float32(4 / 6)
    scores = np.float32([0.3, 0.4, 0.4, np.nan])
    assert nms(boxes, scores, 0.5) == [1, 2, 0]
    assert nms(boxes, scores, 0.4) == [1, 2]
    assert batched_nms(boxes, scores, np.array([0, 1, 0, 1]), 0.4) == [1, 2, 0]


def test_detections_by_hand():
    boxes = np.float32([[0, 0, 9, 9], [1, 0, 9, 9], [50, 50, 70, 70]])
    scores = np.float32([[0.1, 0.6, 0.3], [0.1, 0.5, 0.4], [0.9, 0.05, 0.05]])
    found, score, label, row = detections(boxes, scores, None, (60, 60), score_threshold=0.04)
    assert list(zip(row, label, strict=True)) == [(0, 1), (1, 2), (2, 1), (2, 2)]
    assert score.tolist() == np.float32([0.6, 0.4, 0.05, 0.05]).tolist()
    assert found[2].tolist() == [50, 50, 60, 60]
    assert len(detections(boxes, scores, None, (60, 60), score_threshold=0.05)[0]) == 2
