"""A user's program as a type checker reads it (`test_typing.py`). An ignored line must be wrong."""

from typing import Any, assert_type

import jax
import numpy as np
import torch
from numpy.typing import NDArray

import fastrcnn_engine as fe

Numbers = NDArray[Any]


def of_tensors(features: torch.Tensor, rois: torch.Tensor, scores: torch.Tensor) -> None:
    assert_type(fe.roi_pool(features, rois, 7, 1 / 16), torch.Tensor)
    assert_type(fe.roi_pool(features, [rois, rois], (7, 7), out=features), torch.Tensor)
    assert_type(fe.roi_pool(torch.nn.Parameter(features), rois, 7), torch.Tensor)
    pooled, argmax = fe.roi_pool_with_argmax(features, rois, 7)
    assert_type((pooled, argmax), tuple[torch.Tensor, torch.Tensor])
    assert_type(fe.roi_pool_backward(pooled, argmax, rois, features.shape), torch.Tensor)
    assert_type(fe.spp_pool(features, rois, levels=[1, 2]), torch.Tensor)
    module: torch.nn.Module = fe.RoIPool(7, spatial_scale=1 / 16)
    module.eval()

    boxes, labels = rois[:, 1:], rois[:, 0].long()
    assert_type(fe.smooth_l1(boxes, boxes, labels, weights=boxes), torch.Tensor)
    assert_type(fe.smooth_l1_backward(scores, boxes, boxes), torch.Tensor)
    assert_type(fe.encode_boxes(boxes, boxes), torch.Tensor)
    assert_type(fe.decode_boxes(boxes, boxes), torch.Tensor)
    assert_type(fe.clip_boxes_to_image(boxes, (600, 800)), torch.Tensor)
    assert_type(fe.box_iou(boxes, boxes, inclusive=True), torch.Tensor)
    assert_type(fe.nms(boxes, scores, 0.5), torch.Tensor)
    assert_type(fe.batched_nms(boxes, scores, labels, 0.5), torch.Tensor)
    assert_type(fe.nms_padded(boxes, scores, 0.5, 9), fe.PaddedIndices[torch.Tensor])
    assert_type(fe.nms_padded(boxes, scores, 0.5, 9).count, torch.Tensor)

    found = fe.detections(boxes, scores, None, (600, 800), max_detections=9)
    assert_type(found, fe.Detections[torch.Tensor])
    assert_type(found.labels, torch.Tensor)
    corners, _, _, rows = found
    assert_type((corners, rows), tuple[torch.Tensor, torch.Tensor])
    padded = fe.detections_padded(boxes, scores, boxes, (600, 800))
    assert_type(padded, fe.PaddedDetections[torch.Tensor])


def of_numpy(features: NDArray[np.float32], rois: NDArray[np.float32]) -> None:
    assert_type(fe.roi_pool(features, rois, 7), Numbers)
    assert_type(fe.roi_pool(features, [rois, rois], 7), Numbers)
    assert_type(fe.smooth_l1(rois, rois, np.zeros(3, np.int64)), Numbers)
    assert_type(fe.batched_nms(rois, np.zeros(3), np.zeros(3, np.int64), 0.5), Numbers)
    assert_type(fe.nms_padded(rois, rois, 0.5, 9).indices, Numbers)
    assert_type(fe.detections(rois, rois, rois, (600, 800)), fe.Detections[Numbers])


def of_jax(features: jax.Array, rois: jax.Array) -> None:
    fe.roi_pool(features, [rois, rois], 7).__dlpack__()
    fe.nms(rois, rois, 0.5).__dlpack__()
    fe.detections(rois, rois, None, (600, 800)).boxes.__dlpack__()


def of_another_library(features: Any) -> None:
    assert_type(fe.build_info(), dict[str, object])
    fe.roi_pool(features, features, 7).sum()


def refused(features: torch.Tensor, rois: torch.Tensor) -> None:
    fe.roi_pool([1.0, 2.0], rois, 7)  # pyright: ignore[reportArgumentType]
    fe.roi_pool(features, rois, "7")  # pyright: ignore[reportArgumentType]
    fe.roi_pool(features, rois, 7, 0.5, features)  # pyright: ignore[reportCallIssue]
    fe.nms(rois, None, 0.5)  # pyright: ignore[reportArgumentType]
    fe.detections(rois, rois, rois, 600)  # pyright: ignore[reportArgumentType]
    fe.roi_align()  # pyright: ignore[reportAttributeAccessIssue]
