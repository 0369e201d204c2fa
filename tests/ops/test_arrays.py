"""The kinds of array every operator takes: NumPy, torch, other DLPack; also without torch."""

from __future__ import annotations

import ctypes
import inspect
import subprocess
import sys
import textwrap
import threading
import time
import types
import typing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

import fastrcnn_engine as fe
from fastrcnn_engine import _core
from ops.checks import assert_same_bits, channels_last, take
from ops.nms_cases import random_boxes

RNG = np.random.default_rng(7)
FEATURES = RNG.standard_normal((2, 3, 10, 12)).astype(np.float32)
ROIS = np.float32([[0, 0, 0, 11, 9], [1, 2, 3, 9, 8]])
VALUES, ARGMAX = fe.roi_pool_with_argmax(FEATURES, ROIS, (2, 2))
BOXES, OTHERS = random_boxes(6, 1), random_boxes(6, 2)
SCORES = RNG.uniform(size=6).astype(np.float32)
PROBABILITIES = RNG.dirichlet([1, 1, 1], 6).astype(np.float32)
DELTAS = (0.1 * RNG.standard_normal((6, 12))).astype(np.float32)
LABELS = np.array([0, 1, 2, 1, 0, 2])
ONE = np.array(1, np.float32)

# Every operator as (function of converted arrays, arrays).
CALLS = {
    "roi_pool": (lambda x, r: fe.roi_pool(x, r, 2), [FEATURES, ROIS]),
    "roi_pool_with_argmax": (lambda x, r: fe.roi_pool_with_argmax(x, r, 2), [FEATURES, ROIS]),
    "roi_pool_backward": (
        lambda g, a, r: fe.roi_pool_backward(g, a, r, FEATURES.shape), [VALUES, ARGMAX, ROIS],
    ),
    "spp_pool": (lambda x, r: fe.spp_pool(x, r, (1, 2)), [FEATURES, ROIS]),
    "smooth_l1": (fe.smooth_l1, [DELTAS, OTHERS, LABELS]),
    "smooth_l1_weights": (
        lambda d, t, n, w: fe.smooth_l1(d, t, n, weights=w), [DELTAS, OTHERS, LABELS, BOXES],
    ),
    "smooth_l1_backward": (fe.smooth_l1_backward, [ONE, DELTAS, OTHERS, LABELS]),
    "encode_boxes": (fe.encode_boxes, [OTHERS, BOXES]),
    "decode_boxes": (fe.decode_boxes, [DELTAS, BOXES]),
    "clip_boxes_to_image": (lambda b: fe.clip_boxes_to_image(b, (50, 60)), [BOXES]),
    "box_iou": (fe.box_iou, [BOXES, OTHERS]),
    "nms": (lambda b, s: fe.nms(b, s, 0.3), [BOXES, SCORES]),
    "batched_nms": (lambda b, s, i: fe.batched_nms(b, s, i, 0.3), [BOXES, SCORES, LABELS]),
    "nms_padded": (lambda b, s: fe.nms_padded(b, s, 0.3, 9), [BOXES, SCORES]),
    "detections": (
        lambda b, s, d: fe.detections(b, s, d, (50, 60)), [BOXES, PROBABILITIES, DELTAS],
    ),
    "detections_padded": (
        lambda b, s, d: fe.detections_padded(b, s, d, (50, 60)), [BOXES, PROBABILITIES, DELTAS],
    ),
}  # fmt: skip
every_operator = pytest.mark.parametrize("operator", CALLS)


def results_of(operator: str, convert) -> list:
    function, arrays = CALLS[operator]
    result = function(*[convert(array) for array in arrays])
    return list(result) if isinstance(result, tuple) else [result]


class Producer:
    """Another library's array, as little of it as DLPack asks for."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape = array.shape

    def __dlpack__(self, **arguments: object) -> object:
        return self._array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class OldProducer(Producer):
    """One that knows the first version of the protocol only, without keywords but `stream`."""

    def __dlpack__(self, stream: object = None) -> object:
        return self._array.__dlpack__(stream=stream)


def test_every_operator_is_in_this_list():
    listed = {name.removesuffix("_weights") for name in CALLS}
    assert listed == set(fe.__all__) - {
        "ops", "Detections", "PaddedDetections", "PaddedIndices", "build_info",
        "get_num_threads", "set_num_threads",
    }  # fmt: skip


@every_operator
def test_numpy_in_numpy_out_torch_in_torch_out(operator):
    with_numpy = results_of(operator, lambda x: x)
    with_torch = results_of(operator, torch.from_numpy)
    for from_numpy, from_torch in zip(with_numpy, with_torch, strict=True):
        assert isinstance(from_numpy, np.ndarray)
        assert isinstance(from_torch, torch.Tensor)
        assert_same_bits(take(from_torch), from_numpy)


@every_operator
def test_read_only_arrays_are_enough(operator):
    def locked(array: np.ndarray) -> np.ndarray:
        copy = array.copy()
        copy.flags.writeable = False
        return copy

    for left, right in zip(
        results_of(operator, locked), results_of(operator, lambda x: x), strict=True
    ):
        assert_same_bits(left, right)


class _Tensor(ctypes.Structure):
    """What a DLPack capsule of version 1 holds: `DLManagedTensorVersioned` of bindings/dlpack.h."""

    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class Said(Producer):
    """A producer that says something else of its array."""

    def __init__(self, array: np.ndarray, **said: int | None) -> None:
        super().__init__(array)
        self._said = said

    def __dlpack__(self, **arguments: object) -> object:
        capsule = super().__dlpack__(**arguments)
        find = ctypes.pythonapi.PyCapsule_GetPointer
        find.restype, find.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        tensor = _Tensor.from_address(find(capsule, b"dltensor_versioned"))
        for field, value in self._said.items():
            setattr(tensor, field, value)
        return capsule


class Pinned(Said):
    """In host memory that a GPU reaches, too."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__(array, device_type=3)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 3, 0


class Named(Producer):
    """One whose library makes arrays of others' memory, as the array API has it."""

    def __array_namespace__(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(from_dlpack=lambda x: Named(np.from_dlpack(x)))


@every_operator
@pytest.mark.parametrize("kind", [Producer, OldProducer, Pinned, Named])
def test_other_dlpack_producers(operator, kind):
    for left, right in zip(
        results_of(operator, kind), results_of(operator, lambda x: x), strict=True
    ):
        assert type(left) is (Named if kind is Named else np.ndarray)
        assert_same_bits(np.from_dlpack(left), right)


def overlaps_of(boxes: object) -> np.ndarray:
    out = np.empty((6, 6), np.float32)
    _core.box_iou(boxes, OTHERS, False, out, 0)
    return out


def test_what_a_capsule_may_say():
    """Where the first element is, in two parts; and no strides, of a row-major array."""
    expected = fe.box_iou(BOXES, OTHERS)
    before = BOXES.ctypes.data - 24
    for said in ({}, {"data": before, "byte_offset": 24}, {"strides": None}):
        assert_same_bits(overlaps_of(Said(BOXES, **said)), expected)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"major": 2}, "boxes1: DLPack version 2 is not known here"),
        ({"device_type": 10}, "boxes1 must be in CPU or CUDA memory, got DLPack device type 10"),
        ({"lanes": 2}, "boxes1 must be float32 or float64"),
        ({"ndim": 65}, "boxes1 must have at most 64 dimensions, got 65"),
        ({"data": BOXES.ctypes.data + 1}, "boxes1 must be aligned to its elements"),
    ],
)
def test_what_a_capsule_may_not_say(said, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        overlaps_of(Said(BOXES, **said))


@pytest.mark.parametrize("table", [(2, 0, 1, 1, 1, 1, 1), (1, 0, 1, 1, 1, 0, 1)])
def test_a_table_of_functions_that_is_not_known_is_not_used(table):
    """Of version 2, and of version 1 without the one that is called. The others lead nowhere."""

    class Later(Producer):
        words, name = (ctypes.c_uint64 * len(table))(*table), b"dlpack_exchange_api"
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
        __dlpack_c_exchange_api__ = new(ctypes.addressof(words), name, None)

    assert_same_bits(overlaps_of(Later(BOXES)), fe.box_iou(BOXES, OTHERS))


@pytest.mark.parametrize(
    "said",
    [
        {"__dlpack__": lambda self, **_: 5},  # no capsule
        {"__dlpack__": lambda self, **_: self.missing},
        {"__dlpack_device__": lambda self: 1 / 0},
        {"__dlpack_device__": lambda self: 1},  # no pair
    ],
)
def test_a_producers_own_errors_are_told_with_the_arguments_name(said):
    broken = type("Broken", (Producer,), said)
    with pytest.raises(ValueError, match=r"^boxes1 cannot be read by DLPack \(Broken\): "):
        fe.box_iou(broken(BOXES), OTHERS)
    if "__dlpack__" in said:
        with pytest.raises(ValueError, match=r"^boxes2 cannot be read by DLPack \(Broken\): "):
            fe.box_iou(BOXES, broken(OTHERS))


@pytest.mark.parametrize("said", [{"major": 2}, {"lanes": 2}])  # two errors of NumPy's
def test_what_numpy_cannot_read_is_named(said):
    with pytest.raises(ValueError, match=r"^boxes cannot be read by DLPack \(Said\): "):
        fe.nms(Said(BOXES, **said), SCORES, 0.5)


def test_what_is_no_type_of_ours_is_none_of_a_second_array_either():
    for said in ({"lanes": 2}, {"bits": 64}, {"code": 0}):
        with pytest.raises(ValueError, match="^boxes2 must be float32"):
            _core.box_iou(BOXES, Said(OTHERS, **said), False, np.empty((6, 6), np.float32), 0)


def test_what_is_read_only_by_its_capsule_is_not_written():
    out = np.zeros((6, 6), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="^out must be a writable array"):
        _core.box_iou(BOXES, OTHERS, False, Producer(out), 0)


def test_strides_of_half_an_element_are_not_dense():
    """A number and a byte, again and again: 5 bytes, of which 4 are an element."""
    boxes = np.zeros((1, 4), "f4, i1")["f0"]
    with pytest.raises(ValueError, match="^boxes1 must be contiguous"):
        _core.box_iou(boxes, OTHERS, False, np.empty((1, 6), np.float32), 0)


_F, _I = (lambda *shape: np.zeros(shape, np.float32)), (lambda *shape: np.zeros(shape, np.int64))
# Every function of the module that takes arrays, with all that it can be given.
CORE_CALLS = {
    "roi_pool_forward": (
        FEATURES, ROIS, 1, _F(2, 3, 2, 2), np.zeros((2, 3, 2, 2), np.int32), 0, 1,
    ),
    "roi_pool_backward": (VALUES, ARGMAX, ROIS, 1.0, _F(2, 3, 10, 12), 0, 1, None),
    "smooth_l1_forward": (DELTAS, OTHERS, LABELS, BOXES, 1, 1, _F(), 0),
    "smooth_l1_backward": (DELTAS, OTHERS, LABELS, BOXES, 1, 1, ONE, _F(6, 12), 0),
    "encode_boxes": (OTHERS, BOXES, _F(6, 4), 0),
    "decode_boxes": (DELTAS, BOXES, 4, _F(6, 12), 0),
    "clip_boxes": (BOXES, 50, 60, False, _F(6, 4), 0),
    "box_iou": (BOXES, OTHERS, False, _F(6, 6), 0),
    "nms": (BOXES, SCORES, LABELS, 0.3, False, _I(6), _I(1), 0, None),
    "detect_boxes": (
        BOXES, PROBABILITIES, DELTAS, 50, 60, 4, 0.05, 0.3, False, _F(9, 4), _F(9), _I(9), _I(9),
        _I(1), 0, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CORE_CALLS)
def test_no_array_of_a_call_lies_elsewhere(name):
    """The CPU must not follow a GPU's address, nor a GPU the CPU's."""
    function, arguments = getattr(_core, name), CORE_CALLS[name]
    function(*arguments)
    arrays = [i for i, array in enumerate(arguments) if isinstance(array, np.ndarray)]
    for i in arrays:
        given = list(arguments)
        given[i] = Said(arguments[i], device_type=2)
        with pytest.raises(ValueError, match=r"must be on the device of .*\bc(pu|uda:0)$"):
            function(*given)


@every_operator
def test_strided_arrays(operator):
    """Every other element along the last axis of something twice as wide."""

    def strided(array: np.ndarray) -> np.ndarray:
        if array.ndim == 0:
            return array
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]

    expected = results_of(operator, lambda x: x)
    for convert in (strided, lambda x: torch.from_numpy(strided(x))):
        for left, right in zip(results_of(operator, convert), expected, strict=True):
            assert_same_bits(take(left), right)


@every_operator
def test_arrays_at_odd_addresses(operator):
    """Not aligned to their own type: legal in NumPy, undefined behaviour when read directly."""

    def misaligned(array: np.ndarray) -> np.ndarray:
        raw = np.zeros(array.nbytes + 1, np.uint8)
        copy = raw[1:].view(array.dtype).reshape(array.shape)
        copy[...] = array
        assert not copy.flags.aligned
        return copy

    for left, right in zip(
        results_of(operator, misaligned), results_of(operator, lambda x: x), strict=True
    ):
        assert_same_bits(left, right)


@every_operator
def test_other_byte_order_is_never_misread(operator):
    def swapped(array: np.ndarray) -> np.ndarray:
        return array.astype(array.dtype.newbyteorder())

    for left, right in zip(
        results_of(operator, swapped), results_of(operator, lambda x: x), strict=True
    ):
        assert_same_bits(left, right)


@every_operator
def test_tensors_that_require_a_gradient(operator):
    def wanting(array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array.copy())
        return tensor.requires_grad_() if tensor.is_floating_point() else tensor

    refused = ("box_iou", "encode_boxes", "decode_boxes", "smooth_l1", "smooth_l1_weights")
    if operator in refused:  # better than lost
        with pytest.raises(ValueError, match="has no gradient"):
            results_of(operator, wanting)
        return
    for left, right in zip(
        results_of(operator, wanting), results_of(operator, lambda x: x), strict=True
    ):
        assert_same_bits(take(left), right)


@every_operator
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, Producer, OldProducer])
def test_arguments_are_let_go_after_the_call(operator, kind):
    function, arrays = CALLS[operator]
    given = [kind(array) for array in arrays]
    before = [sys.getrefcount(x) for x in (*given, *arrays)]
    for _ in range(5):
        function(*given)
    assert [sys.getrefcount(x) for x in (*given, *arrays)] == before


class CupyLike(bytearray):
    """What is asked of a `cupy.ndarray`, over NumPy's memory that is said to lie on a GPU.

    CuPy's have a buffer, which must not be asked for; a bytearray, which is empty here, has one.
    """

    __cuda_array_interface__: dict = {}

    class Device:
        id = 0
        entered = 0  # times, in all
        inside = 0  # times, at the moment

        def __enter__(self) -> None:
            CupyLike.Device.entered += 1
            CupyLike.Device.inside += 1

        def __exit__(self, *_: object) -> None:
            CupyLike.Device.inside -= 1

        @staticmethod
        def compute(function: Callable[..., np.ndarray]) -> Callable[..., CupyLike]:
            """What is queued on CuPy's current GPU, wherever the arrays lie."""

            def call(*arguments: object, **named: object) -> CupyLike:
                assert CupyLike.Device.inside, f"{function} on another GPU than the arrays'"
                return CupyLike(function(*arguments, **named))

            return call

    device = Device()
    streams: list[object] = []  # that work on the arrays was queued on

    def __init__(self, array: np.ndarray) -> None:
        super().__init__()
        self.array = array

    def __getattr__(self, name: str) -> object:
        if name not in "shape dtype ndim flags transpose reshape astype fill".split():
            raise AttributeError(f"CuPy's arrays have no {name}, or nobody needed it so far")
        if name == "flags":  # CuPy's tell less
            contiguous = self.array.flags.c_contiguous
            return types.SimpleNamespace(c_contiguous=contiguous)
        found = getattr(self.array, name)
        if not callable(found):
            return found
        if name in ("astype", "fill"):
            return self.Device.compute(found)
        return lambda *arguments: CupyLike(found(*arguments))

    def __getitem__(self, key: object) -> CupyLike:
        return CupyLike(self.array[key])

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: object, max_version: object = None) -> object:
        self.streams.append(stream)
        return self.array.__dlpack__(max_version=max_version)


def test_tensors_of_an_older_torch_may_lie_on_another_gpu():
    """2.9 has no table of functions yet, and its `__dlpack__` refuses all but the current GPU."""

    class Elsewhere(torch.Tensor):
        __dlpack_c_exchange_api__ = None

        def __dlpack_device__(self):
            return 2, 1

        def __dlpack__(self, **_):
            raise BufferError("Can't export tensors on a different CUDA device index.")

    left, right = (torch.from_numpy(boxes).as_subclass(Elsewhere) for boxes in (BOXES, OTHERS))
    out = np.empty((6, 6), np.float32)
    _core.box_iou(left, right, False, out, 0)
    assert_same_bits(out, fe.box_iou(BOXES, OTHERS))


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """CuPy's names that the operators use, as 14.2 has them: no array namespace, no `device=`."""
    module = types.ModuleType("cupy")
    stream = types.SimpleNamespace(ptr=4242)
    module.ndarray = CupyLike
    compute = CupyLike.Device.compute
    module.empty = compute(np.empty)
    module.asarray = compute(lambda a, order: np.asarray(a.array, order=order))
    module.concatenate = compute(lambda all, axis=0: np.concatenate([a.array for a in all], axis))
    module.cuda = types.SimpleNamespace(get_current_stream=lambda device: stream)
    module.stream = stream
    monkeypatch.setitem(sys.modules, "cupy", module)
    CupyLike.streams.clear()
    CupyLike.Device.entered = 0
    return module


@every_operator
@pytest.mark.parametrize(("current", "told"), [(4242, 4242), (0, 1)])  # DLPack has no stream 0
def test_cupy_works_on_its_current_stream_and_in_its_memory(operator, current, told, cupy):
    cupy.stream.ptr = current
    results = results_of(operator, CupyLike)
    assert CupyLike.Device.entered >= len(results)  # each made on the device of the arguments
    assert set(CupyLike.streams) == {told}
    for left, right in zip(results, results_of(operator, np.asarray), strict=True):
        assert type(left) is CupyLike
        assert_same_bits(left.array, right)


def test_cupy_takes_lists_of_boxes_and_channels_last(cupy):
    features = CupyLike(channels_last(FEATURES))
    pooled = fe.roi_pool(features, [CupyLike(ROIS[:1, 1:]), CupyLike(ROIS[1:, 1:])], 2)
    assert_same_bits(pooled.array, VALUES)
    assert pooled.transpose(0, 2, 3, 1).flags.c_contiguous
    wide = fe.roi_pool(features, CupyLike(ROIS.astype(np.float64)), 2)
    assert_same_bits(wide.array, VALUES)
    pyramid = fe.spp_pool(features, CupyLike(ROIS), (1, 2))
    assert_same_bits(pyramid.array, fe.spp_pool(FEATURES, ROIS, (1, 2)))
    with pytest.raises(TypeError, match="boxes must be a cupy.ndarray like the other arguments"):
        fe.roi_pool(features, ROIS, 2)


@every_operator
@pytest.mark.cuda
def test_cupys_own_arrays_give_the_bits_of_tensors(operator, cuda_device):
    cupy = pytest.importorskip("cupy")
    with cupy.cuda.Stream(non_blocking=True):  # which waits for no other, nor they for it
        results = results_of(operator, cupy.asarray)
        assert {type(result) for result in results} == {cupy.ndarray}
        results = [cupy.asnumpy(result) for result in results]
    expected = results_of(operator, lambda array: torch.from_numpy(array).to(cuda_device))
    for left, right in zip(results, expected, strict=True):
        assert_same_bits(left, take(right))


@pytest.mark.parametrize("beside_cupy", [False, True])
def test_arrays_on_a_gpu_that_are_not_known_are_refused_with_a_way_out(beside_cupy, request):
    class Other(Producer):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    if beside_cupy:
        request.getfixturevalue("cupy")
    with pytest.raises(TypeError, match=r"boxes must be .* got .*Other; torch.from_dlpack makes"):
        fe.nms(Other(BOXES), Other(SCORES), 0.5)


@pytest.mark.parametrize("layout", [np.asarray, channels_last])
def test_bfloat16_of_numpy_equals_torch(layout):
    """NumPy has it from ml_dtypes, as JAX does. No bit is lost on the way through float32."""

    def as_numpy(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)

    rng = np.random.default_rng(3)
    x = torch.from_numpy(layout(rng.standard_normal((2, 3, 10, 12)).astype(np.float32)))
    x = x.bfloat16()
    x[0, 0, 4:7] = torch.nan
    rois = torch.from_numpy(random_boxes(40, 5)) / 8
    rois = torch.nn.functional.pad(rois, (1, 0))
    expected, where = fe.roi_pool_with_argmax(x, rois, 3)
    pooled, argmax = fe.roi_pool_with_argmax(as_numpy(x), rois.numpy(), 3)
    assert pooled.dtype == ml_dtypes.bfloat16 and (argmax == where.numpy()).all()
    assert (pooled.view(np.uint16) == expected.view(torch.uint16).numpy()).all()
    assert fe.roi_pool(as_numpy(x), rois.numpy(), 3).dtype == ml_dtypes.bfloat16
    with pytest.raises(ValueError, match="out cannot be bfloat16"):
        fe.roi_pool(as_numpy(x), rois.numpy(), 3, out=pooled)
    assert fe.spp_pool(as_numpy(x), rois.numpy(), (1, 2)).dtype == ml_dtypes.bfloat16

    grad = torch.from_numpy(layout(rng.standard_normal(pooled.shape).astype(np.float32))).bfloat16()
    expected = fe.roi_pool_backward(grad, where, rois, x.shape)
    gradient = fe.roi_pool_backward(as_numpy(grad), argmax, rois.numpy(), x.shape)
    assert gradient.dtype == ml_dtypes.bfloat16
    assert (gradient.view(np.uint16) == expected.view(torch.uint16).numpy()).all()

    with pytest.raises(ValueError, match="boxes must be float32 or float64, got bfloat16"):
        fe.nms(BOXES.astype(ml_dtypes.bfloat16), SCORES, 0.5)


@pytest.mark.parametrize("dtype", [object, "U1", "M8[s]", [("x", "f4")], ml_dtypes.float8_e5m2])
def test_what_is_no_number_of_numpy_is_named(dtype):
    boxes = np.zeros((1, 4), dtype)
    with pytest.raises(ValueError, match="boxes must hold NumPy's own numbers, got dtype"):
        fe.nms(boxes, np.zeros(1, np.float32), 0.5)


def test_a_mask_is_not_passed_over():
    masked = np.ma.masked_array(BOXES, mask=True)
    with pytest.raises(TypeError, match="^boxes must be an array without a mask, got numpy.ma"):
        fe.nms(masked, SCORES, 0.5)


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32_are_infinite_without_a_warning():
    rois = np.float64([[0, -1e300, 0, 1e300, 9]])
    infinite = np.float32([[0, -np.inf, 0, np.inf, 9]])
    assert_same_bits(fe.roi_pool(FEATURES, rois, 2), fe.roi_pool(FEATURES, infinite, 2))


@every_operator
def test_type_hints_can_be_asked_for(operator):
    """As libraries do that make command lines or checks of them."""
    assert "return" in typing.get_type_hints(getattr(fe, operator.removesuffix("_weights")))


class Traced(torch.Tensor):
    """Tensors of a class of their own take the way of traced calls."""


NUMBERS = [
    None, "0.5", b"1", 1j, 10**400, [0.5], object, np.zeros(2), torch.zeros(2), torch.tensor(1j),
    torch.zeros((), device="meta"), np.complex64(0.5 + 3j), np.array("0.5"), np.bytes_(b"1"),
    torch.tensor(1.0, requires_grad=True),
]  # fmt: skip
COUNTS = [None, "2", 2.0, True, np.True_, -1, 1j, torch.ones(2)]
PAIRS = [None, 5, "ab", (5,), (5, None), ("5", "6"), (5, 1j), (5, 10**400), (5, 6, 7)]
# What no setting of the name can be.
WRONG = {
    "output_size": [*COUNTS, 0, (2, True), (2,), (2, "2")],
    "levels": [(level,) for level in (*COUNTS, 0)],
    "input_shape": [(2, 3, 10, count) for count in COUNTS] + [(2, 3, 10), "abcd"],
    "size": PAIRS, "image_size": PAIRS,
    "inclusive": [None, "yes", 1, 0.0, np.ones(2), torch.tensor(True), object],
    "max_output_size": COUNTS, "max_detections": COUNTS, "normalizer": NUMBERS,
    **dict.fromkeys(
        ("spatial_scale", "beta", "max_log_ratio", "iou_threshold", "nms_threshold",
         "score_threshold"), NUMBERS,
    ),
}  # fmt: skip
NEEDED = {
    "output_size": 2, "input_shape": FEATURES.shape, "iou_threshold": 0.3, "max_output_size": 9,
    "size": (50, 60), "image_size": (50, 60),
}  # fmt: skip


@every_operator
@pytest.mark.parametrize("way", ["numpy", "torch", "traced"])
def test_a_setting_that_is_none_is_named(operator, way):
    function = getattr(fe, operator.removesuffix("_weights"))
    arrays = CALLS[operator][1][:3] if operator.endswith("_weights") else CALLS[operator][1]
    if way != "numpy":
        arrays = [torch.from_numpy(array) for array in arrays]
    if way == "traced":
        arrays = [array.as_subclass(Traced) for array in arrays]
    names = inspect.signature(function).parameters
    needed = {name: value for name, value in NEEDED.items() if name in names}
    function(*arrays, **needed)
    for name in names & WRONG.keys():
        for wrong in WRONG[name]:
            if wrong is None and names[name].default is None:
                continue
            with pytest.raises((ValueError, TypeError), match=f"^{name} must be "):
                function(*arrays, **{**needed, name: wrong})


def test_numbers_and_truth_of_other_libraries_are_taken():
    for one in (
        np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2), ml_dtypes.bfloat16(0.5),
    ):  # fmt: skip
        kept = fe.nms_padded(BOXES, SCORES, one, np.int8(3), inclusive=np.True_)
        expected = fe.nms_padded(BOXES, SCORES, 0.5, torch.tensor(3), inclusive=True)
        assert_same_bits(kept.indices, expected.indices)


@every_operator
def test_traced_calls_name_what_is_no_tensor(operator):
    arrays = CALLS[operator][1]
    first = 1 if operator in ("smooth_l1_backward", "encode_boxes") else 0
    given = list(arrays)
    given[first] = torch.from_numpy(arrays[first]).to("meta")
    if len(given) > 1:
        says = r"^\w+ must be a torch\.Tensor like the other arguments, got ndarray$"
        with pytest.raises(TypeError, match=says):
            CALLS[operator][0](*given)


def test_threads_do_not_disturb_each_other():
    """The interpreter lock is released while an operator runs."""

    def everything(_: int) -> list[np.ndarray]:
        return [x for operator in CALLS for x in results_of(operator, np.asarray)]

    expected = everything(0)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(everything, range(50)):
            for left, right in zip(results, expected, strict=True):
                assert_same_bits(left, right)


def test_other_threads_run_meanwhile():
    """One that sleeps again and again wakes up more than once while an operator runs."""
    boxes = random_boxes(3000, 1)
    running, ticks = threading.Event(), [0]

    def operate() -> None:
        running.set()
        before = ticks[0]
        fe.box_iou(boxes, boxes)
        seen.append(ticks[0] - before)
        running.clear()

    seen: list[int] = []
    for _ in range(20):  # a machine with much else to do may not let it
        thread = threading.Thread(target=operate)
        thread.start()
        running.wait()
        while running.is_set():
            time.sleep(0.001)
            ticks[0] += 1
        thread.join()
        if seen[-1] > 2:
            return
    raise AssertionError(f"the lock was kept: {seen}")


WITHOUT_TORCH = """
    import sys

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "torch":
                raise ImportError("torch is blocked")

    sys.meta_path.insert(0, Absent())
    import numpy as np
    import fastrcnn_engine as fe

    x = np.arange(24, dtype=np.float32).reshape(1, 1, 4, 6)
    rois = np.float32([[0, 0, 0, 5, 3]])
    values, argmax = fe.roi_pool_with_argmax(x, rois, 2)
    assert values.ravel().tolist() == [8, 11, 20, 23], values
    assert fe.roi_pool_backward(values, argmax, rois, x.shape).sum() == 62
    boxes = np.float32([[0, 0, 2, 1], [0, 0, 1, 1]])
    assert fe.nms(boxes, np.float32([1, 2]), 0.4).tolist() == [1]
    assert fe.smooth_l1(boxes, boxes) == 0
    assert fe.decode_boxes(fe.encode_boxes(boxes, boxes), boxes).tolist() == boxes.tolist()
    assert len(fe.detections(boxes, np.float32([[0.1, 0.9]] * 2), None, (5, 5)).rows) == 2 - 1
    assert fe.build_info()["version"] == fe.__version__
    names = {}
    exec("from fastrcnn_engine import *; from fastrcnn_engine.ops import *", names)
    assert names["roi_pool"] is fe.roi_pool and set(fe.__all__) <= set(names)
    assert "torch" not in sys.modules
    try:
        fe.RoIPool
    except ImportError as error:
        assert "torch" in str(error)
    else:
        raise AssertionError("RoIPool without torch")
"""

LAZY_TORCH = """
    import sys
    import fastrcnn_engine
    assert "torch" not in sys.modules, "importing the operators drags torch in"
    assert not hasattr(fastrcnn_engine, "no_such_name")
"""


HELP_WITHOUT_TORCH = """
    import pydoc
    import sys

    sys.modules["torch"] = None
    import fastrcnn_engine
    assert "roi_pool" in pydoc.render_doc(fastrcnn_engine)
    assert "RoIPool" not in dir(fastrcnn_engine)
"""


WHILE_TORCH_IS_IMPORTED = """
    import sys
    import types
    import fastrcnn_engine as fe
    import numpy as np

    sys.modules["torch"] = types.ModuleType("torch")  # by another thread, which has just begun
    boxes = np.float32([[0, 0, 2, 1], [0, 0, 1, 1]])
    rois = np.float32([[0, 0, 0, 5, 3]])
    assert fe.roi_pool(np.ones((1, 2, 4, 6), np.float32), rois, 2).sum() == 8
    assert fe.nms(boxes, np.float32([1, 2]), 0.4).tolist() == [1]
    assert fe.smooth_l1(boxes, boxes) == 0
    assert fe.decode_boxes(fe.encode_boxes(boxes, boxes), boxes).tolist() == boxes.tolist()
    assert fe.clip_boxes_to_image(boxes, (1, 1)).max() == 1
    assert len(fe.detections(boxes, np.float32([[0.1, 0.9]] * 2), None, (5, 5)).rows) == 1
"""


@pytest.mark.parametrize(
    "script",
    [WITHOUT_TORCH, LAZY_TORCH, HELP_WITHOUT_TORCH, WHILE_TORCH_IS_IMPORTED],
    ids=["blocked", "not-needed", "help", "half-imported"],
)
def test_without_torch(script):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_build_info_says_what_it_is():
    info = fe.build_info()
    assert set(info) >= {
        "version", "compiler", "cuda", "cuda_reason", "cuda_architectures", "instruction_sets",
    }  # fmt: skip
    assert info["version"] == fe.__version__
    assert isinstance(info["cuda"], bool)
    assert info["cuda_reason"]
    assert bool(info["cuda_architectures"]) == info["cuda"]
    assert info["compiler"]
    assert info["instruction_sets"]


def test_complex_numbers_are_refused_not_read_as_doubles() -> None:
    for dtype in (np.complex64, np.clongdouble):
        boxes = np.zeros((2, 4), dtype)
        with pytest.raises(ValueError, match="got complex or compound numbers$"):
            fe.nms(boxes, np.zeros(2), 0.5)
