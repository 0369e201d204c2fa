"""Selective search (Uijlings et al., IJCV 2013)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrcnn_engine.data.proposals.opencv import contrib_opencv, in_the_image, shrunk

MODES = ("fast", "quality", "fine")


def selective_search(
    image: np.ndarray,  # (H, W, 3) uint8 RGB
    *,
    mode: str = "fine",
    short_side: int | None = 200,
    min_size: int = 16,
) -> np.ndarray:
    """Selective search (Uijlings et al. 2013) by OpenCV's contrib module; (P, 4) float32 boxes.

    An image whose short side is above `short_side` is shrunk to it for the search, and the boxes
    are brought back to whole pixels of the image as given; None searches it as it is. Boxes
    narrower or lower than `min_size` pixels of the image are left out. No box comes twice.

    The order is by coordinates and means nothing. OpenCV's own order is drawn with C's rand(),
    which no seed of OpenCV's reaches; the set of boxes does not depend on it, so the same image
    always gives the same array.

    Modes: "fast" and "quality" are OpenCV's; "fine" starts from smaller segments (see `_fine`).

    Raises ImportError when OpenCV has no contrib modules, ValueError for other images or an unknown
    mode.
    """
    cv2 = contrib_opencv()
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    searched = shrunk(image, short_side)
    bgr = np.ascontiguousarray(searched[:, :, ::-1])
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    if mode == "fine":
        _fine(cv2, search, bgr)
    else:
        search.setBaseImage(bgr)
        if mode == "fast":
            search.switchToSelectiveSearchFast()
        else:
            search.switchToSelectiveSearchQuality()
    boxes = in_the_image(search.process(), searched, image, min_size)
    return np.unique(boxes, axis=0).astype(np.float32)


def _fine(cv2: Any, search: Any, bgr: np.ndarray) -> None:
    """Sets the search up to begin with small segments in three colour spaces.

    OpenCV's own modes begin with segments of 100 pixels and more, where neighbours that touch are
    one already. The original began at k = 50 (R-CNN code, selective_search_boxes.m). Texture is
    left out of the similarity: it costs a third of the time and finds nothing more here.
    """
    segmentation = cv2.ximgproc.segmentation
    for image in (cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV), cv2.cvtColor(bgr, cv2.COLOR_BGR2Lab), bgr):
        search.addImage(image)
    for k in (25, 50, 100):
        search.addGraphSegmentation(segmentation.createGraphSegmentation(0.8, float(k), 20))
    color = segmentation.createSelectiveSearchSegmentationStrategyColor()
    size = segmentation.createSelectiveSearchSegmentationStrategySize()
    fill = segmentation.createSelectiveSearchSegmentationStrategyFill()
    for parts in ((color, size, fill), (size, fill)):
        search.addStrategy(segmentation.createSelectiveSearchSegmentationStrategyMultiple(*parts))
