"""Edge boxes (Zitnick and Dollar, ECCV 2014): boxes that hold contours whole, best first."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn_engine.data.proposals.boxes import distinct
from fastrcnn_engine.data.proposals.opencv import contrib_opencv, in_the_image, shrunk

MOST = 10_000  # boxes of an image, as in the paper's code
# OpenCV looks half of width + height up in a table of 10 000 numbers and does not check.
LARGEST = 10_000  # pixels of width + height
# Scores of boxes of two pixels and less are no numbers, and OpenCV sorts by them.
SMALLEST = 64.0  # area of a box in the searched image
STRONG = 99  # percentile of the gradients that counts as an edge for sure
FAINTEST = 1.0  # ... and is at least so much: a step of one grey level has some 3


def edge_boxes(
    image: np.ndarray,  # (H, W, 3) uint8 RGB
    *,
    model: str | os.PathLike[str] | None = None,
    short_side: int | None = 200,
    min_size: int = 16,
) -> np.ndarray:
    """Edge boxes by OpenCV's contrib module, the best first; at most MOST (P, 4) float32 boxes.

    `model` is the file of a structured edge detector (Dollar and Zitnick, ICCV 2013), OpenCV's
    model.yml.gz or one in its format, as in the paper. None takes plain gradients in its place:
    their boxes cover the objects, but the order is worth little (figures in docs/training.md).

    `short_side` and `min_size` are those of `selective_search`. No box comes twice, and the same
    image gives the same array. An image of one colour has no edges and no boxes.

    Raises ImportError when OpenCV has no contrib modules, FileNotFoundError for a missing model,
    ValueError for a file that is none, other images, and images too large for OpenCV.
    """
    cv2 = contrib_opencv()
    searched = shrunk(image, short_side)
    height, width = searched.shape[:2]
    if width + height > LARGEST:
        raise ValueError(
            f"image to search is {width} x {height}; edge boxes take width + height up to "
            f"{LARGEST}, so give a smaller short_side, got {short_side}"
        )
    if model is None:
        edges, normals = _gradients(cv2, searched)
    else:
        edges, normals = _structured(cv2, searched, model)
    # A box below min_size on one side only may be large enough in area: it is sorted out below.
    area = max(SMALLEST, min_size**2 * (width * height) / (image.shape[0] * image.shape[1]))
    search = cv2.ximgproc.createEdgeBoxes(maxBoxes=MOST, minBoxArea=area)
    found = np.asarray(search.getBoundingBoxes(edges, normals)[0], np.float64).reshape(-1, 4)
    # OpenCV keeps the 1-based corner of the original in MATLAB, and the difference of first and
    # last pixel as the size.
    found += (-1, -1, 1, 1)
    boxes = in_the_image(found, searched, image, min_size)
    return distinct(boxes).astype(np.float32)


def _gradients(cv2: Any, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges from 0 to 1, thinned to ridges, and the angles of their normals, 0 to pi: (H, W)."""
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.0)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    strength = np.hypot(across, down)
    channel = strength.argmax(axis=2)[..., None]  # the one that changes most there
    across, down, strength = (
        np.take_along_axis(values, channel, axis=2)[..., 0] for values in (across, down, strength)
    )
    normals = np.mod(np.arctan2(down, across), np.float32(np.pi))
    top = max(np.percentile(strength, STRONG), FAINTEST)
    strength = np.minimum(strength / np.float32(top), 1)
    rows, columns = np.indices(strength.shape, dtype=np.float32)
    beside = [
        cv2.remap(
            strength,
            columns + side * np.cos(normals),
            rows + side * np.sin(normals),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for side in (-1, 1)
    ]
    ridge = (strength > beside[0]) & (strength >= beside[1])
    return np.where(ridge, strength, np.float32(0)), normals


def _structured(
    cv2: Any, image: np.ndarray, model: str | os.PathLike[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The same by a trained detector."""
    path = Path(model)
    try:
        detector = _detector(path, path.stat().st_mtime_ns)
        edges = detector.detectEdges(np.float32(image) / 255)
        normals = detector.computeOrientation(edges)
        return detector.edgesNms(edges, normals, isParallel=False), normals
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such model of an edge detector") from None
    except cv2.error as error:
        raise ValueError(f"{path}: not usable as an edge detector ({error})") from None


@functools.lru_cache(maxsize=1)
def _detector(path: Path, _changed: int) -> Any:
    """The detector in a file. OpenCV divides by a number in it and follows others unchecked, so
    what is no detector at all must not get there."""
    cv2 = contrib_opencv()
    try:
        content = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    except (cv2.error, SystemError) as error:
        raise ValueError(f"{path}: not readable by OpenCV ({error})") from None
    trees = content.getNode("options").getNode("numberOfTrees")
    parts = ("childs", "featureIds", "thresholds", "edgeBoundaries", "edgeBins")
    empty = [name for name in parts if content.getNode(name).size() == 0]
    if empty or not trees.isInt() or trees.real() < 1:
        missing = ", ".join(empty) or "options, numberOfTrees"
        raise ValueError(f"{path}: not a structured edge detector of OpenCV; it has no {missing}")
    content.release()
    return cv2.ximgproc.createStructuredEdgeDetection(str(path))
