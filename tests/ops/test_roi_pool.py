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


def laid_out_tensor(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    last = layout == "channels_last"
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


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


HALVES = [torch.float16, torch.bfloat16]


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
    operands = (
        give(laid_out(upstream, layout), face),
        give(laid_out(argmax, layout), face),
        give(case.rois, face),
        shape,
    )
    assert_same_bits(take(fe.roi_pool_backward(*operands)), expected)
    assert_same_bits(take(fe.roi_pool_backward(*operands, case.scale)), expected)


@every_case
@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_the_scale_changes_no_gradient(case: RoiPoolCase, layout, dtype):
    """Bins that are known are added by lanes; an argmax may lie outside of them all the same."""
    times = -(-70 // max(case.features.shape[1], 1))  # a block of channels and some more
    features = torch.from_numpy(np.tile(case.features, (1, times, 1, 1)))
    rois, shape = torch.from_numpy(case.rois), features.shape
    values, argmax = fe.roi_pool_with_argmax(features, rois, case.output_size, case.scale)
    upstream = torch.from_numpy(gradient_like(values.numpy())).to(dtype)
    rng = np.random.default_rng(3)
    anything = rng.integers(-2, shape[2] * shape[3] + 2, argmax.shape, np.int32)
    own = torch.from_numpy(np.where(rng.random(argmax.shape) < 0.02, anything, argmax))
    for where in (argmax, own, own.to(torch.uint16)):
        given = [laid_out_tensor(x, layout) for x in (upstream, where)]
        expected = fe.roi_pool_backward(*given, rois, shape)
        for scale in (case.scale, 1.7 * case.scale, 1e30):
            actual = fe.roi_pool_backward(*given, rois, shape, scale)
            assert_same_bits(actual.double().numpy(), expected.double().numpy())


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


def half(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Rounded to the 16-bit type by torch."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(array.astype(np.float32)).to(dtype)


@every_case
@every_layout
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_features_equal_the_reference(case: RoiPoolCase, layout, dtype):
    """A maximum is one of the features, so nothing is rounded on the way."""
    features = half(laid_out(case.features, layout), dtype)
    expected, expected_argmax = reference.roi_pool(
        features.float().numpy(), case.rois, case.output_size, case.scale
    )
    rois = torch.from_numpy(case.rois)
    values, argmax = fe.roi_pool_with_argmax(features, rois, case.output_size, case.scale)
    assert values.dtype == dtype
    assert_same_bits(values.float().numpy(), expected)
    assert_same_bits(take(argmax), expected_argmax)
    alone = fe.roi_pool(features, rois, case.output_size, case.scale)
    assert_same_bits(alone.float().numpy(), expected)


@every_case
@every_layout
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_gradients_are_summed_in_float32_and_rounded_once(case, layout, dtype):
    values, argmax = expected_of(case.name, np.float32)
    upstream = half(laid_out(gradient_like(values), layout), dtype)
    expected = reference.roi_pool_backward(
        upstream.float().numpy(), argmax, case.rois, case.features.shape
    )
    actual = fe.roi_pool_backward(
        upstream, torch.from_numpy(laid_out(argmax, layout)), torch.from_numpy(case.rois),
        case.features.shape,
    )  # fmt: skip
    assert actual.dtype == dtype
    assert_same_bits(actual.float().numpy(), half(expected, dtype).float().numpy())


@every_case
@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_a_narrow_argmax_says_the_same(case: RoiPoolCase, layout, dtype):
    features = torch.from_numpy(laid_out(case.features, layout)).to(dtype)
    given = torch.from_numpy(case.rois), case.output_size, case.scale
    values, argmax = fe.roi_pool_with_argmax(features, *given)
    narrow = torch.empty_like(argmax, dtype=torch.uint16)
    again, _ = fe.roi_pool_with_argmax(features, *given, argmax_out=narrow)
    assert_same_bits(again.float().numpy(), values.float().numpy())
    np.testing.assert_array_equal(narrow.numpy(), argmax.numpy().astype(np.uint16))  # -1 is 65535
    upstream = torch.from_numpy(laid_out(gradient_like(values.double().numpy()), layout)).to(dtype)
    expected = fe.roi_pool_backward(upstream, argmax, given[0], case.features.shape)
    actual = fe.roi_pool_backward(upstream, narrow, given[0], case.features.shape)
    assert_same_bits(actual.float().numpy(), expected.float().numpy())


def test_a_map_too_large_for_the_narrow_argmax_is_refused():
    features, rois = np.zeros((1, 1, 256, 256), np.float32), np.zeros((1, 5), np.float32)
    narrow = np.zeros((1, 1, 2, 2), np.uint16)
    with pytest.raises(ValueError, match="argmax is uint16: a map of 256 x 256 cells is too large"):
        fe.roi_pool_with_argmax(features, rois, 2, argmax_out=narrow)
    pooled = fe.roi_pool(torch.from_numpy(features).requires_grad_(), torch.from_numpy(rois), 2)
    pooled.sum().backward()  # autograd takes the wide one


@every_layout
@pytest.mark.parametrize("rois_per_image", [1, 2, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_few_small_and_many_rois_pool_alike(layout, rois_per_image, dtype):
    """Windows of their own, or one for all: the two ways to pack maps (cpp/src/roi_pool.cpp)."""
    rng = np.random.default_rng(rois_per_image)
    rois = []
    for image in range(3):
        corners = rng.uniform(0, 380, (rois_per_image, 2))
        sides = rng.uniform(0, 60, (rois_per_image, 2))
        index = np.full((rois_per_image, 1), image)
        rois.append(np.hstack([index, corners, corners + sides]))
    rois = np.concatenate(rois).astype(np.float32)
    features = laid_out(rng.standard_normal((3, 37, 26, 25)), layout)
    features = torch.from_numpy(features).to(dtype)
    given = rois, (6, 5), 1 / 16
    expected, expected_argmax = reference.roi_pool(features.double().numpy(), *given)
    values, argmax = fe.roi_pool_with_argmax(features, torch.from_numpy(rois), *given[1:])
    assert_same_bits(values.double().numpy(), expected)
    assert_same_bits(take(argmax), expected_argmax)


@every_case
@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_values_of_many_rois_equal_the_reference(case: RoiPoolCase, layout, dtype):
    """So many that maxima of 2 x 2 cells are made first (kQuadCost in cpp/src/roi_pool.cpp)."""
    with np.errstate(over="ignore"):
        features = torch.from_numpy(laid_out(case.features, layout)).to(dtype)
    given = case.output_size, case.scale
    expected, _ = reference.roi_pool(features.double().numpy(), case.rois, *given)
    times = 100
    rois = torch.from_numpy(np.tile(case.rois, (times, 1)))
    values = fe.roi_pool(features, rois, *given)
    assert_same_bits(values.double().numpy(), np.tile(expected, (times, 1, 1, 1)))


@every_layout
def test_denormals_that_count_as_zeros(layout):
    """Then the first of several is the maximum of many RoIs too, whatever its sign."""
    rng = np.random.default_rng(12)
    features = rng.choice([0, 1e-40, -1e-40, -1], (1, 64, 20, 30)).astype(np.float32)
    features = torch.from_numpy(laid_out(features, layout))
    corners = rng.uniform(0, 300, (300, 2))
    rois = np.hstack([np.zeros((300, 1)), corners, corners + rng.uniform(0, 200, (300, 2))])
    rois = torch.from_numpy(rois.astype(np.float32))
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine has no such mode")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the mode is this thread's alone
    try:
        alone = fe.roi_pool(features, rois, 7, 1 / 16)
        values, _ = fe.roi_pool_with_argmax(features, rois, 7, 1 / 16)
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    assert_same_bits(alone.numpy(), values.numpy())


@every_layout
@pytest.mark.parametrize("size", [(255, 257), (256, 256), (260, 270)], ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_maps_of_more_cells_than_16_bits_can_number(layout, dtype, size):
    """And of just as many, where the last number but one is that of a cell, the last of none."""
    features = half(np.random.default_rng(3).standard_normal((1, 3, *size)), dtype)
    features[..., -1, -1] = 9
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    height, width = size
    ends = width - 1, height - 1
    rois = np.array([[0, 0, 0, *ends], [0, 200, 250, *ends], [0, *ends, *ends]], np.float32)
    expected, where = reference.roi_pool(features.float().numpy(), rois, (5, 4), 1.0)
    values, argmax = fe.roi_pool_with_argmax(features, torch.from_numpy(rois), (5, 4))
    assert_same_bits(values.float().numpy(), expected)
    assert_same_bits(take(argmax), where)
    alone = fe.roi_pool(features, torch.from_numpy(rois), (5, 4))
    assert_same_bits(alone.float().numpy(), expected)
    if height * width < 2**16:
        narrow = torch.empty_like(argmax, dtype=torch.uint16)
        fe.roi_pool_with_argmax(features, torch.from_numpy(rois), (5, 4), argmax_out=narrow)
        np.testing.assert_array_equal(narrow.numpy(), where.astype(np.uint16))
        upstream = half(gradient_like(expected), dtype)
        wide = fe.roi_pool_backward(upstream, argmax, torch.from_numpy(rois), features.shape)
        same = fe.roi_pool_backward(upstream, narrow, torch.from_numpy(rois), features.shape)
        assert torch.equal(same, wide)


@every_layout
@pytest.mark.parametrize("channels", [70, 192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_a_large_result_is_what_its_parts_are(layout, channels, dtype):
    """Large results are written past the caches (cpp/src/roi_pool.cpp)."""
    rng = np.random.default_rng(6)
    corners = rng.uniform(0, 300, (1400, 2))
    rois = np.hstack([np.zeros((1400, 1)), corners, corners + rng.uniform(0, 150, (1400, 2))])
    rois = torch.from_numpy(rois.astype(np.float32))
    features = torch.from_numpy(rng.standard_normal((1, channels, 20, 20))).to(dtype)
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    values, argmax = fe.roi_pool_with_argmax(features, rois, (7, 7), 1 / 16)
    assert values.nbytes > 8 << 20
    for part in range(0, 1400, 50):
        few = slice(part, part + 50)
        expected, where = fe.roi_pool_with_argmax(features, rois[few], (7, 7), 1 / 16)
        assert torch.equal(values[few], expected)
        assert torch.equal(argmax[few], where)
    assert torch.equal(fe.roi_pool(features, rois, (7, 7), 1 / 16), values)


@every_layout
@pytest.mark.parametrize("off", ["out", "argmax_out"])
def test_a_large_result_may_begin_where_no_vector_may(layout, off):
    """One of two: the other is aligned, and what is written past the caches must be."""
    rng = np.random.default_rng(7)
    rois = np.hstack([np.zeros((150, 1)), np.sort(rng.uniform(0, 300, (150, 4)))])
    rois = torch.from_numpy(rois.astype(np.float32))
    features = torch.from_numpy(rng.standard_normal((1, 192, 20, 20)).astype(np.float32))
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    values, argmax = fe.roi_pool_with_argmax(features, rois, (7, 7), 1 / 16)
    assert values.nbytes + argmax.nbytes > 8 << 20
    given = {"out": torch.empty_like(values), "argmax_out": torch.empty_like(argmax)}
    aligned = given[off]
    memory = aligned.new_empty(aligned.numel() + 1)
    given[off] = memory.as_strided(aligned.shape, aligned.stride(), 1)
    fe.roi_pool_with_argmax(features, rois, (7, 7), 1 / 16, **given)
    assert torch.equal(given["out"], values) and torch.equal(given["argmax_out"], argmax)


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


def check_cuda(features, rois, size, scale, device, name=""):
    """Forward, with each kind of argmax and without, and backward, against the CPU."""

    def same(there, here):
        assert there.device.type == "cuda"
        both = [t.cpu().to(torch.float64).numpy() for t in (there, here)]
        assert_same_bits(*both, name)

    values, argmax = fe.roi_pool_with_argmax(features, rois, size, scale)
    there = features.to(device), rois.to(device), size, scale
    values_there, argmax_there = fe.roi_pool_with_argmax(*there)
    narrow_there = torch.empty_like(argmax_there, dtype=torch.uint16)
    again_there, _ = fe.roi_pool_with_argmax(*there, argmax_out=narrow_there)
    for result in (values_there, again_there, fe.roi_pool(*there)):
        same(result, values)
    same(argmax_there, argmax)
    same(narrow_there, argmax.to(torch.uint16))
    upstream = torch.from_numpy(gradient_like(values.double().numpy())).to(values.dtype)
    expected = fe.roi_pool_backward(upstream, argmax, rois, features.shape)
    for cells in (argmax_there, narrow_there):
        same(fe.roi_pool_backward(upstream.to(device), cells, there[1], features.shape), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@every_layout
@pytest.mark.cuda
def test_cuda_equals_cpu(dtype, layout, cuda_device):
    for case in ROI_POOL_CASES:
        features = torch.from_numpy(laid_out(case.features, layout)).to(dtype)
        rois = torch.from_numpy(case.rois)
        check_cuda(features, rois, case.output_size, case.scale, cuda_device, case.name)
        # So often that they are pooled from slabs, which few RoIs are not.
        often = -(-32 * features.shape[0] // max(rois.shape[0], 1))
        check_cuda(
            features, rois.repeat(often, 1), case.output_size, case.scale, cuda_device, case.name
        )


@pytest.mark.parametrize("size", [(38, 63), (100, 90), (200, 300)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@every_layout
@pytest.mark.cuda
def test_cuda_equals_cpu_from_slabs_and_without(size, dtype, layout, cuda_device):
    """Maps of which 64 bytes of every cell fit shared memory, 16 bytes, and none."""
    rng = np.random.default_rng(11)
    features = torch.from_numpy(laid_out(rng.standard_normal((2, 40, *size)), layout)).to(dtype)
    corners = rng.uniform(0, 16 * size[1], (200, 2))
    images = rng.integers(0, 2, (200, 1))
    rois = np.hstack([images, corners, corners + rng.uniform(0, 700, (200, 2))])
    check_cuda(features, torch.from_numpy(rois.astype(np.float32)), 7, 1 / 16, cuda_device)


@every_layout
@pytest.mark.cuda
def test_cuda_autograd_equals_the_cpus(layout, cuda_device):
    for case in ROI_POOL_CASES:
        features = torch.from_numpy(laid_out(features_of(case.name, np.float32), layout))
        rois, gradients = torch.from_numpy(case.rois), []
        for device in ("cpu", cuda_device):
            x = features.detach().to(device).requires_grad_()  # on the CPU else features itself
            pooled = fe.roi_pool(x, rois.to(device), case.output_size, case.scale)
            upstream = torch.from_numpy(gradient_like(take(pooled.detach().cpu())))
            pooled.backward(upstream.to(device))
            gradients.append(take(x.grad.cpu()))
        assert_same_bits(gradients[1], gradients[0], case.name)


@pytest.mark.cuda
def test_cuda_gives_zero_where_no_image_is(cuda_device):
    """The device cannot raise for a bad batch index without waiting; it must stay inside memory."""
    features = torch.ones(2, 3, 4, 4, device=cuda_device)
    rows = [[i, 0, 0, 3, 3] for i in (-1, 2, 1e6, -1e30, float("nan"), float("inf"), 1)]
    for often in (1, 64):  # directly, and from slabs
        rois = torch.tensor(rows, device=cuda_device).repeat(often, 1)
        values, argmax = fe.roi_pool_with_argmax(features, rois, 2)
        has_image = torch.arange(len(rois)) % len(rows) == len(rows) - 1
        assert (values[~has_image] == 0).all()
        assert (argmax[~has_image] == -1).all()
        assert (values[has_image] == 1).all()


@pytest.mark.cuda
def test_a_cuda_graph_replays_pooling_its_gradient_and_the_loss(cuda_device):
    """Nothing allocates behind torch's back, waits, or remembers the first run's numbers."""
    rng = np.random.default_rng(12)

    def images(count: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((count, 2, 40, 19, 30)).astype(np.float32))

    first, second = images(2).to(cuda_device)
    corners = rng.uniform(0, 400, (128, 2))
    rois = np.hstack([rng.integers(0, 2, (128, 1)), corners, corners + 100]).astype(np.float32)
    rois = torch.from_numpy(rois).to(cuda_device)
    labels = torch.arange(128, device=cuda_device) % 5

    def step(features: torch.Tensor) -> list[torch.Tensor]:
        features = features.detach().requires_grad_()
        pooled = fe.roi_pool(features, rois, 7, 1 / 16)
        deltas = pooled.flatten(1)[:, :20]
        loss = fe.smooth_l1(deltas, torch.zeros_like(deltas[:, :4]), labels)
        return [pooled.detach(), loss.detach(), torch.autograd.grad(loss, features)[0]]

    expected = [[result.cpu() for result in step(x)] for x in (first, second)]
    static, stream = first.clone(), torch.cuda.Stream()
    with torch.cuda.stream(stream):  # torch wants a run on a stream of its own before it captures
        step(static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(static)
    for features, wanted in zip((second, first, second), (1, 0, 1), strict=True):
        static.copy_(features)
        graph.replay()
        for result, right in zip(results, expected[wanted], strict=True):
            assert torch.equal(result.cpu(), right)
