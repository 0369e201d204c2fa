"""Proposals of several files, by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastrcnn_engine.data.proposals import ProposalFile, merge_proposals
from fastrcnn_engine.data.proposals.boxes import at_most
from fastrcnn_engine.data.records import Dataset, ImageRecord


def split_of(*image_ids, name="train", folder="JPEGImages", files=None, size=(100, 80)):
    records = [
        ImageRecord(
            image_id, Path("set") / folder / file, *size,
            np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool),
        )
        for image_id, file in zip(image_ids, files or [f"{i}.jpg" for i in image_ids], strict=True)
    ]  # fmt: skip
    return Dataset(("thing",), records, [], Path("set"), name)


def box(*numbers):
    """(P, 4), a box of 10 x 10 pixels at each number."""
    corners = np.float32([[n, n] for n in numbers]).reshape(-1, 2)
    return np.concatenate([corners, corners + 9], axis=1)


def file_of(boxes, name="a.npz", ranked=False):
    return ProposalFile(Path(name), boxes, ranked)


def test_boxes_follow_one_another_and_none_comes_twice():
    first = file_of({"1": box(5, 3, 5), "2": box(8)})
    second = file_of({"2": box(), "1": box(3, 7)}, "b.npz")
    merged = merge_proposals([first, second], [split_of("1", "2")])
    assert list(merged.boxes) == ["1", "2"] and not merged.unknown
    np.testing.assert_array_equal(merged.boxes["1"], box(5, 3, 7))
    np.testing.assert_array_equal(merged.boxes["2"], box(8))
    assert merged.boxes["1"].dtype == np.float32


@pytest.mark.parametrize(
    "name",
    ["val/139", "139", "000000000139", "000000000139.jpg", "val2017/000000000139.jpg",
     "data/coco/val2017/000000000139.jpg"],
)  # fmt: skip
def test_names_of_a_coco_image(name):
    dataset = split_of(
        "val/139", "val/285", folder="val2017", files=["000000000139.jpg", "000000000285.jpg"]
    )
    boxes = {name: box(1), "285": box(2)}
    merged = merge_proposals([file_of(boxes)], [dataset])
    np.testing.assert_array_equal(merged.boxes["val/139"], box(1))


def test_an_id_is_itself_whatever_else_may_be_written_so():
    boxes = {"1_2": box(1), "12": box(2), "0012": box(3)}
    merged = merge_proposals([file_of(boxes)], [split_of(*boxes)])
    for image_id, own in boxes.items():
        np.testing.assert_array_equal(merged.boxes[image_id], own)
    with pytest.raises(ValueError, match="'00012' may be any of"):
        merge_proposals([file_of({"00012": box(1)})], [split_of(*boxes)])


@pytest.mark.parametrize("name", ["2008_000002", "2008000002", "JPEGImages/2008_000002.jpg"])
def test_names_of_a_voc_image(name):
    merged = merge_proposals([file_of({name: box(1), "5": box(2)})],
                             [split_of("2008_000002", "000005")])  # fmt: skip
    np.testing.assert_array_equal(merged.boxes["2008_000002"], box(1))
    np.testing.assert_array_equal(merged.boxes["000005"], box(2))


def test_names_that_nothing_has_are_told_and_those_of_several_refused():
    strange = ("x", "77", "\u0661")  # the last is a one, in Arabic
    boxes = {"1": box(1)} | dict.fromkeys(strange, box(2))
    merged = merge_proposals([file_of(boxes)], [split_of("1")])
    assert merged.unknown == [(Path("a.npz"), name) for name in strange]
    splits = [split_of("train/7", files=["a.jpg"]), split_of("val/7", files=["b.jpg"])]
    with pytest.raises(ValueError, match=r"a\.npz: '7' may be any of train/7, val/7"):
        merge_proposals([file_of({"7": box(1)})], splits)
    merged = merge_proposals([file_of({"train/7": box(1), "b.jpg": box(2)})], splits)
    np.testing.assert_array_equal(merged.boxes["val/7"], box(2))
    numbered = split_of("val/7", files=["000139.jpg"])
    merged = merge_proposals([file_of({"139": box(1)})], [numbered])
    np.testing.assert_array_equal(merged.boxes["val/7"], box(1))
    # The folder tells images of one file name apart.
    splits = [split_of(f"{name}/7", folder=name, files=["7.jpg"]) for name in ("train", "val")]
    boxes = {"coco/train/7.jpg": box(1), "coco/val/7.jpg": box(2)}
    merged = merge_proposals([file_of(boxes)], splits)
    np.testing.assert_array_equal(merged.boxes["val/7"], box(2))


def test_files_in_the_order_of_a_split_are_taken_by_turns():
    splits = [split_of("1", "2"), split_of("3", name="test")]
    files = [
        file_of([box(1), box(2)], "ss-train.mat"),
        file_of({"3": box(30), "1": box(10)}, "named.npz"),
        file_of([box(3)], "ss-test.mat"),
        file_of([box(4), box(5)], "eb-train.pkl"),
        file_of([box(6)], "eb-test.pkl"),
    ]
    merged = merge_proposals(files, splits)
    np.testing.assert_array_equal(merged.boxes["1"], box(1, 10, 4))
    np.testing.assert_array_equal(merged.boxes["2"], box(2, 5))
    np.testing.assert_array_equal(merged.boxes["3"], box(30, 3, 6))
    with pytest.raises(ValueError, match="splits: 2, files without names of images: 3; .*eb-tr"):
        merge_proposals(files[:-1], splits)
    with pytest.raises(ValueError, match=r"images in .*ss-test\.mat: 1, in train: 2"):
        merge_proposals([files[2], files[0]], splits)
    with pytest.raises(ValueError, match=r"images in .*eb-train\.pkl: 2, in test: 1"):
        merge_proposals([files[0], files[3]], splits)


def test_an_image_without_proposals_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"no proposals for image '2' and 1 more images in a\.npz"):
        merge_proposals([file_of({"1": box(1)})], [split_of("1", "2", "3")])
    with pytest.raises(ValueError, match=r"no proposals for image '2' in a\.npz"):
        merge_proposals([file_of({"1": box(1)})], [split_of("1", "2")])


def test_boxes_outside_of_an_image_are_an_error_and_rounding_is_cut_off():
    dataset = split_of("1", size=(100, 80))
    inside = np.float32([[0, 0, 99, 79], [5, 5, 99.01, 79.4]])
    merged = merge_proposals([file_of({"1": inside})], [dataset])
    assert merged.boxes["1"].tolist() == [[0, 0, 99, 79], [5, 5, 99, 79]]
    for corner in ([0, 0, 100, 79], [0, 0, 99, 80], [-1, 0, 50, 50]):
        with pytest.raises(ValueError, match=r"a\.npz has boxes outside of image 1, 100 x 80"):
            merge_proposals([file_of({"1": np.float32([corner])})], [dataset])


def test_ranked_boxes_keep_the_best_and_mixed_ones_are_drawn():
    many, more = box(*range(40)), box(*range(40, 60))
    ranked = file_of({"1": many, "2": many}, ranked=True)
    dataset = split_of("1", "2")
    merged = merge_proposals([ranked], [dataset], max_boxes=5)
    assert merged.ranked
    np.testing.assert_array_equal(merged.boxes["1"], many[:5])
    # Scores of two files do not compare: image 1 is drawn, image 2 is of one file still.
    merged = merge_proposals(
        [ranked, file_of({"1": more}, "b.npz", ranked=True)], [dataset], max_boxes=5, seed=7
    )
    assert not merged.ranked
    both = np.concatenate([many, more])
    drawn = at_most(both, 5, "1", seed=7, ranked=False)
    assert drawn.tolist() != both[:5].tolist()
    np.testing.assert_array_equal(merged.boxes["1"], drawn)
    np.testing.assert_array_equal(merged.boxes["2"], many[:5])
    plain = merge_proposals([file_of({"1": many, "2": many})], [dataset], max_boxes=5, seed=7)
    assert plain.boxes["1"].tolist() != many[:5].tolist() and not plain.ranked
