"""Suppression and overlaps beside other implementations: checked, then timed.

    python benchmarks/nms_bench.py              # two minutes; keep the machine quiet

Boxes come in clusters, as a detector's do: 20 a cluster, moved by 15 % and scaled by 20 % of its
size (one standard deviation), on a 1000 pixel image; scores are a random order, without ties.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

import fastrcnn_engine as engine
import harness
import roipool_peers
from harness import OURS, Row, Section, replayed


def clustered(count: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 4) boxes and (count,) scores."""
    rng = np.random.default_rng(seed)
    clusters = max(count // 20, 1)
    which = rng.integers(0, clusters, count)
    side = np.exp(rng.uniform(np.log(20), np.log(300), (clusters, 2)))[which]
    centre = rng.uniform(0, 1000, (clusters, 2))[which] + rng.normal(0, 0.15, (count, 2)) * side
    side = side * np.exp(rng.normal(0, 0.2, (count, 2)))
    boxes = np.hstack([centre - side / 2, centre + side / 2]).astype(np.float32)
    scores = (rng.permutation(count) / count).astype(np.float32)
    return torch.from_numpy(boxes), torch.from_numpy(scores)


class TorchVision(roipool_peers.TorchVision):
    def nms(self, boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> Any:
        return partial(self.op.nms, boxes, scores, threshold)

    def batched(
        self, boxes: torch.Tensor, scores: torch.Tensor, ids: torch.Tensor, threshold: float
    ) -> Any:
        return partial(self.batched_nms, boxes, scores, ids, threshold)

    @property
    def batched_nms(self) -> Any:
        from torchvision.ops import batched_nms

        return batched_nms

    @property
    def box_iou(self) -> Any:
        from torchvision.ops import box_iou

        return box_iou


class OpenVino(roipool_peers.OpenVino):
    def _nms(self, boxes: np.ndarray, scores: np.ndarray, threshold: float) -> Any:
        """boxes (batch, B, 4), scores (batch, 1, B): rows (batch, class, box) are kept."""
        count = boxes.shape[1]
        limits = np.int64(count), np.float32(threshold), np.float32(-1)
        run = self.model(
            [boxes, scores],
            lambda *inputs: [self.ov.opset9.non_max_suppression(*inputs, *limits).output(0)],
        )
        return lambda: run()[0]

    def nms(self, boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> Any:
        run = self._nms(boxes.numpy()[None], scores.numpy()[None, None], threshold)
        return lambda: run()[:, 2]

    def batched(
        self, boxes: torch.Tensor, scores: torch.Tensor, ids: torch.Tensor, threshold: float
    ) -> Any:
        """Classes of equal size, one after the other, as images of a batch."""
        count = int(ids.max()) + 1
        size = len(ids) // count
        shape = (count, size)
        run = self._nms(
            boxes.numpy().reshape(*shape, 4), scores.numpy().reshape(count, 1, size), threshold
        )
        return lambda: run() @ np.array([size, 0, 1])


def same_boxes(rows: list[Row]) -> str:
    """Every row keeps the boxes that the first keeps."""
    expected = torch.as_tensor(rows[0].run()).sort().values
    for row in rows[1:]:
        kept = row.run()
        kept = torch.as_tensor(kept if torch.is_tensor(kept) else kept.copy()).sort().values
        kept = kept[kept >= 0]  # some fill up with -1
        if not torch.equal(kept.long(), expected):
            raise SystemExit(f"{row.who} keeps {len(kept)} boxes, not the same {len(expected)}")
    return f"all keep the same {len(expected)} boxes"


def same_overlaps(rows: list[Row]) -> str:
    if not all(torch.equal(rows[0].run(), row.run()) for row in rows):
        raise SystemExit("other overlaps")
    return "the same bits"


def rows_of(run: Callable, padded: Callable, device: str) -> list[Row]:
    """Ours, and on a GPU also where nobody waits for the number of boxes."""
    rows = [Row(OURS, "nms", run)]
    if device == "cuda":
        rows += [
            Row(f"{OURS}, padded", "nms", lambda: padded().indices),
            Row(f"{OURS}, padded, in a CUDA graph", "nms", replayed(lambda: padded().indices)),
        ]
    return rows


def sections(peers: list, device: str) -> list[Section]:
    found = []
    for count in (2000, 12000):
        for threshold in (0.3, 0.7):
            boxes, scores = (x.to(device) for x in clustered(count))
            run = partial(engine.nms, boxes, scores, threshold)
            rows = rows_of(run, partial(engine.nms_padded, boxes, scores, threshold, count), device)
            rows += [Row(p.name, "nms", p.nms(boxes, scores, threshold)) for p in peers]
            title = f"nms, {count} boxes at {threshold}"
            found.append(Section(title, rows, partial(same_boxes, rows)))
    # The last are the proposals of a feature pyramid, whose levels are the classes.
    for classes, size, threshold in ((20, 300, 0.3), (80, 300, 0.3), (5, 2000, 0.7)):
        count = classes * size
        boxes, scores = (x.to(device) for x in clustered(count))
        ids = torch.arange(count, device=device) // size
        run = partial(engine.batched_nms, boxes, scores, ids, threshold)
        padded = partial(engine.nms_padded, boxes, scores, threshold, count, idxs=ids)
        rows = rows_of(run, padded, device)
        rows += [Row(p.name, "nms", p.batched(boxes, scores, ids, threshold)) for p in peers]
        title = f"batched_nms, {classes} classes x {size} boxes at {threshold}"
        found.append(Section(title, rows, partial(same_boxes, rows)))
    # Objects against proposals, as targets are assigned, and proposals against each other.
    for count in (20, 2000):
        boxes1, boxes2 = clustered(count, seed=4)[0].to(device), clustered(2000)[0].to(device)
        rows = [Row(OURS, "overlaps", partial(engine.box_iou, boxes1, boxes2))]
        rows += [
            Row(p.name, "overlaps", partial(p.box_iou, boxes1, boxes2))
            for p in peers
            if hasattr(p, "box_iou")
        ]
        title = f"box_iou, {count} x 2000 boxes"
        found.append(Section(title, rows, partial(same_overlaps, rows)))
    return found


if __name__ == "__main__":
    harness.run_sections("nms", __doc__, (TorchVision, OpenVino), sections)
