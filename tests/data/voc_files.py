"""Writes small VOC data sets for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

BCCD = Path(__file__).resolve().parents[3] / "shared" / "data" / "bccd" / "BCCD"
VOC_DEMO = Path(__file__).resolve().parents[3] / "shared" / "data" / "voc-demo"


def object_xml(name="dog", box=(1, 1, 10, 10), difficult=0):
    """An <object>; box holds the texts as they stand in the file: 1-based xmin ymin xmax ymax."""
    xmin, ymin, xmax, ymax = box
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{xmin}</xmin>"
        f"<ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
    )


def write_image(root, image_id, *, size=(40, 30), suffix=".jpg"):
    folder = root / "JPEGImages"
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{image_id}{suffix}")


def write_annotation(root, image_id, objects=(), *, size=(40, 30), filename=None):
    folder = root / "Annotations"
    folder.mkdir(parents=True, exist_ok=True)
    stated = f"<filename>{filename}</filename>" if filename else ""
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    (folder / f"{image_id}.xml").write_text(
        f"<annotation>{stated}{shape}{''.join(objects)}</annotation>", encoding="utf-8"
    )


def write_split(root, split, ids):
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
