"""What RoI pooling took: which detections are looked into, and a heat map that is in its place."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from fastrcnn_engine.data.preparation import Preprocessing
from fastrcnn_engine.data.records import record_of
from fastrcnn_engine.evaluation.mistakes import find_mistakes
from fastrcnn_engine.evaluation.pooled import PooledRoI, where_pooled
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.ops import Detections
from fastrcnn_engine.report import pooled
from fastrcnn_engine.report.draw import RIGHT, ROI, WRONG
from fastrcnn_engine.report.gallery import drawn_at
from fastrcnn_engine.report.pooled import draw_heat, look, to_look_into

CLASSES = ("cat", "dog", "cow")
CAT, DOG, FAR = (10, 10, 29, 29), (50, 50, 89, 89), (100, 10, 119, 29)


def scene(rows_of):
    """Two photos of a cat and a dog each. rows_of: image id -> (label, score, box)."""
    records = [
        record_of(name, f"{name}.png", (120, 100), [CAT, DOG], [1, 2], [False, False])
        for name in rows_of
    ]
    detections = {}
    for name, rows in rows_of.items():
        labels, scores, boxes = zip(*rows, strict=True)
        detections[name] = Detections(
            np.float32(boxes), np.float32(scores), np.array(labels), np.arange(len(rows))
        )
    drawn = drawn_at(records, CLASSES, detections)
    return records, drawn, find_mistakes(records, CLASSES, drawn.detections, drawn.result)


def test_the_best_right_one_of_each_class_and_the_first_wrong_ones():
    arguments = scene({
        "a": [(3, 0.9, FAR), (1, 0.7, CAT), (2, 0.6, DOG)],
        "b": [(1, 0.8, CAT), (1, 0.75, DOG), (2, 0.6, DOG), (2, 0.3, FAR)],
    })  # fmt: skip
    assert to_look_into(*arguments) == [
        ("b", 0, "right"), ("a", 2, "right"), ("a", 0, "background"), ("b", 1, "other class")
    ]  # fmt: skip


def test_how_many_are_looked_into_is_limited(monkeypatch):
    arguments = scene({"a": [(1, 0.7, CAT), (2, 0.6, DOG), (3, 0.55, FAR), (1, 0.52, FAR)]})
    assert len(to_look_into(*arguments)) == 4
    monkeypatch.setattr(pooled, "RIGHT_ONES", 1)
    monkeypatch.setattr(pooled, "WRONG_ONES", 1)
    assert to_look_into(*arguments) == [("a", 0, "right"), ("a", 2, "background")]


class Blocks(nn.Module):
    """The mean of each square of 4 pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, 4)


@pytest.fixture
def model():
    plain = Preprocessing(channel_order="RGB", mean=(0, 0, 0), short_side=200, max_side=240)
    return FastRCNN(
        Blocks(), stride=4, head=nn.Flatten(), head_features=3 * 9, classes=CLASSES, pooled_size=3,
        preprocessing=plain,
    ).eval()  # fmt: skip


def test_a_planted_peak_is_hot_where_it_is_on_the_photo(model, monkeypatch):
    image = np.zeros((100, 120, 3), np.uint8)
    # The network gets the photo at twice its size: a cell is 2 pixels of the photo.
    image[54:56, 70:72] = 255
    records, drawn, _ = scene({"a": [(2, 0.9, DOG)]})
    roi = (48.0, 47.0, 91.0, 88.0)
    (found,) = where_pooled(model, image, np.float32([roi]))
    assert found.cell == 2 and found.counts.max() == 3
    window_of = Mock(wraps=pooled.window_around)
    monkeypatch.setattr(pooled, "window_around", window_of)
    one = look(image, "a", 0, "right", drawn, CLASSES, roi, found)
    shown = window_of.call_args.args[0]  # with all of the outermost cells
    np.testing.assert_allclose(shown[2:, :2].min(axis=0), 2 * found.bins[:, :2].min(axis=0) - 1)
    np.testing.assert_allclose(shown[2:, 2:].max(axis=0), 2 * found.bins[:, 2:].max(axis=0) + 1)
    assert one.photo.shape == one.heat.shape == (320, 320, 3)
    assert one.name == "dog 0.90" and one.roi == roi
    assert (one.photo == RIGHT).all(axis=2).any() and (one.photo == ROI).all(axis=2).any()
    assert not (one.photo == WRONG).all(axis=2).any()
    assert not (one.heat == WRONG).all(axis=2).any() and (one.heat == ROI).all(axis=2).any()

    # 60 pixels of the photo in 300: a cell is 10 pixels wide.
    grey = np.full((300, 300, 3), 100, np.uint8)
    heat = draw_heat(grey, (40, 40, 100, 100), found, roi)
    hot = (heat[:, :, 0] > 220) & (heat[:, :, 2] < 100)
    rows, columns = np.nonzero(hot)
    # The peak is in cell 35, 27. What is rounded to it lies around the pixels 70 and 54, whose
    # middles are 152.5 and 72.5 from the corner.
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (147, 156, 67, 76)
    assert hot.sum() == 100
    blue = np.nonzero((heat == ROI).all(axis=2))  # 5 pixels for one, and a line around them
    assert [(side.min(), side.max()) for side in blue] == [(34, 245), (39, 260)]


def test_nothing_is_hot_beyond_the_map_or_in_an_empty_cell():
    counts = np.zeros((4, 4), np.int64)
    counts[3, 3] = 5
    bins = np.array([[0, 0, 1, 1], [2, 2, 3, 3]])
    one = PooledRoI(counts, flat=0, channels=5, bins=bins, cell=10.0, short_side=40)
    grey = np.full((100, 100, 3), 100, np.uint8)
    drawn = draw_heat(grey, (0, 0, 100, 100), one, (0, 0, 9, 9))
    dark = (drawn == 40).all(axis=2)  # the darkened photo, untouched
    assert dark[40:, 40:].all() and not dark[26:34, 26:34].any()
    assert dark[10, 20] and dark[20, 10] and dark[22, 8]
    # Bins begin and end at the first pixel of a cell: 15 and 35.
    white = (drawn == drawn[24, 15]).all(axis=2)
    assert np.flatnonzero(white[5]).tolist() == [15]
    assert np.flatnonzero(white[24]).tolist() == [15, 35]
    assert np.flatnonzero(white[:, 24]).tolist() == [15, 35]
    none = PooledRoI(np.zeros((4, 4), np.int64), 0, 5, bins[:0], 10.0, 40)
    assert (draw_heat(grey, (0, 0, 100, 100), none, (200, 200, 300, 300)) == 40).all()
