"""Spatial pyramid pooling against the reference's RoI pooling, level by level."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastrcnn_engine as fe
from ops.cases import ROI_POOL_CASES
from ops.checks import FACES, assert_same_bits, channels_last, give, take
from reference import roi_pool as reference

FEATURES = np.random.default_rng(3).standard_normal((2, 3, 10, 12)).astype(np.float32)
ROIS = np.float32([[0, 0, 0, 11, 9], [1, 2, 3, 9, 8], [0, 5, 5, 5, 5], [1, -4, 2, 20, 30]])
LEVELS = (1, 2, 3, 6)


def pyramid(features, rois, levels, scale) -> np.ndarray:
    pooled = [reference.roi_pool(features, rois, (n, n), scale)[0] for n in levels]
    channels = features.shape[1]
    flat = [x.reshape(len(x), channels * n * n) for x, n in zip(pooled, levels, strict=True)]
    return np.concatenate(flat, axis=1)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("case", ROI_POOL_CASES, ids=lambda case: case.name)
def test_equals_the_reference(case, face):
    with np.errstate(over="ignore"):
        features = case.features.astype(np.float32)
    expected = pyramid(features, case.rois, LEVELS, case.scale)
    for layout in (features, channels_last(features)):
        pooled = fe.spp_pool(give(layout, face), give(case.rois, face), spatial_scale=case.scale)
        assert_same_bits(take(pooled), expected)


def test_order_of_the_numbers():
    # Two channels, one RoI of 2 x 2 cells: the level of one bin, then each channel's four.
    features = np.float32([[[[1, 2], [3, 4]], [[8, 7], [6, 5]]]])
    pooled = fe.spp_pool(features, np.float32([[0, 0, 0, 1, 1]]), (1, 2))
    assert pooled.tolist() == [[4, 8, 1, 2, 3, 4, 8, 7, 6, 5]]
    assert fe.spp_pool(FEATURES, ROIS).shape == (4, 3 * 50)


@pytest.mark.parametrize("face", FACES)
def test_lists_of_boxes_and_no_boxes(face):
    boxes = [give(ROIS[ROIS[:, 0] == n, 1:], face) for n in (0, 1)]
    rows = give(ROIS[[0, 2, 1, 3]], face)
    features = give(FEATURES, face)
    assert_same_bits(
        take(fe.spp_pool(features, boxes, [2, 3], 0.5)),
        take(fe.spp_pool(features, rows, (2, 3), 0.5)),
    )
    assert fe.spp_pool(features, rows[:0]).shape == (0, 150)


def test_gradient_is_that_of_the_levels():
    features = torch.from_numpy(FEATURES).double().requires_grad_()
    rois = torch.from_numpy(ROIS)
    assert torch.autograd.gradcheck(lambda x: fe.spp_pool(x, rois, (1, 3), 0.5), features)
    weight = torch.randn(4, 3 * 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (fe.spp_pool(features, rois, LEVELS, 0.5) * weight).sum().backward()
    expected, start = np.zeros(FEATURES.shape), 0
    for n in LEVELS:
        _, argmax = reference.roi_pool(FEATURES.astype(np.float64), ROIS, (n, n), 0.5)
        part = weight[:, start : start + 3 * n * n].reshape(argmax.shape).numpy()
        expected += reference.roi_pool_backward(part, argmax, ROIS, FEATURES.shape)
        start += 3 * n * n
    np.testing.assert_allclose(features.grad, expected, rtol=0, atol=1e-12)
    assert (expected != 0).any()


@pytest.mark.parametrize("levels", [(), (0,), (1, -2), (2.0,), 3, None, ("2",)])
def test_bad_levels(levels):
    with pytest.raises(ValueError, match="levels must be one or several positive ints, got"):
        fe.spp_pool(FEATURES, ROIS, levels)


def test_the_arguments_errors_are_those_of_roi_pool():
    with pytest.raises(ValueError, match=r"boxes\[1\]: batch index must be in \[0, 2\), got 7"):
        fe.spp_pool(FEATURES, np.float32([[0, 0, 0, 1, 1], [7, 0, 0, 1, 1]]))
    with pytest.raises(TypeError, match="input must be an array"):
        fe.spp_pool([1, 2], ROIS)
