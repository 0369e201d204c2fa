"""Hierarchical sampling, case by case (paper 2.3; original code, minibatch.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastrcnn_engine.data.records import ImageRecord
from fastrcnn_engine.training.config import TrainConfig
from fastrcnn_engine.training.sampling import (
    build_entry,
    build_roidb,
    drawn_boxes,
    images_of_batch,
    levels_of_batch,
    sample_batch,
    sample_rows,
)

CONFIG = TrainConfig(data=Path("d"), proposals=Path("p")).resolved()
BOX = [20, 20, 59, 59]


def record(boxes: list[list[float]], labels: list[int]) -> ImageRecord:
    return ImageRecord(
        "image", Path("image.png"), 200, 100,
        np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64),
        np.zeros(len(labels), dtype=bool),
    )  # fmt: skip


def entry(boxes, labels, proposals, low=0.1):
    proposals = np.array(proposals, dtype=np.float32).reshape(-1, 4)
    return build_entry(
        record(boxes, labels), proposals, foreground_iou=0.5, background_low=low
    )


def test_crowds_are_no_objects_and_what_lies_in_them_is_no_background():
    seen = record([BOX, [100, 0, 199, 99]], [2, 1])
    seen = replace(seen, difficult=np.array([False, True]), crowd=np.array([False, True]))
    proposals = np.float32([
        [21, 20, 59, 59],     # on the object
        [100, 0, 199, 99],    # the crowd itself
        [110, 10, 119, 19],   # in it
        [93, 10, 102, 19],    # three columns of ten in it
        [97, 10, 106, 19],    # seven of ten: not more than 0.7
        [98, 10, 107, 19],    # eight
        [93, 10, 116, 19],    # 17 of 24, a little more than 0.7
    ])  # fmt: skip
    made = build_entry(seen, proposals, foreground_iou=0.5, background_low=0.0)
    assert made.boxes.tolist() == [BOX, *proposals[[0, 3, 4]].tolist()]
    assert made.labels.tolist() == [2, 2, 0, 0]
    assert made.background.tolist() == [2, 3]
    plain = replace(seen, crowd=None)
    assert len(build_entry(plain, proposals, foreground_iou=0.5, background_low=0.0).boxes) == 9
    # Two crowds: each alone decides, not their sum.
    two = record([[0, 0, 49, 99], [50, 0, 99, 99]], [1, 1])
    two = replace(two, crowd=np.array([True, True]))
    made = build_entry(
        two, np.float32([[45, 0, 54, 9], [0, 0, 9, 9]]), foreground_iou=0.5, background_low=0.1
    )
    assert made.boxes.tolist() == [[45, 0, 54, 9]] and made.background.tolist() == [0]


def shifted(rows: int, shift: float) -> list[list[float]]:
    """Boxes like BOX (40 pixels wide) moved right: IoU (40 - shift) / (40 + shift)."""
    return [[20 + shift, 20, 59 + shift, 59]] * rows


def test_a_crowd_stays_one_where_difficult_objects_are_left_out():
    made = record([BOX, BOX, BOX], [1, 2, 3])
    easy = replace(
        made, difficult=np.array([False, True, True]), crowd=np.array([False, False, True])
    ).without_difficult()
    assert easy.labels.tolist() == [1, 3] and easy.crowd.tolist() == [False, True]
    assert easy.boxes.shape == (2, 4) and easy.difficult.tolist() == [False, True]


def test_labels_follow_the_iou_of_the_best_object():
    made = entry([BOX, [120, 20, 159, 59]], [2, 1], [
        [20, 20, 59, 39],     # exactly half of the first: IoU 0.5, foreground
        [20, 20, 59, 38],     # 19 of 40 rows: below
        [20, 20, 59, 23],     # 4 of 40 rows: IoU float32(0.1), background
        [20, 20, 59, 22],     # 3 of 40 rows: not used
        [125, 20, 159, 59],   # 35 of 40 columns of the second
        [180, 80, 190, 90],   # nothing
    ])  # fmt: skip
    assert made.labels.tolist() == [2, 1, 2, 0, 0, 0, 1, 0]
    assert made.foreground.tolist() == [0, 1, 2, 6]
    assert made.background.tolist() == [3, 4]
    np.testing.assert_array_equal(made.matched[6], [120, 20, 159, 59])


def test_of_a_set_of_images_the_proposals_are_not_copied():
    proposals = np.float32([[20, 20, 59, 39], [20, 20, 59, 23]])
    for boxes, labels in (([BOX], [1]), ([], [])):
        limits = {"foreground_iou": 0.5, "background_low": 0.1}
        made = build_entry(record(boxes, labels), proposals, **limits)
        held = [v for v in vars(made).values() if isinstance(v, np.ndarray)]
        assert sum(v.nbytes for v in held if not np.shares_memory(v, proposals)) < 64


def test_lower_bound_zero_takes_every_background_proposal():
    made = entry([BOX], [1], [[180, 80, 190, 90], [20, 20, 59, 22]], low=0.0)
    assert made.background.tolist() == [1, 2]


def test_two_objects_on_one_box_keep_their_own_labels_and_a_proposal_takes_the_first():
    made = entry([BOX, BOX], [2, 1], [BOX])
    assert made.labels.tolist() == [2, 1, 2]


def test_image_without_objects_gives_background_whatever_the_lower_bound():
    made = entry([], [], [[0, 0, 9, 9], [50, 50, 80, 80]])
    assert made.foreground.tolist() == []
    assert made.background.tolist() == [0, 1]
    rows = sample_rows(made, np.random.default_rng(0), CONFIG)
    assert sorted(rows) == [0, 1]


def test_images_without_objects_are_learned_from_if_there_are_others():
    empty, full = record([], []), replace(record([BOX], [1]), image_id="full")
    boxes = np.float32([[50, 50, 80, 80], [0, 0, 9, 9]])
    entries, unusable = build_roidb([empty, full], {"image": boxes, "full": boxes[:0]}, CONFIG)
    assert [one.record.image_id for one in entries] == ["image", "full"] and not unusable
    entries, unusable = build_roidb([empty, full], {"image": boxes[:0], "full": boxes}, CONFIG)
    assert [one.record.image_id for one in entries] == ["full"] and unusable == ["image"]
    with pytest.raises(ValueError, match="none of the 1 images has an object to train on"):
        build_roidb([empty], {"image": boxes}, CONFIG)


def test_boxes_thinner_than_two_pixels_are_not_used():
    made = entry([BOX], [1], [[20, 20, 20, 59], [20, 59, 59, 59], [59, 20, 20, 59], BOX])
    assert len(made.boxes) == 2
    # A part of a pixel is no width to divide by: here the target would be dx = 500.
    pair = [10, 20, 11, 59]
    made = entry([BOX, pair], [1, 2], [[10, 20, 10.001, 59], [10, 20, 11, 58]])
    assert made.boxes.tolist() == [BOX, pair, [10, 20, 11, 58]]
    made = entry([[10, 20, 10.5, 59], BOX], [2, 1], [[10, 20, 11, 59], BOX])
    assert made.objects.tolist() == [BOX] and made.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("foreground", "background", "expected"),
    [
        (100, 500, (16, 48)),  # plenty of both
        (3, 500, (3, 61)),     # missing foreground becomes background
        (100, 10, (16, 10)),   # missing background is not refilled
        (100, 0, (16, 0)),
        (1, 500, (1, 63)),     # the ground truth itself is always foreground
        (2, 3, (2, 3)),
    ],
)  # fmt: skip
def test_counts(foreground, background, expected):
    made = entry([BOX], [1], shifted(foreground - 1, 2) + shifted(background, 20))
    rows = sample_rows(made, np.random.default_rng(0), CONFIG)
    labels = made.labels[rows]
    assert ((labels > 0).sum(), (labels == 0).sum()) == expected
    assert len(set(rows)) == len(rows), "drawn without replacement"
    assert (np.diff(labels) <= 0).all(), "foreground first"


@pytest.mark.parametrize(
    ("fraction", "rois", "expected"), [(0.25, 4, 0), (0.25, 20, 2), (0.25, 12, 2), (0.75, 4, 2)]
)
def test_foreground_share_rounds_halves_to_even(fraction, rois, expected):
    # Per image: 0.5 -> 0, 2.5 -> 2, 1.5 -> 2, 1.5 -> 2.
    config = replace(CONFIG, foreground_fraction=fraction, rois_per_batch=rois)
    made = entry([BOX], [1], shifted(50, 2) + shifted(50, 20))
    rows = sample_rows(made, np.random.default_rng(0), config)
    assert (made.labels[rows] > 0).sum() == expected


def test_every_row_is_drawn_about_equally_often():
    made = entry([BOX], [1], shifted(31, 2) + shifted(96, 20))
    rng = np.random.default_rng(0)
    counts = np.bincount(
        np.concatenate([sample_rows(made, rng, CONFIG) for _ in range(2000)]), minlength=128
    )
    assert abs(counts / 2000 - 0.5).max() < 0.06  # 16 of 32 and 48 of 96; 5 standard errors


@pytest.mark.parametrize("flip", [True, False])
def test_each_permutation_holds_every_image_once_and_flips_as_entries(flip):
    config = replace(CONFIG, flip=flip)
    length = 10 if flip else 5
    stream = [image for i in range(length) for image in images_of_batch(i, 5, config)]
    first, second = stream[:length], stream[length:]
    everything = {(i, f) for i in range(5) for f in ((False, True) if flip else (False,))}
    assert set(first) == set(second) == everything
    assert first != second


def test_a_batch_depends_on_seed_and_iteration_only():
    entries = [entry([BOX], [1], shifted(30, 2) + shifted(90, 20)) for _ in range(7)]

    def drawn(iteration, config=CONFIG):
        batch = sample_batch(iteration, entries, config)
        return [(entries.index(e), f, r.tolist()) for e, f, r in batch]

    assert drawn(41) == drawn(41)
    assert drawn(41) != drawn(42)
    other = replace(CONFIG, seed=4)
    assert drawn(41) != drawn(41, other)
    orders = [[images_of_batch(i, 7, config) for i in range(7)] for config in (CONFIG, other)]
    assert orders[0] != orders[1]


def test_levels_depend_on_seed_and_iteration_only_and_are_drawn_for_each_image():
    drawn = [levels_of_batch(iteration, 5, CONFIG) for iteration in range(2000)]
    assert drawn[41] == levels_of_batch(41, 5, CONFIG)
    assert drawn[:50] != [levels_of_batch(i, 5, replace(CONFIG, seed=4)) for i in range(50)]
    for image in (0, 1):
        counts = np.bincount([levels[image] for levels in drawn], minlength=5)
        assert abs(counts / 2000 - 0.2).max() < 0.045  # 5 standard errors
    same = sum(one == two for one, two in drawn)
    assert abs(same / 2000 - 0.2) < 0.045  # the two images of a batch have nothing to do
    assert levels_of_batch(41, 1, CONFIG) == [0, 0]


def test_flipped_rows_are_mirrored_with_their_objects():
    made = entry([BOX], [1], [[30, 20, 69, 59]])
    boxes, labels, matched = drawn_boxes(made, True, np.array([1]))
    assert boxes.tolist() == [[130, 20, 169, 59]]  # 200 - 1 - 69, 200 - 1 - 30
    assert matched.tolist() == [[140, 20, 179, 59]]
    assert labels.tolist() == [1]
