"""R-CNN (Girshick et al., CVPR 2014; tech report v5): every proposal is an image of its own."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track

from fastrcnn_engine.models import FastRCNN
from rivals.stages import Job, Stages, fine_tune, scored_boxes, train_regressors, train_svms

# The original's 227 for a network whose map it pools to 6 x 6. `tiny` pools to 7 x 7 at stride 8:
# 14 x 14 cells and one more max pooling, as in VGG16, make 112 pixels.
CROP = 112
MARGIN = CROP * 16 / 227  # of context on each side
CHUNK = 128  # crops that go through the network together
POOL = ThreadPoolExecutor(os.cpu_count())


def warp(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Boxes (P, 4) of an image, each with a margin, as crops (P, 112, 112, 3) uint8.

    Height and width are scaled each by itself. What lies outside of the image is grey.
    """
    crops = np.empty((len(boxes), CROP, CROP, 3), np.uint8)
    grey = (128, 128, 128)
    inner = CROP - 2 * MARGIN

    def one(i: int) -> None:
        x1, y1, x2, y2 = boxes[i].tolist()
        sx, sy = (x2 - x1 + 1) / inner, (y2 - y1 + 1) / inner
        # From the centre of a crop's pixel to the image, where pixel x covers x - 0.5 to x + 0.5.
        matrix = np.array(
            [[sx, 0, x1 - 0.5 + (0.5 - MARGIN) * sx], [0, sy, y1 - 0.5 + (0.5 - MARGIN) * sy]]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cv2.warpAffine(image, matrix, (CROP, CROP), crops[i], flags, cv2.BORDER_CONSTANT, grey)

    list(POOL.map(one, range(len(boxes))))  # OpenCV lets go of Python's lock
    return crops


def pool_crops(model: FastRCNN, crops: np.ndarray) -> torch.Tensor:
    """Crops (P, 112, 112, 3) -> what fc6 takes, (P, C, 7, 7)."""
    rule = model.preprocessing
    pixels = torch.from_numpy(crops).float()
    pixels = (pixels - torch.tensor(rule.mean)) / torch.tensor(rule.std)
    # Channels are last in memory already, as the convolutions like them.
    return F.max_pool2d(model.backbone(pixels.permute(0, 3, 1, 2)), 2)


def fine_tune_on_crops(job: Job) -> None:
    """Every layer learns to classify crops; a negative is any box with IoU below 0.5."""
    entries = job.entries(0.5, 0.0)

    def logits_of(chosen: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        crops = np.concatenate(
            [warp(job.images[entries[i].record.image_id], entries[i].boxes[[row]])
             for i, row in chosen]
        )  # fmt: skip
        mirrored = rng.random(len(crops)) < 0.5
        crops[mirrored] = crops[mirrored, :, ::-1]
        return job.model.cls_score(job.model.head(pool_crops(job.model, crops)))

    fine_tune(job, entries, logits_of, "R-CNN: fine-tuning")


class RCNN:
    """The detector; made by training it."""

    def __init__(self, job: Job) -> None:
        self.model = job.model
        self.stages = Stages(job.model)
        with self.stages.stage("fine-tuning"):
            fine_tune_on_crops(job)

        def file(number: int) -> str:
            return str(job.folder / f"{job.records[number].image_id}.npy")

        with self.stages.stage("features to disk"):
            for i, record in enumerate(track(job.records, "R-CNN: features to disk")):
                np.save(file(i), self.pooled(job.images[record.image_id], job.boxes(i)).numpy())

        def pooled_of(number: int) -> torch.Tensor:
            return torch.from_numpy(np.load(file(number)))

        with self.stages.stage("SVMs"):
            train_svms(job, pooled_of)
        with self.stages.stage("box regressors"):
            self.regressors = train_regressors(job, pooled_of, iou=0.6, penalty=1000)

    @torch.inference_mode()
    def pooled(self, image: np.ndarray, boxes: np.ndarray) -> torch.Tensor:
        """Every box through the convolutions: (P, C, 7, 7)."""
        chunks = [boxes[start : start + CHUNK] for start in range(0, len(boxes), CHUNK)]
        return torch.cat([pool_crops(self.model, warp(image, chunk)) for chunk in chunks])

    @torch.inference_mode()
    def detect(self, image: np.ndarray, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (P, K+1, 4) and scores (P, K+1)."""
        pooled = self.pooled(image, proposals)
        return scored_boxes(self.model, self.regressors, pooled, proposals, image.shape[:2])
