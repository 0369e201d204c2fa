"""The mistakes one by one: which are shown, in which order, and what is drawn of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrcnn_engine.data.records import record_of
from fastrcnn_engine.evaluation.mistakes import KINDS, FalsePositive, find_mistakes
from fastrcnn_engine.ops import Detections
from fastrcnn_engine.report import cuts
from fastrcnn_engine.report.cuts import cut_missed, cut_wrong, shown_wrong, window_around
from fastrcnn_engine.report.draw import MISSED, RIGHT, WHITE, WRONG
from fastrcnn_engine.report.gallery import drawn_at

CLASSES = ("cat", "dog")
WIDTH, HEIGHT = 400, 300


@pytest.fixture
def scene(tmp_path: Path):
    """One photo with a cat that is found, a cat and a dog that are missed, and wrong detections."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(path)
    boxes = [(20, 20, 59, 59), (200, 20, 299, 99), (300, 200, 319, 219)]
    records = [record_of("photo", path, (WIDTH, HEIGHT), boxes, [1, 1, 2], [False] * 3)]
    rows = [
        (1, 0.9, (20, 20, 59, 59)),  # right
        (2, 0.8, (200, 20, 299, 99)),  # the second cat as a dog
        (1, 0.7, (22, 22, 61, 61)),  # duplicate
        (2, 0.6, (100, 200, 139, 239)),  # nothing there
        (2, 0.4, (0, 0, 9, 9)),  # below the score
    ]
    labels, scores, found = zip(*rows, strict=True)
    detections = {"photo": Detections(np.float32(found), np.float32(scores), np.array(labels),
                                      np.arange(len(rows)))}  # fmt: skip
    drawn = drawn_at(records, CLASSES, detections)
    mistakes = find_mistakes(records, CLASSES, drawn.detections, drawn.result)
    return records, CLASSES, drawn, mistakes


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(axis=2).any())


def test_false_positives_come_by_falling_score_and_are_told(scene):
    shown = cut_wrong(*scene)
    assert [(one.name, one.kind, one.beside, one.image_id) for one in shown] == [
        ("dog 0.80", "other class", "cat, IoU 1.00", "photo"),
        ("cat 0.70", "duplicate", "cat, IoU 0.82", "photo"),
        ("dog 0.60", "background", "", "photo"),
    ]
    # Red: the detection. Orange: an object that is missed; white: one that is found.
    colours = [[has(one.picture, c) for c in (WRONG, MISSED, WHITE, RIGHT)] for one in shown]
    assert colours == [
        [True, True, False, False], [True, False, True, False], [True, False, False, False]
    ]  # fmt: skip
    assert {one.picture.shape for one in shown} == {(280, 280, 3)}


def test_missed_objects_come_by_falling_size_and_are_told(scene):
    shown = cut_missed(*scene)
    assert [(one.name, one.kind, one.beside) for one in shown] == [
        ("cat", "", "dog 0.80, IoU 1.00"), ("dog", "", ""),
    ]  # fmt: skip
    assert [has(one.picture, WRONG) for one in shown] == [True, False]
    assert all(has(one.picture, MISSED) for one in shown)
    assert cuts._overlap("cat", 0.006) == "cat, IoU 0.01"
    assert cuts._overlap("cat", 0.004) == "cat, IoU below 0.01"


def test_their_number_is_limited(scene, monkeypatch):
    monkeypatch.setattr(cuts, "LARGEST", 1)
    assert [one.name for one in cut_missed(*scene)] == ["cat"]
    monkeypatch.setattr(cuts, "HIGHEST", 1)
    monkeypatch.setattr(cuts, "OF_EACH_KIND", 0)
    assert [one.name for one in cut_wrong(*scene)] == ["dog 0.80"]


def test_a_rare_kind_is_shown_beside_the_highest_scores():
    kinds = ["background"] * 40 + ["duplicate"] * 2 + ["background"] + ["localisation"] * 8
    wrong = [
        FalsePositive("a", row, 1 - row / 100, kind, None, 0) for row, kind in enumerate(kinds)
    ]
    rows = [one.row for one in shown_wrong(wrong)]
    assert (cuts.HIGHEST, cuts.OF_EACH_KIND) == (24, 6)
    assert rows == [*range(24), 40, 41, *range(43, 49)]
    assert shown_wrong(wrong[:5]) == wrong[:5] and shown_wrong([]) == []
    assert set(kinds) < set(KINDS)


def test_the_window_holds_the_boxes_and_stays_in_the_image():
    box = np.array([[100, 100, 199, 149]])
    assert window_around(box, 400, 600) == (75, 50, 225, 200)  # half as much again, centred
    assert window_around(box[:, [1, 0, 3, 2]], 400, 600) == (50, 75, 200, 225)
    assert window_around(np.array([[0, 0, 99, 49]]), 400, 600) == (0, 0, 150, 150)
    assert window_around(np.array([[500.5, 380, 599, 399]]), 400, 600) == (450, 250, 600, 400)
    # A small box has something around it, and a box as large as the image is the image.
    assert window_around(np.array([[100, 100, 103, 103]]), 400, 600) == (70, 70, 134, 134)
    assert window_around(np.array([[0, 0, 599, 399]]), 400, 600) == (0, 0, 600, 400)
    two = np.array([[10, 10, 19, 19], [90, 90, 99, 99]])
    assert window_around(two, 400, 600) == (0, 0, 135, 135)
    assert window_around(np.array([[2, 2, 9, 9]]), 20, 40) == (0, 0, 40, 20)


def test_a_box_is_drawn_where_it_is_in_the_window(scene):
    (_, duplicate, _) = cut_wrong(*scene)
    # What is drawn reaches from 20 to 61, the window from 9 to 72: 280 pixels for 64.
    red = (duplicate.picture == WRONG).all(axis=2)
    rows, columns = np.nonzero(red)
    scale = 280 / 64
    for found in (rows, columns):
        assert abs(found.min() - (22 - 9) * scale) <= 2
        assert abs(found.max() - (62 - 9) * scale) <= 2
