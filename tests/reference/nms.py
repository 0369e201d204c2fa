"""IoU and greedy non-maximum suppression in float32, one pair at a time where it matters."""

from __future__ import annotations

import numpy as np

F32 = np.float32


def box_iou(boxes1: np.ndarray, boxes2: np.ndarray, inclusive: bool = False) -> np.ndarray:
    """IoU (A, B) of boxes (A, 4) and (B, 4); a side counts one more pixel when inclusive."""
    a = boxes1[:, None, :]
    b = boxes2[None, :, :]
    one = boxes1.dtype.type(1 if inclusive else 0)
    zero = boxes1.dtype.type(0)

    def area(box: np.ndarray) -> np.ndarray:
        return (box[..., 2] - box[..., 0] + one) * (box[..., 3] - box[..., 1] + one)

    with np.errstate(all="ignore"):
        width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]) + one
        height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]) + one
        shared = np.maximum(width, zero) * np.maximum(height, zero)
        return shared / (area(a) + area(b) - shared)


def falling_order(scores: np.ndarray) -> list[int]:
    """Indices by score, highest first, equal scores by index; NaN scores are left out."""
    usable = [i for i in range(len(scores)) if not np.isnan(scores[i])]
    return sorted(usable, key=lambda i: (-float(scores[i]), i))


def nms(
    boxes: np.ndarray, scores: np.ndarray, threshold: float, inclusive: bool = False
) -> list[int]:
    """Kept indices by falling score; a kept box removes every later one with IoU > threshold."""
    order = falling_order(scores)
    overlap = box_iou(boxes, boxes, inclusive)
    limit = F32(threshold)
    gone = np.zeros(len(boxes), bool)
    kept = []
    for i in order:
        if gone[i]:
            continue
        kept.append(i)
        gone |= overlap[i] > limit  # NaN (two empty boxes) suppresses nothing
    return kept


def batched_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    idxs: np.ndarray,
    threshold: float,
    inclusive: bool = False,
) -> list[int]:
    """nms within each group of equal idxs, the survivors by falling score over all groups."""
    kept = []
    for group in np.unique(idxs):
        members = np.flatnonzero(idxs == group)
        survivors = nms(boxes[members], scores[members], threshold, inclusive)
        kept += [int(members[i]) for i in survivors]
    return sorted(kept, key=lambda i: (-float(scores[i]), i))
