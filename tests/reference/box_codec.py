"""Box regression targets, their inverse, and clipping. Works in the type of its first argument.

Sizes are x2 - x1 without a + 1, as the original code decodes (lib/fast_rcnn/test.py).
"""

from __future__ import annotations

import math

import numpy as np

MAX_LOG_RATIO = math.log(1000 / 16)


def _centre_and_size(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((R, 2) centres, (R, 2) sizes) of boxes (R, 4)."""
    low, high = boxes[:, :2], boxes[:, 2:]
    size = high - low
    return low + size / 2, size


def encode(reference_boxes: np.ndarray, proposals: np.ndarray) -> np.ndarray:
    """Targets (tx, ty, tw, th) that turn each proposal into its reference box, (R, 4)."""
    proposals = proposals.astype(reference_boxes.dtype)
    with np.errstate(all="ignore"):
        goal, goal_size = _centre_and_size(reference_boxes)
        here, here_size = _centre_and_size(proposals)
        return np.hstack([(goal - here) / here_size, np.log(goal_size / here_size)])


def decode(
    deltas: np.ndarray, boxes: np.ndarray, max_log_ratio: float = MAX_LOG_RATIO
) -> np.ndarray:
    """Boxes (R, 4G) from deltas (R, 4G) and proposals (R, 4); dw and dh are limited before exp."""
    dtype = deltas.dtype
    here, size = _centre_and_size(boxes.astype(dtype))
    groups = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
    with np.errstate(all="ignore"):
        centre = groups[..., :2] * size[:, None] + here[:, None]
        growth = groups[..., 2:]
        growth = np.where(growth > max_log_ratio, dtype.type(max_log_ratio), growth)
        half = np.exp(growth) * size[:, None] / 2
        return np.concatenate([centre - half, centre + half], axis=-1).reshape(deltas.shape)


def clip(boxes: np.ndarray, size: tuple[int, int], inclusive: bool = False) -> np.ndarray:
    """Corners (..., 4) moved into (height, width), to the last pixel when inclusive."""
    height, width = (float(s - 1 if inclusive else s) for s in size)
    limits = np.array([width, height, width, height], boxes.dtype)
    return np.minimum(np.maximum(boxes, boxes.dtype.type(0)), limits)
