"""Spatial pyramid pooling: RoI max pooling at several levels at once, as SPPnet does."""

from __future__ import annotations

from collections.abc import Sequence

from fastrcnn_engine.ops._arrays import AnyArray, Array, arrays_of, whole
from fastrcnn_engine.ops.roi_pool import roi_pool


def spp_pool(
    input: Array,
    boxes: AnyArray | Sequence[AnyArray],
    levels: Sequence[int] = (1, 2, 3, 6),
    spatial_scale: float = 1.0,
) -> Array:
    """Max-pools every RoI into a pyramid: one l x l grid for each level l, as one row of numbers.

    Each level is `roi_pool` of that size, with its rounding, its empty bins and its gradient.
    SPPnet maps an image window to cells by a rule of its own; whoever wants that one gives `boxes`
    in cells and leaves `spatial_scale` at 1.

    Args:
        input: features (N, C, H, W), as for `roi_pool`.
        boxes: (R, 5) rows of [batch index, x1, y1, x2, y2], or a list of N arrays (L_i, 4).
        levels: sides of the grids. The default's 1 + 4 + 9 + 36 bins are the original's.
        spatial_scale: map cells per unit of the boxes.

    Returns:
        (R, C * sum(l * l)), the kind and dtype of `input`; level by level, within a level channel
        by channel, within a channel row by row.

    Raises:
        ValueError: no level or one that is not a positive int, and as `roi_pool`.
        TypeError: an argument that is no array.

    Source: SPPnet (He et al., ECCV 2014), section 2.2 and appendix A.
    """
    sides = _sides(levels)
    pooled = [roi_pool(input, boxes, side, spatial_scale) for side in sides]
    return arrays_of(input, "input").join_rows(pooled)


def _sides(levels: Sequence[int]) -> list[int]:
    try:
        sides = [whole(level) for level in levels]
        if sides and min(sides) > 0:
            return sides
    except TypeError:
        pass  # the same message as for a side that is not positive
    raise ValueError(f"levels must be one or several positive ints, got {levels!r}")
