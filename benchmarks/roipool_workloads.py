"""The RoI pooling problems that are timed: maps and RoIs of the paper's networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

SCALE = 1 / 16  # map cells per image pixel; exact in binary


@dataclass(frozen=True)
class Workload:
    """R RoIs, equally many an image, on N maps of C x H x W cells, pooled to P x P."""

    name: str
    n: int
    c: int
    h: int
    w: int
    r: int
    p: int

    def __str__(self) -> str:
        shape = f"{self.n}x{self.c}x{self.h}x{self.w} -> {self.p}x{self.p}"
        return f"{self.name} R={self.r} ({shape})"


WORKLOADS = (
    Workload("vgg", 1, 512, 38, 63, r=128, p=7),
    Workload("vgg", 1, 512, 38, 63, r=300, p=7),
    Workload("vgg", 1, 512, 38, 63, r=2000, p=7),
    Workload("train", 2, 512, 38, 63, r=128, p=7),
    Workload("alex", 1, 256, 38, 50, r=300, p=6),
    Workload("alex", 1, 256, 38, 50, r=2000, p=6),
)
QUICK = WORKLOADS[:2]


class Problem:
    """One workload's tensors, always the same, and memory for results that are kept."""

    def __init__(self, workload: Workload, device: str = "cpu") -> None:
        w = self.workload = workload
        rng = np.random.default_rng(7)
        x = rng.standard_normal((w.n, w.c, w.h, w.w), dtype=np.float32)
        image = np.repeat(np.arange(w.n, dtype=np.float32), w.r // w.n)
        # An image of 16 * w - 8 pixels: the last one still rounds to the last cell of the map.
        rois = np.column_stack([image, proposals(w.r, 16 * w.h - 8, 16 * w.w - 8, rng)])
        grad = rng.standard_normal((w.r, w.c, w.p, w.p), dtype=np.float32)
        # Peers with exact bins pool other cells here; without a gradient there, all must agree.
        overshoots = _overshoots(rois, w.p)
        grad[overshoots] = 0
        self.x = torch.from_numpy(np.maximum(x - 0.5, 0)).to(device)  # ReLU-like: zeros and ties
        self.rois = torch.from_numpy(rois).to(device)  # (R, 5)
        self.grad = torch.from_numpy(grad).to(device)  # (R, C, P, P)
        self.overshoots = torch.from_numpy(overshoots).to(device)  # (R,) bool
        self.out = torch.empty_like(self.grad)
        self.argmax = torch.empty_like(self.grad, dtype=torch.int32)


def proposals(count: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 4) float32 boxes inside the image, sides log-uniform from 20 pixels to its own."""
    w, h = (np.exp(rng.uniform(np.log(20), np.log(side), count)) for side in (width, height))
    x, y = rng.uniform(0, 1, count) * (width - w), rng.uniform(0, 1, count) * (height - h)
    far = np.minimum(x + w, width - 1), np.minimum(y + h, height - 1)
    return np.column_stack([x, y, *far]).astype(np.float32)


def map_corners(rois: np.ndarray) -> np.ndarray:
    """(R, 4) first and last cells x1, y1, x2, y2 of RoIs inside the image; halves round up."""
    return np.floor(rois[:, 1:].astype(np.float64) * SCALE + 0.5).astype(np.int64)


def _overshoots(rois: np.ndarray, bins: int) -> np.ndarray:
    """(R,) bool: the float32 bin edges of Caffe and torchvision are not the exact ones.

    57 cells in 7 bins: 7 * float32(57 / 7) is a little above 57, so the last bin ends at 58.
    """
    x1, y1, x2, y2 = map_corners(rois).T
    sides = np.stack([x2 - x1 + 1, y2 - y1 + 1])[..., None]
    p = np.arange(bins + 1)
    edges = p.astype(np.float32) * (sides.astype(np.float32) / np.float32(bins))
    same = (np.floor(edges) == p * sides // bins) & (np.ceil(edges) == -(-p * sides // bins))
    return ~same.all(axis=(0, 2))
