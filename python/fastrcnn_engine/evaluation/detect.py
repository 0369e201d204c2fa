"""From an image and its proposals to detections (paper section 3; original code,
lib/fast_rcnn/test.py)."""

from __future__ import annotations

import numpy as np
import torch

from fastrcnn_engine.data.images import prepare_image
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.ops import Detections, detections, roi_pool_with_argmax

# Rows of the fully connected layers at once; bounds memory (VGG16: 100 kB a row after pooling).
ROIS_PER_CHUNK = 1024


def same_window(
    rois: torch.Tensor, size: tuple[int, int], pooled_size: int, spatial_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find RoIs that RoI pooling cannot tell apart.

    A bin is a rectangle of cells. Pooling a map that rises along the rows puts the maximum of each
    bin into its last cell, pooling the negated map into its first cell; so the two argmax maps are
    the bins themselves, as the operator sees them. (Repeating its rounding here would be a second
    definition, which may drift; the original's shortcut merged RoIs with different windows.)

    Args:
        rois: (R, 5), all of one image, index 0.
        size: (h, w) of the feature map.

    Returns:
        first: (U,) the row of the first RoI with each distinct window, and inverse: (R,) such that
        RoI r has the window of RoI ``first[inverse[r]]``.
    """
    height, width = size
    # float64 counts cells exactly, whatever the size of the map.
    rising = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
    _, corners = roi_pool_with_argmax(
        torch.cat([rising, -rising], dim=1), rois.cpu(), pooled_size, spatial_scale
    )
    keys = np.ascontiguousarray(corners.flatten(1).numpy())
    keys = keys.view(np.dtype((np.void, keys.dtype.itemsize * keys.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first, inverse


@torch.inference_mode()
def detect_image(
    model: FastRCNN,
    image: np.ndarray,
    proposals: np.ndarray,
    *,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.3,
    max_detections: int = 100,
    deduplicate: bool = True,
) -> Detections:
    """Detect objects in one image.

    Args:
        model: in evaluation mode, on any device.
        image: (H, W, 3) uint8 RGB.
        proposals: (P, 4) in pixels of ``image``.
        score_threshold, nms_threshold, max_detections: see ``ops.detections``; NMS and clipping
            count pixels inclusively, as VOC does.
        deduplicate: run RoIs with identical pooled windows through the head once. Each keeps its
            own box.

    Returns:
        Detections with NumPy boxes (M, 4), scores (M,), labels (M,) from 1 to K and rows (M,), the
        proposal each came from, by falling score. No proposals, no detections.

    Raises:
        ValueError: the model is in training mode (dropout would be active), or the proposals are
            not (P, 4) and finite.
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    proposals = np.ascontiguousarray(proposals, dtype=np.float32)
    if proposals.ndim != 2 or proposals.shape[1] != 4:
        raise ValueError(f"proposals must be (P, 4), got {proposals.shape}")
    bad = np.flatnonzero(~np.isfinite(proposals).all(axis=1))
    if len(bad):
        raise ValueError(f"proposal {bad[0]} is not finite: {proposals[bad[0]].tolist()}")

    device = model.delta_mean.device
    tensor, scale = prepare_image(image, model.preprocessing)
    boxes = np.insert(proposals.astype(np.float64) * scale, 0, 0, axis=1).astype(np.float32)
    rois = torch.from_numpy(boxes).to(device)
    features = model.backbone(tensor[None].to(device))
    if deduplicate:
        first, inverse = same_window(
            rois, features.shape[-2:], model.pooled_size, 1.0 / model.stride
        )
        rois = rois[torch.from_numpy(first).to(device)]
    logits, deltas = [], []
    # At least one pass, so that no proposals give empty results of the right shape.
    for start in range(0, max(len(rois), 1), ROIS_PER_CHUNK):
        chunk = model.classify(model.pool(features, rois[start : start + ROIS_PER_CHUNK]))
        logits.append(chunk[0])
        deltas.append(model.unnormalise(chunk[1]))
    scores = torch.cat(logits).softmax(dim=1).cpu()
    box_deltas = torch.cat(deltas).cpu()
    if deduplicate:
        scores, box_deltas = scores[inverse], box_deltas[inverse]
    return detections(
        proposals,
        scores.numpy(),
        box_deltas.numpy(),
        image.shape[:2],
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_detections=max_detections,
        inclusive=True,
    )
