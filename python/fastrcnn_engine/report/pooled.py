"""What RoI pooling took from the photo for some detections, drawn over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from fastrcnn_engine.evaluation.mistakes import Mistakes
from fastrcnn_engine.evaluation.pooled import PooledRoI
from fastrcnn_engine.evaluation.voc import TRUE_POSITIVE
from fastrcnn_engine.report.cuts import Window, draw_cut, window_around
from fastrcnn_engine.report.draw import ROI, Mark, detection_mark, detection_name, draw_marks
from fastrcnn_engine.report.gallery import Drawn

if TYPE_CHECKING:
    from fastrcnn_engine.data.records import ImageRecord

RIGHT_ONES, WRONG_ONES = 8, 4  # detections that are looked into
SIDE = 320  # the longer one of a picture, in pixels
# From the fewest maxima to the most: laid over a darkened photo ever less transparent.
DARKENED, LINES = 0.4, 150
HEAT = np.array([[190, 30, 30], [250, 140, 20], [255, 225, 80]], np.float64)


@dataclass(frozen=True)
class Looked:
    """What was pooled for detection `row` of an image.

    photo, heat: (h, w, 3) uint8, the cut with the RoI and the detection, and the same cut with the
    bins and the share of the maxima in each cell. verdict: "right" or one of KINDS.
    """

    photo: np.ndarray
    heat: np.ndarray
    name: str
    verdict: str
    image_id: str
    roi: Sequence[float]
    pooled: PooledRoI


def to_look_into(
    records: Sequence[ImageRecord], drawn: Drawn, mistakes: Mistakes
) -> list[tuple[str, int, str]]:
    """Which detections: image id, row and verdict, "right" or one of KINDS.

    The right one with the highest score of each class, of the RIGHT_ONES classes where that is
    highest, and the WRONG_ONES first false positives. Ties are in the order of the images.
    """
    best: dict[int, tuple[float, str, int]] = {}
    for record in records:
        found = drawn.detections[record.image_id]
        status = drawn.result.matches[record.image_id].status
        for row in np.flatnonzero(status == TRUE_POSITIVE).tolist():
            label, score = int(found.labels[row]), float(found.scores[row])
            if label not in best or score > best[label][0]:
                best[label] = score, record.image_id, row
    right = sorted(best.values(), key=lambda one: -one[0])[:RIGHT_ONES]
    chosen = [(image_id, row, "right") for _, image_id, row in right]
    return chosen + [(one.image_id, one.row, one.kind) for one in mistakes.wrong[:WRONG_ONES]]


def look(
    image: np.ndarray,
    image_id: str,
    row: int,
    verdict: str,
    drawn: Drawn,
    classes: Sequence[str],
    roi: Sequence[float],
    pooled: PooledRoI,
) -> Looked:
    """Draws what was pooled from an image, (H, W, 3) uint8, for one detection.

    roi: x1 y1 x2 y2 of its proposal in pixels of the image. pooled: of that very RoI.
    """
    found = drawn.detections[image_id]
    mark = detection_mark(found, drawn.result.matches[image_id], row)
    outline = Mark(tuple(roi), ROI)
    cells = np.concatenate([pooled.bins[:, :2] - 0.5, pooled.bins[:, 2:] + 0.5], axis=1)
    boxes = np.array([mark.box, outline.box])
    window = window_around(np.concatenate([boxes, cells * pooled.cell]), *image.shape[:2])
    photo = draw_cut(image, window, [outline, mark], SIDE)
    return Looked(
        photo=photo,
        heat=draw_heat(draw_cut(image, window, [], SIDE), window, pooled, roi),
        name=detection_name(found, row, classes),
        verdict=verdict,
        image_id=image_id,
        roi=outline.box,
        pooled=pooled,
    )


def draw_heat(
    picture: np.ndarray, window: Window, pooled: PooledRoI, roi: Sequence[float]
) -> np.ndarray:
    """The bins and the maxima of a RoI on the picture of a window, (h, w, 3) uint8.

    The photo is grey and dark below. A cell is as bright as the number of maxima in it, the fullest
    one of this RoI brightest; white lines are the borders of the bins, blue the RoI as proposed.
    """
    height, width = picture.shape[:2]
    left, top, right, bottom = window
    across, down = (right - left) / width, (bottom - top) / height  # image pixels for one drawn

    def cells(start: int, step: float, count: int, limit: int) -> np.ndarray:
        # The middle of each drawn pixel as a coordinate that RoI pooling would round to a cell.
        # What lies beyond the map goes into the frame around it.
        middles = start - 0.5 + (np.arange(count) + 0.5) * step
        return np.clip(np.floor(middles / pooled.cell + 0.5).astype(np.int64) + 1, 0, limit + 1)

    def border(cell: int, start: int, step: float) -> int:
        # The first drawn pixel of a cell, so that bins side by side share a line.
        return math.ceil(((cell - 0.5) * pooled.cell + 0.5 - start) / step - 0.5)

    rows = cells(top, down, height, pooled.counts.shape[0])
    columns = cells(left, across, width, pooled.counts.shape[1])
    framed = np.pad(pooled.counts, 1)
    share = framed[rows[:, None], columns] / max(framed.max(), 1)
    grey = picture.astype(np.float64).mean(axis=2, keepdims=True) * DARKENED
    hot = np.stack([np.interp(share, [0, 0.5, 1], channel) for channel in HEAT.T], axis=2)
    opacity = np.where(share > 0, 0.2 + 0.75 * share, 0)[:, :, None]
    blended = grey * (1 - opacity) + hot * opacity
    lines = Image.new("L", (width, height))
    pen = ImageDraw.Draw(lines)
    for x1, y1, x2, y2 in pooled.bins.tolist():
        corner = border(x1, left, across), border(y1, top, down)
        opposite = border(x2 + 1, left, across), border(y2 + 1, top, down)
        pen.rectangle((*corner, *opposite), outline=LINES)
    ink = np.asarray(lines)[:, :, None] / 255
    blended = blended * (1 - ink) + 255 * ink
    x1, y1, x2, y2 = roi
    outline = (
        (x1 - left) / across, (y1 - top) / down,
        (x2 + 1 - left) / across - 1, (y2 + 1 - top) / down - 1,
    )  # fmt: skip
    return draw_marks(blended.round().astype(np.uint8), [Mark(outline, ROI)])
