from __future__ import annotations

import numpy as np
import pytest

from fastrcnn_engine.data.proposals import edge_boxes

from .edge_models import write_edge_model
from .test_proposals import best_iou, scene


@pytest.fixture(params=[False, True], ids=["gradients", "model"])
def model(request, tmp_path):
    return write_edge_model(tmp_path / "model.yml") if request.param else None


def test_the_best_boxes_frame_the_objects(model):
    image, objects = scene()
    boxes = edge_boxes(image, model=model)
    assert boxes.dtype == np.float32 and boxes.ndim == 2 and boxes.shape[1] == 4
    # The order is that of the scores. A box lies some pixels outside of the contour that it holds.
    assert best_iou(objects, boxes[:20]).min() > 0.6
    assert best_iou(objects, boxes[-100:]).min() < 0.6


def test_a_box_lies_around_the_edges_alike_on_all_sides():
    # OpenCV's corner is 1-based and its size one less than the pixels: either error would show.
    rng = np.random.default_rng(0)
    margins = []
    for x1, y1, width, height in rng.integers((10, 10, 50, 40), (30, 20, 100, 70), (60, 4)):
        image = np.full((120, 160, 3), 60, np.uint8)
        image[y1 : y1 + height, x1 : x1 + width] = (220, 200, 40)
        first = edge_boxes(image, short_side=None)[0]
        margins.append(first * (-1, -1, 1, 1) + (x1, y1, 1 - x1 - width, 1 - y1 - height))
    left, top, right, bottom = np.mean(margins, axis=0)
    assert abs(left - right) < 0.5 and abs(top - bottom) < 0.5
    assert 1 < min(left, top, right, bottom) and max(left, top, right, bottom) < 4


@pytest.mark.parametrize("short_side", [None, 47, 200])
def test_boxes_are_whole_pixels_inside_the_image_and_come_once(model, short_side):
    image, _ = scene(height=95, width=143)
    boxes = edge_boxes(image, model=model, short_side=short_side, min_size=9)
    x1, y1, x2, y2 = boxes.T
    assert len(boxes) > 20 and (boxes == np.round(boxes)).all()
    assert x1.min() >= 0 and y1.min() >= 0 and x2.max() <= 142 and y2.max() <= 94
    assert (x2 - x1 + 1).min() >= 9 and (y2 - y1 + 1).min() >= 9
    assert len(np.unique(boxes, axis=0)) == len(boxes)


def test_the_same_image_gives_the_same_array(model):
    image, _ = scene()
    np.testing.assert_array_equal(edge_boxes(image, model=model), edge_boxes(image, model=model))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (12, 12), (40, 60)])
def test_tiny_and_flat_images_do_not_crash(size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    assert edge_boxes(noise, min_size=1).shape[1] == 4
    flat = edge_boxes(np.full((*size, 3), 7, np.uint8), min_size=1)
    assert flat.shape == (0, 4) and flat.dtype == np.float32


def test_few_edges_are_edges_all_the_same():
    image = np.full((200, 300, 3), 60, np.uint8)
    image[80:110, 140:180] = 255  # its outline is less than a hundredth of the image
    assert best_iou(np.float32([[140, 80, 179, 109]]), edge_boxes(image)[:1]) > 0.5


def test_min_size_counts_pixels_of_the_image_not_of_the_shrunk_one():
    image = np.full((800, 1000, 3), 40, np.uint8)
    image[300:340, 400:440] = 220  # in the searched image 10 pixels wide
    image[100:700, 600:900] = 150
    square = np.float32([400, 300, 439, 339])
    assert np.abs(edge_boxes(image, short_side=200) - square).max(axis=1).min() <= 8


def test_the_model_decides(tmp_path):
    image, _ = scene()
    deaf = write_edge_model(tmp_path / "deaf.yml", threshold=1e6)
    assert len(edge_boxes(image, model=deaf)) == 0
    write_edge_model(tmp_path / "deaf.yml")  # another file of the same name is read anew
    assert len(edge_boxes(image, model=deaf)) > 0


def test_what_is_no_model_is_named(tmp_path):
    image, _ = scene()
    with pytest.raises(FileNotFoundError, match=r"none\.yml: no such model"):
        edge_boxes(image, model=tmp_path / "none.yml")
    # OpenCV would divide by the number of trees, or read beyond the end of a list.
    (tmp_path / "other.yml").write_text("%YAML:1.0\nanswer: 42\n")
    with pytest.raises(ValueError, match=r"other\.yml: not a structured edge detector"):
        edge_boxes(image, model=tmp_path / "other.yml")
    half = write_edge_model(tmp_path / "half.yml", without="thresholds")
    with pytest.raises(ValueError, match=r"half\.yml.*has no thresholds"):
        edge_boxes(image, model=half)
    (tmp_path / "noise.yml").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"noise\.yml"):
        edge_boxes(image, model=tmp_path / "noise.yml")


@pytest.mark.parametrize(
    "image, options, message",
    [
        (np.zeros((9, 9), np.uint8), {}, r"\(9, 9\)"),
        (np.zeros((9, 9, 3), np.float32), {}, "float32"),
        (np.zeros((9, 9, 3), np.uint8), {"short_side": 0}, "short_side"),
        (np.zeros((2, 9999, 3), np.uint8), {}, "9999 x 2.*up to 10000"),
    ],
)
def test_wrong_arguments_are_named(image, options, message):
    with pytest.raises(ValueError, match=message):
        edge_boxes(image, **options)
