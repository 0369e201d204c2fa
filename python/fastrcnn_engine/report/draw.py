"""Boxes and labels drawn on images with Pillow."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastrcnn_engine.data.images import check_image
from fastrcnn_engine.evaluation.voc import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, ImageMatch
from fastrcnn_engine.report.text import spelt_out

if TYPE_CHECKING:
    from fastrcnn_engine.data.records import ImageRecord

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
RIGHT: Colour = (21, 128, 61)
WRONG: Colour = (220, 38, 38)
MISSED: Colour = (194, 65, 12)
OTHER: Colour = (100, 116, 139)
ROI: Colour = (14, 165, 233)
LONGEST = 65500  # pixels, of a side of a JPEG file

# Dark enough to carry white text, far enough apart to be told from each other.
_PALETTE: tuple[Colour, ...] = (
    (37, 99, 235), (219, 39, 119), (5, 150, 105), (180, 83, 9), (124, 58, 237),
    (8, 145, 178), (220, 38, 38), (77, 124, 15), (67, 56, 202), (162, 28, 175),
)  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """One box to draw. box: x1, y1, x2, y2 in image pixels, both ends inclusive.

    label "" draws no text. A dashed box has dark gaps, to be seen on any ground; it is thin unless
    it is a missed object.
    """

    box: Sequence[float]
    colour: Colour
    label: str = ""
    dashed: bool = False


def class_colour(label: int) -> Colour:
    """The colour of class `label` (1..K), the same in every picture and plot."""
    if label <= len(_PALETTE):
        return _PALETTE[label - 1]
    hue = (label * 0.618034) % 1.0  # the golden ratio never comes close to an earlier hue soon
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.8, 0.6)
    return round(red * 255), round(green * 255), round(blue * 255)


def detection_marks(detections: Any, classes: Sequence[str]) -> list[Mark]:
    """Detections in the colour of their class, labelled with class and score, weakest first."""
    return [
        Mark(
            tuple(detections.boxes[row].tolist()),
            class_colour(int(detections.labels[row])),
            detection_name(detections, row, classes),
        )
        for row in _weakest_first(detections)
    ]


def verdict_marks(
    record: ImageRecord, detections: Any, match: ImageMatch, classes: Sequence[str]
) -> list[Mark]:
    """Detections in the colour of their verdict, and the objects nobody found.

    Green: right. Red: wrong. Grey: on a difficult object, not counted. Orange and dashed: missed.
    Dashed white: the ground truth that was found. `match` must be of these very detections.
    """
    marks = []
    for row, label in enumerate(record.labels.tolist()):
        mark = truth_mark(record, match, row)
        marks.append(replace(mark, label=classes[label - 1]) if mark.colour == MISSED else mark)
    for row in _weakest_first(detections):
        name = detection_name(detections, row, classes)
        marks.append(replace(detection_mark(detections, match, row), label=name))
    return marks


def truth_mark(record: ImageRecord, match: ImageMatch, row: int) -> Mark:
    """Object `row` of an image in its colour of verdict_marks, without a label."""
    found = match.found[row] or record.difficult[row]
    return Mark(tuple(record.boxes[row].tolist()), WHITE if found else MISSED, dashed=True)


def detection_mark(detections: Any, match: ImageMatch, row: int) -> Mark:
    """Detection `row` of an image in its colour of verdict_marks, without a label."""
    colour = {TRUE_POSITIVE: RIGHT, FALSE_POSITIVE: WRONG, IGNORED: OTHER}
    return Mark(tuple(detections.boxes[row].tolist()), colour[int(match.status[row])])


def detection_name(detections: Any, row: int, classes: Sequence[str]) -> str:
    """Class and score of detection `row` of an image, as pictures and captions have them."""
    return f"{classes[int(detections.labels[row]) - 1]} {detections.scores[row]:.2f}"


def draw_marks(
    image: np.ndarray, marks: Sequence[Mark], *, width: int | None = None
) -> np.ndarray:
    """Draws boxes and labels on a copy of an image, (H, W, 3) uint8 RGB; returns the same kind.

    width: width of the result in pixels, None to keep the size. A result is no higher than four
    widths, and no side is longer than a JPEG file may have: a narrow strip is drawn smaller. Lines
    and text fit the size of the result. Labels stand above their box; where that place is
    taken or outside, beside it.
    """
    check_image(image)
    canvas = Image.fromarray(image)
    scale = min(1.0, LONGEST / max(canvas.size))
    if width is not None:
        scale = min(width / canvas.width, 4 * width / canvas.height)
    if scale != 1:
        sides = [max(round(side * scale), 1) for side in canvas.size]
        canvas = canvas.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    side = min(max(canvas.size), 4 * min(canvas.size))
    line = max(2, round(side / 220))
    font = _font(max(11, round(side / 44)))
    # Boxes first, labels on top of all of them.
    for mark in marks:
        corners = _scaled(mark.box, scale)
        if mark.dashed:
            thin = max(line // 2, 1)
            _dashed(draw, corners, mark.colour, line if mark.colour == MISSED else thin)
        else:
            grow = line // 2  # the line lies on the border of the box, half outside
            x1, y1, x2, y2 = corners
            outer = (x1 - grow, y1 - grow, x2 + grow, y2 + grow)
            draw.rectangle(outer, outline=mark.colour, width=line)
    taken: list[tuple[float, float, float, float]] = []
    for mark in reversed(marks):  # the last mark is the most important: it chooses its place first
        if mark.label:
            label = spelt_out(mark.label)  # Pillow cannot place several lines
            place = _place(draw, font, label, _scaled(mark.box, scale), canvas.size, taken)
            taken.append(place)
            draw.rectangle(place, fill=mark.colour)
            centre = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
            draw.text(centre, label, fill=WHITE, font=font, anchor="mm")
    return np.asarray(canvas)


def picture_grid(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures, (h, w, 3) uint8 each, in rows of three on white ground; each keeps its size."""
    if not pictures:
        raise ValueError("needs at least one picture, got 0 pictures")
    cell_height = max(p.shape[0] for p in pictures)
    cell_width = max(p.shape[1] for p in pictures)
    columns, gap = min(3, len(pictures)), 8
    rows = -(-len(pictures) // columns)
    height = rows * (cell_height + gap) - gap
    grid = np.full((height, columns * (cell_width + gap) - gap, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top = number // columns * (cell_height + gap)
        left = number % columns * (cell_width + gap)
        grid[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return grid


def _weakest_first(detections: Any) -> list[int]:
    """The rows by rising score, as later marks cover earlier ones."""
    return np.argsort(-np.asarray(detections.scores), kind="stable")[::-1].tolist()


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # here, as in plots.py: not for every command that might draw

    # Its own font: it is there on every machine and knows Greek and Cyrillic class names.
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    return ImageFont.truetype(str(path), size)


def _scaled(box: Sequence[float], scale: float) -> tuple[int, int, int, int]:
    # Both ends are inclusive: the last pixel of the box covers all of its enlarged self.
    x1, y1, x2, y2 = box
    left, top = round(x1 * scale), round(y1 * scale)
    right, bottom = round((x2 + 1) * scale) - 1, round((y2 + 1) * scale) - 1
    return left, top, max(right, left), max(bottom, top)


def _dashed(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: Colour, line: int
) -> None:
    x1, y1, x2, y2 = box
    draw.rectangle(box, outline=(15, 23, 42), width=line)
    dash = 5 * line
    for start in range(x1, x2 + 1, 2 * dash):
        end = min(start + dash - 1, x2)
        draw.rectangle((start, y1, end, min(y1 + line - 1, y2)), fill=colour)
        draw.rectangle((start, max(y2 - line + 1, y1), end, y2), fill=colour)
    for start in range(y1, y2 + 1, 2 * dash):
        end = min(start + dash - 1, y2)
        draw.rectangle((x1, start, min(x1 + line - 1, x2), end), fill=colour)
        draw.rectangle((max(x2 - line + 1, x1), start, x2, end), fill=colour)


def _place(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    text: str,
    box: tuple[int, int, int, int],
    canvas: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """A free rectangle for a label, as near to its box as can be."""
    pad = max(2, round(font.size / 5))
    width = draw.textlength(text, font=font) + 2 * pad
    height = font.size + 2 * pad
    x1, y1, x2, y2 = box
    corners = [(x1, y1 - height), (x1, y1), (x1, y2), (x1, y2 - height)]
    corners += [(x2 - width, y) for _, y in corners]
    places = []
    for left, top in corners:
        left = min(max(left, 0), canvas[0] - 1 - width)
        top = min(max(top, 0), canvas[1] - 1 - height)
        places.append((left, top, left + width, top + height))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)
