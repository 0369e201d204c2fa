"""Overlap and suppression against the reference."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import fastrcnn_engine as fe
from ops.checks import FACES, assert_same_bits, give, take
from ops.nms_cases import NMS_CASES, NmsCase, random_boxes
from reference import nms as reference

every_case = pytest.mark.parametrize("case", NMS_CASES, ids=lambda case: case.name)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_face = pytest.mark.parametrize("face", FACES)


@every_case
@every_dtype
@every_face
def test_nms_equals_the_reference(case: NmsCase, dtype, face):
    boxes, scores = case.boxes.astype(dtype), case.scores.astype(dtype)
    kept = fe.nms(give(boxes, face), give(scores, face), case.threshold, inclusive=case.inclusive)
    assert take(kept).dtype == np.int64
    assert take(kept).tolist() == reference.nms(boxes, scores, case.threshold, case.inclusive)


CLASS_IDS = {
    "few": lambda n: np.random.default_rng(3).integers(0, 4, n),
    "uneven": lambda n: np.random.default_rng(5).choice(3, n, p=[0.6, 0.3, 0.1]),
    "one": lambda n: np.full(n, 7),
    "all-different": lambda n: np.arange(n) - n // 2,
    "extreme": lambda n: np.random.default_rng(4).choice([-(2**63), -1, 0, 2**63 - 1], n),
}


@every_case
@pytest.mark.parametrize("ids", CLASS_IDS)
@every_face
def test_batched_nms_equals_the_reference(case: NmsCase, ids, face):
    idxs = CLASS_IDS[ids](len(case.scores)).astype(np.int64)
    kept = fe.batched_nms(
        give(case.boxes, face), give(case.scores, face), give(idxs, face), case.threshold,
        inclusive=case.inclusive,
    )  # fmt: skip
    expected = reference.batched_nms(case.boxes, case.scores, idxs, case.threshold, case.inclusive)
    assert take(kept).tolist() == expected


@every_case
@pytest.mark.parametrize("with_idxs", [False, True])
@every_face
def test_padded_nms_is_the_beginning_of_nms(case: NmsCase, with_idxs, face):
    idxs = CLASS_IDS["few"](len(case.scores)).astype(np.int64) if with_idxs else None
    if with_idxs:
        expected = reference.batched_nms(
            case.boxes, case.scores, idxs, case.threshold, case.inclusive
        )
    else:
        expected = reference.nms(case.boxes, case.scores, case.threshold, case.inclusive)
    for places in {0, 1, len(expected) // 2, len(expected), len(case.scores) + 3}:
        kept = fe.nms_padded(
            give(case.boxes, face), give(case.scores, face), case.threshold, places,
            idxs=None if idxs is None else give(idxs, face), inclusive=case.inclusive,
        )  # fmt: skip
        count = min(places, len(expected))
        assert [take(kept.count).shape, take(kept.count).dtype] == [(), np.int64]
        assert int(kept.count) == count
        assert take(kept.indices).tolist() == expected[:count] + [-1] * (places - count)


@every_dtype
@pytest.mark.parametrize("threshold", [1e-6, 0.3, 0.63, 0.65])
def test_as_many_kept_as_need_several_lists(dtype, threshold):
    """2200 boxes apart, in turn of 14 sizes, then smaller ones within, at IoU 0.64."""
    apart = 64 * np.stack(np.divmod(np.arange(2200), 50), axis=1)
    side = (2.0 ** (np.arange(2200) % 14 / 2.5))[:, None]
    large, small = (np.hstack([apart, apart + share * side]) for share in (1, 0.8))
    boxes = np.vstack([large, small[::2]])
    boxes, scores = boxes.astype(dtype), np.arange(3300, 0, -1).astype(dtype)
    kept = fe.nms(boxes, scores, threshold).tolist()
    assert len(kept) == (2200 if threshold < 0.64 else 3300)
    assert kept == reference.nms(boxes, scores, threshold)
    of_two_classes = np.arange(2200) // 2 % 2  # each needs several, at a high threshold
    idxs = np.concatenate([of_two_classes, of_two_classes[::2]])
    assert fe.batched_nms(boxes, scores, idxs, threshold).tolist() == kept


@every_dtype
@pytest.mark.cuda
def test_cuda_pads_the_same(dtype, cuda_device):
    for case in NMS_CASES:
        boxes, scores = (give(x.astype(dtype), "torch") for x in (case.boxes, case.scores))
        few, uneven, different = (
            torch.from_numpy(CLASS_IDS[ids](len(scores)).astype(np.int64))
            for ids in ("few", "uneven", "all-different")
        )
        for places in (0, 1, len(scores) // 3, len(scores) + 3):
            for ids in (None, few, uneven, different):
                there = None if ids is None else ids.to(cuda_device)
                kept = fe.nms_padded(
                    boxes.to(cuda_device), scores.to(cuda_device), case.threshold, places,
                    idxs=there, inclusive=case.inclusive,
                )  # fmt: skip
                expected = fe.nms_padded(
                    boxes, scores, case.threshold, places, idxs=ids, inclusive=case.inclusive
                )
                assert kept.count.cpu() == expected.count, case.name
                assert torch.equal(kept.indices.cpu(), expected.indices), case.name


@every_dtype
@pytest.mark.cuda
def test_cuda_keeps_the_same_boxes(dtype, cuda_device):
    for case in NMS_CASES:
        boxes, scores = (give(x.astype(dtype), "torch") for x in (case.boxes, case.scores))
        idxs = torch.from_numpy(CLASS_IDS["few"](len(scores)).astype(np.int64))
        on_cuda = [x.to(cuda_device) for x in (boxes, scores, idxs)]
        kept = fe.nms(on_cuda[0], on_cuda[1], case.threshold, inclusive=case.inclusive)
        expected = fe.nms(boxes, scores, case.threshold, inclusive=case.inclusive)
        assert take(kept).tolist() == expected.tolist(), case.name
        kept = fe.batched_nms(*on_cuda, case.threshold, inclusive=case.inclusive)
        expected = fe.batched_nms(boxes, scores, idxs, case.threshold, inclusive=case.inclusive)
        assert take(kept).tolist() == expected.tolist(), case.name


@every_dtype
@pytest.mark.parametrize("threshold", [0.3, 0.7])
@pytest.mark.cuda
def test_cuda_keeps_the_same_of_more_boxes_than_it_compares_at_once(dtype, threshold, cuda_device):
    boxes = give(random_boxes(60000, 6, extent=2000.0).astype(dtype), "torch")
    scores = give(np.random.default_rng(7).permutation(60000).astype(dtype), "torch")
    idxs = torch.arange(60000) % 50 // 30  # 36 000 of one class, 24 000 of the other
    there = [x.to(cuda_device) for x in (boxes, scores, idxs)]
    kept = fe.nms(there[0], there[1], threshold)
    assert torch.equal(kept.cpu(), fe.nms(boxes, scores, threshold))
    kept = fe.batched_nms(*there, threshold)
    assert torch.equal(kept.cpu(), fe.batched_nms(boxes, scores, idxs, threshold))


def test_iou_at_the_threshold_stays_and_just_above_goes():
    """IoU > threshold suppresses; the original's compiled code has `>=` and would drop one."""
    boxes = np.float32([[0, 0, 2, 1], [0, 0, 1, 1]])
    scores = np.float32([0.9, 0.8])
    assert fe.nms(boxes, scores, 0.5).tolist() == [0, 1]
    just_below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert fe.nms(boxes, scores, just_below).tolist() == [0]


def test_threshold_is_compared_in_float32():
    """fl32(3/10) exceeds the double 0.3: so the CPU and GPU of another library differ."""
    boxes = np.float32([[0, 0, 10, 1], [0, 0, 3, 1]])
    assert float(np.float32(0.3)) > 0.3
    assert fe.nms(boxes, np.float32([0.9, 0.8]), 0.3).tolist() == [0, 1]


def boxes_and_others(dtype) -> tuple[np.ndarray, np.ndarray]:
    special = [case.boxes for case in NMS_CASES if len(case.boxes) < 20]
    boxes = np.concatenate([*special, random_boxes(40, 5)]).astype(dtype)
    return boxes, boxes[::-3].copy()


@every_dtype
@every_face
@pytest.mark.parametrize("inclusive", [False, True])
def test_iou_equals_the_reference(dtype, face, inclusive):
    boxes, others = boxes_and_others(dtype)
    actual = fe.box_iou(give(boxes, face), give(others, face), inclusive=inclusive)
    expected = reference.box_iou(boxes, others, inclusive)
    assert take(actual).dtype == dtype
    np.testing.assert_array_equal(take(actual), expected)


@every_dtype
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.cuda
def test_cuda_overlaps_are_the_cpus(dtype, inclusive, cuda_device):
    here = [give(x, "torch") for x in boxes_and_others(dtype)]
    there = [x.to(cuda_device) for x in here]
    overlaps = fe.box_iou(*there, inclusive=inclusive)
    assert_same_bits(take(overlaps), fe.box_iou(*here, inclusive=inclusive).numpy())


def test_iou_of_nothing():
    boxes = random_boxes(3, 1)
    assert fe.box_iou(boxes[:0], boxes).shape == (0, 3)
    assert fe.box_iou(boxes, boxes[:0]).shape == (3, 0)


def test_iou_against_worked_numbers():
    boxes = torch.tensor([[0.0, 0, 2, 1]])
    others = torch.tensor([[0.0, 0, 1, 1], [1, 0, 3, 1], [2, 0, 4, 1], [0, 0, 2, 1]])
    plain, voc = [1 / 2, 1 / 3, 0, 1], [4 / 6, 4 / 8, 2 / 10, 1]
    assert_same_bits(fe.box_iou(boxes, others).numpy()[0], np.float32(plain))
    assert_same_bits(fe.box_iou(boxes, others, inclusive=True).numpy()[0], np.float32(voc))


@pytest.mark.parametrize(
    ("operator", "names"),
    [
        ("nms", ["boxes", "scores", "iou_threshold"]),
        ("batched_nms", ["boxes", "scores", "idxs", "iou_threshold"]),
        ("box_iou", ["boxes1", "boxes2"]),
    ],
)
def test_positional_arguments_are_torchvisions(operator, names):
    parameters = inspect.signature(getattr(fe, operator)).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == names
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == ["inclusive"]


BOXES, SCORES = random_boxes(4, 2), np.float32([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fe.nms(BOXES[:, :3], SCORES, 0.5), r"boxes must be \(R, 4\).*\(4, 3\)"),
        (lambda: fe.nms(BOXES[0], SCORES, 0.5), r"boxes must have 2 dimensions.*\(4,\)"),
        (lambda: fe.nms(BOXES, SCORES[:3], 0.5), "scores.*4.*3"),
        (lambda: fe.nms(BOXES, SCORES[None], 0.5), "scores must have 1 dimension"),
        (lambda: fe.nms(BOXES, SCORES.astype(np.float64), 0.5),
         "scores must be float32, got float64"),
        (lambda: fe.nms(BOXES.astype(np.int32), SCORES, 0.5),
         "boxes must be float32 or float64, got int32"),
        (lambda: fe.nms(BOXES.astype(np.float16), SCORES, 0.5), "boxes must be .*, got float16"),
        (lambda: fe.nms(BOXES, SCORES, -0.1), r"iou_threshold must be in \[0, 1\], got -0.1"),
        (lambda: fe.nms(BOXES, SCORES, 1.5), r"iou_threshold must be in \[0, 1\], got 1.5"),
        (lambda: fe.nms(BOXES, SCORES, 1.0000001), r"must be in \[0, 1\], got 1.0000001$"),
        (lambda: fe.nms(BOXES, SCORES, float("nan")), "iou_threshold.*nan"),
        (lambda: fe.batched_nms(BOXES, SCORES, np.zeros(3, np.int64), 0.5), "idxs.*4.*3"),
        (lambda: fe.batched_nms(BOXES, SCORES, SCORES, 0.5), "idxs must be integers, got float32"),
        (lambda: fe.batched_nms(*map(torch.from_numpy, (BOXES, SCORES, SCORES)), 0.5),
         "idxs must be integers, got float32"),
        (lambda: fe.batched_nms(*map(torch.from_numpy, (BOXES, SCORES, SCORES + 0j)), 0.5),
         "idxs must be integers, got complex64"),
        (lambda: fe.nms_padded(BOXES, SCORES, 0.5, -1),
         "max_output_size must be an int >= 0, got -1"),
        (lambda: fe.nms_padded(BOXES, SCORES, 0.5, None), "max_output_size must be .*got None"),
        (lambda: fe.nms_padded(BOXES, SCORES, 0.5, 2.0), "max_output_size must be .*got 2.0"),
        (lambda: fe.nms_padded(BOXES, SCORES[:3], 0.5, 2), "scores.*4.*3"),
        (lambda: fe.box_iou(BOXES, BOXES[:, :2]), r"boxes2 must be \(R, 4\).*\(4, 2\)"),
        (lambda: fe.box_iou(BOXES, BOXES.astype(np.float64)),
         "boxes2 must be float32, got float64"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@every_face
def test_batched_nms_without_classes_is_refused(face):
    with pytest.raises(TypeError, match="idxs must be an array with the class of each box"):
        fe.batched_nms(give(BOXES, face), give(SCORES, face), None, 0.5)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "uint32", "uint64"])
@every_face
def test_class_ids_of_any_integers_are_accepted(dtype, face):
    idxs = np.array([0, 1, 1, 0])
    kept = fe.batched_nms(*(give(x, face) for x in (BOXES, SCORES, idxs.astype(dtype))), 0.0)
    assert kept.tolist() == fe.batched_nms(BOXES, SCORES, idxs, 0.0).tolist()


def test_few_kept_boxes_do_not_keep_the_memory_of_all():
    boxes = torch.tensor([[0.0, 0, 9, 9]]).repeat(5000, 1)
    keep = fe.nms(boxes, torch.rand(5000), 0.5)
    assert keep.shape == (1,) and keep.untyped_storage().nbytes() == 8
