"""The examples of examples/drop_in.py before and after: checked, then timed.

    python benchmarks/dropin_bench.py       # a minute; keep the machine quiet

Before is the library that the example was written for, which must be installed (torchvision; torch
for the loop), after is this package. Everything around it, layers too, is in both times.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

import fastrcnn_engine as engine
import harness
import roipool_peers
from harness import OURS, Row, Section
from roipool_workloads import WORKLOADS, Problem, map_corners, proposals

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from drop_in import (  # noqa: E402
    BoxHead,
    ROIPooler,
    pooled_at_once,
    pooled_in_a_loop,
    postprocess_detections,
)

BEFORE, AFTER = "before", f"{OURS} (after)"
IMAGE = (600, 1000)


class TorchVision(roipool_peers.TorchVision):
    @property
    def ops(self) -> ModuleType:
        import torchvision

        return torchvision.ops


def boxes_of(count: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(proposals(count, *IMAGE, np.random.default_rng(seed)))


def box_head(ops: ModuleType, device: str) -> BoxHead:
    torch.manual_seed(1)
    return BoxHead(256, 21, ops).to(device)


def detections(ops: ModuleType, device: str) -> Callable[[], Any]:
    head, boxes = box_head(ops, device), boxes_of(1000, 2).to(device)
    features = torch.randn(1, 256, 38, 63).relu_().to(device)
    return torch.no_grad()(lambda: head.detect(features, boxes, IMAGE))


def training(ops: ModuleType, device: str) -> Callable[[], Any]:
    head, boxes = box_head(ops, device), [boxes_of(64, seed).to(device) for seed in (3, 4)]
    features = torch.randn(2, 256, 38, 63).relu_().to(device).requires_grad_()
    labels = (torch.arange(128) % 21).to(device)

    def step() -> tuple[torch.Tensor, ...]:
        loss = torch.nn.functional.cross_entropy(head(features, boxes), labels)
        return torch.autograd.grad(loss, [features, *head.parameters()])

    return step


def pyramid(ops: ModuleType, device: str) -> Callable[[], Any]:
    pooler = ROIPooler(7, tuple(1 / 2**level for level in (2, 3, 4, 5)), ops=ops)
    torch.manual_seed(1)
    maps = [torch.randn(1, 256, 600 // 2**i, 1000 // 2**i).to(device) for i in (2, 3, 4, 5)]
    boxes = [boxes_of(1000, 5).to(device)]
    return torch.no_grad()(lambda: pooler(maps, boxes))


def postprocessing(ops: ModuleType, device: str) -> Callable[[], Any]:
    """What the method reads of torchvision's `RoIHeads`, with its defaults, for COCO's classes."""
    weights = (10.0, 10.0, 5.0, 5.0)
    if ops is engine:
        method, coder = postprocess_detections, SimpleNamespace(weights=weights)
    else:
        from torchvision.models.detection import _utils, roi_heads

        method, coder = roi_heads.RoIHeads.postprocess_detections, _utils.BoxCoder(weights)
    heads = SimpleNamespace(
        box_coder=coder, score_thresh=0.05, nms_thresh=0.5, detections_per_img=100
    )
    torch.manual_seed(1)
    logits, deltas = (2 * torch.randn(1000, 91)).to(device), torch.randn(1000, 364).to(device)
    boxes = [boxes_of(1000, 2).to(device)]
    return lambda: tuple(of[0] for of in method(heads, logits, deltas, boxes, [IMAGE]))


EXAMPLES = {
    "second stage, detections of an image, 1000 proposals": detections,
    "second stage, training step, 2 images, 128 RoIs": training,
    "ROIPooler over four maps, 1000 boxes": pyramid,
    "RoIHeads.postprocess_detections, 1000 proposals, 91 classes": postprocessing,
}
ROUNDED = (training, postprocessing)  # sums in another order, another exp


def loop(device: str) -> Section:
    problem = Problem(WORKLOADS[2], device)
    # adaptive_max_pool2d has exact bins, without the float32 overshoot (roipool_workloads.py).
    chosen = ~problem.overshoots.cpu()
    cells = torch.from_numpy(map_corners(problem.rois.cpu().numpy()))[chosen][:300].to(device)
    before = partial(pooled_in_a_loop, problem.x, cells, 7)
    after = partial(pooled_at_once, problem.x, cells, 7)
    rows = [Row(f"torch ({BEFORE})", "whole", before), Row(AFTER, "whole", after)]
    return Section("loop over adaptive_max_pool2d, 300 RoIs", rows, partial(same, rows, True))


def same(rows: list[Row], exactly: bool) -> str:
    """SystemExit unless every result is the first row's, bit for bit or but for rounding."""
    results = [row.run() for row in rows]
    results = [result if isinstance(result, tuple) else (result,) for result in results]
    for row, result in zip(rows, results, strict=True):
        for left, right in zip(result, results[0], strict=True):
            close = torch.equal if exactly else partial(torch.allclose, rtol=1e-4, atol=1e-6)
            if left.shape != right.shape or not close(left, right):
                raise SystemExit(f"check failed, so nothing is timed: {row.who}: another result")
    return f"{len(rows)} times the same{', bit for bit' if exactly else ' to rounding'}"


def sections(peers: list, device: str) -> list[Section]:
    found = []
    for title, example in EXAMPLES.items() if peers else ():
        rows = [Row(f"{p.name} ({BEFORE})", "whole", example(p.ops, device)) for p in peers]
        rows.append(Row(AFTER, "whole", example(engine, device)))
        found.append(Section(title, rows, partial(same, rows, example not in ROUNDED)))
    return [*found, loop(device)]


if __name__ == "__main__":
    harness.run_sections("drop-in", __doc__, (TorchVision,), sections)
