"""Readers of proposals that others published."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def read_voc_mat(path: str | os.PathLike[str], layout: str) -> list[np.ndarray]:
    """Reads published selective-search boxes (a MATLAB file), one (P, 4) float32 array per image.

    `layout` "set": a file for a whole split (`voc_2007_trainval.mat`): `boxes` is a cell of arrays,
    in the order of the split, 1-based y1 x1 y2 x2 (original code, lib/datasets/pascal_voc.py).
    "image": a file for one image, such as the demo of the original code: `boxes` is an array,
    0-based x1 y1 x2 y2.

    Raises FileNotFoundError, and ValueError for a file of the other layout.
    """
    from scipy.io import loadmat

    if layout not in ("set", "image"):
        raise ValueError(f"layout must be 'set' or 'image', got {layout!r}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = loadmat(path)
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        raise ValueError(f"{path}: not readable as a MATLAB file ({error})") from None
    if "boxes" not in content:
        names = sorted(name for name in content if not name.startswith("__"))
        raise ValueError(f"{path}: has no variable `boxes`, only {names}")
    boxes = content["boxes"]
    if (boxes.dtype == object) != (layout == "set"):
        found = "a cell (layout 'set')" if boxes.dtype == object else "one array (layout 'image')"
        raise ValueError(f"{path}: asked for layout {layout!r}, but `boxes` is {found}")
    arrays = list(boxes.ravel()) if layout == "set" else [boxes]
    return [
        _from_mat(array, layout, f"{path}, image {row}")
        for row, array in enumerate(arrays, start=1)
    ]


def _from_mat(array: np.ndarray, layout: str, where: str) -> np.ndarray:
    if array.size == 0:
        return np.zeros((0, 4), np.float32)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{where}: boxes must be (P, 4), got {array.shape}")
    boxes = array.astype(np.float32)  # before any subtraction: the files hold unsigned numbers
    if layout == "set":
        boxes = boxes[:, [1, 0, 3, 2]] - 1
    if boxes.min() < 0 or (boxes[:, :2] > boxes[:, 2:]).any():
        raise ValueError(
            f"{where}: boxes with x1 > x2, y1 > y2 or below 0; the file is not of layout {layout!r}"
        )
    return boxes
