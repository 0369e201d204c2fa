"""The embedded data set: pictures drawn with a seed, in VOC layout, so that a demo needs no
download.

Six classes, each a shape with a texture of its own and colours it mostly has. One object in five
comes in any colours, and clutter borrows colours and textures, so none of them alone tells what is
an object. Objects hide one another in part; their boxes frame what is visible.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

WIDTH, HEIGHT = 320, 240
MIN_SIDE, MAX_SIDE = 40, 130  # of an object as drawn, before others hide parts of it
MIN_VISIBLE = 0.4  # nothing is placed that leaves less of an object to see
DIFFICULT_BELOW = 0.6  # share of an object that is visible
USUAL_COLOURS = 0.8  # share of the objects that have the colours of their class
TILT = math.radians(30)  # objects stand upright up to this; clutter lies anyhow
JPEG_QUALITY = 90

# A shape takes (..., ) coordinates u, v in units of the radius and returns the signed distance to
# its outline, negative inside. A texture takes the same and two numbers drawn for the object (a
# period in units of the radius and a phase in 0..1) and returns the share of the second colour,
# 0..1.
Field = np.ndarray
Shape = Callable[[Field, Field], Field]
Texture = Callable[[Field, Field, float, float], Field]


@dataclass(frozen=True)
class DrawnObject:
    """An object as annotated: `box` is x1 y1 x2 y2, 0-based, both ends inclusive."""

    name: str
    box: tuple[int, int, int, int]
    truncated: bool
    difficult: bool


def write_demo_set(root: str | os.PathLike[str], *, seed: int, train: int, test: int) -> Path:
    """Draws `train` + `test` images of 320x240 with their annotations under `root`; returns it.

    Splits are named train and test. The same seed gives the same pixels and annotations; image i of
    a split does not depend on how many there are. Existing files of the same names are overwritten.

    Raises ValueError for a negative seed or a split without images.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if train < 1 or test < 1:
        raise ValueError(f"train and test must be at least 1, got train={train}, test={test}")
    root = Path(root)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate((("train", train), ("test", test))):
        ids = [f"{split}_{i:04d}" for i in range(count)]
        for i, image_id in enumerate(ids):
            picture, objects = draw_image(np.random.default_rng([seed, number, i]))
            Image.fromarray(picture).save(
                root / "JPEGImages" / f"{image_id}.jpg", quality=JPEG_QUALITY
            )
            xml = _annotation(image_id, objects)
            (root / "Annotations" / f"{image_id}.xml").write_text(xml, encoding="utf-8")
        lines = "".join(f"{image_id}\n" for image_id in ids)
        (root / "ImageSets/Main" / f"{split}.txt").write_text(lines, encoding="utf-8")
    return root


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[DrawnObject]]:
    """One picture, (240, 320, 3) uint8 RGB, of 1 to 5 objects among clutter."""
    canvas = _background(rng)
    for _ in range(rng.integers(1, 4)):
        stamp, texture = _clutter(rng)
        stamp.paint(canvas, rng, texture, ANY_COLOUR)
    for _ in range(rng.integers(0, 3)):
        _draw_line(canvas, rng)

    placed: list[tuple[str, np.ndarray, int]] = []  # name, visible pixels (H, W) bool, whole area
    for _ in range(rng.integers(1, 6)):
        name = CLASS_NAMES[rng.integers(len(CLASS_NAMES))]
        shape, texture, usual = CLASSES[name]
        colours = usual if rng.random() < USUAL_COLOURS else ANY_COLOUR
        for _ in range(20):  # look for a place that leaves enough of the others to see
            stamp = Stamp.random(rng, shape, TILT)
            if stamp.fits(placed):
                placed = _hide(placed, stamp) + [(name, stamp.mask, stamp.area)]
                stamp.paint(canvas, rng, texture, colours)
                break

    if rng.random() < 0.4:  # something in front
        stamp, texture = _clutter(rng)
        if stamp.fits(placed):
            placed = _hide(placed, stamp)
            stamp.paint(canvas, rng, texture, ANY_COLOUR)
    if rng.random() < 0.4:
        _draw_line(canvas, rng)
    return _photograph(canvas, rng), [_describe(*entry) for entry in placed]


def _hide(
    placed: list[tuple[str, np.ndarray, int]], stamp: Stamp
) -> list[tuple[str, np.ndarray, int]]:
    return [(name, visible & ~stamp.mask, area) for name, visible, area in placed]


# ------------------------------------------------------------------------------ shapes and textures


def _disc(u: Field, v: Field) -> Field:
    return np.hypot(u, v) - 1


def _square(u: Field, v: Field) -> Field:
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def _triangle(u: Field, v: Field) -> Field:
    return np.maximum(np.abs(u) * 0.866 + v * 0.5, -v) - 0.55


def _ring(u: Field, v: Field) -> Field:
    return np.abs(np.hypot(u, v) - 0.74) - 0.26


def _star(u: Field, v: Field) -> Field:
    # All ten edges are folded onto the one from the tip (1, 0) to the notch at 36 degrees.
    tenth = np.pi / 5
    angle = np.abs((np.arctan2(v, u) + tenth) % (2 * tenth) - tenth)
    radius = np.hypot(u, v)
    notch_x, notch_y = 0.45 * np.cos(tenth), 0.45 * np.sin(tenth)
    along = np.hypot(1 - notch_x, notch_y)
    return ((radius * np.cos(angle) - 1) * notch_y + radius * np.sin(angle) * (1 - notch_x)) / along


def _cross(u: Field, v: Field) -> Field:
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 1, v - 0.36), np.maximum(u - 0.36, v - 1))


def _hexagon(u: Field, v: Field) -> Field:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(u * 0.5 + v * 0.866, u) - 0.85


def _crescent(u: Field, v: Field) -> Field:
    return np.maximum(np.hypot(u, v) - 1, 0.75 - np.hypot(u - 0.55, v))


def _bar(u: Field, v: Field) -> Field:
    return np.maximum(np.abs(u) - 1, np.abs(v) - 0.2)


def _blob(u: Field, v: Field) -> Field:
    angle = np.arctan2(v, u)
    return np.hypot(u, v) - 0.75 - 0.14 * np.sin(3 * angle) - 0.1 * np.sin(2 * angle + 1)


def _soft(wave: Field) -> Field:
    """A wave of -1..1 as two levels with a soft edge, so that fine textures do not flicker."""
    return np.clip(0.5 + 2.5 * wave, 0, 1)


def _stripes(u: Field, v: Field, period: float, phase: float) -> Field:
    return _soft(np.sin(2 * np.pi * (u / period + phase)))


def _checker(u: Field, v: Field, period: float, phase: float) -> Field:
    step = np.pi / period
    return _soft(1.5 * np.sin(step * u + phase) * np.sin(step * v + phase))


def _dots(u: Field, v: Field, period: float, phase: float) -> Field:
    step = 2 * np.pi / period
    return _soft(np.cos(step * u + phase) + np.cos(step * v - phase) - 0.8)


def _waves(u: Field, v: Field, period: float, phase: float) -> Field:
    return _soft(np.sin(14 * np.arctan2(v, u) + 2 * np.pi * phase))


def _circles(u: Field, v: Field, period: float, phase: float) -> Field:
    return _soft(np.sin(2 * np.pi * (np.hypot(u, v) / period + phase)))


def _zigzag(u: Field, v: Field, period: float, phase: float) -> Field:
    teeth = np.abs((v / period) % 1 - 0.5)
    return _soft(np.sin(2 * np.pi * (u / period + teeth + phase)))


def _plain(u: Field, v: Field, period: float, phase: float) -> Field:
    return np.zeros_like(u)


PALETTE = np.array(
    [
        (214, 69, 65), (242, 141, 53), (244, 208, 63), (88, 178, 90), (38, 166, 154),
        (66, 135, 206), (92, 84, 178), (176, 88, 170), (240, 236, 224), (62, 62, 70),
    ],
    np.float32,
)  # fmt: skip
ANY_COLOUR = tuple(range(len(PALETTE)))
# Shape, texture, and the usual first colours by their place in the palette; neighbours share one.
CLASSES: dict[str, tuple[Shape, Texture, tuple[int, ...]]] = {
    "cross": (_cross, _zigzag, (0, 1)),
    "disc": (_disc, _stripes, (1, 2)),
    "ring": (_ring, _waves, (3, 4)),
    "square": (_square, _checker, (4, 5)),
    "star": (_star, _circles, (6, 7)),
    "triangle": (_triangle, _dots, (7, 8)),
}
CLASS_NAMES = tuple(CLASSES)
CLUTTER_SHAPES: tuple[Shape, ...] = (_hexagon, _crescent, _bar, _blob)
CLUTTER_TEXTURES: tuple[Texture, ...] = (*[_plain] * 5, _stripes, _checker, _dots)
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)


# ------------------------------------------------------------------------------------------ drawing


class Stamp:
    """A shape at its place in the picture, not painted yet."""

    def __init__(
        self, shape: Shape, centre: tuple[float, float], radius: float, aspect: float, angle: float
    ) -> None:
        self.radius = radius
        reach = int(radius * 1.3) + 8  # shapes end at 1.0; room for the shadow
        left, top = int(centre[0]) - reach, int(centre[1]) - reach
        side = np.arange(2 * reach, dtype=np.float32)
        x, y = side[None, :] + (left - centre[0]), side[:, None] + (top - centre[1])
        cos, sin = math.cos(angle), math.sin(angle)
        u = (x * cos + y * sin) / radius
        v = (y * cos - x * sin) / (radius * aspect)
        distance = shape(u, v) * radius  # to the outline, in pixels, negative inside

        # Of that square only a part may lie in the picture.
        rows, columns = slice(max(-top, 0), HEIGHT - top), slice(max(-left, 0), WIDTH - left)
        self.u, self.v, self.distance = (field[rows, columns] for field in (u, v, distance))
        y1, x1 = max(top, 0), max(left, 0)
        self.place = np.s_[y1 : y1 + self.u.shape[0], x1 : x1 + self.u.shape[1]]
        self.mask = np.zeros((HEIGHT, WIDTH), bool)
        self.mask[self.place] = self.distance < 0
        self.area = int((distance < 0).sum())  # in pixels, with what lies outside the picture

    @classmethod
    def random(cls, rng: np.random.Generator, shape: Shape, tilt: float = math.pi) -> Stamp:
        radius = rng.uniform(MIN_SIDE / 2, MAX_SIDE / 2)
        margin = 0.6 * radius
        centre = rng.uniform(margin, WIDTH - margin), rng.uniform(margin, HEIGHT - margin)
        return cls(shape, centre, radius, rng.uniform(0.8, 1.0), rng.uniform(-tilt, tilt))

    def fits(self, placed: list[tuple[str, np.ndarray, int]]) -> bool:
        """Whether it and all objects below it would stay visible enough."""
        return self.mask.sum() >= MIN_VISIBLE * self.area and all(
            (visible & ~self.mask).sum() >= MIN_VISIBLE * area for _, visible, area in placed
        )

    def paint(
        self,
        canvas: np.ndarray,
        rng: np.random.Generator,
        texture: Texture,
        colours: tuple[int, ...],
    ) -> None:
        """Paints it on (H, W, 3) float32 with a shadow, a light side and at times an edge."""
        picture, u, v = canvas[self.place], self.u, self.v
        shadow = np.clip(0.5 - self.distance[:-3, :-3] / 6, 0, 1)
        picture[3:, 3:] *= 1 - 0.35 * shadow[..., None]

        first, second = _two_colours(rng, colours)
        period = max(rng.uniform(0.3, 0.5), 6 / self.radius)  # under 6 pixels JPEG would eat it
        share = texture(u, v, period, rng.random())[..., None]
        colour = first + (second - first) * share
        light = rng.uniform(0, 2 * math.pi)
        colour *= 1 + 0.18 * (u * math.cos(light) + v * math.sin(light))[..., None]
        if rng.random() < 0.5:
            edge = self.distance > -max(1.5, 0.06 * self.radius)
            colour[edge] *= 0.55
        picture += (colour - picture) * np.clip(0.5 - self.distance, 0, 1)[..., None]


def _two_colours(
    rng: np.random.Generator, colours: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Two colours that can be told apart, the second at times only a shade of the first.

    The first is one of `colours`, places in the palette.
    """
    first = PALETTE[colours[rng.integers(len(colours))]]
    if rng.random() < 0.5:
        return first, first * 0.55 if first.mean() > 140 else first + (255 - first) * 0.5
    far = np.flatnonzero(np.abs(PALETTE - first).sum(axis=1) > 150)
    return first, PALETTE[far[rng.integers(len(far))]]


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise (H, W) around 0, with about `cells` bumps along the picture's height."""
    grid = rng.standard_normal((cells + 1, cells * WIDTH // HEIGHT + 1), np.float32)
    return np.asarray(Image.fromarray(grid).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _background(rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) float32: a gradient between two muted colours with clouds, grain or weave on it."""
    angle = rng.uniform(0, 2 * math.pi)
    ramp = (X / WIDTH - 0.5) * math.cos(angle) + (Y / HEIGHT - 0.5) * math.sin(angle) + 0.5
    muted = rng.uniform(70, 200) + 0.35 * (PALETTE[rng.integers(len(PALETTE), size=2)] - 128)
    bumps = rng.uniform(4, 14) * _noise(rng, int(rng.integers(3, 7)))
    bumps += rng.uniform(2, 7) * _noise(rng, int(rng.integers(25, 60)))
    if rng.random() < 0.4:
        angle = rng.uniform(0, math.pi)
        step = 2 * math.pi / rng.uniform(9, 30)
        wave = np.sin(X * (math.cos(angle) * step) + Y * (math.sin(angle) * step))
        bumps += rng.uniform(3, 8) * wave
    canvas = ramp[..., None] * (muted[1] - muted[0])
    canvas += muted[0]
    canvas += bumps[..., None]
    return canvas


def _clutter(rng: np.random.Generator) -> tuple[Stamp, Texture]:
    shape = CLUTTER_SHAPES[rng.integers(len(CLUTTER_SHAPES))]
    texture = CLUTTER_TEXTURES[rng.integers(len(CLUTTER_TEXTURES))]
    return Stamp.random(rng, shape), texture


def _draw_line(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """A thin, soft line across the picture."""
    angle, width = rng.uniform(0, math.pi), rng.uniform(1, 2.5)
    x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
    distance = np.abs((X - x) * math.sin(angle) - (Y - y) * math.cos(angle))
    near = distance < width
    cover = 0.8 * np.clip(width - distance[near], 0, 1)[:, None]
    canvas[near] += (PALETTE[rng.integers(len(PALETTE))] - canvas[near]) * cover


def _photograph(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The canvas through a lens: exposure, blur, grain; (H, W, 3) uint8."""
    exposed = np.clip(canvas * rng.uniform(0.8, 1.15), 0, 255).astype(np.uint8)
    blurred = Image.fromarray(exposed).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    grain = rng.standard_normal((HEIGHT, WIDTH, 3), np.float32) * rng.uniform(2, 7)
    return np.clip(np.asarray(blurred) + grain, 0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------- annotation


def _describe(name: str, visible: np.ndarray, area: int) -> DrawnObject:
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
    touches = box[0] == 0 or box[1] == 0 or box[2] == WIDTH - 1 or box[3] == HEIGHT - 1
    return DrawnObject(name, box, touches, bool(visible.sum() < DIFFICULT_BELOW * area))


def _annotation(image_id: str, objects: list[DrawnObject]) -> str:
    """The VOC annotation; coordinates in the file are 1-based."""
    entries = "".join(
        f"  <object>\n    <name>{item.name}</name>\n    <pose>Unspecified</pose>\n"
        f"    <truncated>{int(item.truncated)}</truncated>\n"
        f"    <difficult>{int(item.difficult)}</difficult>\n    <bndbox>\n"
        f"      <xmin>{item.box[0] + 1}</xmin>\n      <ymin>{item.box[1] + 1}</ymin>\n"
        f"      <xmax>{item.box[2] + 1}</xmax>\n      <ymax>{item.box[3] + 1}</ymax>\n"
        "    </bndbox>\n  </object>\n"
        for item in objects
    )
    return (
        f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{image_id}.jpg</filename>\n"
        f"  <size>\n    <width>{WIDTH}</width>\n    <height>{HEIGHT}</height>\n"
        f"    <depth>3</depth>\n  </size>\n  <segmented>0</segmented>\n{entries}</annotation>\n"
    )
