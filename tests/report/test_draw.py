"""Drawing: the pixels are where the boxes are."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fastrcnn_engine.evaluation.voc import evaluate_voc
from fastrcnn_engine.report.draw import (
    MISSED,
    OTHER,
    RIGHT,
    WHITE,
    WRONG,
    Mark,
    class_colour,
    detection_marks,
    draw_marks,
    picture_grid,
    verdict_marks,
)

RED = (255, 0, 0)


def grey(height=120, width=200):
    return np.full((height, width, 3), 90, np.uint8)


def record(boxes, labels, difficult=None):
    return SimpleNamespace(
        image_id="a",
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        difficult=np.array(difficult or [False] * len(labels), bool),
    )


def found(boxes, scores, labels):
    return SimpleNamespace(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float32),
        labels=np.array(labels, np.int64),
    )


def test_a_box_is_drawn_on_its_border_and_nowhere_else():
    image = grey()
    drawn = draw_marks(image, [Mark((50, 30, 149, 89), RED)])
    red = (drawn == RED).all(axis=2)
    for y, x in [(60, 50), (60, 149), (30, 100), (89, 100), (30, 50), (89, 149)]:
        assert red[y, x], (y, x)
    assert not red[60, 100] and not red[10, 100] and not red[60, 20]
    rows, columns = np.nonzero(red)
    assert rows.min() >= 28 and rows.max() <= 91 and columns.min() >= 48 and columns.max() <= 151
    assert (image == 90).all()  # the input is left alone


def test_lines_are_thick_enough_to_see():
    drawn = draw_marks(grey(600, 800), [Mark((200, 200, 500, 400), RED)])
    assert ((drawn[300] == RED).all(axis=1)).sum() >= 2 * 3  # two sides of at least 3 pixels


def test_enlarging_moves_the_box_with_the_image():
    image = grey(100, 100)
    image[20:40, 10:30] = (0, 0, 255)  # a blue patch with the inclusive box 10, 20, 29, 39
    drawn = draw_marks(image, [Mark((10, 20, 29, 39), RED, dashed=False)], width=400)
    assert drawn.shape == (400, 400, 3)
    red = (drawn == RED).all(axis=2)
    rows, columns = np.nonzero(red)
    # The patch covers pixels 40..119 across and 80..159 down; the line lies half outside.
    assert abs(columns.min() - 40) <= 2 and abs(columns.max() - 119) <= 2
    assert abs(rows.min() - 80) <= 2 and abs(rows.max() - 159) <= 2


def test_labels_are_white_on_the_colour_of_the_box():
    drawn = draw_marks(grey(), [Mark((50, 40, 149, 99), RED, "cat 0.90")])
    above = drawn[20:38, 50:110]
    assert ((above == RED).all(axis=2)).sum() > 200
    assert ((above == WHITE).all(axis=2)).sum() > 20


def test_labels_stay_inside_the_image_and_off_each_other():
    marks = [Mark((0, 0, 190, 110), (200, 0, 0), "one 0.5"), Mark((0, 0, 190, 110), RED, "two 0.9")]
    drawn = draw_marks(grey(), marks)
    boxes = draw_marks(grey(), [replace(mark, label="") for mark in marks])
    for colour in ((200, 0, 0), RED):
        # Both label grounds are there in full, though both would like the same corner.
        ground = (drawn == colour).all(axis=2) & ~(boxes == colour).all(axis=2)
        assert ground.sum() > 400, colour
    # The last mark, of the best detection, is the first to choose: above its box.
    drawn = draw_marks(grey(), [replace(mark, box=(50, 60, 149, 99)) for mark in marks])
    assert ((drawn[45:55, 50:100] == RED).all(axis=2)).sum() > 200
    # One that is far from all others too.
    apart = [Mark((20, 30, 60, 60), RED, "a"), Mark((150, 90, 190, 110), RED, "b")]
    drawn = draw_marks(grey(), apart)
    assert ((drawn[14:28, 20:35] == RED).all(axis=2)).sum() > 100


@pytest.mark.parametrize(
    "name", ["two\nlines", "tab\tbed", "\x1b[31m", "\ud800", "\0", "\u202e", "\u2069"]
)
def test_a_name_of_more_than_letters_is_spelt_out_in_one_line(name):
    """After hours of training a class of two lines must not end its test."""
    image, spelt = np.zeros((90, 200, 3), np.uint8), name.encode("unicode_escape").decode()
    drawn = [draw_marks(image, [Mark((9, 40, 99, 80), RED, text)]) for text in (name, spelt)]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != image).any()


def test_a_box_beyond_the_border_does_not_fail():
    drawn = draw_marks(grey(), [Mark((-40, -40, 400, 300), RED, "large", dashed=False)])
    assert ((drawn == RED).all(axis=2)).any()  # its label
    draw_marks(grey(), [Mark((30, 30, 30, 30), RED, "dot", dashed=True)])
    draw_marks(grey(600, 800), [Mark((33, 33, 33, 33), RED, dashed=True)], width=80)
    assert draw_marks(grey(1, 900), [], width=300).shape == (1, 300, 3)


def test_dashed_boxes_have_gaps():
    drawn = draw_marks(grey(600, 800), [Mark((100, 100, 700, 500), WHITE, dashed=True)])
    line = (drawn[100, 100:700] == WHITE).all(axis=1)
    assert 0.3 < line.mean() < 0.7
    missed = draw_marks(grey(600, 800), [Mark((100, 100, 700, 500), MISSED, dashed=True)])
    thick = [(picture[90:120, 105] != 90).any(axis=1).sum() for picture in (drawn, missed)]
    assert thick == [2, 4]


def test_detections_carry_class_colour_label_and_score_strongest_last():
    boxes = [[0, 0, 9, 9], [5, 5, 20, 20], [5, 5, 21, 21]]
    marks = detection_marks(found(boxes, [0.9, 0.25, 0.25], [2, 1, 2]), ["cat", "dog"])
    assert [m.label for m in marks] == ["dog 0.25", "cat 0.25", "dog 0.90"]  # the first of equals
    assert [m.colour for m in marks] == [class_colour(label) for label in (2, 1, 2)]


def test_verdicts_have_their_colours():
    truth = record(
        [[0, 0, 19, 19], [40, 0, 59, 19], [80, 0, 99, 19]], [1, 1, 1], [False, False, True]
    )
    detections = found(
        [[0, 0, 19, 19], [100, 80, 119, 99], [80, 0, 99, 19]], [0.9, 0.8, 0.7], [1, 1, 1]
    )
    match = evaluate_voc([truth], ["cat"], {"a": detections}).matches["a"]
    marks = verdict_marks(truth, detections, match, ["cat"])
    colours = {m.label: m.colour for m in marks if not m.dashed}
    assert colours == {"cat 0.90": RIGHT, "cat 0.80": WRONG, "cat 0.70": OTHER}
    dashed = {m.box[0]: (m.colour, m.label) for m in marks if m.dashed}
    assert dashed == {0: (WHITE, ""), 40: (MISSED, "cat"), 80: (WHITE, "")}


def test_class_colours_differ_and_carry_white_text():
    colours = [class_colour(label) for label in range(1, 31)]
    assert len(set(colours)) == 30
    for red, green, blue in colours:
        # Contrast with white of at least 3 : 1, the rule for large or bold text.
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (red / 255, green / 255, blue / 255)
        ]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 3.0, (red, green, blue)


def test_grid_places_pictures_row_by_row():
    pictures = [np.full((10, 20, 3), value, np.uint8) for value in (10, 20, 30, 40)]
    grid = picture_grid(pictures)
    assert grid.shape == (28, 76, 3)
    assert (grid[:10, :20] == 10).all() and (grid[:10, 28:48] == 20).all()
    assert (grid[:10, 56:] == 30).all() and (grid[18:, :20] == 40).all()
    assert (grid[18:, 28:] == 255).all() and (grid[10:18] == 255).all()
    assert picture_grid(pictures[:2]).shape == (10, 48, 3)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="image must be"):
        draw_marks(np.zeros((5, 5), np.uint8), [])
    with pytest.raises(ValueError, match="image must be uint8 .*, got float32"):
        draw_marks(np.zeros((5, 5, 3), np.float32), [])
    with pytest.raises(ValueError, match="0 pictures"):
        picture_grid([])


def test_a_narrow_strip_is_drawn_smaller():
    mark = Mark((0, 10, 1, 900), (9, 9, 9), "a name")
    assert draw_marks(grey(3000, 2), [mark], width=640).shape == (2560, 2, 3)
    assert draw_marks(grey(66_000, 20), [mark]).shape == (65_500, 20, 3)
