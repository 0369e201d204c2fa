"""Where the maxima of RoI pooling came from: counted, placed and of the detector's own map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastrcnn_engine.data.preparation import Preprocessing, prepare_image
from fastrcnn_engine.evaluation.detect import nearest_levels
from fastrcnn_engine.evaluation.pooled import where_pooled
from fastrcnn_engine.models import NETWORKS, FastRCNN, build_network, compress
from reference.roi_pool import roi_pool as reference_roi_pool

IMAGE = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
BOXES = np.array(
    [[10, 10, 100, 80], [50, 60, 70, 75], [0, 0, 119, 89], [33, 20, 36, 22], [100, 70, 119, 89]],
    np.float32,
)


class Blocks(nn.Module):
    """The mean of each square of 4 pixels, red, green and blue: a map that is known by hand."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, 4)


@pytest.fixture
def blocks():
    return FastRCNN(
        Blocks(),
        stride=4,
        head=nn.Flatten(),
        head_features=3 * 9,
        classes=["a"],
        pooled_size=3,
        preprocessing=Preprocessing(
            channel_order="RGB", mean=(0, 0, 0), short_side=80, max_side=400
        ),
    ).eval()


def seen_by(model: FastRCNN, cell: int) -> float:
    """The middle, in pixels of the input, of the rows that a row of the map is computed from."""
    for name, layer in list(model.backbone.named_children()):
        if isinstance(layer, nn.Conv2d):  # a sum: no place is more important, one channel will do
            shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            layer = nn.Conv2d(1, 1, *shape, bias=False)
            nn.init.ones_(layer.weight)
            setattr(model.backbone, name, layer)
        elif isinstance(layer, nn.MaxPool2d):
            mean = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
            setattr(model.backbone, name, mean)
        else:
            setattr(model.backbone, name, nn.Identity())
    image = torch.zeros(1, 1, 480, 480, dtype=torch.float64, requires_grad=True)
    model.backbone.double()(image)[0, 0, cell, cell].backward()
    weights = image.grad[0, 0].sum(dim=1)
    return float((weights * torch.arange(480)).sum() / weights.sum())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_maxima_of_every_network_add_up(name):
    torch.manual_seed(0)
    model = build_network(name, ["a"], preprocessing=Preprocessing(short_side=180, max_side=400))
    model.eval()
    found = where_pooled(model, IMAGE, BOXES)
    with torch.inference_mode():
        tensor, scale = prepare_image(IMAGE, model.preprocessing)
        features = model.backbone(tensor[None])
    assert len(found) == len(BOXES) and scale == 2
    for one in found:
        assert one.counts.shape == features.shape[2:] and one.channels == features.shape[1]
        assert one.cell == model.stride / 2 and one.short_side == 180
        assert one.counts.sum() + one.flat == one.channels * len(one.bins)
    assert len(found[0].bins) == model.pooled_size**2
    # Behind a ReLU much is 0 everywhere in a bin; tiny ends without one.
    assert (found[0].flat == 0) == (name == "tiny")
    aside = {"caffenet": 0, "vgg16": 7.5, "vgg_cnn_m_1024": 17}
    if name in aside:
        assert seen_by(model, 14) - 14 * 16 == pytest.approx(aside[name], abs=0.01)


def test_cells_and_bins_are_those_of_the_reference(blocks):
    boxes = np.concatenate([BOXES, [[-60, -50, 20, 20], [400, 400, 500, 500]]]).astype(np.float32)
    found = where_pooled(blocks, IMAGE, boxes)
    tensor, scale = prepare_image(IMAGE, blocks.preprocessing)
    features = blocks.backbone(tensor[None]).numpy()
    rois = np.insert(boxes.astype(np.float64) * scale, 0, 0, axis=1).astype(np.float32)
    _, argmax = reference_roi_pool(features, rois, (3, 3), 1 / 4)
    for one, cells in zip(found, argmax, strict=True):
        expected = np.zeros(one.counts.size, np.int64)
        np.add.at(expected, cells[cells >= 0], 1)
        np.testing.assert_array_equal(one.counts.ravel(), expected)
        assert one.flat == 0 and len(one.bins) == (cells[0] >= 0).sum()
        # Every maximum lies in its own bin.
        y, x = np.divmod(cells[:, cells[0] >= 0].reshape(3, -1), one.counts.shape[1])
        x1, y1, x2, y2 = one.bins.T
        assert ((x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)).all()
    assert 0 < len(found[-2].bins) < 9  # in part outside of the map
    assert len(found[-1].bins) == 0 and not found[-1].counts.any()


def test_a_planted_peak_is_found_where_it_is_on_the_photo(blocks):
    image = np.zeros((80, 120, 3), np.uint8)
    image[36:40, 60:64] = 255  # cell 15, 9 in all three channels
    (one,) = where_pooled(blocks, image, np.array([[40, 20, 90, 60]], np.float32))
    assert one.cell == 4
    y, x = np.unravel_index(one.counts.argmax(), one.counts.shape)
    assert (x, y) == (15, 9)
    # One bin holds the peak, all others hold nothing but 0 and are flat.
    assert one.counts.sum() == 3 and one.flat == 3 * 8


def test_a_bin_of_one_cell_is_not_flat(blocks):
    image = np.full((80, 120, 3), 7, np.uint8)
    small, large = where_pooled(blocks, image, np.float32([[0, 0, 8, 8], [0, 0, 119, 79]]))
    assert small.flat == 0 and small.counts[:3, :3].tolist() == [[3] * 3] * 3
    assert small.bins.tolist() == [[x, y, x, y] for y in range(3) for x in range(3)]
    assert small.bins.dtype == np.int64
    assert large.flat == 3 * 9 and not large.counts.any()


def test_each_proposal_is_looked_for_on_its_own_level(blocks):
    blocks.preprocessing = replace(blocks.preprocessing, short_side=(180, 360), max_side=900)
    levels = blocks.preprocessing.levels()
    boxes = np.concatenate([BOXES, [[0, 0, 118, 88]]]).astype(np.float32)
    assigned = nearest_levels(boxes, [level.scale(*IMAGE.shape[:2]) for level in levels])
    assert set(assigned) == {0, 1}
    found = where_pooled(blocks, IMAGE, boxes)
    for one, box, number in zip(found, boxes, assigned, strict=True):
        assert one.short_side == (180, 360)[number] and one.cell == 4 / (2, 4)[number]
        blocks.preprocessing = levels[number]
        (alone,) = where_pooled(blocks, IMAGE, box[None])
        np.testing.assert_array_equal(one.counts, alone.counts)
        np.testing.assert_array_equal(one.bins, alone.bins)


def test_neither_the_head_nor_another_run_makes_a_difference():
    torch.manual_seed(0)
    model = build_network("tiny", ["a", "b"]).eval()
    recorded = []
    model.backbone.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    first = where_pooled(model, IMAGE, BOXES)
    compress(model, {"fc6": 8, "fc7": 8})
    model.classifier = "svm"
    for one, two in zip(first, where_pooled(model, IMAGE, BOXES), strict=True):
        np.testing.assert_array_equal(one.counts, two.counts)
        assert one.flat == two.flat
    assert recorded == [False, False]


def test_wrong_arguments_are_named(blocks):
    assert where_pooled(blocks, IMAGE, np.zeros((0, 4), np.float32)) == []
    with pytest.raises(ValueError, match="proposals must be"):
        where_pooled(blocks, IMAGE, np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"proposals\[1\] must be finite, got"):
        where_pooled(blocks, IMAGE, np.float32([[0, 0, 1, 1], [0, 0, np.nan, 1]]))
    with pytest.raises(ValueError, match="training mode"):
        where_pooled(blocks.train(), IMAGE, BOXES)
