"""From an image and its proposals to detections (paper section 3; original code,
lib/fast_rcnn/test.py). Each image by itself; paper_protocol.py looks at the whole set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastrcnn_engine.data.images import check_image
from fastrcnn_engine.data.preparation import batch_images, prepare_image
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.ops import Detections, detections, roi_pool_with_argmax

# Rows of the fully connected layers at once; bounds memory (VGG16: 100 kB a row after pooling).
ROIS_PER_CHUNK = 1024
# Image pyramids: what a proposal's area should be in the network's input.
CANONICAL_AREA = 224**2
# By classifier: what a score must pass to be detected, and where it is better to say yes than no.
SCORE_THRESHOLDS = {"softmax": 0.05, "svm": -np.inf}
CONFIDENT_SCORES = {"softmax": 0.5, "svm": 0.0}


def check_score_threshold(value: float, classifier: str) -> None:
    """Raise ValueError for a threshold that no score of the classifier passes.

    One call with it is a point of a curve; a test or a file with it is a mistake.
    """
    if classifier == "softmax" and value >= 1:
        raise ValueError(
            f"score_threshold must be below 1, as scores are probabilities, got {value}; nothing "
            "would be found"
        )


def nearest_levels(boxes: np.ndarray, factors: Sequence[float]) -> np.ndarray:
    """Which level of an image pyramid brings each box closest to 224 x 224 pixels.

    That is the level l with the least |area * s_l^2 - 224^2|, the first one where several are
    equal (paper 3, after SPPnet; original code, lib/fast_rcnn/test.py). The area counts both end
    pixels. s_l is the factor the image is really scaled by, so max_side may make levels equal.

    Args:
        boxes: (P, 4) in pixels of the image.
        factors: s_l of each of L levels.

    Returns:
        (P,) int64 numbers 0 .. L - 1.
    """
    areas = (boxes[:, 2:].astype(np.float64) - boxes[:, :2] + 1).prod(axis=1)
    return np.abs(areas[:, None] * np.square(factors) - CANONICAL_AREA).argmin(axis=1)


def bin_corners(
    rois: torch.Tensor, size: tuple[int, int], pooled_size: int, spatial_scale: float
) -> np.ndarray:
    """The cells of the map that RoI pooling compares for each bin.

    A bin is a rectangle of cells. Pooling a map that rises along the rows puts the maximum of each
    bin into its last cell, pooling the negated map into its first cell; so the two argmax maps are
    the bins themselves, as the operator sees them. (Repeating its rounding here would be a second
    definition, which may drift.)

    Args:
        rois: (R, 5), all of one image, index 0.
        size: (h, w) of the feature map.

    Returns:
        (R, 2, P, P) int32: last and first cell of each bin as row * w + column, -1 where it is
        empty.
    """
    height, width = size
    # float64 counts cells exactly, whatever the size of the map.
    rising = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
    _, corners = roi_pool_with_argmax(
        torch.cat([rising, -rising], dim=1), rois.cpu(), pooled_size, spatial_scale
    )
    return np.ascontiguousarray(corners.numpy())


def same_window(
    rois: torch.Tensor, size: tuple[int, int], pooled_size: int, spatial_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find RoIs that RoI pooling cannot tell apart: those with the same bins.

    The original's shortcut merged RoIs with different windows.

    Args:
        as ``bin_corners``.

    Returns:
        first: (U,) the row of the first RoI with each distinct window, and inverse: (R,) such that
        RoI r has the window of RoI ``first[inverse[r]]``.
    """
    keys = bin_corners(rois, size, pooled_size, spatial_scale)
    keys = keys.reshape(len(rois), 2 * pooled_size**2)
    keys = keys.view(np.dtype((np.void, keys.dtype.itemsize * keys.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first, inverse


@torch.inference_mode()
def score_proposals(
    model: FastRCNN, image: np.ndarray, proposals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the network says about each proposal of an image.

    See ``pyramid_maps`` for the levels of an image pyramid.

    Args:
        model: in evaluation mode, on any device.
        image: (H, W, 3) uint8 RGB.
        proposals: (P, 4) in pixels of ``image``.

    Returns:
        probabilities (P, K+1), background in column 0, or the scores of a network's SVMs, where
        that column is 0; and un-normalised deltas (P, 4(K+1)). Both float32.

    Raises:
        ValueError: as ``detect_image``.
    """

    def outputs(pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, deltas = model.classify(pooled)
        if model.classifier == "softmax":
            scores = scores.softmax(dim=1)
        return scores, model.unnormalise(deltas)

    columns = len(model.classes) + 1
    scores, deltas = run_proposals(
        model, image, proposals, outputs, (columns, 4 * columns)
    )
    return scores, deltas


@torch.inference_mode()
def proposal_features(model: FastRCNN, image: np.ndarray, proposals: np.ndarray) -> np.ndarray:
    """What the head makes of each proposal of an image, (P, F) float32: fc7 after ReLU.

    Arguments and errors: as ``score_proposals``.
    """

    def outputs(pooled: torch.Tensor) -> tuple[torch.Tensor]:
        return (model.head(pooled),)

    width = model.cls_score.in_features
    return run_proposals(model, image, proposals, outputs, (width,))[0]


def run_proposals(
    model: FastRCNN,
    image: np.ndarray,
    proposals: np.ndarray,
    outputs: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
    widths: Sequence[int],
) -> tuple[np.ndarray, ...]:
    """What a function of the pooled features gives for each proposal of an image.

    Args:
        model, image, proposals: as for ``score_proposals``.
        outputs: (r, C, S, S) -> several (r, width), for any number r of pooled proposals.
        widths: of each output.

    Returns:
        The outputs as (P, width) float32.

    Raises:
        ValueError: as ``detect_image``.
    """
    results = tuple(np.empty((len(proposals), width), dtype=np.float32) for width in widths)
    for level in pyramid_maps(model, image, proposals):
        found = _run_at(level, model, outputs)
        for result, own in zip(results, found, strict=True):
            result[level.rows] = own
    return results


class LevelMap(NamedTuple):
    """The feature map of one level of an image pyramid, and the proposals pooled from it."""

    features: torch.Tensor  # (1, C, h, w)
    rois: torch.Tensor  # (r, 5) in pixels of the network's input
    rows: np.ndarray  # (r,) int64, which of the proposals these are
    scale: float  # pixels of the input for one of the image
    short_side: int


def pyramid_maps(model: FastRCNN, image: np.ndarray, proposals: np.ndarray) -> Iterator[LevelMap]:
    """Run an image through the backbone, at each size that some proposal is pooled from.

    With several short sides, each proposal is pooled from the level of the pyramid that suits it
    (``nearest_levels``). The levels go through the network one after another, as images of their
    own, and one that no proposal needs is left out. The original stacked them into one batch:
    more memory, and its padding reached a little into the maps of the smaller levels.

    Arguments and errors: as ``detect_image``. To be used under ``torch.inference_mode``.
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    proposals = np.ascontiguousarray(proposals, dtype=np.float32)
    if proposals.ndim != 2 or proposals.shape[1] != 4:
        raise ValueError(f"proposals must be (P, 4), got {proposals.shape}")
    bad = np.flatnonzero(~np.isfinite(proposals).all(axis=1))
    if len(bad):
        raise ValueError(f"proposals[{bad[0]}] must be finite, got {proposals[bad[0]].tolist()}")
    check_image(image)

    device = model.delta_mean.device
    levels = model.preprocessing.levels()
    sides = model.preprocessing.short_sides
    assigned = nearest_levels(proposals, [level.scale(*image.shape[:2]) for level in levels])
    for number, level in enumerate(levels):
        rows = np.flatnonzero(assigned == number)
        if len(rows):
            tensor, scale = prepare_image(image, level)
            boxes = np.insert(proposals[rows].astype(np.float64) * scale, 0, 0, axis=1)
            rois = torch.from_numpy(boxes.astype(np.float32)).to(device)
            features = model.backbone(batch_images([tensor]).to(device))
            yield LevelMap(features, rois, rows, scale, sides[number])


def _run_at(
    level: LevelMap,
    model: FastRCNN,
    outputs: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
) -> list[np.ndarray]:
    """``run_proposals`` for those of one level, at least one. RoIs with the same pooled window go
    through the head once.
    """
    height, width = level.features.shape[-2:]
    first, inverse = same_window(
        level.rois, (height, width), model.pooled_size, 1.0 / model.stride
    )
    rois = level.rois[torch.from_numpy(first).to(level.rois.device)]
    chunks = [
        outputs(model.pool(level.features, rois[start : start + ROIS_PER_CHUNK]))
        for start in range(0, len(rois), ROIS_PER_CHUNK)
    ]
    joined = [torch.cat(parts).float().cpu().numpy() for parts in zip(*chunks, strict=True)]
    return [one[inverse] for one in joined]


def detect_image(
    model: FastRCNN,
    image: np.ndarray,
    proposals: np.ndarray,
    *,
    score_threshold: float | None = None,
    nms_threshold: float = 0.3,
    max_detections: int = 100,
    box_regression: bool = True,
) -> Detections:
    """Detect objects in one image, scaled as the model's preprocessing says. RoIs with the same
    pooled window are scored once, and each keeps its own box.

    Args:
        model: in evaluation mode, on any device.
        image: (H, W, 3) uint8 RGB.
        proposals: (P, 4) in pixels of ``image``.
        score_threshold: see ``ops.detections``; None is 0.05, and none for the scores of SVMs.
        nms_threshold, max_detections: see ``ops.detections``; NMS and clipping count pixels
            inclusively, as VOC does.
        box_regression: False keeps the proposals as they are, clipped (paper table 6). So does a
            model that was trained without box regression.

    Returns:
        Detections with NumPy boxes (M, 4), scores (M,), labels (M,) from 1 to K and rows (M,), the
        proposal each came from, by falling score. No proposals, no detections.

    Raises:
        ValueError: the model is in training mode (dropout would be active), the image is not
            (H, W, 3) uint8, or the proposals are not (P, 4) and finite.
    """
    if score_threshold is None:
        score_threshold = SCORE_THRESHOLDS[model.classifier]
    scores, deltas = score_proposals(model, image, proposals)
    return detections(
        np.ascontiguousarray(proposals, dtype=np.float32),
        scores,
        deltas if box_regression and model.box_regression else None,
        image.shape[:2],
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_detections=max_detections,
        inclusive=True,
    )
