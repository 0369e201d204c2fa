"""RoI max pooling and its gradient, one loop per RoI and bin, in the order of roi_pooling_layer.cu.

Shape letters: N images, C channels, H W map, R RoIs, PH PW bins.
"""

from __future__ import annotations

import math

import numpy as np

F32 = np.float32
FARTHEST_CELL = 1_000_000_000


def nearest_cell(coordinate: float, scale: float) -> int:
    """Map cell of one image coordinate: float32 product, nearest integer, halves away from zero."""
    with np.errstate(all="ignore"):
        on_map = F32(coordinate) * F32(scale)
    if not on_map >= -FARTHEST_CELL:  # also true for NaN
        return -FARTHEST_CELL
    if on_map > FARTHEST_CELL:
        return FARTHEST_CELL
    # A float32 has 24 bits, so in double |x| + 0.5 is exact wherever the half matters.
    cell = math.floor(abs(float(on_map)) + 0.5)
    return -cell if on_map < 0 else cell


def window(roi: np.ndarray, scale: float) -> tuple[int, int, int, int]:
    """(first column, first row, columns, rows) on the map of one RoI (batch, x1, y1, x2, y2)."""
    x1, y1, x2, y2 = (nearest_cell(c, scale) for c in roi[1:])
    return x1, y1, max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)


def bin_edges(start: int, cells: int, bins: int, limit: int) -> list[tuple[int, int]]:
    """Half-open cell range of every bin along one axis, clipped to [0, limit]."""
    step = F32(F32(cells) / F32(bins))
    edges = []
    for p in range(bins):
        low = math.floor(float(F32(F32(p) * step)))
        high = math.ceil(float(F32(F32(p + 1) * step)))
        edges.append((min(max(start + low, 0), limit), min(max(start + high, 0), limit)))
    return edges


def roi_pool(
    features: np.ndarray, rois: np.ndarray, output_size: tuple[int, int], scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pool features (N, C, H, W) over rois (R, 5): values (R, C, PH, PW) and int32 argmax.

    The argmax is the flat index row * W + column in the plane, -1 for a bin without cells.
    """
    n_images, channels, height, width = features.shape
    bins_h, bins_w = output_size
    shape = (len(rois), channels, bins_h, bins_w)
    values = np.zeros(shape, features.dtype)
    argmax = np.full(shape, -1, np.int32)
    every_channel = np.arange(channels)
    for r, roi in enumerate(np.asarray(rois, F32)):
        image = int(roi[0])  # truncation towards zero, as a C cast
        if not 0 <= image < n_images:
            raise ValueError(f"row {r}: batch index {roi[0]}")
        x, y, cells_w, cells_h = window(roi, scale)
        columns = bin_edges(x, cells_w, bins_w, width)
        rows = bin_edges(y, cells_h, bins_h, height)
        for ph, (top, bottom) in enumerate(rows):
            for pw, (left, right) in enumerate(columns):
                if bottom <= top or right <= left:
                    continue
                block = features[image, :, top:bottom, left:right]
                block = block.reshape(channels, (bottom - top) * (right - left))
                # NaN counts as -inf here, so it never beats a number; np.argmax takes the first of
                # equal values, so a block of nothing but -inf and NaN yields its first cell.
                rank = np.where(np.isnan(block), -np.inf, block)
                first = rank.argmax(axis=1)
                values[r, :, ph, pw] = block[every_channel, first]
                row, column = np.divmod(first, right - left)
                argmax[r, :, ph, pw] = (top + row) * width + (left + column)
    return values, argmax


def roi_pool_backward(
    grad_output: np.ndarray,
    argmax: np.ndarray,
    rois: np.ndarray,
    input_shape: tuple[int, int, int, int],
) -> np.ndarray:
    """Equation 4 of the paper: every output's gradient goes to its argmax cell.

    Sums run in the order of RoI, bin row, bin column, in the type of the gradient, so that even a
    float32 result can be compared bit for bit.
    """
    _, channels, height, width = input_shape
    planes = np.zeros((input_shape[0], channels, height * width), grad_output.dtype)
    rois_n, _, bins_h, bins_w = grad_output.shape
    for r in range(rois_n):
        plane = planes[int(F32(rois[r, 0]))]
        for ph in range(bins_h):
            for pw in range(bins_w):
                cells = argmax[r, :, ph, pw]
                chosen = np.flatnonzero(cells >= 0)
                with np.errstate(all="ignore"):
                    plane[chosen, cells[chosen]] += grad_output[r, chosen, ph, pw]
    return planes.reshape(input_shape)
