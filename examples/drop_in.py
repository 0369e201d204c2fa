"""Parts of other detectors, before and after: with the library that they use, and with this one.

docs/in-other-detectors.md shows them, `python benchmarks/dropin_bench.py` checks that their results
are the same, and times both.
"""

from __future__ import annotations

from types import ModuleType

import torch

import fastrcnn_engine


class BoxHead(torch.nn.Module):
    """The second stage of a two-stage detector, in torchvision's style.

    `ops` is torchvision.ops before and fastrcnn_engine after.
    """

    def __init__(self, channels: int, classes: int, ops: ModuleType = fastrcnn_engine):
        super().__init__()
        self.pool = ops.RoIPool(output_size=7, spatial_scale=1 / 16)
        self.clip, self.nms = ops.clip_boxes_to_image, ops.batched_nms
        self.hidden = torch.nn.Linear(channels * 49, 256)
        self.logits = torch.nn.Linear(256, classes)

    def forward(self, features: torch.Tensor, boxes: list[torch.Tensor]) -> torch.Tensor:
        return self.logits(self.hidden(self.pool(features, boxes).flatten(1)).relu())

    def detect(self, features: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int]):
        scores, labels = self(features, [boxes]).softmax(1)[:, 1:].max(1)
        boxes = self.clip(boxes, image_size)
        keep = self.nms(boxes, scores, labels, 0.3)
        return boxes[keep], scores[keep], labels[keep] + 1


class ROIPooler(torch.nn.Module):
    """Each box is pooled from the map that suits its size (equation 1 of feature pyramids)."""

    def __init__(
        self, output_size, scales, canonical_box_size=224, canonical_level=4, ops=fastrcnn_engine
    ):
        super().__init__()
        self.poolers = torch.nn.ModuleList(ops.RoIPool(output_size, scale) for scale in scales)
        self.lowest = round(-torch.tensor(scales[0]).log2().item())
        self.canonical = canonical_box_size, canonical_level

    def forward(self, x, box_lists):
        size, level = self.canonical
        tensors = [getattr(boxes, "tensor", boxes) for boxes in box_lists]  # detectron2's Boxes
        boxes = torch.cat(tensors)
        image = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(tensors)])
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        levels = (level + torch.log2(sides / size + 1e-8)).floor().long() - self.lowest
        levels = levels.clamp(0, len(x) - 1)
        rois = torch.cat([image, boxes], 1)
        side = self.poolers[0].output_size
        side = (side, side) if isinstance(side, int) else side
        out = x[0].new_zeros(len(boxes), x[0].shape[1], *side)
        for number, (pool, features) in enumerate(zip(self.poolers, x, strict=True)):
            rows = (levels == number).nonzero()[:, 0]
            out = out.index_put((rows,), pool(features, rois[rows]))
        return out


def postprocess_detections(self, class_logits, box_regression, proposals, image_shapes):
    """The method of torchvision's `RoIHeads`, whose members it reads. Its small boxes stay."""
    counts = [len(boxes) for boxes in proposals]
    scores = class_logits.softmax(-1).split(counts)
    weights = box_regression.new_tensor(self.box_coder.weights)
    deltas = (box_regression.unflatten(1, (-1, 4)) / weights).flatten(1).split(counts)
    found = [
        fastrcnn_engine.detections(
            *of_image, score_threshold=self.score_thresh, nms_threshold=self.nms_thresh,
            max_detections=self.detections_per_img,
        )
        for of_image in zip(proposals, scores, deltas, image_shapes, strict=True)
    ]  # fmt: skip
    return [x.boxes for x in found], [x.scores for x in found], [x.labels for x in found]


def pooled_in_a_loop(features: torch.Tensor, cells: torch.Tensor, size: int) -> torch.Tensor:
    """(R, 4) corners in cells, both inclusive, of image 0."""
    crops = [features[0, :, y1 : y2 + 1, x1 : x2 + 1] for x1, y1, x2, y2 in cells.tolist()]
    return torch.stack([torch.nn.functional.adaptive_max_pool2d(crop, size) for crop in crops])


def pooled_at_once(features: torch.Tensor, cells: torch.Tensor, size: int) -> torch.Tensor:
    rois = torch.nn.functional.pad(cells.float(), (1, 0))  # the image's number, 0, in front
    return fastrcnn_engine.roi_pool(features, rois, size)
