"""A small VOC data set on disk, with proposals, and a small network of a user's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastrcnn_engine.data.preparation import Preprocessing
from fastrcnn_engine.models import FastRCNN, FullyConnectedHead
from fastrcnn_engine.training import load_checkpoint

WIDTH, HEIGHT = 96, 72
COLOURS = {"brick": (200, 40, 30), "leaf": (30, 170, 60)}
CLASSES = tuple(COLOURS)


def write_voc(root: Path, objects: dict[str, list[tuple[str, tuple[int, int, int, int]]]]) -> None:
    """Write images of filled rectangles. objects: image id -> (class, 0-based inclusive box)."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    noise = np.random.default_rng(0)
    for image_id, things in objects.items():
        image = noise.integers(90, 140, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        xml = ""
        for name, (x1, y1, x2, y2) in things:
            image[y1 : y2 + 1, x1 : x2 + 1] = COLOURS[name]
            xml += (
                f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
                f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
                f"<xmax>{x2 + 1}</xmax><ymax>{y2 + 1}</ymax></bndbox></object>"
            )
        Image.fromarray(image).save(root / "JPEGImages" / f"{image_id}.png")
        (root / "Annotations" / f"{image_id}.xml").write_text(
            f"<annotation><filename>{image_id}.png</filename><size><width>{WIDTH}</width>"
            f"<height>{HEIGHT}</height><depth>3</depth></size>{xml}</annotation>"
        )
    (root / "ImageSets/Main/train.txt").write_text("\n".join(objects) + "\n")


def jittered(boxes: list[tuple[int, int, int, int]], seed: int) -> np.ndarray:
    """Proposals: boxes near the given ones and boxes anywhere, (P, 4) float32."""
    rng = np.random.default_rng(seed)
    near = np.repeat(np.array(boxes, dtype=np.float32).reshape(-1, 4), 40, axis=0)
    near += rng.normal(0, 5, near.shape)
    corner = rng.uniform(0, 60, (60, 2))
    anywhere = np.concatenate([corner, corner + rng.uniform(8, 36, (60, 2))], axis=1)
    return np.concatenate([near, anywhere]).clip(0, [WIDTH - 1, HEIGHT - 1] * 2).astype(np.float32)


class OwnBackbone(nn.Module):
    """What a user might bring: any module with a stride, here 4. Its first part gets frozen."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8))
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images).relu()).relu()


def own_network(seed: int = 0, dropout: float = 0.5) -> FastRCNN:
    torch.manual_seed(seed)
    return FastRCNN(
        OwnBackbone(),
        stride=4,
        head=FullyConnectedHead(16, 3, 32, dropout=dropout),
        head_features=32,
        classes=CLASSES,
        pooled_size=3,
        preprocessing=Preprocessing(short_side=72, max_side=96, std=(60.0, 60.0, 60.0)),
        frozen=("backbone.first",),
    )


def flatten(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from flatten(value, f"{path}/{key}")
    elif isinstance(tree, (list, tuple)):
        for key, value in enumerate(tree):
            yield from flatten(value, f"{path}/{key}")
    else:
        yield path, tree


def assert_same_checkpoint(one: Path, two: Path, *but: str) -> None:
    """Equal bit for bit, except for what a continued run may have otherwise, and ``but``."""
    but = ("/config/output", "/config/resume", "/config/iterations", *but)
    contents = (dict(flatten(load_checkpoint(path))) for path in (one, two))
    one, two = ({k: v for k, v in c.items() if not k.startswith(but)} for c in contents)
    assert one.keys() == two.keys()
    for path, value in one.items():
        same = torch.equal(value, two[path]) if torch.is_tensor(value) else value == two[path]
        assert same, path


def lines_of(log: Path) -> list[dict[str, Any]]:
    """The lines of a log without the speed, which no two runs share."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]
