"""Detection in one image: de-duplication, chunks, image pyramids, refusals."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from fastrcnn_engine.data.preparation import Preprocessing, prepare_image
from fastrcnn_engine.evaluation import detect
from fastrcnn_engine.evaluation.detect import (
    detect_image,
    nearest_levels,
    pyramid_maps,
    same_window,
    score_proposals,
)
from fastrcnn_engine.models import FastRCNN, FullyConnectedHead
from fastrcnn_engine.ops import clip_boxes_to_image, detections, roi_pool

IMAGE = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = FastRCNN(
        nn.Sequential(nn.Conv2d(3, 6, 16, stride=16, padding=8), nn.ReLU()),
        stride=16,
        head=FullyConnectedHead(6, 3, 24),
        head_features=24,
        classes=["a", "b"],
        pooled_size=3,
        preprocessing=Preprocessing(short_side=180, max_side=400, std=(60.0, 60.0, 60.0)),
    )
    # Scores and boxes that differ from RoI to RoI.
    nn.init.normal_(network.cls_score.weight, std=3.0)
    nn.init.normal_(network.bbox_pred.weight, std=1.0)
    network.delta_std.fill_(0.1)
    network.delta_mean.normal_(std=0.1)
    return network.eval()


def proposals(count: int = 400) -> np.ndarray:
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, [90, 60], (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(3, 40, (count, 2))], axis=1)
    return boxes.clip(0, [119, 89, 119, 89]).astype(np.float32)


def assert_same(one, two):
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_array_equal(one.labels, two.labels)
    # The head multiplies the same rows in batches of another size; BLAS may add up differently.
    np.testing.assert_allclose(one.scores, two.scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose(one.boxes, two.boxes, rtol=0, atol=1e-4)


def every_roi_by_itself(monkeypatch):
    rows = lambda rois, *_: (np.arange(len(rois)), np.arange(len(rois)))  # noqa: E731
    monkeypatch.setattr(detect, "same_window", rows)


def test_deduplication_changes_nothing_but_the_work(model, monkeypatch):
    seen = []
    classify = model.classify
    monkeypatch.setattr(model, "classify", lambda x: seen.append(len(x)) or classify(x))
    # A fifth of a map cell apart: most pairs round to one window.
    boxes = np.concatenate([proposals(200), proposals(200) + np.float32(0.8)])
    options = {"nms_threshold": 0.8, "max_detections": 1000}
    merged = detect_image(model, IMAGE, boxes, **options)
    every_roi_by_itself(monkeypatch)
    assert_same(merged, detect_image(model, IMAGE, boxes, **options))
    assert len(merged.rows) > 50 and set(merged.labels) == {1, 2}
    assert 200 <= seen[0] < 350 and seen[1] == 400


def test_duplicates_keep_their_own_boxes(model):
    # 18.0 and 18.2 on the map: one window, two boxes.
    boxes = np.array([[10, 10, 60, 60], [10.1, 10.1, 60.1, 60.1]], dtype=np.float32)
    found = detect_image(model, IMAGE, boxes, nms_threshold=1.0, score_threshold=0.0)
    for label in (1, 2):
        one, two = (found.boxes[(found.labels == label) & (found.rows == row)][0] for row in (0, 1))
        assert (one != two).any() and abs(one - two).max() < 0.2


def test_merged_rois_pool_the_same_cells_and_others_do_not():
    rng = np.random.default_rng(2)
    corner = rng.uniform(-20, 200, (600, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(-10, 60, (600, 2))], axis=1)
    rois = torch.from_numpy(np.insert(boxes, 0, 0, axis=1).astype(np.float32))
    first, inverse = same_window(rois, (12, 15), 3, 1 / 16)
    assert 300 < len(first) < 550
    torch.manual_seed(0)
    # Random maps: RoIs with different windows have different bins, and so different maxima.
    pooled = roi_pool(torch.randn(1, 64, 12, 15), rois, 3, 1 / 16).flatten(1)
    assert torch.equal(pooled, pooled[first][inverse])
    assert len(torch.unique(pooled, dim=0)) == len(first)


def test_chunks_change_nothing(model, monkeypatch):
    whole = detect_image(model, IMAGE, proposals())
    monkeypatch.setattr(detect, "ROIS_PER_CHUNK", 7)
    assert_same(whole, detect_image(model, IMAGE, proposals()))


def test_boxes_are_in_pixels_of_the_original_image_and_inside(model):
    found = detect_image(model, IMAGE, proposals())
    assert found.boxes.dtype == np.float32 and isinstance(found.labels, np.ndarray)
    assert (found.boxes >= 0).all() and (found.boxes <= [119, 89, 119, 89]).all()
    assert found.boxes[:, 2].max() > 100  # not shrunk by the scale, which is 2
    assert (np.diff(found.scores) <= 0).all()


def test_a_score_must_be_above_a_twentieth(model):
    options = {"nms_threshold": 1.0, "max_detections": 10_000}
    every = detect_image(model, IMAGE, proposals(), score_threshold=0.0, **options).scores
    assert every.min() < 0.05 and ((every > 0.05) & (every < 0.06)).any()
    found = detect_image(model, IMAGE, proposals(), **options)
    np.testing.assert_array_equal(found.scores, every[every > np.float32(0.05)])


def test_zero_deltas_return_the_proposals(model):
    nn.init.zeros_(model.bbox_pred.weight)
    model.delta_mean.zero_()
    boxes = proposals(30)
    found = detect_image(model, IMAGE, boxes)
    np.testing.assert_allclose(found.boxes, boxes[found.rows], atol=1e-4)


def test_deltas_are_unnormalised_before_decoding(model):
    nn.init.zeros_(model.bbox_pred.weight)
    nn.init.constant_(model.bbox_pred.bias, 2.0)
    model.delta_mean.zero_()
    model.delta_std.copy_(torch.tensor([0.05, 0, 0, 0]).repeat(3))  # dx = 2 * 0.05
    found = detect_image(model, IMAGE, np.array([[10, 10, 50, 50]], dtype=np.float32))
    np.testing.assert_allclose(found.boxes, [[14, 10, 54, 50]] * len(found.boxes), atol=1e-4)
    assert len(found.boxes) > 0


def test_every_box_goes_to_the_level_that_brings_it_closest_to_224_pixels():
    rng = np.random.default_rng(4)
    corner = rng.uniform(-10, 600, (500, 2))
    # Down to no size and below: the rule is the area's, whatever the box.
    size = rng.uniform(-20, 600, (500, 2))
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    factors = [side / 375 for side in (480, 576, 688, 864, 1200)]

    def exact(box):
        x1, y1, x2, y2 = map(Fraction, box.tolist())
        area = (x2 - x1 + 1) * (y2 - y1 + 1)
        away = [abs(area * Fraction(factor) ** 2 - 224 * 224) for factor in factors]
        return away.index(min(away))

    expected = [exact(box) for box in boxes]
    assert nearest_levels(boxes, factors).tolist() == expected
    assert set(expected) == {0, 1, 2, 3, 4}
    # 112 x 112 pixels, both ends counted: just right at twice the size.
    assert nearest_levels(np.float32([[10, 10, 121, 121]]), [1, 1.9, 2, 2.1]).tolist() == [2]


def test_equally_good_levels_give_the_first():
    box = np.float32([[0, 0, 99, 99]])
    # max_side gives two levels one factor; a box without area is nothing at any size.
    assert nearest_levels(box, [1, 2, 2]).tolist() == [1]
    assert nearest_levels(np.float32([[5, 5, 4, 60]]), [1, 2, 3]).tolist() == [0]
    pyramid = Preprocessing(short_side=(480, 600, 900), max_side=1000)
    factors = [level.scale(300, 900) for level in pyramid.levels()]
    assert factors == [1000 / 900] * 3
    assert nearest_levels(box, factors).tolist() == [0]
    assert nearest_levels(np.zeros((0, 4), np.float32), factors).tolist() == []


def test_one_scale_is_the_plain_network(model, monkeypatch):
    every_roi_by_itself(monkeypatch)
    # The steps one by one, without anything that knows of several sizes.
    boxes = proposals()
    with torch.inference_mode():
        tensor, scale = prepare_image(IMAGE, model.preprocessing)
        rois = np.insert(boxes.astype(np.float64) * scale, 0, 0, axis=1).astype(np.float32)
        logits, deltas = model(tensor[None], torch.from_numpy(rois))
        scores, deltas = logits.softmax(dim=1).numpy(), model.unnormalise(deltas).numpy()
    plain = detections(boxes, scores, deltas, IMAGE.shape[:2], nms_threshold=0.3, inclusive=True)
    found = detect_image(model, IMAGE, boxes)
    for one, two in zip(found, plain, strict=True):
        np.testing.assert_array_equal(one, two)
    model.preprocessing = replace(model.preprocessing, short_side=(180,))
    for one, two in zip(detect_image(model, IMAGE, boxes), plain, strict=True):
        np.testing.assert_array_equal(one, two)


def test_rois_are_scaled_in_float64_as_for_training(model):
    model.preprocessing = replace(model.preprocessing, short_side=170)
    boxes, scale = proposals(), 170 / 90
    with torch.inference_mode():
        (level,) = pyramid_maps(model, IMAGE, boxes)
    assert level.scale == scale and not level.rois[:, 0].any()
    exact = (boxes.astype(np.float64) * scale).astype(np.float32)
    np.testing.assert_array_equal(level.rois[:, 1:], exact)
    assert (exact != boxes * np.float32(scale)).any()


@pytest.fixture
def pyramid(model):
    model.preprocessing = replace(model.preprocessing, short_side=(480, 720, 1000), max_side=1500)
    return model


def test_each_proposal_is_scored_on_its_level_as_on_that_level_alone(pyramid):
    boxes = proposals()
    levels = pyramid.preprocessing.levels()
    assigned = nearest_levels(boxes, [level.scale(*IMAGE.shape[:2]) for level in levels])
    scores, deltas = score_proposals(pyramid, IMAGE, boxes)
    differ = 0
    for number, level in enumerate(levels):
        pyramid.preprocessing = level
        rows = np.flatnonzero(assigned == number)
        assert len(rows) > 30
        alone, alone_deltas = score_proposals(pyramid, IMAGE, boxes[rows])
        np.testing.assert_array_equal(scores[rows], alone)
        np.testing.assert_array_equal(deltas[rows], alone_deltas)
        elsewhere = score_proposals(pyramid, IMAGE, boxes[assigned != number])[0]
        differ += (abs(scores[assigned != number] - elsewhere) > 1e-3).any(axis=1).sum()
    assert differ > 100  # the level matters


def test_a_level_that_no_proposal_needs_is_left_out(pyramid, monkeypatch):
    sizes = []
    backbone = pyramid.backbone.forward
    monkeypatch.setattr(pyramid.backbone, "forward", lambda x: sizes.append(x.shape) or backbone(x))
    detect_image(pyramid, IMAGE, np.float32([[0, 0, 110, 85], [2, 2, 20, 25]]))
    assert [tuple(size[2:]) for size in sizes] == [(480, 640), (1000, 1333)]


def test_deduplication_keeps_to_each_level(pyramid, monkeypatch):
    seen = []
    classify = pyramid.classify
    monkeypatch.setattr(pyramid, "classify", lambda x: seen.append(len(x)) or classify(x))
    boxes = np.concatenate([proposals(200), proposals(200) + np.float32(0.2)])
    options = {"nms_threshold": 0.8, "max_detections": 1000}
    merged = detect_image(pyramid, IMAGE, boxes, **options)
    rows, seen[:] = sum(seen), []
    every_roi_by_itself(monkeypatch)
    assert_same(merged, detect_image(pyramid, IMAGE, boxes, **options))
    assert 200 <= rows < 350 and sum(seen) == 400


def test_boxes_of_a_pyramid_are_in_pixels_of_the_original_image(pyramid):
    nn.init.zeros_(pyramid.bbox_pred.weight)
    pyramid.delta_mean.zero_()
    boxes = proposals(60)
    found = detect_image(pyramid, IMAGE, boxes)
    np.testing.assert_allclose(found.boxes, boxes[found.rows], atol=1e-4)


def test_without_box_regression_the_proposals_are_kept_and_clipped(model):
    boxes = proposals(60)
    boxes[0] = [-5, -5, 200, 200]
    options = {"nms_threshold": 1.0, "score_threshold": 0.0, "max_detections": 1000}
    off = detect_image(model, IMAGE, boxes, box_regression=False, **options)
    inside = clip_boxes_to_image(boxes, IMAGE.shape[:2], inclusive=True)
    np.testing.assert_array_equal(off.boxes, inside[off.rows])
    on = detect_image(model, IMAGE, boxes, **options)
    np.testing.assert_array_equal(off.scores, on.scores)  # the classification is the same
    assert abs(on.boxes - off.boxes).max() > 1
    model.box_regression = False  # as training without it leaves the model
    for one, two in zip(detect_image(model, IMAGE, boxes, **options), off, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_detection_under_autocast(model, dtype):
    image = np.random.default_rng(2).integers(0, 255, (90, 120, 3), np.uint8)
    with torch.autocast("cpu", dtype):
        found = detect_image(model, image, proposals())
    assert found.boxes.dtype == found.scores.dtype == np.float32 and len(found.boxes)


def test_no_proposals_no_detections(model):
    found = detect_image(model, IMAGE, np.zeros((0, 4), dtype=np.float32))
    assert found.boxes.shape == (0, 4) and len(found.scores) == 0


def test_refusals(model):
    for shape in ((3, 5), (4,)):
        with pytest.raises(ValueError, match=re.escape(f"(P, 4), got {shape}")):
            detect_image(model, IMAGE, np.zeros(shape))
    bad = proposals(5)
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"proposals\[3\] must be finite, got"):
        detect_image(model, IMAGE, bad)
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\)"):
        detect_image(model, IMAGE[:0], proposals(5))
    with pytest.raises(ValueError, match="training mode"):
        detect_image(model.train(), IMAGE, proposals(5))
