"""The pictures of operators.md, drawn from a photograph that comes with scikit-learn.

    python docs/pictures.py [--out docs/images]

The photograph is "china.jpg" of scikit-learn's sample images: by danielbuechele, CC BY 2.0,
https://www.flickr.com/photos/danielbuechele/6061409035. What is drawn is what the engine gives.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.datasets import load_sample_image

from fastrcnn_engine import box_iou, decode_boxes, encode_boxes, nms, roi_pool_with_argmax

STRIDE, BINS = 16, 7
PAGODA = (62.0, 26.0, 352.0, 392.0)  # x1 y1 x2 y2 in pixels, and two trees
TREES = ((546.0, 134.0, 639.0, 415.0), (330.0, 274.0, 572.0, 415.0))
BLUE, ORANGE, GREEN = "#1f6fd1", "#ff8c00", "#12994a"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    photo = load_sample_image("china.jpg")[:416]  # whole cells of 16 pixels
    for name, draw in (
        ("roi-pool", draw_roi_pool), ("nms", draw_nms), ("box-codec", draw_box_codec)
    ):  # fmt: skip
        figure = draw(photo)
        figure.savefig(out / f"{name}.jpg", dpi=100, pil_kwargs={"quality": 80})
        plt.close(figure)


def red_map(photo: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (1, 1, H/16, W/16) float32: how red each square of 16 x 16 pixels is."""
    red, green, blue = np.moveaxis(photo.astype(np.float32), 2, 0)
    excess = np.maximum(red - (green + blue) / 2, 0)
    rows, columns = excess.shape[0] // STRIDE, excess.shape[1] // STRIDE
    cells = excess.reshape(rows, STRIDE, columns, STRIDE).mean(axis=(1, 3))
    return cells[None, None]


def bins_of(first: float, last: float) -> tuple[int, int, list[tuple[int, int]]]:
    """First and last cell of a side of the RoI, and the cells [begin, end) of its bins."""
    start, end = (math.floor(side / STRIDE + 0.5) for side in (first, last))
    size = end - start + 1
    return start, end, [
        (start + p * size // BINS, start + -(-(p + 1) * size // BINS)) for p in range(BINS)
    ]


def draw_roi_pool(photo: np.ndarray) -> Figure:
    features = red_map(photo)
    plane = features[0, 0]
    rois = np.float32([[0, *PAGODA]])
    pooled, argmax = (a[0, 0] for a in roi_pool_with_argmax(features, rois, BINS, 1 / STRIDE))
    x1, y1, x2, y2 = PAGODA
    left, right, columns = bins_of(x1, x2)
    top, bottom, rows = bins_of(y1, y2)
    # The bins that are drawn are those the engine pooled.
    drawn = [[plane[a:b, c:d].max() for c, d in columns] for a, b in rows]
    assert np.array_equal(pooled, np.float32(drawn))

    figure, axes = plt.subplots(2, 2, figsize=(10, 7.8), layout="constrained")
    photograph(axes[0, 0], photo, "a RoI on a photograph, and cells of 16 pixels")
    for x in range(0, photo.shape[1], STRIDE):
        axes[0, 0].axvline(x - 0.5, color="white", linewidth=0.3)
    for y in range(0, photo.shape[0], STRIDE):
        axes[0, 0].axhline(y - 0.5, color="white", linewidth=0.3)
    outline(axes[0, 0], PAGODA, BLUE)

    def shade(axis: Axes, title: str) -> None:
        axis.imshow(plane, cmap="gray", vmin=0, vmax=plane.max())
        axis.set_title(title, fontsize=11)

    height, width = plane.shape
    shade(axes[0, 1], f"a map of it: how red each of the {width} x {height} cells is")
    exact = [side / STRIDE - 0.5 for side in PAGODA]
    outline(axes[0, 1], exact, BLUE, linestyle="dashed")
    outline(axes[0, 1], (left - 0.5, top - 0.5, right + 0.5, bottom + 0.5), ORANGE)

    wide, high = right - left + 1, bottom - top + 1
    shade(axes[1, 0], f"{wide} x {high} cells of the RoI in {BINS} x {BINS} bins, their maxima")
    for i, (a, b) in enumerate(rows):
        for j, (c, d) in enumerate(columns):
            inset = 0.12 if (i + j) % 2 else 0.0
            box = (c - 0.5 + inset, a - 0.5 + inset, d - 0.5 - inset, b - 0.5 - inset)
            outline(axes[1, 0], box, ORANGE if (i + j) % 2 else BLUE, linewidth=1.2)
    cells = np.unique(argmax[argmax >= 0])
    axes[1, 0].plot(cells % width, cells // width, "o", color="#e3172d", markersize=6)
    axes[1, 0].set(xlim=(left - 1.5, right + 1.5), ylim=(height - 0.5, top - 0.5))

    axis = axes[1, 1]
    axis.imshow(pooled, cmap="gray", vmin=0, vmax=plane.max())
    for (i, j), value in np.ndenumerate(pooled):
        ink = "black" if value > 0.55 * plane.max() else "white"
        axis.text(j, i, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=11)
    axis.set_title(f"pooled: {BINS} x {BINS} numbers, whatever the size of the RoI", fontsize=11)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def draw_nms(photo: np.ndarray) -> Figure:
    rng = np.random.default_rng(3)
    objects = np.float32([PAGODA, *TREES])
    moved = []
    for box in objects:
        size = np.float32([box[2] - box[0], box[3] - box[1]] * 2)
        moved += [box + size * rng.normal(0, 0.07, 4).astype(np.float32) for _ in range(7)]
    boxes = np.clip(np.stack(moved), 0, [639, 415, 639, 415]).astype(np.float32)
    scores = box_iou(boxes, objects).max(axis=1)
    kept = nms(boxes, scores, 0.3)

    figure, (before, after) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    photograph(before, photo, f"before: {len(boxes)} boxes and their scores")
    photograph(after, photo, f"after nms(boxes, scores, 0.3): {len(kept)}")
    for box, score in zip(boxes, scores, strict=True):
        outline(before, box, ORANGE, linewidth=0.6 + 2 * (score - scores.min()))
    for i in kept:
        outline(after, boxes[i], ORANGE)
        label(after, boxes[i], f"{scores[i]:.2f}", ORANGE)
    return figure


def draw_box_codec(photo: np.ndarray) -> Figure:
    proposal = np.float32([[150, 50, 330, 310]])
    reference = np.float32([PAGODA])
    deltas = encode_boxes(reference, proposal)
    names = ("dx", "dy", "dw", "dh")
    told = ", ".join(f"{n} {v:+.2f}" for n, v in zip(names, deltas[0], strict=True))

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    photograph(axes[0], photo, f"encode: {told}")
    photograph(axes[1], photo, "decode of 0, 1/3, 2/3 and all of these deltas")
    outline(axes[0], proposal[0], ORANGE, linestyle="dashed")
    outline(axes[0], reference[0], GREEN)
    for box, colour in ((proposal[0], ORANGE), (reference[0], GREEN)):
        centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        axes[0].plot(*centre, "o", color=colour, markersize=7, markeredgecolor="white")
    for share in (0, 1 / 3, 2 / 3, 1):
        (box,) = decode_boxes(deltas * np.float32(share), proposal)
        outline(axes[1], box, GREEN if share == 1 else ORANGE, linestyle="solid" if share else "--")
    assert np.allclose(box, reference[0], atol=1e-3)
    return figure


def photograph(axis: Axes, photo: np.ndarray, title: str) -> None:
    axis.imshow(photo)
    axis.set_title(title, fontsize=11)
    axis.set(xticks=[], yticks=[])


def outline(axis: Axes, box, colour: str, **style) -> None:
    x1, y1, x2, y2 = box
    style = {"linewidth": 2, **style}
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, **style))


def label(axis: Axes, box, text: str, colour: str) -> None:
    backdrop = {"facecolor": colour, "edgecolor": "none", "pad": 2}
    axis.text(box[0] + 6, box[1] + 8, text, color="white", fontsize=10, va="top", bbox=backdrop)


if __name__ == "__main__":
    main()
