"""What the methods that search by OpenCV share: the library, and the sizes of images and boxes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastrcnn_engine.data.images import check_image
from fastrcnn_engine.data.proposals.boxes import at_least


def contrib_opencv() -> Any:
    """cv2 with its contrib modules. Raises ImportError that says what to install."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "searching for proposals needs OpenCV with its contrib modules: "
            "pip install opencv-contrib-python-headless"
        ) from error
    # Another OpenCV installed over it leaves a part of ximgproc.
    if not hasattr(getattr(cv2, "ximgproc", None), "segmentation"):
        raise ImportError(
            "this OpenCV has no contrib modules (cv2.ximgproc), or two OpenCVs are installed over "
            "each other; searching for proposals needs them: pip uninstall opencv-python "
            "opencv-python-headless, then "
            "pip install --force-reinstall opencv-contrib-python-headless"
        )
    return cv2


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Within the block OpenCV has no threads of its own: the caller's pool is the only one."""
    cv2 = contrib_opencv()
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def shrunk(image: np.ndarray, short_side: int | None) -> np.ndarray:
    """The image (H, W, 3) to search: its short side is at most `short_side`, None leaves it.

    Raises ValueError for an image that is not (H, W, 3) uint8, and for a `short_side` below 1.
    """
    check_image(image)
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side must be above 0 or None, got {short_side}")
    height, width = image.shape[:2]
    if short_side is None or short_side >= min(height, width):
        return image
    factor = short_side / min(height, width)
    cv2 = contrib_opencv()
    size = (round(width * factor), round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def in_the_image(
    found: np.ndarray,  # (P, 4) x, y, w, h in pixels of the searched image
    searched: np.ndarray,
    image: np.ndarray,
    min_size: int,
) -> np.ndarray:
    """The boxes in whole pixels of the image, both ends inclusive, none below `min_size`: (P, 4).

    [x, x + w) covers whole pixels of the searched image; so does its image here, up to rounding.
    """
    found = np.asarray(found, dtype=np.float64).reshape(-1, 4)
    to_x, to_y = image.shape[1] / searched.shape[1], image.shape[0] / searched.shape[0]
    x1 = np.round(found[:, 0] * to_x)
    y1 = np.round(found[:, 1] * to_y)
    x2 = np.round((found[:, 0] + found[:, 2]) * to_x) - 1
    y2 = np.round((found[:, 1] + found[:, 3]) * to_y) - 1
    boxes = np.stack([x1, y1, x2, y2], axis=1)
    return boxes[at_least(boxes, min_size)]
