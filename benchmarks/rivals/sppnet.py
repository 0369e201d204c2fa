"""SPPnet (He et al., ECCV 2014): convolutions once for an image and scale, and never trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from rich.progress import track
from torch import nn

from fastrcnn_engine import spp_pool
from fastrcnn_engine.data.preparation import Preprocessing, prepare_image
from fastrcnn_engine.models.tiny import tiny_head
from rivals.rcnn import CROP
from rivals.stages import Job, Stages, fine_tune, scored_boxes, train_regressors, train_svms

SCALES = (480, 576, 688, 864, 1200)  # of the paper, where ours would be 600
BINS = 50  # 1 x 1, 2 x 2, 3 x 3 and 6 x 6


def windows(boxes: np.ndarray, scale: float, stride: int, size: tuple[int, int]) -> np.ndarray:
    """Boxes (P, 4) of an image as (P, 5) windows of cells on its map, image index 0.

    The cells are those whose centres lie inside (SPPnet, appendix A), which is not the rounding of
    Fast R-CNN. A box between two centres gets the cell in its middle.
    """
    scaled = boxes.astype(np.float64) * scale / stride
    first, last = np.floor(scaled[:, :2]) + 1, np.ceil(scaled[:, 2:]) - 1
    middle = np.round((first + last) / 2)
    first, last = (np.where(first > last, middle, edge) for edge in (first, last))
    limit = np.array(size[::-1]) - 1
    cells = np.hstack([first.clip(0, limit), last.clip(0, limit)])
    return np.insert(cells, 0, 0, axis=1).astype(np.float32)


class SPPNet:
    """The detector; made by training it."""

    def __init__(self, job: Job) -> None:
        self.model = model = job.model
        model.freeze(["backbone"])
        channels = job.model.head.fc6.in_features // model.pooled_size**2
        model.head = tiny_head(channels * BINS, 1, model.cls_score.in_features)
        for module in model.head.modules():
            if isinstance(module, nn.Linear):  # as in tiny
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        model.eval()
        base = model.preprocessing
        sides = [round(base.short_side * scale / 600) for scale in SCALES]
        # The long side has no limit.
        self.levels = [replace(base, short_side=side, max_side=20 * side) for side in sides]
        self.stages = Stages(model)

        def file(number: int, level: int) -> str:
            return str(job.folder / f"{job.records[number].image_id}-{level}.npy")

        with self.stages.stage("maps to disk"):
            for i, record in enumerate(track(job.records, "SPPnet: maps to disk")):
                for level, rule in enumerate(self.levels):
                    np.save(file(i, level), self.map_of(job.images[record.image_id], rule))

        maps: dict[tuple[int, int], np.ndarray] = {}

        def map_on_disk(number: int, level: int) -> np.ndarray:
            if (number, level) not in maps:
                maps[number, level] = np.load(file(number, level), mmap_mode="r")
            return maps[number, level]

        entries = job.entries(0.5, 0.1)

        def logits_of(chosen: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
            drawn = rng.integers(len(self.levels), size=len(chosen))
            pooled = [
                self.pool(
                    map_on_disk(i, level),
                    self.levels[level].scale(entries[i].record.height, entries[i].record.width),
                    entries[i].boxes[[row]],
                )
                for (i, row), level in zip(chosen, drawn, strict=True)
            ]
            return model.cls_score(model.head(torch.from_numpy(np.concatenate(pooled))))

        with self.stages.stage("fine-tuning"):
            fine_tune(job, entries, logits_of, "SPPnet: fine-tuning")

        def pooled_of(number: int) -> torch.Tensor:
            shape = job.images[job.records[number].image_id].shape[:2]
            return self.pooled(
                shape, job.boxes(number), lambda level, rule: map_on_disk(number, level)
            )

        with self.stages.stage("SVMs"):
            train_svms(job, pooled_of)
        with self.stages.stage("box regressors"):
            self.regressors = train_regressors(job, pooled_of, iou=0.5, penalty=4000)

    @torch.inference_mode()
    def map_of(self, image: np.ndarray, rule: Preprocessing) -> np.ndarray:
        """The convolutions of an image at one scale, (1, C, h, w)."""
        return self.model.backbone(prepare_image(image, rule)[0][None]).numpy()

    def pool(self, features: np.ndarray, scale: float, boxes: np.ndarray) -> np.ndarray:
        """(P, C * 50)"""
        return spp_pool(features, windows(boxes, scale, self.model.stride, features.shape[2:]))

    def pooled(
        self,
        shape: tuple[int, int],
        boxes: np.ndarray,
        map_at: Callable[[int, Preprocessing], np.ndarray],
    ) -> torch.Tensor:
        """Every box from the scale that brings it closest to the size of a crop: (P, C * 50).

        map_at: the map of the image at a level that some box needs.
        """
        scales = np.array([rule.scale(*shape) for rule in self.levels])
        areas = (boxes[:, 2:].astype(np.float64) - boxes[:, :2] + 1).prod(axis=1)
        nearest = np.abs(areas[:, None] * scales**2 - CROP**2).argmin(axis=1)
        pooled = np.empty((len(boxes), self.model.head.fc6.in_features), np.float32)
        for level in np.unique(nearest).tolist():
            rows = nearest == level
            features = map_at(level, self.levels[level])
            pooled[rows] = self.pool(features, scales[level], boxes[rows])
        return torch.from_numpy(pooled)

    @torch.inference_mode()
    def detect(self, image: np.ndarray, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (P, K+1, 4) and scores (P, K+1)."""
        pooled = self.pooled(
            image.shape[:2], proposals, lambda level, rule: self.map_of(image, rule)
        )
        return scored_boxes(self.model, self.regressors, pooled, proposals, image.shape[:2])
