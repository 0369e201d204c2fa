"""RoI pooling as other people's code calls it: signatures, memory, errors."""

from __future__ import annotations

import inspect
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fastrcnn_engine as fe
from ops.checks import FACES, assert_same_bits, channels_last, give, take
from reference import roi_pool as reference

every_face = pytest.mark.parametrize("face", FACES)
NAN, INF = float("nan"), float("inf")

FEATURES = np.random.default_rng(1).standard_normal((2, 3, 10, 12)).astype(np.float32)
ROIS = np.float32([[0, 0, 0, 11, 9], [1, 2, 3, 9, 8], [0, 5, 5, 5, 5], [1, -4, 2, 20, 30]])
SIZE = (3, 4)
EXPECTED, EXPECTED_ARGMAX = reference.roi_pool(FEATURES, ROIS, SIZE, 0.5)


def test_arguments_are_torchvisions():
    parameters = inspect.signature(fe.roi_pool).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["input", "boxes", "output_size", "spatial_scale"]
    assert parameters["spatial_scale"].default == 1.0
    assert parameters["out"].kind is inspect.Parameter.KEYWORD_ONLY
    module = inspect.signature(fe.RoIPool.__init__).parameters
    assert list(module) == ["self", "output_size", "spatial_scale"]
    assert list(inspect.signature(fe.RoIPool.forward).parameters) == ["self", "input", "rois"]


@every_face
def test_keywords_positions_and_sizes_mean_the_same(face):
    features, rois = give(FEATURES, face), give(ROIS, face)
    assert_same_bits(take(fe.roi_pool(features, rois, SIZE, 0.5)), EXPECTED)
    by_name = fe.roi_pool(input=features, boxes=rois, output_size=[3, 4], spatial_scale=0.5)
    assert_same_bits(take(by_name), EXPECTED)
    square = take(fe.roi_pool(features, rois, 3))
    assert_same_bits(square, take(fe.roi_pool(features, rois, (3, 3), spatial_scale=1.0)))
    assert_same_bits(take(fe.roi_pool(features, rois, torch.Size(SIZE), 0.5)), EXPECTED)


def test_size_may_be_a_numpy_integer():
    size = np.int64(3)
    assert fe.roi_pool(FEATURES, ROIS, size).shape == (4, 3, 3, 3)
    assert fe.roi_pool(FEATURES, ROIS, (size, size)).shape == (4, 3, 3, 3)
    for pair in (np.array([3, 2]), torch.tensor([3, 2])):
        assert fe.roi_pool(FEATURES, ROIS, pair).shape == (4, 3, 3, 2)


def test_module():
    module = fe.RoIPool((3, 4), 0.5)
    assert repr(module) == "RoIPool(output_size=(3, 4), spatial_scale=0.5)"
    features, rois = torch.from_numpy(FEATURES), torch.from_numpy(ROIS)
    assert_same_bits(take(module(features, rois)), EXPECTED)
    assert list(module.parameters()) == []
    assert list(module.state_dict()) == []
    symbolic = torch.fx.symbolic_trace(module)  # the call is one node, as of torchvision's
    assert_same_bits(take(symbolic(features, rois)), EXPECTED)


@every_face
def test_boxes_as_a_list_per_image(face):
    order = [0, 2, 1, 3]  # rows by image
    lists = [give(ROIS[[0, 2], 1:], face), give(ROIS[[1, 3], 1:], face)]
    for boxes in (lists, tuple(lists)):
        assert_same_bits(take(fe.roi_pool(give(FEATURES, face), boxes, SIZE, 0.5)), EXPECTED[order])
    first_empty = [lists[0][:0], lists[1]]
    pooled = take(fe.roi_pool(give(FEATURES, face), first_empty, SIZE, 0.5))
    assert_same_bits(pooled, EXPECTED[[1, 3]])
    none = fe.roi_pool(give(FEATURES, face), [lists[0][:0], lists[0][:0]], SIZE)
    assert none.shape == (0, 3, 3, 4)


@every_face
def test_boxes_of_other_floats_are_used_as_float32(face):
    wide = give(ROIS.astype(np.float64), face)
    assert_same_bits(take(fe.roi_pool(give(FEATURES, face), wide, SIZE, 0.5)), EXPECTED)
    half = give(ROIS.astype(np.float16), face)
    assert_same_bits(take(fe.roi_pool(give(FEATURES, face), half, SIZE, 0.5)), EXPECTED)
    operands = give(EXPECTED, face), give(EXPECTED_ARGMAX, face)
    gradient = fe.roi_pool_backward(*operands, give(ROIS, face), FEATURES.shape)
    for rois in (wide, half):
        again = fe.roi_pool_backward(*operands, rois, FEATURES.shape)
        assert_same_bits(take(again), take(gradient))


@every_face
def test_float64_features_pool_the_same_cells(face):
    wide = give(FEATURES.astype(np.float64), face)
    values, argmax = fe.roi_pool_with_argmax(wide, give(ROIS, face), SIZE, 0.5)
    assert_same_bits(take(values), EXPECTED.astype(np.float64))
    assert_same_bits(take(argmax), EXPECTED_ARGMAX)


# ---- memory ------------------------------------------------------------


def at_an_odd_address(array: np.ndarray) -> np.ndarray:
    """The same strides, not aligned to the array's own type."""
    raw = np.zeros(array.nbytes + 1, np.uint8)
    copy = np.ndarray(array.shape, array.dtype, raw.data, 1, array.strides)
    copy[...] = array
    assert not copy.flags.aligned
    return copy


def strange_memory(array: np.ndarray) -> dict[str, np.ndarray]:
    """The same numbers under strides that are neither NCHW nor channels-last."""
    wide = np.zeros((*array.shape[:3], 2 * array.shape[3]), array.dtype)
    wide[..., ::2] = array
    return {
        "every-other-column": wide[..., ::2],
        "reversed": np.ascontiguousarray(array[..., ::-1])[..., ::-1],
        "transposed-plane": np.ascontiguousarray(array.swapaxes(2, 3)).swapaxes(2, 3),
        "channels-first": np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1),
        "fortran": np.asfortranarray(array),
        "channels-last-at-an-odd-address": at_an_odd_address(channels_last(array)),
    }


# torch has no negative strides, nor such addresses.
NUMPYS_ALONE = ("reversed", "channels-last-at-an-odd-address")


@pytest.mark.parametrize(
    ("memory", "face"),
    [
        (memory, face)
        for memory, face in itertools.product(strange_memory(FEATURES), FACES)
        if face != "torch" or memory not in NUMPYS_ALONE
    ],
)
def test_strided_features(memory, face):
    features = strange_memory(FEATURES)[memory]
    values, argmax = fe.roi_pool_with_argmax(give(features, face), give(ROIS, face), SIZE, 0.5)
    assert_same_bits(take(values), EXPECTED)
    assert_same_bits(take(argmax), EXPECTED_ARGMAX)


def test_expanded_features():
    plane = torch.from_numpy(FEATURES[:1, :1])
    expected, _ = reference.roi_pool(np.repeat(FEATURES[:1, :1], 5, axis=1), ROIS[:1], SIZE, 1)
    features = plane.expand(1, 5, 10, 12).requires_grad_()
    pooled = fe.roi_pool(features, torch.from_numpy(ROIS[:1]), SIZE)
    assert_same_bits(take(pooled), expected)
    pooled.sum().backward()
    assert features.grad.sum() == pooled.numel()


@every_face
def test_sliced_boxes(face):
    padded = np.full((8, 7), NAN, np.float32)
    padded[::2, 1:6] = ROIS
    rois = give(padded, face)[::2, 1:6]
    assert_same_bits(take(fe.roi_pool(give(FEATURES, face), rois, SIZE, 0.5)), EXPECTED)


@every_face
def test_channels_last_stays_channels_last(face):
    features = give(channels_last(FEATURES), face)
    values, argmax = fe.roi_pool_with_argmax(features, give(ROIS, face), SIZE, 0.5)
    for result in (values, argmax, fe.roi_pool(features, give(ROIS, face), SIZE, 0.5)):
        assert take(result).transpose(0, 2, 3, 1).flags.c_contiguous
    gradient = fe.roi_pool_backward(values, argmax, give(ROIS, face), FEATURES.shape)
    assert take(gradient).transpose(0, 2, 3, 1).flags.c_contiguous
    for plain in (FEATURES, FEATURES[:, :, :1, :1].copy()):  # of one cell: dense in both orders
        pooled = fe.roi_pool(give(plain, face), give(ROIS, face), SIZE, 0.5)
        assert take(pooled).flags.c_contiguous


def test_gradients_in_any_memory():
    """`.sum()` hands down a gradient of stride 0; other layers hand down slices and transposes."""
    rois = torch.from_numpy(ROIS)
    upstream = torch.randn(EXPECTED.shape, generator=torch.Generator().manual_seed(1))
    wide = torch.zeros(*EXPECTED.shape[:3], 8)
    wide[..., ::2] = upstream
    variants = {
        "contiguous": upstream,
        "channels_last": upstream.contiguous(memory_format=torch.channels_last),
        "sliced": wide[..., ::2],
        "transposed": upstream.transpose(2, 3).contiguous().transpose(2, 3),
    }
    layouts = (torch.contiguous_format, torch.channels_last)
    for layout, (name, gradient) in itertools.product(layouts, variants.items()):
        features = torch.from_numpy(FEATURES).contiguous(memory_format=layout).requires_grad_()
        fe.roi_pool(features, rois, SIZE, 0.5).backward(gradient)
        expected = reference.roi_pool_backward(
            upstream.numpy(), EXPECTED_ARGMAX, ROIS, FEATURES.shape
        )
        assert_same_bits(take(features.grad), expected, name)
    features = torch.from_numpy(FEATURES).requires_grad_()
    fe.roi_pool(features, rois, SIZE, 0.5).sum().backward()
    ones = np.ones_like(EXPECTED)
    expected = reference.roi_pool_backward(ones, EXPECTED_ARGMAX, ROIS, FEATURES.shape)
    assert_same_bits(take(features.grad), expected)


@pytest.mark.parametrize("size", [(255, 257), (256, 256), (1000, 300)])
def test_gradients_of_maps_about_as_large_as_16_bits_can_number(size):
    features = torch.zeros(1, 1, *size)
    features[..., -1, -1] = 1
    features.requires_grad_()
    whole = torch.tensor([[0.0, 0, 0, size[1], size[0]]])
    fe.roi_pool(features, whole, 1).sum().backward()
    assert torch.equal(features.grad, features.detach())


def test_gradient_flows_through_a_graph():
    conv = torch.nn.Conv2d(3, 4, 3, padding=1)
    image = torch.from_numpy(FEATURES).requires_grad_()
    features = conv(image)
    fe.roi_pool(features, torch.from_numpy(ROIS), SIZE, 0.5).square().sum().backward()
    assert image.grad.abs().sum() > 0
    assert conv.weight.grad.abs().sum() > 0


def test_no_gradient_where_none_is_asked_for():
    features, rois = torch.from_numpy(FEATURES), torch.from_numpy(ROIS).requires_grad_()
    assert not fe.roi_pool(features, rois, SIZE).requires_grad
    with torch.no_grad():
        assert not fe.roi_pool(features.clone().requires_grad_(), rois, SIZE).requires_grad
    pooled = fe.roi_pool(features.clone().requires_grad_(), rois, SIZE)
    pooled.sum().backward()
    assert rois.grad is None


def test_inputs_are_left_alone():
    features, rois = FEATURES.copy(), ROIS.copy()
    values, argmax = fe.roi_pool_with_argmax(features, rois, SIZE)
    fe.roi_pool_backward(values, argmax, rois, features.shape)
    assert_same_bits(features, FEATURES)
    assert_same_bits(rois, ROIS)


# ---- out= ------------------------------------------------------------


@every_face
@pytest.mark.parametrize("last", [False, True])
def test_out_is_written_and_returned(face, last):
    features = give(channels_last(FEATURES) if last else FEATURES, face)
    arranged = channels_last if last else np.ascontiguousarray
    out = give(arranged(np.full(EXPECTED.shape, NAN, np.float32)), face)
    argmax_out = give(arranged(np.full(EXPECTED.shape, -7, np.int32)), face)
    assert fe.roi_pool(features, give(ROIS, face), SIZE, 0.5, out=out) is out
    assert_same_bits(take(out), EXPECTED)
    out[...] = NAN
    values, argmax = fe.roi_pool_with_argmax(
        features, give(ROIS, face), SIZE, 0.5, out=out, argmax_out=argmax_out
    )
    assert values is out
    assert argmax is argmax_out
    assert_same_bits(take(out), EXPECTED)
    assert_same_bits(take(argmax_out), EXPECTED_ARGMAX)


def test_out_of_a_larger_buffer():
    """A workspace kept for the largest batch, of which each call uses the front."""
    buffer = np.full((100, *EXPECTED.shape[1:]), NAN, np.float32)
    for face in FACES:  # NumPy's memory takes the result of tensors, too
        out = buffer[:4]
        assert fe.roi_pool(give(FEATURES, face), give(ROIS, face), SIZE, 0.5, out=out) is out
        assert_same_bits(out, EXPECTED)
        assert np.isnan(buffer[4:]).all()
        out[...] = NAN


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "says"),
    [
        (np.empty((4, 3, 4, 3), np.float32), r"out must have shape \(4, 3, 3, 4\), got .4, 3, 4"),
        (np.empty((5, 3, 3, 4), np.float32), r"out must have shape .*got \(5, 3, 3, 4\)"),
        (np.empty((4, 3, 3, 4), np.float64), "out must be float32, got float64"),
        (np.empty((4, 3, 3, 4), np.int32), "out must be float32, got int32"),
        (np.empty((4, 3, 3, 4), "V0"), "out must be dense"),  # elements of no bytes
        (channels_last(np.empty((4, 3, 3, 4), np.float32)), "out must have the memory layout"),
        (np.empty((4, 3, 3, 8), np.float32)[..., ::2], "out must be dense"),
        (read_only(np.empty((4, 3, 3, 4), np.float32)), "out must be a writable array"),
    ],
)  # fmt: skip
def test_out_that_does_not_fit(out, says):
    with pytest.raises(ValueError, match=says):
        fe.roi_pool(FEATURES, ROIS, SIZE, out=out)


@pytest.mark.parametrize(
    ("argmax_out", "says"),
    [
        (np.empty((4, 3, 3, 3), np.int32), r"argmax_out must have shape \(4, 3, 3, 4\)"),
        (np.empty((4, 3, 3, 4), np.int64), "argmax_out must be int32 or uint16, got int64"),
        (channels_last(np.empty((4, 3, 3, 4), np.int32)), "argmax_out must have the memory layout"),
    ],
)
def test_argmax_out_that_does_not_fit(argmax_out, says):
    with pytest.raises(ValueError, match=says):
        fe.roi_pool_with_argmax(FEATURES, ROIS, SIZE, argmax_out=argmax_out)


def test_of_two_layouts_the_array_that_came_second_is_named():
    """A map of one cell is dense in both."""
    out, argmax_out = np.empty((4, 3, 3, 4), np.float32), np.empty((4, 3, 3, 4), np.int32)
    with pytest.raises(ValueError, match="argmax_out must have the memory layout of out "):
        fe.roi_pool_with_argmax(
            FEATURES[:, :, :1, :1].copy(), ROIS, SIZE, out=out, argmax_out=channels_last(argmax_out)
        )


def test_out_and_gradients_exclude_each_other():
    out = torch.empty(EXPECTED.shape)
    features = torch.from_numpy(FEATURES).requires_grad_()
    rois = torch.from_numpy(ROIS)
    with pytest.raises(ValueError, match="roi_pool with out has no gradient in input"):
        fe.roi_pool(features, rois, SIZE, out=out)
    with torch.no_grad():
        assert fe.roi_pool(features, rois, SIZE, out=out) is out
    for call in (fe.roi_pool, fe.roi_pool_with_argmax):
        with pytest.raises(ValueError, match="has no gradient in out, which requires one"):
            call(features.detach(), rois, SIZE, out=out.clone().requires_grad_())


def test_out_that_a_graph_has_kept_is_known_to_have_changed():
    features, rois = torch.from_numpy(FEATURES), torch.from_numpy(ROIS)
    out, weight = torch.ones(EXPECTED.shape), torch.ones((), requires_grad=True)
    argmax_out = torch.ones(EXPECTED.shape, dtype=torch.int32)
    for written in (out, argmax_out):
        score = (weight * written).sum()
        fe.roi_pool_with_argmax(features, rois, SIZE, out=out, argmax_out=argmax_out)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            score.backward()
    with torch.inference_mode():
        out = torch.empty(EXPECTED.shape)
    assert fe.roi_pool(features, rois, SIZE, out=out) is out


@every_face
def test_out_that_is_a_tensor_is_kept_book_of_whatever_the_input_is(face):
    out = torch.zeros(EXPECTED.shape)
    weights = torch.ones_like(out, requires_grad=True)
    loss = (weights * out).sum()
    fe.roi_pool(give(FEATURES, face), give(ROIS, face), SIZE, 0.5, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    one = (slice(1), slice(1))
    turned = torch.zeros(1, 1, 1, 1, dtype=torch.complex64).conj().imag
    fe.roi_pool(give(FEATURES[one], face), give(ROIS[:1], face), 1, 0.5, out=turned)
    expected = fe.roi_pool(FEATURES[one], ROIS[:1], 1, 0.5)
    assert turned.item() == expected.item() != 0


@every_face
def test_out_has_memory_of_its_own(face):
    memory = np.arange(2 * 3 * 8 * 8, dtype=np.float32)
    features, rois = memory.reshape(2, 3, 8, 8), np.float32([[0, 0, 0, 7, 7], [1, 0, 0, 7, 7]])
    same, end = features, memory[-2 * 3 * 4 :].reshape(2, 3, 2, 2)
    for out, size in ((same, 8), (end, 2)):
        with pytest.raises(ValueError, match="out must not share memory with input"):
            fe.roi_pool(give(features, face), give(rois, face), size, out=give(out, face))
    out = np.empty((2, 3, 2, 2), np.float32)
    with pytest.raises(ValueError, match="argmax_out must not share memory with out"):
        fe.roi_pool_with_argmax(
            give(features, face), give(rois, face), 2, out=give(out, face),
            argmax_out=give(out.view(np.int32), face),
        )  # fmt: skip
    of_rois = rois.reshape(-1)[4:].reshape(2, 3, 1, 1)
    with pytest.raises(ValueError, match="out must not share memory with boxes"):
        fe.roi_pool(give(features, face), give(rois, face), 1, out=give(of_rois, face))
    for array, name in ((memory, "input"), (of_rois, "boxes")):
        argmax_out = array.reshape(-1)[:6].view(np.int32).reshape(2, 3, 1, 1)
        with pytest.raises(ValueError, match=f"argmax_out must not share memory with {name}"):
            fe.roi_pool_with_argmax(
                give(features, face), give(rois, face), 1, argmax_out=give(argmax_out, face)
            )
    assert (memory == np.arange(len(memory))).all()
    behind = np.zeros(len(memory) + out.size, np.float32)  # one buffer, not the same part of it
    fe.roi_pool(
        give(behind[: len(memory)].reshape(features.shape), face), give(rois, face), 2,
        out=give(behind[len(memory) :].reshape(out.shape), face),
    )  # fmt: skip
    with pytest.raises(ValueError, match="out must not share memory with input"):  # one number
        fe.roi_pool(
            give(behind[: len(memory)].reshape(features.shape), face), give(rois, face), 2,
            out=give(behind[len(memory) - 1 : -1].reshape(out.shape), face),
        )  # fmt: skip


# ---- errors ------------------------------------------------------------


@pytest.mark.parametrize("index", [-1, -1.5, 2, 2.5, 1e6, -1e6, 3e9, 1e30, -1e30, NAN, INF, -INF])
@every_face
def test_batch_index_out_of_range_names_the_row(index, face):
    rois = ROIS.copy()
    rois[2, 0] = index
    says = rf"boxes\[2\]: batch index must be in \[0, 2\), got {index:g}".replace("+", r"\+")
    for call in (fe.roi_pool, fe.roi_pool_with_argmax):
        with pytest.raises(ValueError, match=says):
            call(give(FEATURES, face), give(rois, face), SIZE)
    argmax = give(EXPECTED_ARGMAX, face)
    with pytest.raises(ValueError, match=says):
        fe.roi_pool_backward(give(EXPECTED, face), argmax, give(rois, face), FEATURES.shape)
    if face == "torch":
        with pytest.raises(ValueError, match=says):
            fe.roi_pool(torch.from_numpy(FEATURES).requires_grad_(), torch.from_numpy(rois), SIZE)


@every_face
def test_list_with_more_entries_than_images(face):
    says = "boxes must be a list of at most one array for each of the 2 images of input, got 3"
    with pytest.raises(ValueError, match=says):
        fe.roi_pool(give(FEATURES, face), [give(ROIS[:, 1:], face)] * 3, SIZE)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.bool_])
@every_face
def test_list_with_other_numbers_than_floats(dtype, face):
    """One array alone, and one whose type the others' would have covered."""
    floats, others = give(ROIS[:, 1:], face), give(ROIS[:, 1:].astype(dtype), face)
    for i, boxes in enumerate(([others], [floats, others])):
        says = rf"boxes\[{i}\] must be float32, got {np.dtype(dtype)}"
        with pytest.raises(ValueError, match=says):
            fe.roi_pool(give(FEATURES, face), boxes, SIZE)


@every_face
def test_list_without_entries(face):
    torch.set_default_dtype(torch.float64)
    try:
        for dtype in (np.float32, np.float64):
            pooled = fe.roi_pool(give(FEATURES.astype(dtype), face), [], SIZE)
            assert pooled.shape == (0, 3, 3, 4)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fe.roi_pool(FEATURES, ROIS[:, 1:], SIZE),
         r"boxes must be \(R, 5\).*batch index.*\(4, 4\)"),
        (lambda: fe.roi_pool(FEATURES, ROIS[0], SIZE), r"boxes must have 2 dimensions.*\(5,\)"),
        (lambda: fe.roi_pool(FEATURES, ROIS[0, 0], SIZE), "boxes must have 2 dimensions"),
        (lambda: fe.roi_pool(FEATURES, [ROIS], SIZE), r"boxes\[0\] must be \(L, 4\).*\(4, 5\)"),
        (lambda: fe.roi_pool(FEATURES, [ROIS[:, 1:], ROIS[0, 1:]], SIZE),
         r"boxes\[1\] must have 2 dimensions.*\(4,\)"),
        (lambda: fe.roi_pool(FEATURES[0], ROIS, SIZE),
         r"input must have 4 dimensions.*\(3, 10, 12\)"),
        (lambda: fe.roi_pool(FEATURES[None], ROIS, SIZE), "input must have 4 dimensions"),
        *[(lambda face=face: fe.roi_pool(give(FEATURES[0], face)[..., ::2], give(ROIS, face), SIZE),
           r"input must have 4 dimensions.*\(3, 10, 6\)") for face in FACES],
        (lambda: fe.roi_pool(FEATURES.astype(np.int16), ROIS, SIZE),
         "input must be float16, bfloat16, float32 or float64, got int16"),
        (lambda: fe.roi_pool(FEATURES.astype(np.int32), ROIS, SIZE), "input must be .*, got int32"),
        (lambda: fe.roi_pool(FEATURES.astype(np.longdouble), ROIS, SIZE),
         "input must be .*, got float128"),
        (lambda: fe.roi_pool(FEATURES.astype(complex), ROIS, SIZE),
         "input must be float16, bfloat16, float32 or float64, got "),
        (lambda: fe.roi_pool(FEATURES > 0, ROIS, SIZE),
         "input must be float16, bfloat16, float32 or float64, got bool"),
        (lambda: fe.roi_pool(FEATURES, ROIS.astype(np.int64), SIZE),
         "boxes must be float32, got int64"),
        (lambda: fe.roi_pool(FEATURES, ROIS, (0, 7)), r"output_size must be .*\(0, 7\)"),
        (lambda: fe.roi_pool(FEATURES, ROIS, (7, -1)), r"output_size must be .*\(7, -1\)"),
        (lambda: fe.roi_pool(FEATURES, ROIS, (7, 7, 7)), r"output_size must be .*\(7, 7, 7\)"),
        (lambda: fe.roi_pool(FEATURES, ROIS, (7.5, 7)), r"output_size must be .*7.5"),
        (lambda: fe.roi_pool(FEATURES, ROIS, (7, 7.5)), r"output_size must be .*7.5"),
        (lambda: fe.roi_pool(FEATURES, ROIS, 7.5), r"output_size must be .*7.5"),
        (lambda: fe.roi_pool(FEATURES, ROIS, SIZE, 0.0),
         "spatial_scale must be a positive number in float32, got 0"),
        (lambda: fe.roi_pool(FEATURES, ROIS, SIZE, 1e-60),
         "spatial_scale must be a positive number in float32, got 1e-60"),
        (lambda: fe.roi_pool(FEATURES, ROIS, SIZE, 1e50),
         "spatial_scale must be a positive number in float32, got 1e\\+50"),
        (lambda: fe.roi_pool(FEATURES, ROIS, SIZE, -1), "spatial_scale must be .*-1"),
        (lambda: fe.roi_pool(FEATURES, ROIS, SIZE, NAN), "spatial_scale must be .*nan"),
        (lambda: fe.roi_pool(FEATURES, ROIS, SIZE, INF), "spatial_scale must be .*inf"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.int64, "int64"), (torch.float8_e4m3fn, "float8"), (torch.bool, "bool"),
     (torch.complex64, "complex64")],
)  # fmt: skip
def test_torch_dtypes_that_are_not_offered(dtype, name):
    features, rois = torch.from_numpy(FEATURES), torch.from_numpy(ROIS)
    with pytest.raises(ValueError, match=f"input must be float16, .* got {name}$"):
        fe.roi_pool(features.to(dtype), rois, SIZE)
    with pytest.raises(ValueError, match=f"^boxes must be float32, got {name}$"):
        fe.roi_pool(features, rois.to(dtype), SIZE)


def test_tensors_without_plain_memory_are_named():
    features, rois = torch.from_numpy(FEATURES), torch.from_numpy(ROIS)
    boxes, scores = rois[:, 1:].contiguous(), torch.rand(len(ROIS))
    pooled, argmax = fe.roi_pool_with_argmax(features, rois, SIZE)
    calls = {
        "input must be a dense tensor": lambda: fe.roi_pool(features.to_sparse(), rois, SIZE),
        "boxes must be a dense tensor": lambda: fe.roi_pool(features, rois.to_sparse(), SIZE),
        "argmax must be a dense tensor": lambda: fe.roi_pool_backward(
            pooled, argmax.to_sparse(), rois, SHAPE
        ),
        "grad_output must be a dense tensor": lambda: fe.roi_pool_backward(
            pooled.to_sparse(), argmax, rois, SHAPE
        ),
        "boxes must have 2 dim": lambda: fe.nms(torch.nested.nested_tensor([boxes]), scores, 0.5),
        "boxes must have a shape": lambda: fe.clip_boxes_to_image(
            torch.nested.nested_tensor([boxes]), (9, 9)
        ),
        "boxes must have 2 dimensions,": lambda: fe.detections(
            torch.nested.nested_tensor([boxes]), scores[:, None], None, (9, 9)
        ),
        "boxes must be a dense tensor, got torch.jagged": lambda: fe.nms(
            torch.nested.nested_tensor([boxes], layout=torch.jagged), scores, 0.5
        ),
        "argmax must have 4 dimensions": lambda: fe.roi_pool_backward(
            torch.from_numpy(EXPECTED), torch.nested.nested_tensor([boxes]), rois, FEATURES.shape
        ),
        "out must have a shape": lambda: fe.roi_pool(
            features, rois, SIZE, out=torch.nested.nested_tensor([boxes])
        ),
        "boxes must have 2 dimensions": lambda: fe.roi_pool(
            features, torch.nested.nested_tensor([rois, rois]), SIZE
        ),
        r"boxes\[0\] must have 2 dimensions, but": lambda: fe.roi_pool(
            features, [torch.nested.nested_tensor([boxes])], SIZE
        ),
        "the first array must be a dense tensor, got torch._mkldnn": lambda: fe.nms(
            boxes.to_mkldnn(), scores, 0.5
        ),
        r"the first array must be a dense tensor, got torch\._mkldnn": (
            lambda: fe.clip_boxes_to_image(boxes.to_mkldnn(), (9, 9))
        ),
        "the first array must be a dense tensor, got a nested": lambda: fe.smooth_l1(
            torch.nested.nested_tensor([boxes]), boxes
        ),
        "boxes cannot be read by DLPack": lambda: fe.roi_pool(features, rois.to("meta"), SIZE),
        "out cannot be read by DLPack": lambda: fe.roi_pool(
            features, rois, SIZE, out=torch.empty(EXPECTED.shape, device="meta")
        ),
        "input has no memory": lambda: fe.roi_pool(
            torch._efficientzerotensor(features.shape), rois, SIZE
        ),
    }
    for says, call in calls.items():
        with pytest.raises(ValueError, match=f"^{says}"):
            call()


G, A, SHAPE = EXPECTED, EXPECTED_ARGMAX, FEATURES.shape


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fe.roi_pool_backward(G[:3], A, ROIS, SHAPE),
         "argmax must have the shape of grad_output"),
        (lambda: fe.roi_pool_backward(G, A, ROIS[:3], SHAPE), "grad_output must be .*R = 3"),
        (lambda: fe.roi_pool_backward(G, A, ROIS, (2, 4, 10, 12)), "grad_output must be .*C = 4"),
        (lambda: fe.roi_pool_backward(G, A, ROIS, SHAPE[1:]),
         r"input_shape must be \(N, C, H, W\)"),
        *[(lambda scale=scale: fe.roi_pool_backward(G, A, ROIS, SHAPE, scale),
           "spatial_scale must be a positive number in float32, or 0 .*, got "
           + re.escape(f"{scale:g}"))
          for scale in (-1.0, -1e-60, 1e300, NAN, INF)],
        (lambda: fe.roi_pool_backward(G, A, ROIS, None),
         r"input_shape must be \(N, C, H, W\), got None"),
        *[(lambda dtype=dtype: fe.roi_pool_backward(G, A.astype(dtype), ROIS, SHAPE),
           f"argmax must be int32 or uint16, got {dtype.__name__}")
          for dtype in (np.int64, np.uint8, np.int16, np.uint32, np.float32)],
        (lambda: fe.roi_pool_backward(G.astype(np.int16), A, ROIS, SHAPE),
         "grad_output must be .*int16"),
        (lambda: fe.roi_pool_backward(G[0], A, ROIS, SHAPE), "grad_output must have 4 dimensions"),
        *[(lambda face=face: fe.roi_pool_backward(
            give(G[0], face), give(channels_last(A), face), give(ROIS, face), SHAPE
        ), r"grad_output must have 4 dimensions, got shape \(3, 3, 4\)") for face in FACES],
    ],
)  # fmt: skip
def test_backward_errors_name_the_argument(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_argmax_from_elsewhere_stays_inside_the_map():
    argmax = np.full(EXPECTED.shape, 5, np.int32)
    argmax[0] = [[[-1, -2, 120, 2**31 - 1]]]
    argmax[1] = -(2**31)
    gradient = fe.roi_pool_backward(np.ones_like(EXPECTED), argmax, ROIS, FEATURES.shape)
    assert gradient[0, :, 0, 5].tolist() == [12.0] * 3
    assert gradient[1, :, 0, 5].tolist() == [12.0] * 3
    assert gradient.sum() == 2 * 3 * 12

    upstream, where = torch.ones(EXPECTED.shape, requires_grad=True), torch.from_numpy(argmax)
    fe.roi_pool_backward(upstream, where, torch.from_numpy(ROIS), SHAPE).sum().backward()
    assert (upstream.grad.numpy() == (argmax == 5)).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fe.roi_pool([[1.0]], ROIS, SIZE), "input must be an array.*list"),
        (lambda: fe.roi_pool(None, ROIS, SIZE), "input must be an array.*NoneType"),
        (lambda: fe.roi_pool(FEATURES, None, SIZE), "boxes must be .*NoneType"),
        (lambda: fe.roi_pool(FEATURES, (0, 1, 2, 3, 4), SIZE), r"boxes\[0\] must be .*int"),
        (lambda: fe.roi_pool(FEATURES, ROIS, SIZE, out=[1]), "out must be an array.*list"),
        (lambda: fe.roi_pool(FEATURES, torch.from_numpy(ROIS), SIZE), "boxes must be .*Tensor"),
        (lambda: fe.roi_pool(torch.from_numpy(FEATURES), ROIS, SIZE), "boxes must be .*ndarray"),
    ],
)
def test_what_is_no_array_or_of_another_kind_is_a_type_error(call, says):
    with pytest.raises(TypeError, match=says):
        call()


@pytest.mark.cuda
def test_mixed_devices_are_refused(cuda_device):
    features, rois = torch.from_numpy(FEATURES), torch.from_numpy(ROIS)
    with pytest.raises(ValueError, match="boxes must be on the device of input"):
        fe.roi_pool(features.to(cuda_device), rois, SIZE)
    with pytest.raises(ValueError, match="boxes must be on the device of input"):
        fe.roi_pool(features, rois.to(cuda_device), SIZE)


# ---- size ------------------------------------------------------------


def sparse_zeros(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros in a file with holes: only what is touched takes memory or disk."""
    return np.memmap(path, np.float32, "w+", shape=shape)


def test_maps_of_more_than_2_31_numbers(tmp_path):
    features = sparse_zeros(tmp_path / "map", (9, 1, 16384, 16384))
    assert features.size > 2**31
    features[8, 0, 16383, 16382:] = 5, 7
    features[8, 0, 0, 0] = 3
    rois = np.float32([[8, 16380, 16380, 16383, 16383], [8, 0, 0, 3, 3], [0, 9, 9, 12, 12]])
    values, argmax = fe.roi_pool_with_argmax(features, rois, (1, 1))
    assert values.ravel().tolist() == [7, 3, 0]
    assert argmax.ravel().tolist() == [16384**2 - 1, 0, 9 * 16384 + 9]


def test_a_plane_beyond_int32_has_values_but_no_argmax(tmp_path):
    features = sparse_zeros(tmp_path / "map", (1, 1, 2**16, 2**15 + 1))
    features[0, 0, -1, -1] = 4
    corner = np.float32([[0, 2**15 - 1, 2**16 - 2, 2**15, 2**16 - 1]])
    assert fe.roi_pool(features, corner, 1).item() == 4
    with pytest.raises(ValueError, match="argmax is int32"):
        fe.roi_pool_with_argmax(features, corner, 1)
