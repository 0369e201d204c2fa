"""Two VOC photos with the selective-search boxes of the original demo, through reading, pooling and
de-duplication."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.voc_files import VOC_DEMO
from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.preparation import Preprocessing, prepare_image
from fastrcnn_engine.data.proposals import read_proposals
from fastrcnn_engine.evaluation.detect import same_window
from fastrcnn_engine.ops import roi_pool, roi_pool_with_argmax
from reference import roi_pool as reference

CAFFE = Preprocessing("BGR", mean=(102.9801, 115.9465, 122.7717))  # short side 600, long side 1000
SCALE = 1 / 16


@pytest.mark.skipif(not VOC_DEMO.is_dir(), reason="the VOC photos are not on this machine")
@pytest.mark.parametrize("name", ["000004", "001551"])
def test_original_boxes_are_pooled_exactly_and_merged_only_where_nothing_changes(name):
    boxes = read_proposals(VOC_DEMO / f"{name}_boxes.mat").boxes[name]
    image, scale = prepare_image(load_image(VOC_DEMO / f"{name}.jpg"), CAFFE)
    features = F.relu(F.avg_pool2d(image[None], 16))  # (1, 3, h, w) with real zeros and ties
    rois = torch.from_numpy(np.insert(boxes * scale, 0, 0, axis=1).astype(np.float32))

    some = slice(None, None, 10)
    output, argmax = roi_pool_with_argmax(features, rois[some], 7, SCALE)
    values, cells = reference.roi_pool(features.numpy(), rois[some].numpy(), (7, 7), SCALE)
    np.testing.assert_array_equal(output.numpy(), values)
    np.testing.assert_array_equal(argmax.numpy(), cells)

    first, inverse = same_window(rois, features.shape[-2:], 7, SCALE)
    assert 0.3 * len(boxes) < len(first) < len(boxes)  # many boxes share a window, most do not
    every = roi_pool(features, rois, 7, SCALE)
    merged = roi_pool(features, rois[torch.from_numpy(first)], 7, SCALE)
    assert torch.equal(every, merged[torch.from_numpy(inverse)])
