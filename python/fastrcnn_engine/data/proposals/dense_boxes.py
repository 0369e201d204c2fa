"""Dense boxes: a grid over the image that looks at nothing in it (paper, section 5.5)."""

from __future__ import annotations

import numpy as np

SIDES = tuple(0.64 / 1.5**i for i in range(5))  # of the image's short side
ASPECTS = (0.5, 1.0, 2.0)  # height / width


def dense_boxes(width: int, height: int) -> np.ndarray:
    """Boxes of all sizes and places in an image, (P, 4) float32; some 5600 in one of 4 to 3.

    They have the areas of squares with SIDES, and ASPECTS; neighbours lie a quarter of the width
    or height apart, and all are whole pixels within the image. The paper does not say how its
    45 000 were chosen.
    """
    found = []
    for side in SIDES:
        for aspect in ASPECTS:
            size = side * min(width, height) * np.array([aspect**-0.5, aspect**0.5])
            size = np.maximum(size, 1)  # of a few pixels, the smallest would name none
            room = np.array([width, height]) - size
            if (room < 0).any():
                continue
            counts = np.ceil(4 * room / size).astype(int) + 1
            xs, ys = (np.linspace(0, r, n) for r, n in zip(room, counts, strict=True))
            corners = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
            found.append(np.concatenate([corners, corners + size - 1], axis=1))
    return np.concatenate(found).round().astype(np.float32)
