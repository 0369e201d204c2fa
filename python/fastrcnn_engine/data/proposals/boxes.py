"""Which of many boxes are good, and which to keep."""

from __future__ import annotations

import hashlib

import numpy as np


def well_formed(boxes: np.ndarray) -> np.ndarray:
    """Which boxes (P, 4) are finite with x1 <= x2 and y1 <= y2: bool (P,)."""
    return np.all(np.isfinite(boxes), axis=1) & np.all(boxes[:, :2] <= boxes[:, 2:], axis=1)


def bad_row(boxes: np.ndarray, good: np.ndarray, expected: str) -> str | None:
    """Tells the first of the boxes (P, 4) that is not good (P,), for an error; None if all are."""
    if good.all():
        return None
    row = int(np.argmin(good))
    return f"row {row}: expected {expected}, got {boxes[row].tolist()}"


def within(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Which boxes (P, 4) are in the image, but for fractions that rounding left: bool (P,)."""
    last = np.array([width - 1, height - 1] * 2, np.float32)
    return np.all((boxes >= 0) & (boxes <= last + 0.5), axis=1)


def at_least(boxes: np.ndarray, min_size: int) -> np.ndarray:
    """Which boxes (P, 4) are `min_size` pixels wide and high or more: bool (P,)."""
    return np.all(boxes[:, 2:] - boxes[:, :2] + 1 >= min_size, axis=1)


def distinct(boxes: np.ndarray) -> np.ndarray:
    """The boxes (P, 4) in their order, each where it comes first."""
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)]


def at_most(
    boxes: np.ndarray, count: int | None, image_id: str, *, seed: int, ranked: bool
) -> np.ndarray:
    """`count` of the boxes (P, 4) of an image in their order, all of them for None.

    Those that are `ranked` have the best first, and these are kept. Others are drawn; the draw
    depends on the seed, the image id and P alone. Either way those of a smaller number are among
    those of a larger one.
    """
    if count is None or len(boxes) <= count:
        return boxes
    if ranked:
        return boxes[:count]
    name = hashlib.sha256(image_id.encode()).digest()[:8]
    lots = np.random.default_rng([seed, int.from_bytes(name, "big")]).random(len(boxes))
    return boxes[np.sort(np.argsort(lots, kind="stable")[:count])]
