"""Readers of the files of other programs; each file is written here as that program writes it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.io

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.proposals import read_proposals, selective_search, write_proposals

from .test_pickles import module
from .test_proposals import best_iou
from .voc_files import VOC_DEMO

needs_voc_demo = pytest.mark.skipif(
    not VOC_DEMO.is_dir(), reason="the VOC photos are not on this machine"
)


def pickled(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


# ------------------------------------------------------------------------------------------- MATLAB


def cell_of(*arrays):
    cell = np.empty((1, len(arrays)), object)
    for column, array in enumerate(arrays):
        cell[0, column] = array
    return cell


def test_set_files_are_one_based_and_row_first(tmp_path):
    cell = cell_of(
        np.array([[1, 2, 11, 22], [5, 6, 7, 8]], np.uint16),  # y1 x1 y2 x2
        np.zeros((0, 0)),
        np.array([[1.0, 1.0, 375.0, 500.0]]),
    )
    scipy.io.savemat(
        tmp_path / "set.mat", {"boxes": cell, "images": np.array(["a", "b", "c"], object)}
    )
    file = read_proposals(tmp_path / "set.mat")
    first, second, third = file.boxes
    assert not file.ranked
    assert first.dtype == np.float32 and first.tolist() == [[1, 0, 21, 10], [5, 4, 7, 6]]
    assert second.shape == (0, 4) and second.dtype == np.float32
    assert third.tolist() == [[0, 0, 499, 374]]


@pytest.mark.parametrize("name", ["000004_boxes.mat", "000004.mat", "000004.MAT"])
def test_image_files_are_zero_based_and_column_first(tmp_path, name):
    scipy.io.savemat(
        tmp_path / name, {"boxes": np.array([[0, 1, 20, 10]], np.uint16)}, appendmat=False
    )
    file = read_proposals(tmp_path / name)
    assert list(file.boxes) == ["000004"] and not file.ranked
    boxes = file.boxes["000004"]
    assert boxes.dtype == np.float32 and boxes.tolist() == [[0, 1, 20, 10]]


@pytest.mark.parametrize("content", [b"", b"MATLAB", bytes(200), b"MATLAB 5.0 " * 50])
def test_broken_mat_files_are_named(tmp_path, content):
    (tmp_path / "broken.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.mat: (not readable as|has no variable)"):
        read_proposals(tmp_path / "broken.mat")


def test_mat_files_that_cannot_be_used_are_named(tmp_path):
    zero_based = np.array([[0, 1, 20, 10]], np.uint16)  # in a set file
    scipy.io.savemat(tmp_path / "set.mat", {"boxes": cell_of(zero_based)})
    with pytest.raises(ValueError, match=r"set\.mat, image 1, row 0: expected .* 0 <= x1 <= x2"):
        read_proposals(tmp_path / "set.mat")
    scipy.io.savemat(tmp_path / "other.mat", {"crates": np.zeros((3, 5))})
    with pytest.raises(ValueError, match=r"other\.mat: has no variable `boxes`.*crates"):
        read_proposals(tmp_path / "other.mat")
    scipy.io.savemat(tmp_path / "five.mat", {"boxes": np.zeros((3, 5))})
    with pytest.raises(ValueError, match=r"five\.mat.*\(3, 5\)"):
        read_proposals(tmp_path / "five.mat")
    (tmp_path / "text.mat").write_text("hello " * 40)
    with pytest.raises(ValueError, match=r"text\.mat: not readable"):
        read_proposals(tmp_path / "text.mat")


@needs_voc_demo
@pytest.mark.parametrize("name, count", [("000004", 2888), ("001551", 2057)])
def test_original_boxes_of_two_photos_lie_inside_and_are_found_again(name, count):
    boxes = read_proposals(VOC_DEMO / f"{name}_boxes.mat").boxes[name]
    assert boxes.shape == (count, 4)
    image = load_image(VOC_DEMO / f"{name}.jpg")
    height, width = image.shape[:2]
    assert boxes.min() >= 0 and boxes[:, 2].max() == width - 1 and boxes[:, 3].max() == height - 1
    # Two programs, on other sizes of the image: most boxes agree, and not by chance.
    ours = selective_search(image, short_side=160)
    assert np.mean(best_iou(boxes, ours) >= 0.5) > 0.7
    assert np.mean(best_iou(boxes[:, [1, 0, 3, 2]], ours) >= 0.5) < 0.5


# --------------------------------------------------------------------------------------- detectron2

BOXES = np.float32([[0, 0, 50, 40], [10.5, 5, 30.25, 25], [7, 8, 7.5, 90]])  # [x1, x2)
LOGITS = np.float32([-1, 3, 0.5])
# By falling score; the last pixel is named, and no side is shorter than one pixel.
RANKED = [[10.5, 5, 29.25, 24], [7, 8, 7, 89], [0, 0, 49, 39]]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_detectron2_writes_lists_by_image_id(tmp_path, protocol):
    content = {
        "boxes": [BOXES, np.zeros((0, 4), np.float32)],
        "objectness_logits": [LOGITS, np.zeros(0, np.float32)],
        "ids": [139, 285],
        "bbox_mode": 0,
    }
    file = read_proposals(pickled(tmp_path / "box_proposals.pkl", content, protocol))
    assert file.ranked and list(file.boxes) == ["139", "285"]
    assert file.boxes["139"].dtype == np.float32 and file.boxes["139"].tolist() == RANKED
    assert file.boxes["285"].shape == (0, 4)


@pytest.mark.parametrize("ids", [["000005"], np.array(["000005"]), np.array([b"000005"])])
def test_detectron_names_the_lists_otherwise(tmp_path, ids):
    content = {"boxes": [BOXES.astype(np.float64)], "scores": [LOGITS[:, None]], "indexes": ids}
    file = read_proposals(pickled(tmp_path / "voc.pkl", content))
    # Its boxes name their last pixel already.
    ranked = BOXES[np.argsort(-LOGITS)].tolist()
    assert file.boxes["000005"].tolist() == ranked and file.ranked
    del content["scores"]
    file = read_proposals(pickled(tmp_path / "voc.pkl", content))
    assert file.boxes["000005"].tolist() == BOXES.tolist() and not file.ranked


def test_boxes_of_corner_and_size(tmp_path):
    content = {"boxes": [[[10, 20, 30, 40]]], "scores": [[0.5]], "ids": ["a"], "bbox_mode": 1}
    file = read_proposals(pickled(tmp_path / "p.pkl", content))
    assert file.boxes["a"].tolist() == [[10, 20, 39, 59]]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bbox_mode": 4}, "bbox_mode is 4; read are XYXY_ABS"),
        ({"ids": None}, "ids must be a list, one for each"),
        ({"ids": ["a", "b"]}, "ids must be a list, one for each"),
        ({"boxes": 5}, "boxes must be a list"),
        ({"scores": [LOGITS, LOGITS]}, "scores must be a list"),
        ({"scores": [LOGITS[:2]]}, "a: 2 scores for 3 boxes"),
        ({"scores": [{"high": 1}]}, "a: scores must be an array of numbers"),
        ({"boxes": [np.zeros((3, 6))]}, r"a: boxes must be \(P, 4\), got \(3, 6\)"),
        ({"boxes": [["one", "two", "three"]]}, "a: boxes must be an array of numbers"),
        ({"boxes": [np.float32([[5, 5, 4, 9]])], "scores": [[1]]}, "a, row 0: .* x1 <= x2"),
        ({"boxes": [np.float32([[-1, 5, 4, 9]])], "scores": [[1]]}, "a, row 0: .* 0 <= x1"),
        ({"boxes": [np.float32([[np.nan] * 4])], "scores": [[1]]}, "a, row 0: expected finite"),
        ({"boxes": [BOXES] * 2, "ids": ["a", "a"], "scores": [LOGITS] * 2}, "a: .* there twice"),
        ({"boxes": [[[10**400] * 4]]}, "a: boxes must be an array of numbers"),
        ({"boxes": np.array(1.0)}, "boxes must be a list"),
        ({"ids": np.array(1)}, "ids must be a list"),
        ({"ids": [b"\xff"], "scores": [[1]]}, r"\\xff: 1 scores for 3 boxes"),
        ({"bbox_mode": np.zeros(2)}, "bbox_mode is .*rray"),
        ({"scores": [[1, 10**400, 0]]}, "a: scores must be an array of numbers"),
        ({"scores": [[1, np.nan, 0]]}, "a: score 1 is no number"),
    ],
)
def test_what_is_wrong_in_a_file_of_detectron2_is_named(tmp_path, change, message):
    content = {"boxes": [BOXES], "scores": [LOGITS], "ids": ["a"], **change}
    with pytest.raises(ValueError, match=rf"p\.pkl[:,] .*{message}|p\.pkl, {message}"):
        read_proposals(pickled(tmp_path / "p.pkl", content))


# -------------------------------------------------------------------------------------- mmdetection


def test_mmdetection_2_writes_a_list_in_the_order_of_the_split(tmp_path):
    scored = np.concatenate([BOXES, LOGITS[:, None]], axis=1)
    content = [scored, np.zeros((0, 5), np.float32)]
    file = read_proposals(pickled(tmp_path / "rpn.pkl", content))
    assert file.ranked and [boxes.tolist() for boxes in file.boxes] == [RANKED, []]
    assert file.boxes[1].shape == (0, 4)
    file = read_proposals(pickled(tmp_path / "rpn.pkl", [BOXES]))  # without scores
    assert not file.ranked and file.boxes[0][0].tolist() == [0, 0, 49, 39]


@pytest.mark.parametrize("wrapped", ["array", "dict", "InstanceData"])
def test_mmdetection_writes_a_dict_by_file_name(tmp_path, monkeypatch, wrapped):
    class InstanceData:
        """As mmengine's, as far as pickles see it."""

        def __init__(self):
            self._metainfo_fields, self._data_fields = set(), set()

    InstanceData.__qualname__ = "InstanceData"
    module(monkeypatch, "mmengine.structures.instance_data", InstanceData=InstanceData)
    if wrapped == "array":
        one = np.concatenate([BOXES, LOGITS[:, None]], axis=1)
    elif wrapped == "dict":
        one = {"bboxes": BOXES, "scores": LOGITS}
    else:
        one = InstanceData()
        one._data_fields = {"bboxes", "scores"}
        one.bboxes, one.scores = BOXES, LOGITS
    # mmengine writes protocol 2.
    file = read_proposals(pickled(tmp_path / "p.pkl", {"val2017/000000000139.jpg": one}, 2))
    assert file.ranked and list(file.boxes) == ["val2017/000000000139.jpg"]
    assert file.boxes["val2017/000000000139.jpg"].tolist() == RANKED


@pytest.mark.parametrize(
    "content, message",
    [
        ([np.zeros((3, 6))], r"p\.pkl, image 1: boxes must be \(P, 4\) or \(P, 5\), got \(3, 6\)"),
        ([[np.zeros((3, 5)), np.zeros((2, 5))]], r"image 1: boxes must be an array of numbers"),
        ({"a.jpg": {"labels": [1]}}, r"p\.pkl, a\.jpg: has no `bboxes`, only \['labels'\]"),
        ({7: BOXES}, "images must have file names, got 7"),
        ("text", "holds a dict or a list, got str"),
    ],
)
def test_what_is_wrong_in_a_file_of_mmdetection_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_proposals(pickled(tmp_path / "p.pkl", content))


# ----------------------------------------------------------------------------------- which it is


def test_our_own_file_is_read_as_it_is(tmp_path):
    boxes = np.float32([[1, 2, 3, 4], [0, 0, 9, 9]])
    for settings, ranked in ((None, False), ({"method": "edge boxes", "ranked": True}, True)):
        write_proposals(tmp_path / "p.npz", {"a": boxes}.items(), settings=settings)
        file = read_proposals(tmp_path / "p.npz")
        assert list(file.boxes) == ["a"] and file.ranked is ranked
        np.testing.assert_array_equal(file.boxes["a"], boxes)


def test_content_counts_more_than_the_name(tmp_path):
    pickled(tmp_path / "proposals.data", [BOXES])
    assert len(read_proposals(tmp_path / "proposals.data").boxes) == 1
    pickled(tmp_path / "old.pickle", [BOXES.tolist()], 0)  # no sign of its own
    assert len(read_proposals(tmp_path / "old.pickle").boxes) == 1
    write_proposals(tmp_path / "mine.pkl", {"a": BOXES}.items())
    assert list(read_proposals(tmp_path / "mine.pkl").boxes) == ["a"]


def test_files_of_no_known_kind_are_named(tmp_path):
    (tmp_path / "boxes.csv").write_text("1,2,3,4")
    with pytest.raises(ValueError, match=r"boxes\.csv: not a file of proposals; known are"):
        read_proposals(tmp_path / "boxes.csv")
    with pytest.raises(FileNotFoundError, match=r"none\.mat: no such file of proposals"):
        read_proposals(tmp_path / "none.mat")
