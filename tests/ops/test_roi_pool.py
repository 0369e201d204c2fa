"""RoI pooling and its gradient against the reference, over the whole list of hard cases."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import fastrcnn_engine as fe
from ops.cases import ROI_POOL_CASES, RoiPoolCase
from ops.checks import FACES, assert_same_bits, channels_last, give, take
from reference import roi_pool as reference

every_case = pytest.mark.parametrize("case", ROI_POOL_CASES, ids=lambda case: case.name)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_layout = pytest.mark.parametrize("layout", ["nchw", "channels_last"])
every_face = pytest.mark.parametrize("face", FACES)


@cache
def features_of(name: str, dtype: type) -> np.ndarray:
    case = next(case for case in ROI_POOL_CASES if case.name == name)
    with np.errstate(over="ignore"):
        return case.features.astype(dtype)


@cache
def expected_of(name: str, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    case = next(case for case in ROI_POOL_CASES if case.name == name)
    return reference.roi_pool(features_of(name, dtype), case.rois, case.output_size, case.scale)


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    return channels_last(array) if layout == "channels_last" else array


@every_case
@every_dtype
@every_layout
@every_face
def test_values_and_argmax_equal_the_reference(case: RoiPoolCase, dtype, layout, face):
    features = give(laid_out(features_of(case.name, dtype), layout), face)
    rois = give(case.rois, face)
    values, argmax = fe.roi_pool_with_argmax(features, rois, case.output_size, case.scale)
    expected_values, expected_argmax = expected_of(case.name, dtype)
    assert_same_bits(take(values), expected_values)
    assert_same_bits(take(argmax), expected_argmax)
    alone = fe.roi_pool(features, rois, case.output_size, case.scale)
    assert type(alone) is type(features)
    assert_same_bits(take(alone), expected_values)


def gradient_like(values: np.ndarray) -> np.ndarray:
    return np.random.default_rng(99).standard_normal(values.shape).astype(values.dtype)


@every_case
@every_dtype
@every_layout
@every_face
def test_backward_equals_the_reference(case: RoiPoolCase, dtype, layout, face):
    """The argmax is the reference's, so the backward stands on its own feet."""
    values, argmax = expected_of(case.name, dtype)
    upstream = gradient_like(values)
    shape = case.features.shape
    expected = reference.roi_pool_backward(upstream, argmax, case.rois, shape)
    actual = fe.roi_pool_backward(
        give(laid_out(upstream, layout), face),
        give(laid_out(argmax, layout), face),
        give(case.rois, face),
        shape,
    )
    assert_same_bits(take(actual), expected)


@every_case
@every_layout
def test_autograd_equals_the_reference(case: RoiPoolCase, layout):
    values, argmax = expected_of(case.name, np.float32)
    upstream = gradient_like(values)
    features = give(laid_out(features_of(case.name, np.float32), layout), "torch").requires_grad_()
    pooled = fe.roi_pool(features, torch.from_numpy(case.rois), case.output_size, case.scale)
    pooled.backward(torch.from_numpy(upstream))
    expected = reference.roi_pool_backward(upstream, argmax, case.rois, case.features.shape)
    assert_same_bits(take(features.grad), expected)


SMOOTH = [case for case in ROI_POOL_CASES if case.smooth and case.features.size and case.rois.size]


@pytest.mark.parametrize("case", SMOOTH, ids=lambda case: case.name)
def test_gradient_is_the_finite_difference(case: RoiPoolCase):
    features = torch.from_numpy(case.features).clone().requires_grad_()
    rois = torch.from_numpy(case.rois)
    assert torch.autograd.gradcheck(
        lambda x: fe.roi_pool(x, rois, case.output_size, case.scale),
        (features,),
        nondet_tol=0.0,
        fast_mode=case.features.size > 400,  # every derivative where that is affordable
    )


def test_gradient_reaches_exactly_the_maxima():
    """A tolerance would let a backward of zeros pass; this does not."""
    case = next(case for case in ROI_POOL_CASES if case.name == "voc-like")
    features = torch.from_numpy(case.features).requires_grad_()
    pooled = fe.roi_pool(features, torch.from_numpy(case.rois), case.output_size, case.scale)
    pooled.sum().backward()
    _, argmax = expected_of(case.name, np.float64)
    hit = np.zeros((*case.features.shape[:2], case.features.shape[2] * case.features.shape[3]), int)
    for row, image in zip(argmax, case.rois[:, 0].astype(int), strict=True):
        for channel in range(row.shape[0]):
            cells = row[channel].ravel()
            np.add.at(hit[image, channel], cells[cells >= 0], 1)
    assert hit.sum() > 1000
    np.testing.assert_array_equal(features.grad.numpy(), hit.reshape(case.features.shape))


def test_reversed_roi_keeps_its_gradient():
    """The original's backward (roi_pooling_layer.cu) recomputes the window and loses it."""
    features = torch.zeros(1, 1, 5, 5, requires_grad=True)
    fe.roi_pool(features, torch.tensor([[0.0, 3, 3, 1, 1]]), (2, 2)).sum().backward()
    assert features.grad[0, 0, 3, 3] == 4
    assert features.grad.sum() == 4


def test_overshoot_cell_gets_its_gradient():
    """57 cells in 7 bins end at cell 58; the original's backward drops that one too."""
    features = torch.arange(60.0).reshape(1, 1, 1, 60).requires_grad_()
    pooled = fe.roi_pool(features, torch.tensor([[0.0, 0, 0, 56, 0]]), (1, 7))
    assert pooled[0, 0, 0, -1] == 57
    pooled.sum().backward()
    assert features.grad[0, 0, 0, 57] == 1


def test_backward_is_the_same_every_time():
    """Ill-conditioned sums: any other order of the additions would show in the last bits."""
    rng = np.random.default_rng(4)
    rois = np.hstack([np.zeros((200, 1)), rng.uniform(0, 4, (200, 4))]).astype(np.float32)
    features = rng.standard_normal((1, 8, 5, 5)).astype(np.float32)
    _, argmax = fe.roi_pool_with_argmax(features, rois, (7, 7))
    sizes = 10.0 ** rng.integers(-6, 6, argmax.shape)
    upstream = (rng.standard_normal(argmax.shape) * sizes).astype(np.float32)
    first = fe.roi_pool_backward(upstream, argmax, rois, features.shape)
    for _ in range(100):
        assert_same_bits(fe.roi_pool_backward(upstream, argmax, rois, features.shape), first)


@every_dtype
@every_layout
@pytest.mark.cuda
def test_cuda_equals_cpu(dtype, layout, cuda_device):
    for case in ROI_POOL_CASES:
        features = give(laid_out(features_of(case.name, dtype), layout), "torch")
        rois = torch.from_numpy(case.rois)
        size, scale = case.output_size, case.scale
        values, argmax = fe.roi_pool_with_argmax(features, rois, size, scale)
        on_cuda, rois_on_cuda = features.to(cuda_device), rois.to(cuda_device)
        values_cuda, argmax_cuda = fe.roi_pool_with_argmax(on_cuda, rois_on_cuda, size, scale)
        assert values_cuda.device == on_cuda.device
        assert_same_bits(take(values_cuda), take(values), case.name)
        assert_same_bits(take(argmax_cuda), take(argmax), case.name)
        upstream = torch.from_numpy(gradient_like(take(values)))
        expected = fe.roi_pool_backward(upstream, argmax, rois, features.shape)
        actual = fe.roi_pool_backward(
            upstream.to(cuda_device), argmax_cuda, rois_on_cuda, features.shape
        )
        assert_same_bits(take(actual), take(expected), case.name)


@pytest.mark.cuda
def test_cuda_gives_zero_where_no_image_is(cuda_device):
    """The device cannot raise for a bad batch index without waiting; it must stay inside memory."""
    features = torch.ones(2, 3, 4, 4, device=cuda_device)
    rows = [[i, 0, 0, 3, 3] for i in (-1, 2, 1e6, -1e30, float("nan"), float("inf"), 1)]
    rois = torch.tensor(rows, device=cuda_device)
    values, argmax = fe.roi_pool_with_argmax(features, rois, 2)
    assert (values[:-1] == 0).all()
    assert (argmax[:-1] == -1).all()
    assert (values[-1] == 1).all()
