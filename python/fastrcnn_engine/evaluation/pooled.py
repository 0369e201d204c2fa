"""Where the maxima of RoI pooling came from (paper section 2.1): what of an image a network's fully
connected layers get to see of a proposal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastrcnn_engine.evaluation.detect import LevelMap, bin_corners, pyramid_maps
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.ops import roi_pool, roi_pool_with_argmax


@dataclass(frozen=True)
class PooledRoI:
    """What RoI pooling took for one proposal from a map of C channels, h x w cells.

    Attributes:
        counts: (h, w) int64, how many of the maxima lie in each cell, over all channels and bins.
        flat: maxima that lie nowhere, not in `counts`: their bin has several cells and the same
            number in all of them. Behind a ReLU that is most often 0.
        channels: C.
        bins: (B, 4) int64, x1 y1 x2 y2 in cells, both ends inclusive, of the bins that are not
            empty, in row-major order. counts.sum() + flat is C * B.
        cell: from one cell of the map to the next, in pixels of the image. A corner of a RoI at x
            is rounded to the nearest cell, x / cell, so cell c stands for x from (c - 1/2) * cell
            to (c + 1/2) * cell. What the network computed it from is much more; its middle is there
            for caffenet, 7.5 pixels of the network's input further right and down for vgg16 and 17
            for vgg_cnn_m_1024, whose first layers are not padded.
        short_side: of the image as the network got it.
    """

    counts: np.ndarray
    flat: int
    channels: int
    bins: np.ndarray
    cell: float
    short_side: int


@torch.inference_mode()
def where_pooled(model: FastRCNN, image: np.ndarray, proposals: np.ndarray) -> list[PooledRoI]:
    """Where on the model's own map the maxima of each proposal of an image lie.

    The backbone runs once for each level of the image pyramid that a proposal is pooled from, as in
    detection; the head does not run.

    Args:
        model: in evaluation mode, on any device.
        image: (H, W, 3) uint8 RGB.
        proposals: (P, 4) in pixels of ``image``.

    Returns:
        One PooledRoI for each proposal.

    Raises:
        ValueError: as ``detect_image``.
    """
    found: dict[int, PooledRoI] = {}
    for level in pyramid_maps(model, image, proposals):
        found.update(zip(level.rows.tolist(), _pooled(level, model), strict=True))
    return [found[row] for row in range(len(found))]


def _pooled(level: LevelMap, model: FastRCNN) -> list[PooledRoI]:
    size, scale = model.pooled_size, 1.0 / model.stride
    features, rois = level.features, level.rois
    channels, height, width = features.shape[1:]
    corners = bin_corners(rois, (height, width), size, scale).reshape(len(rois), 2, -1)
    highest, argmax = roi_pool_with_argmax(features, rois, size, scale)
    same = (highest == -roi_pool(-features, rois, size, scale)).flatten(2).cpu().numpy()
    argmax = argmax.flatten(2).cpu().numpy()  # (r, C, P * P)
    results = []
    for (last, first), cells, equal in zip(corners, argmax, same, strict=True):
        flat = equal & (last > first)
        counts = np.bincount(cells[(cells >= 0) & ~flat], minlength=height * width)
        full = last >= 0
        top, left = np.divmod(first[full], width)
        bottom, right = np.divmod(last[full], width)
        results.append(
            PooledRoI(
                counts=counts.reshape(height, width),
                flat=int(flat.sum()),
                channels=channels,
                bins=np.stack([left, top, right, bottom], axis=1).astype(np.int64),
                cell=model.stride / level.scale,
                short_side=level.short_side,
            )
        )
    return results
